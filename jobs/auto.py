"""A job's open hyperparameters, settled when it is posted by its datasets' rows and its base."""

from collections.abc import Mapping

from adapters.errors import AdapterError
from adapters.geometry import base_geometry
from engine.auto import Facts, resolve
from engine.bases import BaseModel
from engine.epochs import replayed
from jobs.errors import SpecProblem
from jobs.mixture import REPLAY, VALIDATION
from jobs.model import Dataset, JobSpec


def settle(
    spec: JobSpec, datasets: Mapping[str, Dataset], base: BaseModel
) -> JobSpec | SpecProblem:
    """The job with a number for everything that was "auto", or why there is none."""
    try:
        hidden_size = base_geometry(base.path).hidden_size
    except AdapterError:
        field = spec.method.auto[0]
        text = f"The config.json of {base.name} does not say its sizes; give `{field}` a number."
        return SpecProblem(f"method.{field}", "auto_unavailable", text)
    main = [dataset for field, dataset in datasets.items() if field not in (REPLAY, VALIDATION)]
    rows = sum(dataset.rows for dataset in main)
    size_bytes = sum(dataset.size_bytes for dataset in main)
    if spec.replay is not None:
        rows += replayed(rows, spec.replay.ratio)
    row_bytes = size_bytes / max(1, sum(dataset.rows for dataset in main))
    facts = Facts(rows, row_bytes, hidden_size)
    return spec.model_copy(update={"method": resolve(spec.method, spec.peft, facts)})
