"""A worker's folder on the disk: its own while it lives, removed by the next one after that."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from jobs.worker import work_folder


def test_workers_that_start_together_take_no_folder_for_a_dead_one(tmp_path: Path) -> None:
    together = Barrier(8, timeout=60)

    def start(round_number: int) -> bool:
        together.wait()
        with work_folder(tmp_path / "work") as (_, mine):
            together.wait()
            return (mine / "lock").exists()

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert all(pool.map(start, range(8)))


def test_the_folder_of_a_worker_that_died_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = tmp_path / "work" / "host-1-abcd"
    dead.mkdir(parents=True)
    (dead / "lock").touch()
    (dead / "rows.jsonl").write_text("left")
    with work_folder(tmp_path / "work") as (owner, mine):
        assert not dead.exists()
        assert mine.name == owner
    assert list((tmp_path / "work").iterdir()) == []
