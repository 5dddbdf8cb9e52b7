"""A job's open hyperparameters, settled when it is posted by its dataset's row and its base."""

from adapters.errors import AdapterError
from adapters.geometry import base_geometry
from engine.auto import Facts, resolve
from engine.bases import BaseModel
from jobs.errors import SpecProblem
from jobs.model import Dataset, JobSpec


def settle(spec: JobSpec, dataset: Dataset, base: BaseModel) -> JobSpec | SpecProblem:
    """The job with a number for everything that was "auto", or why there is none."""
    try:
        hidden_size = base_geometry(base.path).hidden_size
    except AdapterError:
        field = spec.method.auto[0]
        text = f"The config.json of {base.name} does not say its sizes; give `{field}` a number."
        return SpecProblem(f"method.{field}", "auto_unavailable", text)
    facts = Facts(dataset.rows, dataset.size_bytes / max(1, dataset.rows), hidden_size)
    return spec.model_copy(update={"method": resolve(spec.method, spec.peft, facts)})
