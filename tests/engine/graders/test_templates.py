"""Templates: paths into the item and the sample, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.graders.grades import GradingFault
from engine.graders.limits import MAX_REFERENCES, MAX_TEXT
from engine.graders.sample import Sample
from engine.graders.templates import problems_of, render

SAMPLE = Sample(output_text='{"a": {"b": [1, "two", null]}}')
ITEM = {"x": "text", "n": 7, "f": 7.0, "list": [{"k": "v"}], "odd-key": "o", "none": None}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("no references", "no references"),
        ("{{ item.x }}|{{item.x}}|{{  item.x  }}", "text|text|text"),
        ("{{ item.n }} {{ item.f }} {{ item.none }}", "7 7.0 null"),
        ("{{ item.list }} {{ item.list[0].k }} {{ item.list.0.k }}", '[{"k": "v"}] v v'),
        ("{{ item.odd-key }}", "o"),
        ("{{ sample.output_text }}", SAMPLE.output_text),
        ("{{ sample.output_json.a.b[1] }}{{ sample.output_json.a.b.2 }}", "twonull"),
        ("{ item.x } }} {", "{ item.x } }} {"),
        ("", ""),
    ],
)
def test_references_become_what_they_name(template: str, text: str) -> None:
    assert list(problems_of("input", template)) == []
    assert render(template, SAMPLE, ITEM) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ item.x",
        "{{ }}",
        "{{ items.x }}",
        "{{ item.x | upper }}",
        "{{ item.x() }}",
        "{{ item['x'] }}",
        "{{ item.__class__.__mro__[1] | x }}",
        "{{ 1 + 1 }}",
        "{{ sample }}",
        "{{ sample.choices }}",
        "{{ sample.output_text.x }}",
        "{{ item.x }}" * (MAX_REFERENCES + 1),
    ],
)
def test_what_is_no_reference_is_a_problem_before_any_sample(template: str) -> None:
    (problem,) = problems_of("reference", template)
    assert (problem.field, problem.code) == ("reference", "template_invalid")
    with pytest.raises(GradingFault):
        render(template, SAMPLE, ITEM)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ item.y }}", "names nothing: item has 'x', 'n', 'f', 'list', 'odd-key', 'none'."),
        ("{{ item.x.y }}", "names nothing: item.x is a single value."),
        ("{{ item.list[1] }}", "names nothing: item.list is a list of 1."),
        ("{{ item.list.k }}", "names nothing: item.list is a list of 1."),
        ("{{ item.__class__ }}", "names nothing: item has"),
        ("{{ item.list.__len__ }}", "names nothing: item.list is a list of 1."),
        ("{{ sample.output_json.b }}", "names nothing: sample.output_json has 'a'."),
    ],
)
def test_a_name_that_is_not_there_is_told_what_is(template: str, message: str) -> None:
    with pytest.raises(GradingFault) as told:
        render(template, SAMPLE, ITEM)
    assert told.value.kind == "invalid_variable_error"
    assert message in str(told.value)


@pytest.mark.parametrize("text", ["plain", '{"a": NaN}', "[1e999]", '"\\ud800"', "[" * 5000, ""])
def test_a_sample_that_is_no_json_has_no_parts(text: str) -> None:
    with pytest.raises(GradingFault) as told:
        render("{{ sample.output_json }}", Sample(output_text=text), {})
    assert told.value.kind == "sample_parse_error"


@settings(deadline=None)
@given(st.text())
def test_braces_in_a_value_are_text(text: str) -> None:
    tricky = f"{{{{ item.secret }}}}{text}"
    found = render("{{ item.x }}", SAMPLE, {"x": tricky, "secret": "canary-7"})
    assert found == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in tricky)


def test_a_text_has_an_end() -> None:
    with pytest.raises(GradingFault, match="characters"):
        render("{{ item.x }}" * 4, SAMPLE, {"x": "a" * (MAX_TEXT // 3)})
