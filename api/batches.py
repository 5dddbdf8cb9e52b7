"""A body's chunks in pieces of about a MiB: each is one hop to a thread."""

from collections.abc import AsyncIterator

BATCH_BYTES = 1 << 20


async def batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in fewer pieces."""
    held, size = [], 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= BATCH_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)
