"""Line charts as SVG and as PNG, from one layout, with Pillow alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 900, 300  # pixels of a chart
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 34, 32  # margins; the legend is on the right
FONT = 13  # pixels
FINE = 2  # times as many pixels in a PNG
COLOURS = ("#1f5fbf", "#d1495b", "#2a9d5c", "#b8860b", "#7b4fa3", "#555555")
Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """Lines over steps, each with its name."""

    title: str
    lines: Mapping[str, Sequence[Point]]  # step and value
    marks: Mapping[str, float] = field(default_factory=dict)  # steps with a dotted line, by name
    includes: Sequence[float] = ()  # values that the scale shows, whatever the lines


class Stroke(NamedTuple):
    """Line through points of the page."""

    points: list[Point]
    colour: str
    width: float
    dotted: bool = False


class Label(NamedTuple):
    """Text on the page at the left end, middle or right end of its base line."""

    x: float
    y: float
    text: str
    anchor: str = "start"  # or "middle", "end", as in SVG
    colour: str = "#222222"


def svg(charts: Sequence[Chart]) -> str:
    """Return charts below each other as one SVG element."""
    height = HEIGHT * len(charts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="{FONT}">'
    ]
    for item in _page(charts):
        if isinstance(item, Label):
            place = f'x="{item.x:.1f}" y="{item.y:.1f}" text-anchor="{item.anchor}"'
            parts.append(f'<text {place} fill="{item.colour}">{escape(item.text)}</text>')
            continue
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in item.points)
        dots = ' stroke-dasharray="2 4"' if item.dotted else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{item.colour}" '
            f'stroke-width="{item.width}"{dots}/>'
        )
    return "\n".join([*parts, "</svg>"])


def picture(charts: Sequence[Chart]) -> Image.Image:
    """Return charts below each other as a picture."""
    image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE * len(charts)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT * FINE)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for item in _page(charts):
        if isinstance(item, Label):
            place = (item.x * FINE, item.y * FINE)
            draw.text(place, item.text, item.colour, font, anchor=anchors[item.anchor])
        else:
            points = [(x * FINE, y * FINE) for x, y in item.points]
            draw.line(points, item.colour, max(1, round(item.width * FINE)), joint="curve")
    return image


def _page(charts: Sequence[Chart]) -> Iterator[Stroke | Label]:
    for i, chart in enumerate(charts):
        yield from _chart(chart, i * HEIGHT)


def _chart(chart: Chart, top: float) -> Iterator[Stroke | Label]:
    """Yield the strokes and labels of a chart whose upper edge is at `top`."""
    points = [p for line in chart.lines.values() for p in line if math.isfinite(p[1])]
    xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
    ys += chart.includes
    columns, rows = _ticks(0.0, max(xs)), _ticks(min(ys), max(ys))
    right, low, high = max(columns[-1], max(xs)), rows[0], rows[-1]

    def at(x: float, y: float) -> Point:
        across = (x / right) * (WIDTH - LEFT - RIGHT)
        down = (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, top + TOP + down

    yield Label(LEFT, top + TOP - 12, chart.title)
    for y in rows:
        zero = y == 0
        yield Stroke([at(0, y), at(right, y)], "#888888" if zero else "#dddddd", 1)
        yield Label(LEFT - 8, at(0, y)[1] + 4, f"{y:g}", "end", "#555555")
    for x in columns:
        yield Label(at(x, low)[0], top + HEIGHT - 10, f"{x:g}", "middle", "#555555")
    for name, x in chart.marks.items():
        yield Stroke([at(x, low), at(x, high)], "#888888", 1, dotted=True)
        yield Label(at(x, high)[0] + 4, top + TOP + 12, name, colour="#888888")
    for i, (name, line) in enumerate(chart.lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        finite = [at(x, y) for x, y in line if math.isfinite(y)]
        yield Stroke(finite if len(finite) > 1 else finite * 2, colour, 1.6)
        y = top + TOP + 14 + 20 * i
        yield Stroke([(WIDTH - RIGHT + 14, y - 4), (WIDTH - RIGHT + 34, y - 4)], colour, 3)
        yield Label(WIDTH - RIGHT + 40, y, name)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that enclose a range."""
    span = high - low or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * f for f in (1, 2, 5, 10) if size * f >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]
