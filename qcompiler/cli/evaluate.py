"""`qcompile eval`: accuracy of a compiled network beside the float network's, on the same samples in the same run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.runtime import Manifest

from .artifact import inputs_for, open_manifest, open_program, report_of
from .data import Dataset, Input, first
from .floats import FloatModel
from .images import Preprocessing
from .options import data_option, image_options, json_option, labels_option, read_data
from .show import progress, say, show_json, show_table, warn

Array = NDArray[Any]


@dataclass
class Tally:
    """What was counted over the samples so far."""

    samples: int = 0
    correct: int = 0
    float_correct: int = 0
    agreed: int = 0
    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def count(self, ours: Array, real: Array | None, labels: Array | None) -> None:
        """Count the classes that one output names; where there is a label to each position, the class of each. Negative labels do not count."""
        if labels is not None and labels.ndim > 1 and labels.shape == ours.shape[:-1]:
            kept = labels >= 0
            ours, real, labels = ours[kept], None if real is None else real[kept], labels[kept]
            if not len(labels):
                return
        named = classes(ours)
        self.samples += len(named)
        if labels is not None:
            self.correct += hits(named, labels)
        if real is not None:
            self.agreed += hits(named, classes(real))
            self.float_correct += hits(classes(real), labels) if labels is not None else 0

    def compare(self, output: str, ours: Array, real: Array) -> None:
        """Add to the signal and the noise of an output."""
        x = np.asarray(real, np.float64)
        self.signal[output] = self.signal.get(output, 0.0) + float((x**2).sum())
        self.noise[output] = self.noise.get(output, 0.0) + float(((x - ours) ** 2).sum())

    def sqnr(self, output: str) -> float | None:
        """Signal to quantization noise in dB; None where there is no noise, or nothing but noise."""
        signal, noise = self.signal[output], self.noise[output]
        return 10 * float(np.log10(signal / noise)) if signal and noise else None


def classes(scores: Array) -> NDArray[np.int64]:
    """The class that each row of scores names; integers are taken for classes already."""
    if scores.dtype.kind in "iu":
        return scores.reshape(len(scores), -1)[:, 0].astype(np.int64)
    return scores.reshape(len(scores), -1).argmax(1)


def hits(named: Array, labels: Array) -> int:
    """How many are right."""
    if named.shape != labels.shape:
        expected = "expected one label per sample, or per position of an output [N, positions, classes]"
        raise UsageError(f"{expected}; found {list(labels.shape)} for {len(named)} samples; see --labels and --output")
    return int((named == labels).sum())


@click.command("eval")
@click.argument("artifact", metavar="ARTIFACT")
@data_option("--data", "evaluation inputs")
@labels_option
@click.option("--model", "float_model", help="the float network [default: the one that was compiled]")
@click.option("--output", help="the output that names classes [default: the first]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="use only the first N samples")
@click.option("--max-drop", type=float, metavar="POINTS", help="exit with 1 where top-1 falls by more")
@image_options
@json_option
def command(
    artifact: str,
    data: str | None,
    labels: str | None,
    float_model: str | None,
    output: str | None,
    limit: int | None,
    max_drop: float | None,
    how: Preprocessing,
    as_json: bool,
) -> int:
    """Accuracy, beside the float network's."""
    manifest = open_manifest(artifact)
    inputs = inputs_for(manifest.interface, data)
    if data is None:
        raise UsageError("accuracy needs data: name it with --data, an .npz archive, a folder of images or package.module:function")
    samples = first(read_data(data, inputs, how, labels), inputs, limit)
    real = open_float(float_model, manifest, inputs)
    tally = evaluate(artifact, samples, real, chosen_output(manifest, output), as_json)
    facts = described(artifact, tally, labels is not None, real)
    if as_json:
        show_json(facts)
    else:
        show(facts)
    return verdict(facts, max_drop)


def open_float(path: str | None, manifest: Manifest, inputs: list[Input]) -> FloatModel | None:
    """The float network: `path`, or the one that the artifact was compiled from, where it still is."""
    source = path or report_of(manifest).get("source")
    if source is None or (path is None and not Path(source).is_file()):
        warn("the float network is not at hand, so there is nothing to compare with; name it with --model")
        return None
    return FloatModel.open(source, inputs)


def chosen_output(manifest: Manifest, output: str | None) -> str:
    """The output whose classes are counted."""
    names = [t.name for t in manifest.interface.outputs]
    if output is not None and output not in names:
        raise UsageError(f"no output is called '{output}'; expected one of {', '.join(names)}")
    return output or names[0]


def evaluate(artifact: str, samples: Dataset, real: FloatModel | None, output: str, quiet: bool) -> Tally:
    """Run the program, and the float network where there is one, over all samples."""
    program, tally = open_program(artifact), Tally()
    with progress("evaluating", samples.count, quiet) as advance:
        for done, batch in enumerate(samples.batches(), 1):
            ours = program.run(batch.feeds)
            floats = real.run(batch.feeds) if real is not None else {}
            tally.count(ours[output], floats.get(output), batch.labels)
            for name, value in floats.items():
                tally.compare(name, ours[name], value)
            advance(done)
    return tally


def described(artifact: str, tally: Tally, labelled: bool, real: FloatModel | None) -> dict[str, Any]:
    """The counts as figures; None where there was nothing to compare with."""
    top1 = percent(tally.correct, tally.samples) if labelled else None
    float_top1 = percent(tally.float_correct, tally.samples) if labelled and real is not None else None
    return {
        "artifact": artifact,
        "samples": tally.samples,
        "top1": top1,
        "float_top1": float_top1,
        "drop": None if top1 is None or float_top1 is None else round(float_top1 - top1, 4),
        "agreement": percent(tally.agreed, tally.samples) if real is not None else None,
        "sqnr": {name: tally.sqnr(name) for name in tally.signal},
    }


def percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent."""
    return round(100 * part / whole, 4)


def show(facts: dict[str, Any]) -> None:
    """The figures for people."""
    rows = [("float", facts["float_top1"], None), ("compiled", facts["top1"], facts["agreement"])]
    show_table(f"{facts['artifact']} on {facts['samples']} samples", ["network", ">top-1 %", ">same class as float %"], rows)
    for name, ratio in facts["sqnr"].items():
        say(f"{name}: " + ("signal or noise is zero, so they have no ratio" if ratio is None else f"signal to quantization noise {ratio:.1f} dB"))
    if facts["top1"] is None:
        say("No labels were named, so accuracy is not known; name their array with --labels.")


def verdict(facts: dict[str, Any], max_drop: float | None) -> int:
    """1 where accuracy fell by more than is allowed."""
    if max_drop is None:
        return 0
    if facts["drop"] is None:
        raise UsageError("--max-drop compares accuracies: it needs --labels and the float network (--model)")
    return int(facts["drop"] > max_drop)
