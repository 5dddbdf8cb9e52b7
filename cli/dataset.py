"""`luthier dataset`: upload rows and look at what a model would see of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.configuration import AsJson, Key, Url
from cli.failure import CommandFailed

if TYPE_CHECKING:
    from cli.client import Client

app = typer.Typer(help="Upload datasets and look into them.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="DATASET", help="ds_...")]
BaseModel = Annotated[
    str | None, typer.Option("--base-model", help="Whose tokens. [the first allowed]")
]
MaxLength = Annotated[int | None, typer.Option("--max-length", min=1, help="Tokens a row.")]

_TYPES = {
    ".jsonl": ("jsonl", "application/jsonl"),
    ".csv": ("csv", "text/csv"),
    ".parquet": ("parquet", "application/vnd.apache.parquet"),
}


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl, .csv or .parquet")],
    name: Annotated[str | None, typer.Option("--name", help="[the file's name]")] = None,
    row_type: Annotated[
        str | None,
        typer.Option("--row-type", help="conversation, preference, prompt or rating. [found out]"),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Upload a file of rows; every problem in it is reported with its line."""
    from cli import look
    from cli.client import connect

    with connect(url, key) as client:
        dataset = send(client, file, name=name, row_type=row_type)
    if as_json:
        print(json.dumps(dataset, indent=2))
        return
    uploaded(dataset)
    look.commands(
        [
            f"luthier dataset preview {dataset['id']}",
            f"luthier job submit --dataset {dataset['id']} --follow",
        ]
    )


def send(
    client: "Client", file: Path, *, name: str | None = None, row_type: str | None = None
) -> dict[str, Any]:
    """Upload a file, with a progress bar where it takes a while."""
    from cli import shapes

    if file.suffix not in _TYPES:
        raise CommandFailed(f"{file}: the name must end in {', '.join(_TYPES)}.")
    if not file.is_file():
        raise CommandFailed(f"{file} is not a file.")
    format, content_type = _TYPES[file.suffix]
    with shapes.reading(file, "uploading") as source:
        dataset: dict[str, Any] = client.upload(
            "/datasets",
            source,
            file.stat().st_size,
            content_type,
            name=name or file.name,
            format=format,
            row_type=row_type,
        )
    return dataset


def uploaded(dataset: dict[str, Any]) -> None:
    from cli import look

    twice = f", {dataset['duplicates']} of them twice" if dataset["duplicates"] else ""
    about = f"  {dataset['rows']} {dataset['row_type']} rows{twice}, {look.size(dataset['bytes'])}"
    look.note(look.TICK, "green", f"Dataset {dataset['id']}", about)
    for warning in dataset["warnings"]:
        look.note("!", "yellow", warning)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """The newest datasets."""
    from cli import look, shapes
    from cli.client import connect

    with connect(url, key) as client:
        datasets = client.pages("/datasets", limit=limit)
    if as_json:
        print(json.dumps(datasets, indent=2))
        return
    table = shapes.table("dataset", "rows", "type", "size", "made", "name", right=("rows", "size"))
    for found in datasets:
        kind, made = found["row_type"], shapes.when(found["created_at"])
        size = look.size(found["bytes"])
        table.add_row(found["id"], str(found["rows"]), kind, size, made, found["name"])
    shapes.show(table, empty="No datasets yet. `luthier dataset upload FILE` makes one.")


@app.command()
def show(dataset: Id, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """One dataset in full."""
    from cli import shapes
    from cli.client import connect

    with connect(url, key) as client:
        found = client.get(f"/datasets/{dataset}")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        shapes.fields(found)


@app.command()
def preview(
    dataset: Id,
    base_model: BaseModel = None,
    max_length: MaxLength = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows.")] = 3,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Rows as the model sees them; the tokens that are learned stand out."""
    from cli import look, shapes
    from cli.client import connect

    with connect(url, key) as client:
        found = client.get(
            f"/datasets/{dataset}/preview",
            base_model=base_model,
            max_length=max_length,
            limit=limit,
        )
    if as_json:
        print(json.dumps(found, indent=2))
        return
    look.plain("  learned tokens are green" if look.out.is_terminal else "  learned: [[ ]]")
    for number, row in enumerate(found["data"], start=1):
        cut = ", truncated" if row["truncated"] else ""
        look.heading(f"row {number}", f"{len(row['tokens'])} tokens{cut}")
        shapes.tokens([(token["text"], token["trained"]) for token in row["tokens"]])


@app.command()
def stats(
    dataset: Id,
    base_model: BaseModel = None,
    max_length: MaxLength = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Tokens a row, truncation, and rows that would teach nothing."""
    from cli import look, shapes
    from cli.client import connect

    with connect(url, key) as client:
        found = client.get(
            f"/datasets/{dataset}/statistics", base_model=base_model, max_length=max_length
        )
    if as_json:
        print(json.dumps(found, indent=2))
        return
    histogram = found.pop("histogram")
    shapes.fields(found)
    look.heading("Tokens a row")
    shapes.bars([(f"up to {bin['up_to']}", bin["rows"]) for bin in histogram])


@app.command()
def delete(
    dataset: Id,
    derived: Annotated[
        bool, typer.Option("--derived", help="Also its jobs, checkpoints and adapters.")
    ] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Delete a dataset for good. What was made from it is listed, or deleted with it."""
    from cli import look
    from cli.client import connect

    with connect(url, key) as client:
        found = client.delete(f"/datasets/{dataset}", derived=derived)
    look.note(look.TICK, "green", f"Dataset {dataset} is deleted")
    for what in ("jobs", "checkpoints", "adapters"):
        if ids := found["derived"][what]:
            look.fact(what if derived else f"{what} kept", ", ".join(ids))
