"""Why a training run ends early.

EngineError
├── ShareDone       this process is not the first of its run, which has the result
├── StopRequested   the runner asked for it: cancel or pause
└── TrainingFailed  with a code and a text for the client
"""

from typing import Literal

from engine.errors import EngineError


class ShareDone(EngineError):
    pass


class StopRequested(EngineError):
    def __init__(self, directive: Literal["cancel", "pause"]) -> None:
        super().__init__(directive)
        self.directive: Literal["cancel", "pause"] = directive


class TrainingFailed(EngineError):
    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code, self.retryable = code, retryable
