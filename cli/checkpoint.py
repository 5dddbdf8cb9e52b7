"""`luthier checkpoint`: what a job could go on from, and one of them as an adapter."""

import json
from typing import Annotated

import typer

from cli.configuration import AsJson, Key, Url

app = typer.Typer(help="List a job's checkpoints, publish one.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(metavar="JOB", help="job_...")]


@app.command("list")
def list_(job: Job, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """The checkpoints that are kept, the last step first."""
    from cli import look, shapes
    from cli.client import connect

    with connect(url, key) as client:
        checkpoints = client.get(f"/jobs/{job}/checkpoints")["data"]
    if as_json:
        print(json.dumps(checkpoints, indent=2))
        return
    table = shapes.table("checkpoint", "step", "size", "made", right=("step", "size"))
    for found in checkpoints:
        size, made = look.size(found["bytes"]), shapes.when(found["created_at"])
        table.add_row(found["id"], str(found["step"]), size, made)
    shapes.show(table, empty="No checkpoints; `checkpoint_every` says how often one is made.")


@app.command()
def publish(
    job: Job,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="ck_...")],
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a checkpoint an adapter like any other."""
    from cli import look
    from cli.client import connect

    with connect(url, key) as client:
        adapter = client.post(f"/jobs/{job}/checkpoints/{checkpoint}/publish")
    if as_json:
        print(json.dumps(adapter, indent=2))
        return
    look.note(look.TICK, "green", f"Adapter {adapter['id']}", f"  {adapter['name']}")
    look.commands([f'luthier generate --adapter {adapter["id"]} "..."'])
