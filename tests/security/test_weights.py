"""S6: weights are data. The corpus has each kind of bad file; here is what that costs."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapters.errors import AdapterInvalid
from adapters.tensors import check_finite, read_header
from tests import clock
from tests.record import Record

REPO = Path(__file__).resolve().parents[2]
CORPUS = REPO / "tests" / "corpus" / "adapters"


def test_a_large_file_is_refused_by_its_header_at_once(tmp_path: Path, record: Record) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"x": np.ones(25_000_000, np.float32)}, path)
    assert path.stat().st_size > 100_000_000

    began = clock.now()
    header = read_header(path)
    record("S6", "the header of a file of 100 MB", clock.now() - began, "s", at_most=1.0)
    began = clock.now()
    check_finite(path, header)
    record("S6", "its 25 million numbers looked at", clock.now() - began, "s", at_most=5.0)

    with path.open("r+b") as file:  # a hole, and bytes of which no tensor knows
        file.truncate(path.stat().st_size + 4)
    began = clock.now()
    with pytest.raises(AdapterInvalid):
        read_header(path)
    record("S6", "a bad file of 100 MB refused", clock.now() - began, "s", at_most=1.0)


def test_the_corpus_has_every_kind_that_is_promised(record: Record) -> None:
    codes = json.loads((CORPUS / "expected.json").read_bytes())["codes"]
    kinds = {
        "a pickle": "pickle-", "a header that is a bomb": "header-bomb",
        "tensors that overlap": "header-overlap", "a hole": "header-hole",
        "a zip at the end": "trailing-zip", "NaN": "weights-nan", "infinity": "weights-inf",
        "a wrong shape": "weights-wrong-shape", "a rank of 4,096": "config-rank-too-high",
        "10,000 tensors": "weights-too-many", "odd names": "weights-name-",
        "another base": "weights-wrong-base", "paths": "path-traversal", "links": "link",
        "code to import": "auto-mapping",
    }  # fmt: skip
    for kind, prefix in kinds.items():
        its = {name: code for name, code in codes.items() if prefix in name}
        assert its, kind
        assert "accepted" not in its.values(), kind
    bad = [name for name, code in codes.items() if not name.startswith("good")]
    assert all(codes[name] != codes["good.tar"] for name in bad)
    record("S6", "bad archives, each refused with its own code", len(bad), at_least=120)
