"""Why there is no estimate.

EngineError
└── EstimateImpossible   with a code, and the field to change where one would help
"""

from engine.errors import EngineError


class EstimateImpossible(EngineError):
    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param
