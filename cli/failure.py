"""An expected failure of a command: one red line, exit code 1, no traceback."""


class CommandFailed(Exception):
    """Says what is wrong, where, and what to do next. `details` are printed below, one a line."""

    def __init__(self, message: str, *, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.details = details


def is_expected(error: Exception) -> bool:
    """Whether an error's text is made for who typed the command."""
    if isinstance(error, CommandFailed):
        return True
    from adapters.errors import AdapterError
    from engine.errors import EngineError
    from jobs.errors import JobsError
    from storage.objects import StorageError

    return isinstance(error, AdapterError | EngineError | JobsError | StorageError)
