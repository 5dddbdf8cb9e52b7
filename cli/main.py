"""The `luthier` command. Modules here import what is heavy inside their commands only."""

import sys

import typer

from cli import (
    adapter,
    audit,
    checkpoint,
    dataset,
    demo,
    generate,
    job,
    key,
    pipeline,
    quota,
    roles,
    score,
    serve,
)
from cli.failure import is_expected

app = typer.Typer(
    name="luthier",
    help="A self-hosted fine-tuning service: datasets and jobs in, adapters out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(serve.serve)
app.command()(generate.generate)
app.command()(score.score)
for room in (dataset, job, pipeline, checkpoint, adapter, key, quota):
    app.add_typer(room.app, name=room.__name__.rpartition(".")[2])
_ROLES = "One role each"
for role in (roles.api, roles.worker, roles.inference, roles.attempt):
    app.command(rich_help_panel=_ROLES)(role)
for operate in (roles.migrate, audit.audit):
    app.command(rich_help_panel="Operate")(operate)


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not is_expected(error):
            raise
        from cli.look import fail

        fail(str(error), getattr(error, "details", ()))
        sys.exit(1)


if __name__ == "__main__":
    main()
