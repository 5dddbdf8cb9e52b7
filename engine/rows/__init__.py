"""Rows: the four types a dataset can hold, their only parser, and the check of a whole dataset."""

from engine.rows.model import (
    Conversation,
    DatasetFormat,
    DatasetInvalid,
    FunctionCall,
    Message,
    Preference,
    Problem,
    Prompt,
    Rating,
    RichMessage,
    Role,
    Row,
    RowType,
    ToolCall,
)
from engine.rows.rules import OPENAI, Rules
from engine.rows.validator import Report, RowValidator, iter_rows

__all__ = [
    "OPENAI",
    "Conversation",
    "DatasetFormat",
    "DatasetInvalid",
    "FunctionCall",
    "Message",
    "Preference",
    "Problem",
    "Prompt",
    "Rating",
    "Report",
    "RichMessage",
    "Role",
    "Row",
    "RowType",
    "RowValidator",
    "Rules",
    "ToolCall",
    "iter_rows",
]
