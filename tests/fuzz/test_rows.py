"""S13: the row parser takes anything: rows that come back as they were, or DatasetInvalid."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rows import DatasetFormat, DatasetInvalid, RowType, RowValidator, iter_rows
from engine.rows.model import MAX_PROBLEMS_SHOWN
from tests.record import Record

# 100 by default; `make fuzz` has a profile with more.
EXAMPLES = settings.default.max_examples if settings.default else 100

FORMATS: tuple[DatasetFormat, ...] = get_args(DatasetFormat)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = [
    "messages", "prompt", "completion", "chosen", "rejected", "margin", "label", "item",
    "instruction", "input", "output", "role", "content",
    "tools", "functions", "parallel_tool_calls", "preferred_output", "non_preferred_output",
]  # fmt: skip
functions = st.fixed_dictionaries({"name": st.text(max_size=3) | values, "arguments": values})
calls = st.lists(st.fixed_dictionaries({"function": functions | values}), max_size=2)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "developer", "tool", "function", "x"]) | values},
    optional={
        "content": st.text(max_size=12) | values,
        "extra": values,
        "weight": st.integers(0, 2) | values,
        "name": st.text(max_size=3),
        "tool_calls": calls | values,
        "tool_call_id": st.just("a"),
        "function_call": functions | values,
    },
)
nearly_rows = st.dictionaries(
    st.sampled_from(FIELDS), st.text(max_size=12) | st.lists(turns, max_size=3) | values, max_size=4
)
lines = (
    st.binary(max_size=60)
    | values.map(lambda value: json.dumps(value).encode())
    | nearly_rows.map(lambda row: json.dumps(row).encode())
    | nearly_rows.map(lambda row: json.dumps(row, ensure_ascii=False).encode(errors="replace"))
)
MAGIC = [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\x00"]
files = st.builds(
    lambda magic, parts, end: magic + end.join(parts),
    st.sampled_from(MAGIC),
    st.lists(lines, max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r", b"", b",", b"\n\n"]),
)


def verdict(
    data: bytes, format: DatasetFormat, row_type: RowType | None, chunk: int
) -> DatasetInvalid | int:
    """How many rows a file has, or why it is none."""
    try:
        with RowValidator(format, row_type) as validator:
            for start in range(0, len(data), chunk):
                validator.feed(data[start : start + chunk])
            return validator.close().rows
    except DatasetInvalid as invalid:
        return invalid


@pytest.mark.parametrize("format", FORMATS)
def test_any_bytes_are_rows_or_a_dataset_that_is_invalid(
    format: DatasetFormat, tmp_path: Path, record: Record
) -> None:
    tried = taken = refused = 0
    # Parquet is read by a process of its own, which takes its time to start.
    wanted = EXAMPLES // 10 if format == "parquet" else 4 * EXAMPLES

    @settings(max_examples=wanted, deadline=None, database=None)
    @given(files, st.sampled_from([None, *get_args(RowType)]), st.integers(1, 64))
    def holds(data: bytes, row_type: RowType | None, chunk: int) -> None:
        nonlocal tried, taken, refused
        tried += 1
        found = verdict(data, format, row_type, chunk)
        if isinstance(found, DatasetInvalid):
            refused += 1
            assert 1 <= len(found.problems) <= MAX_PROBLEMS_SHOWN
            assert found.total >= len(found.problems)
            # Carriage returns alone end lines too, for who counts them generously.
            most = data.count(b"\n") + data.count(b"\r") + 2
            assert all(1 <= problem.line <= most for problem in found.problems)
            json.dumps([problem.model_dump() for problem in found.problems])
            return
        taken += 1
        path = tmp_path / "rows"
        path.write_bytes(data)
        assert sum(1 for _ in iter_rows(path, format, row_type or _type_of(data, format))) == found

    holds()
    record(
        "S13", f"files of {format} that raised anything else", tried - taken - refused, exactly=0
    )
    record("S13", f"files of {format} tried", tried, at_least=wanted // 2)


def _type_of(data: bytes, format: DatasetFormat) -> RowType:
    with RowValidator(format, None) as validator:
        validator.feed(data)
        return validator.close().row_type


good = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029"), min_size=1
).filter(str.strip)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_bad_line_among_good_ones_is_the_one_that_is_named(end: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(st.lists(good, min_size=1, max_size=30), st.data(), lines)
    def holds(texts: list[str], data: Any, odd: bytes) -> None:
        rows = [json.dumps({"prompt": text, "completion": text}).encode() for text in texts]
        at = data.draw(st.integers(0, len(rows)))
        odd = odd.replace(b"\r", b"").replace(b"\n", b"")
        alone = verdict(rows[0] + b"\n" + odd + b"\n", "jsonl", "conversation", 64)
        found = verdict(
            end.encode().join([*rows[:at], odd, *rows[at:], b""]), "jsonl", "conversation", 64
        )
        if at == 0 or not isinstance(alone, DatasetInvalid):
            return  # a file's first bytes have rules of their own
        assert isinstance(found, DatasetInvalid)
        assert {problem.line for problem in found.problems} == {at + 1}

    holds()
