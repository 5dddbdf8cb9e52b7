"""Time: from a model of a CPU until there are earlier jobs, and never guessed for a GPU."""

from engine.estimate.model import Earlier
from engine.estimate.speed import time_of


def test_a_gpu_without_earlier_jobs_has_no_time() -> None:
    time = time_of(10.0, (), "cuda", passes=1e6)
    assert (time.seconds, time.source) == (None, None)
    assert "no job" in time.basis


def test_earlier_jobs_scale_the_model_by_what_it_was_off() -> None:
    earlier = [Earlier(seconds=s, modelled_seconds=1.0) for s in (2.0, 3.0, 50.0)]
    time = time_of(10.0, earlier, "cuda", passes=3e6)
    assert (time.seconds, time.source) == (30.0, "earlier_jobs")
    assert "3 earlier jobs" in time.basis
    assert "100,000 token passes a second" in time.basis
