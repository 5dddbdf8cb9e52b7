"""Rows: the four types a dataset can hold, their only parser, and the check of a whole dataset."""

from engine.rows.model import (
    Conversation,
    DatasetFormat,
    DatasetInvalid,
    Message,
    Preference,
    Problem,
    Prompt,
    Rating,
    Role,
    Row,
    RowType,
)
from engine.rows.validator import Report, RowValidator, iter_rows

__all__ = [
    "Conversation",
    "DatasetFormat",
    "DatasetInvalid",
    "Message",
    "Preference",
    "Problem",
    "Prompt",
    "Rating",
    "Report",
    "Role",
    "Row",
    "RowType",
    "RowValidator",
    "iter_rows",
]
