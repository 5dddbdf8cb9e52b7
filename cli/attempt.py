"""`luthier attempt`: one attempt of one job, in this process; what a Kubernetes Job starts."""

from typing import Annotated

import typer

from cli.configuration import DataDir
from cli.roles import begin


def attempt(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    number: Annotated[int, typer.Argument(help="The attempt's number, from 1.", min=1)],
    threads: Annotated[
        int | None, typer.Option("--threads", help="For training; 0: every core.")
    ] = None,
    data_dir: DataDir = None,
    # As torchrun and Kubeflow's Trainer tell the machines of a job about each other.
    node: Annotated[
        int, typer.Option(envvar="PET_NODE_RANK", help="This machine's number.", min=0)
    ] = 0,
    master_addr: Annotated[
        str, typer.Option(envvar="PET_MASTER_ADDR", help="The first machine.")
    ] = "",
    master_port: Annotated[
        int, typer.Option(envvar="PET_MASTER_PORT", help="Where that one is met.")
    ] = 29400,
) -> None:
    """Run one attempt of a job to its end; the exit code says how it ended.

    0 done, 10 failed for good, 11 queued again, 12 cancelled or paused, 13 not this attempt's turn.
    """
    settings = begin("attempt", False, train_threads=threads, data_dir=data_dir)
    from jobs.settings import cores, quiet_threads

    quiet_threads(settings.train_threads or cores())
    from jobs.worker import run_attempt

    master = f"{master_addr}:{master_port}" if master_addr else ""
    raise typer.Exit(run_attempt(settings, job, number, node=node, master=master))
