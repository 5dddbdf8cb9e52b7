"""`luthier adapter`: the results; list, download, import, delete."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.configuration import AsJson, Key, Url
from cli.failure import CommandFailed

app = typer.Typer(help="List, download, import and delete adapters.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ADAPTER", help="ad_...")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """The newest adapters."""
    from cli import look, shapes
    from cli.client import connect

    with connect(url, key) as client:
        adapters = client.pages("/adapters", limit=limit)
    if as_json:
        print(json.dumps(adapters, indent=2))
        return
    table = shapes.table("adapter", "kind", "base", "size", "made", "name", right=("size",))
    for found in adapters:
        made, size = shapes.when(found["created_at"]), look.size(found["bytes"])
        table.add_row(
            found["id"], found["kind"], found["base_model"], size, made, found["name"] or ""
        )
    shapes.show(table, empty="No adapters yet. `luthier job submit` makes one.")


@app.command()
def show(adapter: Id, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """One adapter and its manifest."""
    from cli import shapes
    from cli.client import connect

    with connect(url, key) as client:
        found = client.get(f"/adapters/{adapter}")
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        shapes.fields(found)


@app.command()
def download(
    adapter: Id,
    to: Annotated[Path | None, typer.Option("--to", help="[ADAPTER.tar]")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Save an adapter as a tar archive; unpacked, peft loads it as it is."""
    from cli import look
    from cli.client import connect

    target = to or Path(f"{adapter}.tar")
    draft = target.with_name(f".{target.name}.part")
    try:
        with connect(url, key) as client, draft.open("wb") as file:
            for chunk in client.download(f"/adapters/{adapter}/download"):
                file.write(chunk)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    look.note(look.TICK, "green", f"Saved {target}", f"  {look.size(target.stat().st_size)}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="adapter_config.json and ...")],
    base_model: Annotated[str, typer.Option("--base-model", help="What it was made for.")],
    name: Annotated[str | None, typer.Option("--name")] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Bring in a PEFT adapter that was made elsewhere, as a plain tar archive."""
    from cli import look, shapes
    from cli.client import connect

    if not file.is_file():
        raise CommandFailed(f"{file} is not a file.")
    with connect(url, key) as client, shapes.reading(file, "uploading") as source:
        found = client.upload(
            "/adapters/import",
            source,
            file.stat().st_size,
            "application/x-tar",
            base_model=base_model,
            name=name,
        )
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        look.note(look.TICK, "green", f"Adapter {found['id']}", f"  for {found['base_model']}")


@app.command()
def delete(adapter: Id, url: Url = None, key: Key = None) -> None:
    """Delete an adapter for good."""
    from cli import look
    from cli.client import connect

    with connect(url, key) as client:
        client.delete(f"/adapters/{adapter}")
    look.note(look.TICK, "green", f"Adapter {adapter} is deleted")
