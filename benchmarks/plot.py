"""Line plot as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 50, 50  # margins in px; names of lines stand in the right one
LINE_COLOURS = ("#0969da", "#bc4c00", "#8250df", "#1a7f37")
TEXT_COLOUR, GRID_COLOUR = "#57606a", "#d8dee4"
LABEL_GAP_PX = 16  # between names of lines that end close to each other


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from at or below `low` to at or above `high`."""
    rough = (high - low or 1) / count
    power = 10 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [number * step for number in range(floor(low / step), ceil(high / step) + 1)]


def line_plot(title: str, x_name: str, y_name: str, xs: Sequence[float], lines: Mapping[str, Sequence[float]]) -> str:
    """Draw one line a name over the same positions; the y axis includes 0."""
    values = [y for ys in lines.values() for y in ys]
    y_ticks = ticks(min(0.0, *values), max(values))
    low, high = y_ticks[0], y_ticks[-1]

    def x_px(x: float) -> float:
        return LEFT + x / max(xs) * (WIDTH - LEFT - RIGHT)

    def y_px(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = TEXT_COLOUR) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 20, title, "start"),
        text(LEFT - 8, TOP - 14, y_name, "end"),
        text(WIDTH - RIGHT, HEIGHT - 12, x_name, "end"),
    ]
    for y in y_ticks:
        parts.append(f'<path d="M{LEFT} {y_px(y):.1f}H{WIDTH - RIGHT}" stroke="{GRID_COLOUR}"/>')
        parts.append(text(LEFT - 8, y_px(y) + 4, f"{y:,g}", "end"))
    quarter = max(1, len(xs) // 4)
    for x in (0, *xs[quarter - 1 :: quarter]):
        parts.append(text(x_px(x), HEIGHT - BOTTOM + 18, f"{x:,g}"))
    label_px = float("-inf")
    for (name, ys), colour in sorted(
        zip(lines.items(), LINE_COLOURS, strict=False), key=lambda line: line[0][1][-1], reverse=True
    ):
        points = " ".join(f"{x_px(x):.1f},{y_px(y):.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x_px(x):.1f}" cy="{y_px(y):.1f}" r="2.5" fill="{colour}"/>'
            for x, y in zip(xs, ys, strict=True)
        ]
        label_px = max(y_px(ys[-1]) + 4, label_px + LABEL_GAP_PX)
        parts.append(text(WIDTH - RIGHT + 10, label_px, name, "start", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"
