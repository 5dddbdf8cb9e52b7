"""A store whose process dies at a chosen write: everything after it raises and does nothing."""

from storage.memory import MemoryStore


class Cut(BaseException):
    """The process was killed here."""


class DyingStore(MemoryStore):
    """Shares another store's objects and allows `writes` more changes to them."""

    def __init__(self, behind: MemoryStore, writes: int) -> None:
        super().__init__()
        self._objects, self._lock = behind._objects, behind._lock
        self.left = writes

    def _spend(self) -> None:
        if self.left == 0:
            raise Cut
        self.left -= 1

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._spend()
        super().put(key, data, if_absent=if_absent)

    def delete(self, key: str) -> None:
        self._spend()
        super().delete(key)

    def delete_prefix(self, prefix: str) -> int:
        """One by one, as every real store does it."""
        keys = [info.key for info in self.list(prefix)]
        for key in keys:
            self.delete(key)
        return len(keys)
