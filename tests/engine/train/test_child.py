"""What a child says when it runs short of something."""

import errno

import pytest
import torch

from engine.train.child import _failure


def _too_much() -> Exception:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    return raised.value


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (MemoryError(), "out_of_memory", False),
        (_too_much(), "out_of_memory", False),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", True),
        (KeyError("x"), "internal_error", False),
    ],
)
def test_a_shortage_is_told_as_one(error: Exception, code: str, retryable: bool) -> None:
    failed = _failure(error)
    assert (failed.code, failed.retryable) == (code, retryable)
