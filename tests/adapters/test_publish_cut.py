"""Publishes and removals of several adapters, each cut anywhere, between reads by anyone."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from adapters import registry
from adapters.download import download
from adapters.errors import AdapterMissing
from adapters.manifest import Lineage, Manifest
from storage.keys import adapter_prefix
from storage.memory import MemoryStore
from tests.adapters.faults import Cut, DyingStore
from tests.record import Record

TENANT = "tn_" + "a" * 24
IDS = ["ad_" + digit * 24 for digit in "123"]
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "README.md": b""}


def manifest(adapter_id: str) -> Manifest:
    return Manifest(
        adapter_id=adapter_id, kind="lora", base_model="b", base_revision="1",
        tokenizer_sha256="0" * 64, contract={}, lineage=Lineage(), peft={}, created_at=1.0,
    )  # fmt: skip


class CutPublishes(RuleBasedStateMachine):
    cuts: ClassVar[list[str]] = []

    @initialize()
    def begin(self) -> None:
        self.store = MemoryStore()
        self.temporary = TemporaryDirectory()
        self.source = Path(self.temporary.name)
        for name, data in FILES.items():
            (self.source / name).write_bytes(data)
        self.finished: set[str] = set()
        self.begun: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "temporary"):
            self.temporary.cleanup()

    @rule(adapter_id=st.sampled_from(IDS), writes=st.integers(0, len(FILES) + 3))
    def publish(self, adapter_id: str, writes: int) -> None:
        self.begun.add(adapter_id)
        try:
            dying = DyingStore(self.store, writes)
            registry.publish(dying, TENANT, self.source, manifest(adapter_id))
            self.finished.add(adapter_id)
        except Cut:
            self.cuts.append(adapter_id)

    @rule(adapter_id=st.sampled_from(IDS), writes=st.integers(0, len(FILES) + 4))
    def remove(self, adapter_id: str, writes: int) -> None:
        self.finished.discard(adapter_id)
        try:
            registry.remove(DyingStore(self.store, writes), TENANT, adapter_id)
        except Cut:
            self.cuts.append(adapter_id)
            return
        assert list(self.store.list(adapter_prefix(TENANT, adapter_id))) == []

    @invariant()
    def readers_see_all_or_none(self) -> None:
        for adapter_id in IDS if hasattr(self, "store") else []:
            self.check(adapter_id)

    def check(self, adapter_id: str) -> None:
        try:
            servable = registry.tenant_of(self.store, adapter_id) == TENANT
        except AdapterMissing:
            servable = False
        try:
            archive = b"".join(download(self.store, TENANT, adapter_id))  # checks each sha256
        except AdapterMissing:
            assert not servable
            assert adapter_id not in self.finished
            return
        assert all(data in archive for data in FILES.values())
        entries = registry.read_manifest(self.store, TENANT, adapter_id).files
        assert {entry.name for entry in entries} == set(FILES)
        assert servable or adapter_id not in self.finished
        assert adapter_id in self.begun


def test_a_publish_that_is_cut_anywhere_shows_all_or_nothing(record: Record) -> None:
    cuts: list[str] = []
    CutPublishes.cuts = cuts
    run_state_machine_as_test(
        CutPublishes, settings=settings(max_examples=150, stateful_step_count=25, deadline=None)
    )
    what = "publishes and removals cut anywhere, after each of which readers saw all or nothing"
    record("R8", what, len(cuts), at_least=1000)
