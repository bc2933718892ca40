"""The profiles on real networks: `python -m benchmarks.profiles [--json FILE] [names of profiles]`.

For each network and profile: the export's own lint, whether onnxruntime loads it, and its top-1 beside that of float, on the same images.
A network is calibrated once for weights with a scale for each channel and once for those with one; each profile chooses its own scales from
what was seen. Powers of two may lose two points, all else one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from benchmarks.zoo import NETWORKS, Network
from qcompiler.backends.onnx.lint import lint
from qcompiler.exchange import written
from qcompiler.frontend.importer import import_model
from qcompiler.passes.pipeline import Measured, Options, exchange_graph, measured
from qcompiler.passes.scheme import Scheme
from qcompiler.profiles import TargetProfile, names, profile_named

TESTED = ("cifar10_resnet20", "imagenet_mobilenetv2")
ALLOWED, ALLOWED_POWERS = 1.0, 2.0
"""Points of top-1 that may be lost."""


@dataclass(frozen=True)
class Row:
    """What one profile did to one network. `rest` are fallbacks to float; `scored` images had labels."""

    network: str
    profile: str
    activations: str
    opset: int
    violations: int
    operators: int
    rest: int
    scored: int
    float_top1: float
    top1: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the bar is met."""
        return not self.violations and self.float_top1 - self.top1 <= self.allowed


def top1(model: ModelProto | Path, network: Network) -> float:
    """Percent of evaluation images that onnxruntime's answers are right on."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model) if isinstance(model, Path) else model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    answers: list[NDArray[Any]] = [(session.run(None, {name: x})[0].argmax(), y) for x, y in network.batches("eval")]
    return 100 * float(np.mean([a == y for a, y in answers]))


def rows_of(network: Network, profiles: Sequence[str], limit: int | None, preferred: bool) -> list[Row]:
    """All profiles, with each type of activations that they know or the preferred one alone, on one network."""
    floats, found, rows = top1(network.path, network), dict[bool, Measured](), list[Row]()
    for profile in map(profile_named, profiles):
        for kind in profile.activations.types[: 1 if preferred else None]:
            scheme = profile.scheme(profile.stored(kind.value))
            if scheme.per_channel not in found:
                found[scheme.per_channel] = _measured(network, scheme, limit)
            rows.append(_row(network, profile, kind.value, found[scheme.per_channel], floats))
            click.echo(line(rows[-1]))
    return rows


def _measured(network: Network, scheme: Scheme, limit: int | None) -> Measured:
    graph = import_model(network.path)
    feeds = ({graph.inputs[0].name: x} for x, _ in network.batches("calib", limit))
    return measured(graph, feeds, replace(Options(), scheme=scheme))


def _row(network: Network, profile: TargetProfile, kind: str, found: Measured, floats: float) -> Row:
    scheme = profile.scheme(profile.stored(kind))
    model = written(exchange_graph(found, replace(Options(), scheme=scheme)), profile, kind)
    onnx.checker.check_model(model, full_check=True)
    findings = lint(model, profile)
    allowed = ALLOWED_POWERS if scheme.power_of_two else ALLOWED
    opset = next(o.version for o in model.opset_import if not o.domain)
    counts = len(findings.violations), findings.operators, len(findings.fallbacks)
    scored = sum(1 for _ in network.batches("eval"))
    return Row(network.name, profile.name, kind, opset, *counts, scored, floats, top1(model, network), allowed)


HEADING = "| network | profile | activations | opset | violations | operators | in float | float | quantized | drop | bar |\n" + "|---" * 11 + "|"


def line(r: Row) -> str:
    """A row of the table."""
    drop = f"{r.float_top1 - r.top1:.2f} | {'met' if r.ok else 'MISSED'}"
    counts = f"{r.opset} | {r.violations} | {r.operators} | {r.rest}"
    return f"| {r.network} | {r.profile} | {r.activations} | {counts} | {r.float_top1:.2f} | {r.top1:.2f} | {drop} |"


@click.command()
@click.argument("profiles", nargs=-1)
@click.option("--network", "networks", multiple=True, default=TESTED, show_default=True)
@click.option("--preferred", is_flag=True, help="only the first type of activations of each profile")
@click.option("--limit", type=int, help="calibration images")
@click.option("--json", "file", type=click.Path(path_type=Path), help="write all figures")
def main(profiles: tuple[str, ...], networks: tuple[str, ...], limit: int | None, preferred: bool, file: Path | None) -> None:
    """Print the table; exit with 1 where a bar is missed."""
    click.echo(HEADING)
    rows = [r for n in networks for r in rows_of(NETWORKS[n], profiles or names(), limit, preferred)]
    if file is not None:
        file.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    raise SystemExit(int(not all(r.ok for r in rows)))


if __name__ == "__main__":
    main()
