"""`luthier key`: API keys, on the database itself; for who runs the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.configuration import DataDir, read_settings
from cli.home import TENANT

if TYPE_CHECKING:
    from jobs.tenants import Tenants

app = typer.Typer(help="Make and revoke API keys (on this machine).", no_args_is_help=True)

TenantName = Annotated[str, typer.Option("--tenant", help="Whose data the key opens.")]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for.")] = "key",
    tenant: TenantName = TENANT,
    data_dir: DataDir = None,
) -> None:
    """Make a key; it is shown this once. A new tenant is made when the name is new."""
    from cli.look import err

    with _tenants(data_dir) as tenants:
        key, record = tenants.issue_key(tenants.create(tenant).id, name)
    err.print(f"  {record.id} for tenant {tenant}; keep the key, it is not shown again:")
    print(key)


@app.command("list")
def list_(tenant: TenantName = TENANT, data_dir: DataDir = None) -> None:
    """A tenant's keys, without their secrets."""
    from cli import shapes

    with _tenants(data_dir) as tenants:
        keys = tenants.keys(tenants.find(tenant).id)
    table = shapes.table("key", "begins with", "made", "name", "revoked")
    for key in keys:
        revoked = shapes.when(key.revoked_at) if key.revoked_at else ""
        table.add_row(key.id, key.prefix, shapes.when(key.created_at), key.name, revoked)
    shapes.show(table, empty="No keys yet.")


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="key_..., from `luthier key list`")],
    tenant: TenantName = TENANT,
    data_dir: DataDir = None,
) -> None:
    """Take a key out of use, at once and for good."""
    from cli import look

    with _tenants(data_dir) as tenants:
        tenants.revoke_key(tenants.find(tenant).id, key)
    look.note(look.TICK, "green", f"{key} is revoked")


@contextmanager
def _tenants(data_dir: Path | None) -> Iterator["Tenants"]:
    from jobs.opening import open_store

    store = open_store(read_settings(data_dir=data_dir))
    try:
        yield store.tenants
    finally:
        store.close()
