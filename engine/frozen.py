"""Spec: what clients may write, frozen and without fields that nobody knows."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
