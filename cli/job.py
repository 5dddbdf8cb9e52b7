"""`luthier job`: submit, watch and stop jobs."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.configuration import AsJson, Key, Url

if TYPE_CHECKING:
    from cli.client import Client

app = typer.Typer(help="Submit, watch and stop jobs.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="JOB", help="job_...")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end.")]
Base = Annotated[str | None, typer.Option("--base-model", help="[the first allowed]")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="ds_...")]
Mixture = Annotated[
    list[str], typer.Option("--mixture", metavar="DS[=WEIGHT]", help="Several, by weight.")
]
Replay = Annotated[
    str | None, typer.Option("--replay", metavar="DS[=RATIO]", help="Against forgetting it.")
]


@app.command()
def submit(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE.json", help="The job's spec; options below go before it."),
    ] = None,
    base_model: Base = None,
    dataset: Dataset = None,
    mixture: Mixture = [],  # noqa: B006  # typer reads it
    replay: Replay = None,
    name: Annotated[str | None, typer.Option("--name")] = None,
    method: Annotated[str | None, typer.Option("--method", help="sft")] = None,
    peft: Annotated[str | None, typer.Option("--peft", help="lora, prompt_tuning, ...")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="LoRA's r.")] = None,
    virtual_tokens: Annotated[
        int | None, typer.Option("--virtual-tokens", help="Of prompt and prefix tuning.")
    ] = None,
    init: Annotated[str | None, typer.Option("--init", help="ad_...: go on with it.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate")] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    follow: Follow = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Queue a job from a spec, from options, or from both."""
    from cli.client import connect
    from cli.specs import read_spec, rows

    spec = read_spec(file) if file else {}
    given = {"base_model": base_model, "name": name, "seed": seed, "init": init}
    spec |= {field: value for field, value in given.items() if value is not None}
    spec |= rows(dataset, mixture, replay)
    _into(spec, "method", "sft", type=method, num_train_epochs=epochs, learning_rate=learning_rate)
    chosen = {"type": peft, "r": rank, "num_virtual_tokens": virtual_tokens}
    if not spec.get("init") or spec.get("peft") or any(chosen.values()):  # else the adapter's
        _into(spec, "peft", "lora", **chosen)
    with connect(url, key) as client:
        spec["base_model"] = spec.get("base_model") or client.first_model()
        job = post(client, spec)
        if as_json and not follow:
            print(json.dumps(job, indent=2))
            return
        submitted(job, follow)
        if follow:
            watch(client, job["id"])


@app.command()
def estimate(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="The job's spec.")],
    base_model: Base = None,
    dataset: Dataset = None,
    mixture: Mixture = [],  # noqa: B006  # typer reads it
    replay: Replay = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """What a job would take, in tokens, steps, memory and time. Nothing is queued."""
    from cli import look
    from cli.client import connect
    from cli.estimate import show as show_estimate
    from cli.specs import read_spec, rows

    spec = read_spec(file) | rows(dataset, mixture, replay)
    spec |= {"base_model": base_model} if base_model else {}
    with connect(url, key) as client, look.waiting("reading the rows"):
        spec["base_model"] = spec.get("base_model") or client.first_model()
        found = client.post("/jobs/estimate", spec)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_estimate(found)


def post(client: "Client", spec: dict[str, Any]) -> dict[str, Any]:
    """Submit once, however often the connection breaks."""
    import uuid

    job: dict[str, Any] = client.post(
        "/jobs", spec, headers={"idempotency-key": f"cli-{uuid.uuid4().hex}"}
    )
    return job


def _into(spec: dict[str, Any], field: str, default: str, **given: Any) -> None:
    """Put the options that were given into a part of the spec."""
    part = {"type": default} | dict(spec.get(field) or {})
    spec[field] = part | {name: value for name, value in given.items() if value is not None}


def submitted(job: dict[str, Any], follow: bool) -> None:
    """Say that it waits, and how to watch it where nobody is about to."""
    from cli import look

    look.note(look.TICK, "green", f"Job {job['id']} is {job['status']}")
    if not follow:
        look.commands([f"luthier job follow {job['id']}"])


