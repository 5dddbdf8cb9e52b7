"""RowValidator as a stream: any chunks, any bytes, any size, in little memory."""

import csv
import hashlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.rows import DatasetFormat, DatasetInvalid, Report, RowValidator, iter_rows
from engine.rows.jsonl import Lines
from engine.rows.model import MAX_LINE_BYTES, MAX_PROBLEMS_SHOWN, MAX_ROWS
from engine.rows.parser import RowParser, Unreadable
from engine.rows.quarantine import ParquetRecords
from engine.rows.table import CLOSES, OPENS, REOPENS

CORPUS = Path(__file__).parents[1] / "corpus" / "datasets"
GOOD = b'{"prompt": "a", "completion": "b"}\n'
Outcome = Report | tuple[tuple[Any, ...], int]


def outcome(format: DatasetFormat, chunks: Iterator[bytes] | list[bytes]) -> Outcome:
    """The report, or the problems: what a client sees."""
    try:
        with RowValidator(format) as validator:
            for chunk in chunks:
                validator.feed(chunk)
            return validator.close()
    except DatasetInvalid as invalid:
        return invalid.problems, invalid.total


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, over and over."""
    pieces, at, i = [], 0, 0
    while at < len(data):
        pieces.append(data[at : at + sizes[i % len(sizes)]])
        at, i = at + sizes[i % len(sizes)], i + 1
    return pieces


def test_a_report_says_what_the_file_holds() -> None:
    data = GOOD * 60

    report = outcome("jsonl", [data])

    assert report == Report(
        row_type="conversation",
        rows=60,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        duplicates=59,
        warnings=(),
    )


def test_few_rows_are_accepted_with_the_advice_to_prompt_instead() -> None:
    few, enough = outcome("jsonl", [GOOD * 49]), outcome("jsonl", [GOOD * 50])

    assert isinstance(few, Report)
    assert isinstance(enough, Report)
    assert "Few-shot prompting" in few.warnings[0]
    assert "memorise" in few.warnings[0]
    assert enough.warnings == ()


def test_the_same_row_in_another_order_of_keys_is_a_duplicate() -> None:
    report = outcome("jsonl", [GOOD, b'{"completion":"b","prompt":"a"}'])

    assert isinstance(report, Report)
    assert report.duplicates == 1


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
@pytest.mark.parametrize(
    "name",
    [
        "25_problems.jsonl", "1500_problems.jsonl", "bom.jsonl", "crlf.jsonl", "gzipped.jsonl",
        "blank_lines_between.jsonl", "utf16_with_bom.jsonl", "messages_512.jsonl", "good.csv",
        "messages.csv", "ragged_rows.csv", "unclosed_quote.csv", "text_after_quote.csv",
        "good.parquet", "truncated.parquet",
    ],
)  # fmt: skip
def test_chunks_change_nothing_for_the_corpus(name: str, size: int) -> None:
    data = (CORPUS / name).read_bytes()
    format: Any = name.rpartition(".")[2]

    assert outcome(format, cut(data, [size])) == outcome(format, [data])


lines = st.sampled_from(
    [GOOD[:-1], b'{"messages": [{"role": "assistant", "content": "x"}]}', b"", b"  ", b"{", b"\xff",
     b'"a\x00"', b"[" * 300, b'{"prompt": "\\ud800"}', b'{"prompt": "a", "prompt": "b"}', b"null",
     b'{"prompt": "a", "completion": "b", "label": NaN}', b"\xef\xbb\xbf{}", b"{" * 5000]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=40), st.lists(st.integers(1, 50), min_size=1), st.booleans())
def test_chunks_change_nothing_for_any_lines(
    parts: list[bytes], sizes: list[int], crlf: bool
) -> None:
    data = (b"\r\n" if crlf else b"\n").join(parts)

    assert outcome("jsonl", cut(data, sizes)) == outcome("jsonl", [data])


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=40))
def test_line_numbers_are_those_of_a_text_editor(parts: list[bytes]) -> None:
    found = outcome("jsonl", [b"\n".join(parts)])

    if isinstance(found, Report):
        return
    problems, total = found
    bad = [
        number
        for number, line in enumerate(parts, start=1)
        if line.strip() and line != GOOD[:-1] and b"assistant" not in line
    ]
    if bad and not parts[0].startswith(b"\xef\xbb\xbf"):
        assert [p.line for p in problems] == bad[:MAX_PROBLEMS_SHOWN]
        assert total == len(bad)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "prompt", "completion", "label", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
mutated = st.builds(
    lambda value, at, junk: (text := json.dumps(value).encode())[: at % (len(text) + 1)] + junk,
    json_like,
    st.integers(0, 10_000),
    st.binary(max_size=3),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=60) | mutated | json_like.map(lambda v: json.dumps(v).encode())))
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_any_bytes_are_a_report_or_at_most_20_problems(
    format: DatasetFormat, parts: list[bytes]
) -> None:
    found = outcome(format, [b"\n".join(parts)])

    if not isinstance(found, Report):
        problems, total = found
        assert 1 <= len(problems) <= MAX_PROBLEMS_SHOWN
        assert total >= len(problems)
        assert all(p.line >= 1 and p.message for p in problems)
        json.dumps([p.model_dump() for p in problems]).encode()  # a client can be told


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_damaged_parquet_file_is_a_report_or_problems(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["good.parquet", "messages.parquet"]))
    whole = bytearray((CORPUS / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    kept = bytes(
        whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole
    )

    found = outcome("parquet", [kept])

    assert isinstance(found, Report) or len(found[0]) >= 1


cells = st.text(st.sampled_from('ab,"\n\r é;'), max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=8),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_csv_is_read_as_the_standard_library_writes_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], sizes: list[int]
) -> None:
    rows = [(prompt, f"x{completion}") for prompt, completion in rows]
    written = io.StringIO(newline="")
    csv.writer(written).writerows([("prompt", "completion"), *rows])
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_bytes(written.getvalue().encode())

    read = [tuple(m.content for m in getattr(row, "messages")) for row in iter_rows(path, "csv")]  # noqa: B009  # Row is a union

    assert read == rows
    report = outcome("csv", cut(path.read_bytes(), sizes))
    assert isinstance(report, Report)
    assert report.rows == len(rows)


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from('a,"\n'), max_size=30))
@example('a"b,c\nd,"e\nf"\n')
@example('"a"b"\n,"c"\n')
def test_records_end_where_the_standard_library_ends_them(text: str) -> None:
    reader = csv.reader(io.StringIO(text, newline=""))
    expected = [reader.line_num for _ in reader]

    ends, still_open = [], False
    fed = Lines()
    for number, line in [*fed.feed(text.encode()), *fed.close()]:
        if still_open:
            closing = CLOSES.match(line)
            still_open = closing is None or REOPENS.match(line, closing.end()) is not None
        else:
            still_open = OPENS.match(line) is not None
        if not still_open:
            ends.append(number)
    if still_open:
        ends.append(number)

    assert ends == expected


def test_a_line_of_exactly_1_mib_is_accepted_and_one_byte_more_is_not() -> None:
    frame = b'{"prompt": "a", "completion": "%s"}'
    fits = frame % (b"x" * (MAX_LINE_BYTES - len(frame) + 2))

    assert isinstance(outcome("jsonl", [fits + b"\n" + GOOD]), Report)
    problems, _ = outcome("jsonl", [GOOD + fits.replace(b"xx", b"xxx", 1)])  # type: ignore[misc]  # it is no Report
    assert problems[0].line == 2
    assert "1,048,576 bytes" in problems[0].message


def test_a_line_without_end_is_refused_before_it_ends() -> None:
    with RowValidator("jsonl") as validator:
        validator.feed(GOOD)
        validator.feed(b"x" * MAX_LINE_BYTES)
        with pytest.raises(DatasetInvalid, match="line 2: is longer"):
            validator.feed(b"x")
        with pytest.raises(DatasetInvalid, match="line 2: is longer"):
            validator.close()


def test_the_last_row_is_accepted_and_the_next_ends_the_upload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MAX_ROWS == 1_000_000
    monkeypatch.setattr("engine.rows.validator.MAX_ROWS", 10_000)
    line = b'{"prompt": "a"}\n'
    with RowValidator("jsonl") as validator:
        for _ in range(10):
            validator.feed(line * 1000)
        with pytest.raises(DatasetInvalid, match="line 10001: is past row 10,000; split"):
            validator.feed(line)


def test_a_parquet_file_of_too_many_rows_is_refused_by_its_footer() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": pa.repeat("a", MAX_ROWS + 1)}), file)

    problems, _ = outcome("parquet", [file.getvalue()])  # type: ignore[misc]  # it is no Report

    assert "1,000,001 rows, more than 1,000,000" in problems[0].message


def test_tiny_chunks_of_a_long_line_cost_no_more_than_the_line() -> None:
    line = b'{"prompt": "' + b"x" * 500_000 + b'"}'

    report = outcome("jsonl", cut(line, [1]))

    assert isinstance(report, Report)


def test_a_parquet_file_that_kills_its_reader_kills_nothing_else() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": [f"Question {i}? " * 20 for i in range(20_000)]}), file)
    records = ParquetRecords(RowParser())
    list(records.feed(file.getvalue()))
    others = set(psutil.Process().children())
    rows = records.close()
    next(rows)

    (reader,) = set(psutil.Process().children()) - others
    reader.kill()

    with pytest.raises(Unreadable) as refused:
        list(rows)
    assert "its reader crashed" in refused.value.faults[0].message
    records.discard()


@pytest.mark.parametrize("end", ["closed", "abandoned", "refused"])
def test_no_temporary_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    good = (CORPUS / "good.parquet").read_bytes()
    before = psutil.Process().num_fds()

    with RowValidator("parquet") as validator:
        validator.feed(good[:-8] if end == "refused" else good)
        if end == "closed":
            validator.close()
        elif end == "refused":
            with pytest.raises(DatasetInvalid):
                validator.close()

    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().num_fds() == before


GROWTH = """
import json, resource, sys
from engine.rows import RowValidator

