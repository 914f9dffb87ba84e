"""Step lines on a logarithmic axis of time, as SVG: a panel for each data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#8c8c8c", "#0b6e99", "#b3541e")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 460, 300, 60, 30, 45


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One run of an arm; each point holds until the next."""

    arm: str
    points: Sequence[tuple[float, float]]
    """(seconds above 0, score)."""


def draw_steps(panels: Mapping[str, Sequence[Line]], across: str, up: str) -> str:
    """Return an SVG document with a panel beside another; lines of one arm have one colour."""
    arms = list(dict.fromkeys(line.arm for lines in panels.values() for line in lines))
    colours = dict(zip(arms, COLOURS, strict=False))
    drawn = [_draw_panel(title, lines, colours) for title, lines in panels.items()]
    width = WIDTH * len(drawn)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
    ]
    for number, panel in enumerate(drawn):
        body += [f'<g transform="translate({number * WIDTH} 0)">', *panel, "</g>"]
    for number, (arm, colour) in enumerate(colours.items()):
        x = LEFT + 90 * number
        body.append(f'<text x="{x}" y="{HEIGHT - 8}" fill="{colour}">{escape(arm)}</text>')
    body += [
        f'<text x="{WIDTH - 20}" y="{HEIGHT - 8}" text-anchor="end">{escape(across)}</text>',
        f'<text transform="translate(13 {HEIGHT // 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def _draw_panel(title: str, lines: Sequence[Line], colours: Mapping[str, str]) -> list[str]:
    points = [point for line in lines for point in line.points]
    first = math.log10(min(x for x, _ in points))
    last = max(math.log10(max(x for x, _ in points)), first + 0.1)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low, high = max(0.0, low - 0.02), min(1.0, high + 0.02)

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(x) - first) / (last - first)
        across = LEFT + share * (WIDTH - LEFT - 20)
        return across, HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    body = [f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>']
    for number in range(5):
        y = low + (high - low) * number / 4
        _, at = place(10**first, y)
        body.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - 20}" stroke="#dddddd"/>')
        body.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.2f}</text>')
    for x in (value * 10**power for power in range(-2, 7) for value in (1, 2, 5)):
        if first <= math.log10(x) <= last:
            at, bottom = place(x, low)
            body.append(f'<path d="M{at:.1f} {TOP}V{bottom:.1f}" stroke="#eeeeee"/>')
            body.append(f'<text x="{at:.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{x:g}</text>')
    for line in lines:
        (x, y), *others = [place(*point) for point in line.points]
        path = f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in others)
        body.append(f'<path d="{path}" fill="none" stroke="{colours[line.arm]}" stroke-width="1.5"/>')
    return body
