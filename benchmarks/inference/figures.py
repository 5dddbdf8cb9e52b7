"""A figure of the benchmark, as a line of the table and as a bar of the chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

_LEFT, _WIDTH, _ROW = 400, 420, 24
_LOW, _HIGH = -1.0, 1.5  # 0.1 to 32 times, in powers of ten
_MARKS = (0.1, 0.3, 1, 3, 10, 30)


@dataclass(frozen=True)
class Figure:
    """A ratio of throughputs, ours over theirs, or a figure in its unit; `bar` where one is set."""

    what: str
    dtype: str
    value: float
    unit: str
    bar: float | None = None
    below: bool = False  # whether the bar is an upper one
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.below else self.value >= self.bar


def line_of(figure: Figure) -> str:
    bar = ""
    if figure.bar is not None:
        bar = f"{'at most' if figure.below else 'at least'} {figure.bar:g}"
    held = {True: "yes", False: "no", None: ""}[figure.holds]
    shown = f"{figure.value:.2f} {figure.unit}"
    return f"| {figure.what} | {figure.dtype} | {shown} | {bar} | {held} | {figure.detail} |"


def chart(figures: Sequence[Figure]) -> str:
    """An SVG of horizontal bars on a logarithmic scale; a thin line is the bar that was set."""
    height = _ROW * len(figures) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for mark in _MARKS:
        x, colour = _at(mark), "#555" if mark == 1 else "#ddd"
        parts.append(f'<line x1="{x}" y1="8" x2="{x}" y2="{height - 24}" stroke="{colour}"/>')
        parts.append(_text(x, height - 8, f"{mark:g}", "middle"))
    for number, figure in enumerate(figures):
        y = 12 + number * _ROW
        begin, end = sorted((_at(1.0), _at(figure.value)))
        colour = "#b8860b" if figure.holds is False else "#2f6f4f"
        bar = f'width="{max(end - begin, 1)}" height="16" fill="{colour}"'
        parts.append(_text(_LEFT - 8, y + 12, f"{figure.what} ({figure.dtype})", "end"))
        parts.append(f'<rect x="{begin}" y="{y}" {bar}/>')
        parts.append(_text(end + 6, y + 12, f"{figure.value:.2f}", "start"))
        if figure.bar is not None:
            x = _at(figure.bar)
            parts.append(f'<line x1="{x}" y1="{y - 2}" x2="{x}" y2="{y + 18}" stroke="#c0392b"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _at(value: float) -> int:
    share = (min(max(log10(value), _LOW), _HIGH) - _LOW) / (_HIGH - _LOW)
    return round(_LEFT + _WIDTH * share)


def _text(x: int, y: int, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
