"""A picture of worth against leakage: kappa over the worst attacker's AUC, a point for each k.

In: the object that `benchmarks.quality_fundus --json` prints. Out: a PNG, drawn with Pillow alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

WIDTH = 760
HEIGHT = 420
LEFT = 56
BOTTOM = 46
TOP = 30
RIGHT = 190
COLOURS = (
    (200, 40, 40),
    (230, 130, 20),
    (20, 120, 200),
    (20, 140, 70),
    (120, 60, 170),
    (120, 120, 120),
    (0, 0, 0),
    (160, 110, 60),
    (220, 90, 160),
    (60, 170, 170),
    (150, 190, 40),
    (90, 90, 220),
    (200, 170, 120),
)


def curve(found: dict[str, Any]) -> bytes:
    """Return the PNG: a panel for each part."""
    panels = [panel(name, one["rows"], one["real"]) for name, one in found.items()]
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    for i, picture in enumerate(panels):
        sheet.paste(picture, (0, HEIGHT * i))
    stream = io.BytesIO()
    sheet.quantize(32).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def panel(name: str, rows: Sequence[dict[str, Any]], real: dict[str, Any]) -> Image.Image:
    """One part: left and up is better; the dashed line is what all real members teach."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    rows = [r for r in rows if r["utility"]]  # a release without labels teaches no classifier
    points = {
        (r["row"], r["k"]): (r["membership"]["worst"]["auc"], r["utility"]["kappa"]) for r in rows
    }
    xs = [p[0] for p in points.values()]
    ys = [p[1] for p in points.values()] + [real["all"]["kappa"]]
    x0 = min(0.5, min(xs)) - 0.01
    x1 = max(xs) + 0.02
    y0 = min(ys) - 0.05
    y1 = max(ys) + 0.05

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP),
        )

    for i in range(1, 20):
        if x0 <= i / 20 <= x1:
            x, y = at(i / 20, y0)
            draw.line([(x, TOP), (x, y)], fill=(225, 225, 225))
            draw.text((x - 10, y + 4), f"{i / 20:.2f}", fill="black")
        if y0 <= i / 10 <= y1:
            x, y = at(x0, i / 10)
            draw.line([(x, y), (WIDTH - RIGHT, y)], fill=(225, 225, 225))
            draw.text((x - 24, y - 6), f"{i / 10:.1f}", fill="black")
    _, y = at(x0, real["all"]["kappa"])
    for x in range(LEFT, WIDTH - RIGHT, 8):
        draw.line([(x, y), (x + 4, y)], fill="black")
    draw.text((LEFT + 4, y - 13), "all real members", fill="black")
    draw.text(
        (LEFT, 8),
        f"{name}: kappa on held-out people against the worst attacker's membership AUC",
        fill="black",
    )
    draw.text((WIDTH - RIGHT - 150, HEIGHT - 18), "worst attacker's AUC", fill="black")
    for i, row in enumerate(dict.fromkeys(r["row"] for r in rows)):
        colour = COLOURS[i % len(COLOURS)]
        line = []
        for name_of, k in sorted(points):
            if name_of == row:
                line.append((k, at(*points[row, k])))
        draw.line([p for _, p in line], fill=colour, width=2)
        for k, (x, y) in line:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
            draw.text((x + 6, y - 10), str(k), fill=colour)
        draw.rectangle(
            [WIDTH - RIGHT + 14, TOP + 18 * i + 4, WIDTH - RIGHT + 24, TOP + 18 * i + 12],
            fill=colour,
        )
        draw.text((WIDTH - RIGHT + 30, TOP + 18 * i + 2), row, fill="black")
    return picture
