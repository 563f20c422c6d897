"""Line plots as SVG, written by hand: legible on light and dark pages, no dependency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 44, 48
COLOURS = ("#2f7ed8", "#d9702b", "#2e9e6b", "#a45bc8")
TICKS = 5
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333; }
.title { font-size: 14px; font-weight: 600; }
.grid { stroke: #ccc; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd; }
  .grid { stroke: #444; }
}
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of (x, y); x > 0 because that axis is logarithmic."""

    name: str
    points: Sequence[tuple[float, float]]


def plot(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """The SVG text: x logarithmic, y linear from 0, one colour and end label for each line.

    Raises ``ValueError`` without points.
    """
    xs = sorted({x for line in lines for x, _ in line.points})
    if not xs:
        raise ValueError("there is nothing to plot")
    step = _step(max(y for line in lines for _, y in line.points) / TICKS)
    y_top = step * (math.floor(max(y for line in lines for _, y in line.points) / step) + 1)
    low, high = math.log(xs[0]), math.log(xs[-1])

    def at_x(x: float) -> float:
        share = 0.5 if high == low else (math.log(x) - low) / (high - low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - y / y_top * (HEIGHT - TOP - BOTTOM)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}">'
        ),
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
        f'<text x="{LEFT}" y="36">{escape(y_label)}</text>',
        (
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{escape(x_label)}</text>"
        ),
    ]
    for number in range(round(y_top / step) + 1):
        y = at_y(number * step)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number * step:g}</text>'
        )
    parts += [
        f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
        f"{_count(x)}</text>"
        for x in xs
    ]
    for colour, line, label_y in zip(COLOURS, lines, _label_ys(lines, at_y), strict=False):
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}">'
            f"<title>{escape(line.name)}, {_count(x)}: {y:.3g}</title></circle>"
            for x, y in line.points
        ]
        end_x = at_x(line.points[-1][0]) + 10
        parts.append(
            f'<text x="{end_x:.1f}" y="{label_y:.1f}" style="fill: {colour}">'
            f"{escape(line.name)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _label_ys(lines: Sequence[Line], at_y: Callable[[float], float]) -> list[float]:
    """Where the end labels stand: beside the last points, at least a line apart."""
    wanted = sorted(
        (float(at_y(line.points[-1][1])) + 4, place) for place, line in enumerate(lines)
    )
    ys = [0.0] * len(lines)
    free = -math.inf
    for y, place in wanted:
        ys[place] = free = max(y, free + 15)
    over = free - (HEIGHT - BOTTOM)
    return [y - over for y in ys] if over > 0 else ys


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)


def _count(x: float) -> str:
    if x >= 1000 and math.log10(x) == int(math.log10(x)):
        return f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k"
    return f"{x:g}"
