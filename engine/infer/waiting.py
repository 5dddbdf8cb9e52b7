"""Who is next: sequences that wait, in turn between tenants and in order within one."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

from engine.infer.sequence import Sequence


class Waiting:
    """One line for each tenant. Whoever has the fewest sequences running is next; of several, the
    one who was served longest ago."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Sequence]] = {}  # in the order in which they were served last

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def add(self, sequence: Sequence) -> None:
        self._lines.setdefault(sequence.request.tenant, deque()).append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """To the head of its line: it was running."""
        self._lines.setdefault(sequence.request.tenant, deque()).appendleft(sequence)

    def drop_cancelled(self) -> None:
        for line in self._lines.values():
            if any(sequence.ticket.cancelled for sequence in line):
                kept = [sequence for sequence in line if not sequence.ticket.cancelled]
                line.clear()
                line.extend(kept)
        self._close_empty()

    def let_in(self, running: Iterable[Sequence], try_one: Callable[[Sequence], bool]) -> None:
        """Offer sequences until one is not taken: nobody passes those for whom there is no room."""
        counts = Counter(sequence.request.tenant for sequence in running)
        while self._lines:
            tenant = min(self._lines, key=lambda each: counts[each])
            line = self._lines[tenant]
            if not try_one(line[0]):
                return
            line.popleft()
            counts[tenant] += 1
            self._lines[tenant] = self._lines.pop(tenant)  # now served most recently
            self._close_empty()

    def clear(self) -> None:
        self._lines.clear()

    def _close_empty(self) -> None:
        for tenant in [tenant for tenant, line in self._lines.items() if not line]:
            del self._lines[tenant]