@app.command()
def follow(job: Id, url: Url = None, key: Key = None) -> None:
    """Watch a job to its end; Ctrl-C leaves it running."""
    from cli.client import connect

    with connect(url, key) as client:
        watch(client, job)


def watch(client: "Client", job_id: str) -> dict[str, Any]:
    """Show a job to its end, and how to use what it made; the job then."""
    from cli import look
    from cli.follow import follow

    try:
        job = follow(client, job_id)
    except KeyboardInterrupt:
        look.note(look.DOT, "dim", "The job goes on. Watch it again, or end it:")
        look.commands([f"luthier job follow {job_id}", f"luthier job cancel {job_id}"])
        raise
    succeeded(job)
    look.commands([f'luthier generate --adapter {job["adapter_id"]} "..."'])
    return job


def succeeded(job: dict[str, Any]) -> None:
    """The adapter, and where the time went."""
    from cli import look

    look.note(look.TICK, "green", f"Adapter {job['adapter_id']}")
    look.aside(spent(job["timings"]))


def spent(timings: dict[str, float | None]) -> str:
    """Posted to published, and how much of that was not training."""
    from cli.look import since

    total, training = timings["total_s"], timings["training_s"]
    if total is None or training is None:
        return ""
    other = since(total - training)
    return f"{since(total)} from posted to published; {other} of it is not training"


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option("--status", help="queued, running, ...")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """The newest jobs."""
    from cli import shapes
    from cli.client import connect

    with connect(url, key) as client:
        jobs = client.pages("/jobs", limit=limit, status=status)
    if as_json:
        print(json.dumps(jobs, indent=2))
        return
    table = shapes.table("job", "status", "step", "loss", "made", "name", right=("step", "loss"))
    for job in jobs:
        progress = job["progress"]
        steps = f"{progress['step']}/{progress['total_steps']}" if progress["total_steps"] else ""
        loss = "" if progress["loss"] is None else f"{progress['loss']:.3f}"
        made = shapes.when(job["created_at"])
        table.add_row(job["id"], shapes.status(job["status"]), steps, loss, made, job["name"] or "")
    shapes.show(table, empty="No jobs yet. `luthier job submit --help` says how to make one.")


@app.command()
def show(job: Id, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """One job in full, with what was expected of it beside what it took."""
    from cli import shapes
    from cli.client import connect
    from cli.estimate import beside

    with connect(url, key) as client:
        found = client.get(f"/jobs/{job}")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    expected, took = found.pop("estimate", None), found.pop("actual", None)
    shapes.fields(found)
    beside(expected, took)


@app.command()
def cancel(job: Id, url: Url = None, key: Key = None) -> None:
    """Stop a job."""
    _ask(job, "cancel", url, key)


@app.command()
def pause(job: Id, url: Url = None, key: Key = None) -> None:
    """Put a job aside, with a checkpoint where it has begun."""
    _ask(job, "pause", url, key)


@app.command()
def resume(job: Id, url: Url = None, key: Key = None) -> None:
    """Queue a paused job again."""
    _ask(job, "resume", url, key)


def _ask(job_id: str, change: str, url: str | None, key: str | None) -> None:
    from cli import look
    from cli.client import connect

    with connect(url, key) as client:
        job = client.post(f"/jobs/{job_id}/{change}")
    soon = f"; {change} is on its way to the worker" if job["requested"] else ""
    look.note(look.TICK, "green", f"Job {job_id} is {job['status']}{soon}")


@app.command()
def events(job: Id, as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """Every event so far, oldest first."""
    from cli import look
    from cli.client import connect

    after, has_more = 0, True
    with connect(url, key) as client:
        while has_more:
            page = client.get(f"/jobs/{job}/events", after=after, limit=1000)
            has_more = page["has_more"]
            for event in page["data"]:
                after = event["seq"]
                if as_json:
                    print(json.dumps(event))
                else:
                    clock = datetime.fromtimestamp(event["created_at"]).strftime("%H:%M:%S")
                    look.plain(f"  {clock}  {event['type']:<11} {event['message']}")
