"""The comparison as one page of HTML: no script, no network, light and dark as the reader's system is, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from qcompiler import __version__

if TYPE_CHECKING:
    from .compare import Comparison
    from .comparison import Row

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --faint: #57606a; --line: #d0d7de;
  --bar: #2f6fb3; --good: #1a7f37; --bad: #b42318; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6edf3; --back: #0d1117; --faint: #9aa4af; --line: #30363d; --bar: #58a6ff; --good: #3fb950; --bad: #ff7b72; }}
}}
body {{ margin: 0 auto; max-width: 76rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
p, figcaption {{ color: var(--faint); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }}
td {{ min-width: 6rem; }} th, td:first-child, .number {{ white-space: nowrap; min-width: 0; }}
.number {{ text-align: right; }} .good {{ color: var(--good); }} .bad {{ color: var(--bad); font-weight: bold; }}
figure {{ margin: 1rem 0; }}
.bars {{ display: grid; grid-template-columns: minmax(5rem, 1fr) 2fr auto; gap: .15rem .6rem; align-items: center; font-size: .85rem; }}
.bars span {{ overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.bar {{ height: .8rem; background: var(--bar); border-radius: 2px; }}
@media (max-width: 40rem) {{ body {{ padding: .6rem; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
{verdict}
<div class="wide"><table>
<thead><tr>{headings}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
<p>{kinds}</p>
{pictures}
<p>{tool}</p>
</body>
</html>
"""

_KINDS = (
    "Latency is <b>measured</b> on the CPU named above, all taking turns, median of calls; <b>remote</b> on the device that the row names, by its "
    "clock; <b>counted</b> are the instructions of one inference in an emulated CPU, which say nothing of its clock or caches, so no time is given; "
    "their cycles are an estimate by LLVM's model of the core named, within 25 percent on layers of multiplications. The interval is Wilson's, of 95 "
    "percent. Programs that were run on fewer samples show the accuracy of one that was run on all of them, where they gave its bits on those."
)


def page(found: Comparison) -> str:
    """The whole page."""
    from .compare import HEADINGS, cells

    about = f"{found.samples} samples, {found.cpu}, {found.threads} thread{'s' if found.threads > 1 else ''}"
    headings = "".join(f"<th{' class=number' if h.startswith('>') else ''}>{escape(h.lstrip('>'))}</th>" for h in HEADINGS)
    rows = "\n".join(_row(r, cells(r), [h.startswith(">") for h in HEADINGS]) for r in found.rows)
    return _PAGE.format(
        title=escape(f"{found.model} on {len(found.rows) - 1} targets"),
        about=escape(about),
        verdict=_verdict(found),
        headings=headings,
        rows=rows,
        kinds=_KINDS,
        pictures="\n".join(_pictures(found)),
        tool=escape(f"qcompiler {__version__}"),
    )


def _row(row: Row, texts: Sequence[str], right: Sequence[bool]) -> str:
    marks = {True: "good", False: "bad", None: ""}
    classes = ["number" if r else "" for r in right[:-1]] + [marks[row.same_bits]]
    return "<tr>" + "".join(f"<td{f' class={c}' if c else ''}>{escape(t)}</td>" for t, c in zip(texts, classes)) + "</tr>"


def _verdict(found: Comparison) -> str:
    if found.held is None:
        return ""
    words = {True: '<b class="good">yes</b>', False: '<b class="bad">no</b>', None: "not known"}
    return f"<p>{escape(str(found.requirement))}: " + ", ".join(f"{escape(t)} {words[h]}" for t, h in found.held.items()) + "</p>"


def _pictures(found: Comparison) -> Iterable[str]:
    latencies = [(r.target, r.latency_ms, f"{r.latency_ms:.4g} ms") for r in found.rows if r.latency_ms is not None]
    yield _bars("Latency, measured", "Milliseconds of one call, the shorter the better.", latencies)
    yield _layers(found.layers, "milliseconds", "Time by layer", "Of one thread, on the first target that runs on this CPU.", "ms")
    yield _layers(found.layers, "sqnr", "Error by layer", "Signal to quantization noise in decibels, the longer the better.", "dB")


def _layers(layers: Sequence[dict[str, Any]], key: str, title: str, about: str, unit: str) -> str:
    return _bars(title, about, [(x["name"], x[key], f"{x[key]:.3g} {unit}") for x in layers if x[key] is not None])


def _bars(title: str, about: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """A bar for each row, the longest of full width."""
    if not rows:
        return ""
    longest = max(max(value for _, value, _ in rows), 1e-12)
    lines = "".join(
        f'<span title="{escape(name)}">{escape(name)}</span><div><div class="bar" style="width:{100 * max(value, 0) / longest:.1f}%"></div></div>'
        f'<span class="number">{escape(text)}</span>\n'
        for name, value, text in rows
    )
    return f'<h2>{escape(title)}</h2>\n<figure><figcaption>{escape(about)}</figcaption><div class="bars">\n{lines}</div></figure>'