def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def row(i):
    return json.dumps({"prompt": f"Question {i}? " * 12, "completion": f"Answer {i}. " * 12})

rows = [row(i) for i in range(5000)]
def record(i):
    return f'"Question {i}? ' + "a b, c " * 20 + '","Answer' + "\\n said so" * 8 + '"'

csv = [record(i) for i in range(5000)]
format = sys.argv[1]
chunk = ("\\n".join(rows if format == "jsonl" else csv) + "\\n").encode()
with RowValidator(format) as warm:
    warm.feed(b"prompt,completion\\n" + chunk if format == "csv" else chunk)
    warm.close()
before = peak_kib()
with RowValidator(format) as validator:
    if format == "csv":
        validator.feed(b"prompt,completion\\n")
    fed = 0
    while fed < 64 << 20:
        validator.feed(chunk)
        fed += len(chunk)
    report = validator.close()
assert report.bytes >= 64 << 20
print(peak_kib() - before)
"""


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_64_mib_grow_the_process_by_less_than_32(format: str) -> None:
    """In a process of its own, whose peak is its own."""
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", GROWTH, format], cwd=root, capture_output=True, text=True, check=True
    )

    assert int(ran.stdout) < 32 * 1024


def test_importing_rows_and_rendering_loads_no_torch_and_no_transformers() -> None:
    probe = (
        "import sys, engine.rows, engine.render, engine.tokens\n"
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, check=True
    )

    assert ran.stdout.strip() == "[]"
