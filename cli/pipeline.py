"""`luthier pipeline`: several jobs that start from each other's results; submit, look, cancel."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.configuration import AsJson, Key, Url
from cli.failure import CommandFailed

app = typer.Typer(help="Submit, watch and stop pipelines.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="PIPELINE", help="pl_...")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="Its stages, by name.")],
    dataset: Annotated[
        list[str], typer.Option("--dataset", metavar="STAGE=DS", help="A stage's rows.")
    ] = [],  # noqa: B006  # typer reads it
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Start a pipeline: jobs by name, where "@name" stands for the adapter that one makes."""
    import uuid

    from cli import look
    from cli.client import connect
    from cli.specs import read_spec

    spec = read_spec(file)
    stages = _stages(spec, file)
    for choice in dataset:
        name, _, id = choice.partition("=")
        if name not in stages or not id:
            raise CommandFailed(f"--dataset {choice}: write STAGE=DS, with a stage of {file}.")
        stages[name]["dataset"] = id
    with connect(url, key) as client:
        for stage in stages.values():
            stage["base_model"] = stage.get("base_model") or client.first_model()
        headers = {"idempotency-key": f"cli-{uuid.uuid4().hex}"}
        pipeline = client.post("/pipelines", spec | {"stages": stages}, headers=headers)
    if as_json:
        print(json.dumps(pipeline, indent=2))
        return
    look.note(look.TICK, "green", f"Pipeline {pipeline['id']} is {pipeline['status']}")
    look.commands([f"luthier pipeline show {pipeline['id']}"])


def _stages(spec: dict[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    stages = spec.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
        raise CommandFailed(f'{file} must hold {{"stages": {{NAME: JOB, ...}}}}.')
    return stages


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """The newest pipelines."""
    from cli import shapes
    from cli.client import connect

    with connect(url, key) as client:
        pipelines = client.pages("/pipelines", limit=limit)
    if as_json:
        print(json.dumps(pipelines, indent=2))
        return
    table = shapes.table("pipeline", "status", "stages", "made", "name")
    for found in pipelines:
        states = [stage["state"] for stage in found["stages"].values()]
        done = f"{states.count('succeeded')}/{len(states)}"
        made = shapes.when(found["created_at"])
        table.add_row(found["id"], shapes.status(found["status"]), done, made, found["name"] or "")
    shapes.show(table, empty="No pipelines yet. `luthier pipeline submit` starts one.")


@app.command()
def show(pipeline: Id, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """One pipeline and its stages."""
    from cli import look, shapes
    from cli.client import connect

    with connect(url, key) as client:
        found = client.get(f"/pipelines/{pipeline}")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    stages = found.pop("stages")
    shapes.fields(found)
    table = shapes.table("stage", "state", "job", "adapter")
    for name, stage in stages.items():
        state = shapes.status(stage["state"])
        table.add_row(name, state, stage["job_id"] or "", stage["adapter_id"] or "")
    look.out.print(table)
    for name, stage in stages.items():
        if stage["error"]:
            look.note(look.CROSS, "red", f"{name}: {stage['error']['message']}")


@app.command()
def cancel(pipeline: Id, url: Url = None, key: Key = None) -> None:
    """Stop every stage of a pipeline that has not ended."""
    from cli import look
    from cli.client import connect

    with connect(url, key) as client:
        found = client.post(f"/pipelines/{pipeline}/cancel")
    soon = "; the cancel is on its way to the worker" if found["requested"] else ""
    look.note(look.TICK, "green", f"Pipeline {pipeline} is {found['status']}{soon}")
