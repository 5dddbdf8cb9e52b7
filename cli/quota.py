"""`luthier quota`: what a tenant may have and use, on the database itself."""

from typing import Annotated

import typer

from cli.configuration import AsJson, DataDir
from cli.failure import CommandFailed
from cli.home import TENANT
from cli.operator import operators_store

app = typer.Typer(help="Limits of a tenant (on this machine).", no_args_is_help=True)

TenantName = Annotated[str, typer.Option("--tenant", help="Whose limits.")]
Changes = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME=NUMBER...", help="e.g. max_running_jobs=2; 0: no limit; `default`: as others"
    ),
]


@app.command()
def show(tenant: TenantName = TENANT, as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """A tenant's limits, and what it has and has spent."""
    from cli import shapes

    with operators_store(data_dir) as store:
        tenant_id = store.tenants.find(tenant).id
        limits, own = store.quotas.get(tenant_id).model_dump(), store.quotas.own(tenant_id)
        used = store.quotas.used(tenant_id)
        used |= {"max_tokens_per_day": store.spending.today(tenant_id)}
    if as_json:
        import json

        print(json.dumps({"limits": limits, "own": sorted(own), "used": used}, indent=2))
        return
    table = shapes.table("limit", "is", "used", "set for", right=("is", "used"))
    for name, limit in limits.items():
        whose = "this tenant" if name in own else "all"
        shown = f"{limit:,}" if limit else "none"
        table.add_row(name, shown, f"{used[name]:,}" if name in used else "", whose)
    shapes.show(table, empty="")


@app.command("set")
def set_(changes: Changes, tenant: TenantName = TENANT, data_dir: DataDir = None) -> None:
    """Change limits of one tenant. They hold for its next request."""
    from cli import look

    wanted = dict(_change(change) for change in changes)
    with operators_store(data_dir) as store:
        store.quotas.set(store.tenants.find(tenant).id, wanted)
    look.note(look.TICK, "green", f"Limits of tenant {tenant} are changed")


def _change(text: str) -> tuple[str, int | None]:
    from jobs.quotas import NAMES

    name, _, value = text.partition("=")
    if name not in NAMES:
        raise CommandFailed(f"There is no limit {name!r}; there are {', '.join(NAMES)}.")
    if value == "default":
        return name, None
    if not value.isdecimal() or len(value) > 18:
        raise CommandFailed(f"{name} must be a number of 0 or more, or `default`: not {value!r}.")
    return name, int(value)
