"""`luthier key`: API keys, on the database itself; for who runs the service."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from cli.configuration import DataDir
from cli.home import TENANT
from cli.operator import operators_store

app = typer.Typer(help="Make and revoke API keys (on this machine).", no_args_is_help=True)

TenantName = Annotated[str, typer.Option("--tenant", help="Whose data the key opens.")]


class Scope(StrEnum):
    """What a key may be made for; jobs/keys.py says what they are."""

    READ = "read"
    WRITE = "write"
    GENERATE = "generate"
    ADMIN = "admin"


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for.")] = "key",
    tenant: TenantName = TENANT,
    scope: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="What it may do; repeat it. [read, write and generate]"),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key; it is shown this once. A new tenant is made when the name is new."""
    from cli.look import err
    from jobs.keys import USUAL

    scopes = [each.value for each in scope] if scope else USUAL
    with operators_store(data_dir) as store:
        key, record = store.tenants.issue_key(store.tenants.create(tenant).id, name, scopes)
    may = ", ".join(record.scopes)
    err.print(f"  {record.id} for tenant {tenant} ({may}); keep the key, it is not shown again:")
    print(key)


@app.command("list")
def list_(tenant: TenantName = TENANT, data_dir: DataDir = None) -> None:
    """A tenant's keys, without their secrets."""
    from cli import shapes

    with operators_store(data_dir) as store:
        keys = store.tenants.keys(store.tenants.find(tenant).id)
    table = shapes.table("key", "begins", "made", "may", "name", "revoked")
    for key in keys:
        revoked = shapes.when(key.revoked_at) if key.revoked_at else ""
        made = shapes.when(key.created_at)
        table.add_row(key.id, key.prefix, made, _may(key.scopes), key.name, revoked)
    shapes.show(table, empty="No keys yet.")


def _may(scopes: Sequence[str]) -> str:
    """Short enough for a line."""
    from jobs.keys import SCOPES, USUAL

    short = {" ".join(SCOPES): "all", " ".join(USUAL): "usual"}
    return short.get(" ".join(scopes), " ".join(scopes))


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="key_..., from `luthier key list`")],
    tenant: TenantName = TENANT,
    data_dir: DataDir = None,
) -> None:
    """Take a key out of use, at once and for good."""
    from cli import look

    with operators_store(data_dir) as store:
        store.tenants.revoke_key(store.tenants.find(tenant).id, key)
    look.note(look.TICK, "green", f"{key} is revoked")
