"""`luthier adapter`: the results; list, download, import, merge, delete."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.configuration import AsJson, Key, Url
from cli.failure import CommandFailed

app = typer.Typer(help="List, download, import, merge and delete adapters.", no_args_is_help=True)

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
def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER[=WEIGHT]...", help="ad_...=0.7; else 1")
    ],
    type_: Annotated[
        str | None, typer.Option("--type", help="cat (exact), svd, linear, ties, dare_ties, ...")
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="Of ties, dare and prune: what is kept.")
    ] = None,
    svd_rank: Annotated[int | None, typer.Option("--svd-rank", help="Of types with svd.")] = None,
    majority_sign: Annotated[
        str | None, typer.Option("--majority-sign", help="Of ties: total or frequency.")
    ] = None,
    into_base: Annotated[
        bool, typer.Option("--into-base", help="One adapter into a model of its own.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    name: Annotated[str | None, typer.Option("--name")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make one adapter of several, or a full model of one and its base."""
    from cli.client import connect
    from cli.merges import post, told, weighted

    given = {
        "combination_type": type_,
        "density": density,
        "svd_rank": svd_rank,
        "majority_sign_method": majority_sign,
        "into_base": into_base or None,
        "seed": seed,
        "name": name,
    }
    body = {"adapters": [weighted(one) for one in adapters]}
    with connect(url, key) as client:
        job = post(client, body | {k: v for k, v in given.items() if v is not None})
        if as_json and not follow:
            print(json.dumps(job, indent=2))
        else:
            told(client, job, follow=follow)


@app.command()
def delete(adapter: Id, url: Url = None, key: Key = None) -> None:
    """Delete an adapter for good."""
    from cli import look
    from cli.client import connect

    with connect(url, key) as client:
        client.delete(f"/adapters/{adapter}")
    look.note(look.TICK, "green", f"Adapter {adapter} is deleted")
