"""A dataset on its way in: checked, hashed and stored while it streams by, all of it or nothing."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import PurePath
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import Field, StringConstraints, ValidationError

from api.envelope import Wire
from api.errors import MediaTypeUnsupported
from engine.rows import DatasetFormat, RowType, RowValidator, Rules
from engine.rows.rules import NATIVE
from jobs.errors import NotFound, StoreUnavailable
from jobs.model import Dataset, new_id
from jobs.store import Store
from storage.keys import dataset_source
from storage.objects import ObjectStore, StorageError

FORMAT_OF_TYPE: dict[str, DatasetFormat] = {
    "application/jsonl": "jsonl",
    "application/x-jsonlines": "jsonl",
    "application/ndjson": "jsonl",
    "application/x-ndjson": "jsonl",
    "text/csv": "csv",
    "application/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
}
FORMAT_OF_SUFFIX: dict[str, DatasetFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class UploadOptions(Wire):
    """What a client may say about a dataset. What it leaves out is found from the file."""

    name: Name | None = Field(None, description="default: the file's name")
    format: DatasetFormat | None = Field(None, description="default: by type or file name")
    row_type: RowType | None = Field(None, description="default: the first row's")


class Intake:
    """One upload. Blocking: to be called in a thread. `abort` after everything, come what may.

    `rules` are what the file must keep to beside ours. `add` makes the dataset visible.
    """

    def __init__(
        self,
        store: Store,
        objects: ObjectStore,
        tenant_id: str,
        options: UploadOptions,
        *,
        rules: Rules = NATIVE,
        add: Callable[[Dataset], Dataset] | None = None,
    ) -> None:
        self._store, self._objects, self._tenant_id = store, objects, tenant_id
        self._rules, self._add = rules, add or store.datasets.add
        self.options = options
        self._id = new_id("ds")
        self._key = dataset_source(tenant_id, self._id)
        self._open = ExitStack()

    def set(self, field: str, value: str) -> None:
        """An option that came in a form."""
        given = self.options.model_dump(exclude_none=True)
        self.options = _options(given | {field: value})

    def begin(self, content_type: str, file_name: str | None) -> None:
        """The file's first byte is next. Raises MediaTypeUnsupported for an unknown format."""
        name = self.options.name or name_of(file_name)
        self._format = self.options.format or _format_needed(content_type, file_name or name)
        self._name = name or f"dataset.{self._format}"
        validator = RowValidator(self._format, self.options.row_type, self._rules)
        self._validator = self._open.enter_context(validator)
        self._writer = self._open.enter_context(self._objects.writer(self._key))

    def write(self, data: bytes) -> None:
        """The next bytes of the file. Raises DatasetInvalid when going on makes no sense."""
        self._validator.feed(data)
        self._writer.write(data)

    def finish(self, *, expires_after_s: int | None = None) -> Dataset:
        """The file was complete: the dataset, visible now. Raises DatasetInvalid."""
        report = self._validator.close()
        self._writer.commit()
        try:
            return self._add(
                Dataset(
                    id=self._id,
                    tenant_id=self._tenant_id,
                    name=self._name,
                    format=self._format,
                    row_type=report.row_type,
                    rows=report.rows,
                    size_bytes=report.bytes,
                    sha256=report.sha256,
                    duplicates=report.duplicates,
                    warnings=report.warnings,
                    created_at=0.0,
                    expires_after_s=expires_after_s,
                )
            )
        except Exception:
            self._withdraw()
            raise

    def _withdraw(self) -> None:
        """Remove the rows, unless the dataset is there: the database may have done it unsaid."""
        with suppress(StorageError, StoreUnavailable):
            try:
                self._store.datasets.get(self._tenant_id, self._id)
            except NotFound:
                self._objects.delete(self._key)

    def abort(self) -> None:
        """Drop what is not finished. Does nothing after `finish`."""
        self._open.close()


def _options(values: dict[str, Any]) -> UploadOptions:
    try:
        return UploadOptions.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def name_of(file_name: str | None) -> str | None:
    """The last part of a client's path, fit to be shown; None when nothing is left."""
    last = PurePath((file_name or "").replace("\\", "/")).name
    return "".join(letter for letter in last if letter.isprintable())[:256] or None


def format_of(content_type: str, file_name: str | None) -> DatasetFormat | None:
    """What a file says of its format; None when that says nothing."""
    kind = content_type.partition(";")[0].strip().lower()
    suffix = PurePath(file_name or "").suffix.lower()
    return FORMAT_OF_TYPE.get(kind) or FORMAT_OF_SUFFIX.get(suffix)


def _format_needed(content_type: str, file_name: str | None) -> DatasetFormat:
    found = format_of(content_type, file_name)
    if found is None:
        raise MediaTypeUnsupported(
            "The dataset's format is not known: add ?format=jsonl, csv or parquet, or send it "
            "as application/jsonl, text/csv or application/vnd.apache.parquet.",
            param="format",
        )
    return found
