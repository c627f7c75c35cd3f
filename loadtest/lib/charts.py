"""Inline SVG, drawn by hand: lines over two axes, and bars of ratios. Colours are CSS classes; the page defines them. Pure."""

import math
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Axis:
    """Maps values to 0..1 by `place`, and says where ticks stand."""

    title: str
    place: object    # value -> 0..1
    ticks: list      # (value, label)


@dataclass(frozen=True)
class Series:
    name: str
    points: list     # (x, y)


@dataclass(frozen=True)
class Bar:
    """One ratio: where it is, how far it spread, what was asked."""

    label: str       # of the group; said once for consecutive bars of one group
    style: str       # CSS class
    ratio: float
    low: float
    high: float
    goal: float | None
    met: bool | None


def linear(title, top, label, ticks=5):
    """From zero to a round number above `top`."""
    step = round_step(top / ticks)
    count = max(1, math.ceil(top / step - 1e-9))
    return Axis(title, lambda value: value / (count * step), [(i * step, label(i * step)) for i in range(count + 1)])


def logarithmic(title, low, high, label):
    """Ends at 1, 2 or 5 times a power of ten; ticks at all of those, or at the powers alone when that would crowd. Clips below `low`."""
    ladder = [mantissa * 10.0 ** power for power in range(-3, 12) for mantissa in (1, 2, 5)]
    first = max(i for i, value in enumerate(ladder) if value <= max(low, ladder[0]))
    last = max(first + 1, min(i for i, value in enumerate(ladder) if value >= high))
    bottom, span = math.log(ladder[first]), math.log(ladder[last] / ladder[first])
    crowded = last - first >= TICKS_MAX
    ticks = [(ladder[i], label(ladder[i])) for i in range(first, last + 1) if not (crowded and i % 3)]
    return Axis(title, lambda value: max(0.0, (math.log(max(value, ladder[0])) - bottom) / span), ticks)


def steps(title, values):
    """Equal distances between the given values, whatever they are: clients 1, 2, 4, 8."""
    last = max(1, len(values) - 1)
    return Axis(title, lambda value: values.index(value) / last, [(value, str(value)) for value in values])


def percentiles(title, highest):
    """HdrHistogram's axis: each further nine takes the same room."""
    nines = max(1.0, -math.log10(1 - highest / 100)) if highest < 100 else 1.0
    marks = [(0, "0"), (90, "90"), (99, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999")]
    def place(percent):
        return -math.log10(1 - percent / 100) / nines
    return Axis(title, place, [(value, f"{label} %") for value, label in marks if place(value) <= 1.001])


def round_step(rough):
    """The next 1, 2 or 5 times a power of ten."""
    if rough <= 0:
        return 1
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


TICKS_MAX = 9                                           # on a logarithmic axis
WIDTH, HEIGHT = 460, 270                                # of a line chart; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44               # room for labels around the plot


def lines(x_axis, y_axis, series, dots=False):
    """A line chart. A series' colour is its name's: class line-NAME."""
    def x(value):
        return LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT)
    def y(value):
        return HEIGHT - BOTTOM - y_axis.place(value) * (HEIGHT - TOP - BOTTOM)
    parts = [_grid(x_axis, y_axis, x, y)]
    for one in series:
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in one.points)
        parts.append(f'<polyline class="line line-{escape(one.name)}" points="{path}"><title>{escape(one.name)}</title></polyline>')
        if dots:
            parts += [f'<circle class="dot line-{escape(one.name)}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="3.2">'
                      f'<title>{escape(one.name)}: {py:,.1f}</title></circle>' for px, py in one.points]
    return _svg(WIDTH, HEIGHT, parts)


def _grid(x_axis, y_axis, x, y):
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    parts = [f'<line class="grid" x1="{left}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
             f'<text class="tick" x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{escape(label)}</text>' for v, label in y_axis.ticks]
    parts += [f'<line class="grid" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{top}" y2="{bottom}"/>'
              f'<text class="tick" x="{x(v):.1f}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>' for v, label in x_axis.ticks]
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    parts.append(f'<text class="axis" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_axis.title)}</text>')
    parts.append(f'<text class="axis" transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">{escape(y_axis.title)}</text>')
    return "".join(parts)


BARS_WIDTH, BAR_HEIGHT, BAR_GAP, GROUP_GAP = 940, 13, 3, 12
BARS_LEFT, BARS_RIGHT, BARS_TOP, BARS_BOTTOM = 110, 180, 10, 34
RATIO_AXIS_MIN = 1.2                                    # 1.0, the reference, is always on the chart


def ratio_bars(bars, title):
    """Horizontal bars from zero, a whisker for the spread, a tick for the target, a line at 1.0."""
    top_value = max([RATIO_AXIS_MIN, *(max(bar.high, bar.goal or 0) for bar in bars)])
    axis = linear(title, top_value, lambda value: f"{value:g}", ticks=10)
    def x(value):
        return BARS_LEFT + axis.place(value) * (BARS_WIDTH - BARS_LEFT - BARS_RIGHT)
    parts, at, label = [], BARS_TOP, None
    for bar in bars:
        if bar.label != label:
            at += GROUP_GAP if label is not None else 0
            parts.append(f'<text class="name" x="{BARS_LEFT - 8}" y="{at + BAR_HEIGHT - 2}" text-anchor="end">{escape(bar.label)}</text>')
            label = bar.label
        parts.append(_bar(bar, x, at))
        at += BAR_HEIGHT + BAR_GAP
    bottom = at + 6
    scale = [f'<line class="{"one" if abs(v - 1) < 1e-9 else "grid"}" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="0" y2="{bottom}"/>'
             f'<text class="tick" x="{x(v):.1f}" y="{bottom + 14}" text-anchor="middle">{label}</text>' for v, label in axis.ticks]
    scale.append(f'<text class="axis" x="{(BARS_LEFT + BARS_WIDTH - BARS_RIGHT) / 2}" y="{bottom + 30}" text-anchor="middle">{escape(title)}</text>')
    return _svg(BARS_WIDTH, bottom + BARS_BOTTOM, scale + parts)


def _bar(bar, x, top):
    middle = top + BAR_HEIGHT / 2
    parts = [f'<rect class="{bar.style}" x="{x(0):.1f}" y="{top}" width="{x(bar.ratio) - x(0):.1f}" height="{BAR_HEIGHT}" rx="2"/>',
             f'<line class="whisker" x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}" y1="{middle}" y2="{middle}"/>']
    if bar.goal is not None:
        parts.append(f'<line class="goal" x1="{x(bar.goal):.1f}" x2="{x(bar.goal):.1f}" y1="{top - 2}" y2="{top + BAR_HEIGHT + 2}"/>')
    verdict = {None: "", True: ' <tspan class="met">met</tspan>', False: ' <tspan class="unmet">not met</tspan>'}[bar.met]
    goal = f" (target {bar.goal:g})" if bar.goal is not None else ""
    parts.append(f'<text class="value" x="{BARS_WIDTH - BARS_RIGHT + 8}" y="{top + BAR_HEIGHT - 2}">{bar.ratio:.2f}{goal}{verdict}</text>')
    return "".join(parts)


def _svg(width, height, parts):
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img">{"".join(parts)}</svg>'
