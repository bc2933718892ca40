"""What an automatic choice of precisions could choose from, as one page: no script, no network, light and dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.passes.precision.auto import Chosen
    from qcompiler.passes.precision.search import Point

WIDTH, HEIGHT, LEFT, BELOW = 720, 380, 70, 50
TICKS = 5
UNITS = {"bytes": ("KB of weights", 1 / 1024), "milliseconds": ("milliseconds", 1.0)}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>Precision layer by layer</title>
<style>
:root {{ color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --faint: #57606a; --line: #d0d7de; --bar: #2f6fb3; --chosen: #b42318; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6edf3; --back: #0d1117; --faint: #9aa4af; --line: #30363d; --bar: #58a6ff; --chosen: #ff7b72; }}
}}
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); }}
h1 {{ font-size: 1.4rem; }} p, figcaption {{ color: var(--faint); }} figure {{ margin: 1rem 0; }} svg {{ width: 100%; height: auto; }}
text {{ fill: var(--faint); font-size: 13px; }} .grid {{ stroke: var(--line); }} .curve {{ fill: none; stroke: var(--bar); stroke-width: 2; }}
.point {{ fill: var(--bar); }} .chosen {{ fill: var(--chosen); }} .label {{ fill: var(--chosen); font-weight: bold; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }}
</style>
</head>
<body>
<h1>Precision layer by layer</h1>
<p>{summary}</p>
{figures}
<h2>The choice</h2>
<div class="wide"><table><tr><th>layer</th><th>precision</th></tr>{rows}</table></div>
</body>
</html>
"""


def cost_page(choice: Chosen) -> str:
    """The page: a figure for each cost, and the plan."""
    names = [n for n in UNITS if n in choice.point.costs]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{p}</td></tr>" for name, p in choice.plan.layers.items())
    return _PAGE.format(summary=_summary(choice), figures="".join(_figure(choice, n) for n in names), rows=rows)


def _summary(choice: Chosen) -> str:
    drop = choice.point.drop
    share = 100 * choice.point.costs["bytes"] / max(choice.reference.costs["bytes"], 1)
    told = "" if drop is None else f", {drop.mean:.2f} &plusmn; {drop.error:.2f} points expected to be lost"
    return (
        f"Chosen: {share:.0f} % of the bytes of weights at 8 bits{told}. The curve is of least loss, as sensitivities predict it, at budgets of "
        "bytes from the fewest to the most; the choice was checked with calibration samples, half of them held out."
    )


def _figure(choice: Chosen, cost: str) -> str:
    points = sorted(choice.frontier, key=lambda p: p.costs[cost])
    unit, scale = UNITS[cost]
    shown = [*points, choice.point, choice.reference]
    xs, ys = _Axis([p.costs[cost] * scale for p in shown], LEFT, WIDTH - 20), _Axis([0.0, *(p.costs["loss"] for p in shown)], HEIGHT - BELOW, 20)

    def at(p: Point) -> tuple[float, float]:
        return xs.at(p.costs[cost] * scale), ys.at(p.costs["loss"])

    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))
    dots = "".join(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in map(at, [*points, choice.reference]))
    x, y = at(choice.point)
    side = "end" if x > WIDTH / 2 else "start"
    mark = (
        f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="7"/><text class="label" x="{x:.1f}" y="{y - 12:.1f}" text-anchor="{side}">chosen</text>'
    )
    axes = "".join((*_across(xs), *_up(ys)))
    names = (
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{unit}</text>'
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">expected loss, nats</text>'
    )
    drawing = f'{axes}<polyline class="curve" points="{curve}"/>{dots}{mark}{names}'
    label = f"expected loss against {unit}, {len(points)} choices and the one made"
    return f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{drawing}</svg></figure>'


class _Axis:
    """Numbers to places between `start` and `end`, with a margin of 4 %."""

    def __init__(self, numbers: Sequence[float], start: float, end: float) -> None:
        low, high = min(numbers), max(numbers)
        room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.04
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def at(self, number: float) -> float:
        """Its place."""
        return self.start + (number - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Where lines are drawn."""
        return [self.low + (self.high - self.low) * (k + 0.5) / TICKS for k in range(TICKS)]


def _across(xs: _Axis) -> Iterator[str]:
    for t in xs.ticks:
        x, bottom = xs.at(t), HEIGHT - BELOW
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{t:.4g}</text>'


def _up(ys: _Axis) -> Iterator[str]:
    for t in ys.ticks:
        y = ys.at(t)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{t:.3g}</text>'
