"""A dataset's bytes on this machine, for as long as somebody reads them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from api.services import Services
from jobs.model import Dataset
from storage.keys import dataset_source
from storage.objects import ObjectNotFound

LINE_BYTES = 1 << 20  # no row of text is longer


@contextmanager
def dataset_copy(
    services: Services, dataset: Dataset, size_bytes: int | None = None
) -> Iterator[Path]:
    """A dataset's bytes, or the first of them, in a temporary file."""
    with tempfile.TemporaryDirectory(prefix="luthier-") as folder:
        path = Path(folder) / "source"
        try:
            chunks = services.objects.stream(dataset_source(dataset.tenant_id, dataset.id))
        except ObjectNotFound:
            services.store.datasets.get(dataset.tenant_id, dataset.id)  # deleted just now?
            raise
        count = None if size_bytes is None else -(-size_bytes // LINE_BYTES)
        with path.open("wb") as file:
            for chunk in islice(chunks, count):
                file.write(chunk)
        yield path
