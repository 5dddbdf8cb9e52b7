"""`luthier audit`: who did what to which id, from the database itself."""

import json
from typing import Annotated

import typer

from cli.configuration import AsJson, DataDir
from cli.home import TENANT
from cli.operator import operators_store


def audit(
    tenant: Annotated[str, typer.Option("--tenant", help="Whose data it was done to.")] = TENANT,
    object_id: Annotated[str | None, typer.Option("--id", help="Only what was done to it.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Lines.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show what was made, changed and deleted, and by whom; the newest first."""
    from cli import shapes

    with operators_store(data_dir) as store:
        tenant_id = store.tenants.find(tenant).id
        deeds = store.audit.page(tenant_id, object_id=object_id, limit=limit).data
    if as_json:
        print(json.dumps([deed.model_dump() for deed in deeds], indent=2))
        return
    table = shapes.table("when", "who", "did", "to", "request")
    for deed in deeds:
        when, who = shapes.when(deed.created_at), deed.key_id or deed.actor
        table.add_row(when, who, deed.action, deed.object_id, deed.request_id or "")
    shapes.show(table, empty="Nothing was done yet.")
