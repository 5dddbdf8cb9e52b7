"""One world of a tiny Llama with four adapters, and a server of it, for all tests here."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engine.infer.world import CONTEXT, World, serve, write_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), context=CONTEXT)


@pytest.fixture(scope="session")
def world(base: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("adapters"), base)
    world.add_lora("ad_rank4", r=4, seed=1)
    world.add_lora("ad_rank8", r=8, lora_alpha=4, seed=2)
    world.add_lora("ad_rslora", r=16, lora_alpha=8, use_rslora=True, seed=3)
    world.add_lora("ad_part", r=8, target_modules=["q_proj", "down_proj"], seed=4)
    world.add_lora("ad_dora", r=8, use_dora=True, seed=5)
    world.add_virtual_tokens("ad_prompt", "prompt_tuning", seed=6)
    world.add_virtual_tokens("ad_prefix", "prefix_tuning", seed=7)
    world.add_full("ad_full", seed=9)
    return world


@pytest.fixture
def own_world(base: Path, tmp_path: Path) -> World:
    """For tests that add adapters of their own."""
    return World(tmp_path, base)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serve(world) as client:
        yield client
