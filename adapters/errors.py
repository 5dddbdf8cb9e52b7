"""What can be wrong with an adapter.

AdapterError
├── AdapterInvalid   the files do not make an adapter we can serve; `code` says which defect
├── AdapterMissing   there is no such adapter, or it was deleted
└── AdapterCorrupt   a stored file is not what was published; `name` says which
"""


class AdapterError(Exception):
    """An adapter cannot be used as asked."""


class AdapterInvalid(AdapterError):
    """Files from outside that are not a servable adapter. Each defect has its own code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AdapterMissing(AdapterError):
    """No adapter has the id."""

    def __init__(self, adapter_id: str) -> None:
        super().__init__(f"there is no adapter {adapter_id[:80]!r}; it may have been deleted")
        self.adapter_id = adapter_id


class AdapterCorrupt(AdapterError):
    """A file of a published adapter is missing or damaged in the store."""

    def __init__(self, adapter_id: str, name: str, detail: str) -> None:
        super().__init__(
            f"adapter {adapter_id}: {name} {detail}; restore it from a backup or train again"
        )
        self.adapter_id = adapter_id
        self.name = name
