"""Options that put what stands around a network into its program: `--input u8`, `--output argmax`, `--output topk:N` and `--output u8`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from qcompiler.errors import UsageError

from .data import Batch, Dataset
from .images import Preprocessing
from .options import F, stacked

if TYPE_CHECKING:
    import onnx

    from qcompiler.frontend.ends import Pixels

Shapes = dict[str, list[tuple[int, ...]]]
INPUT_HELP = "what the program takes: u8 are the pixels themselves; --scale, --mean and --std become part of it, --layout is theirs"
ANSWER_HELP = (
    "what the program gives: scores; argmax, the index of the greatest (int64); topk:N, the indices of the N greatest; "
    "or u8, bytes of 1/255 each (u8:STEP: of STEP each), as of images"
)


@dataclass(frozen=True)
class Answer:
    """Scores; classes: the greatest alone, or `count` of them in order; or bytes of `step` each."""

    classes: bool = False
    count: int | None = None
    step: float | None = None

    @classmethod
    def parse(cls, text: str) -> Answer:
        """Of scores, argmax, topk:N, u8 or u8:STEP; UsageError otherwise."""
        kind, colon, number = text.partition(":")
        if kind == "topk" and number.isdecimal() and int(number) > 0:
            return cls(True, int(number))
        if kind == "u8" and (not colon or (step := _number(number)) is not None):
            return cls(step=step if colon else 1 / 255)
        if colon or kind not in ("scores", "argmax"):
            raise UsageError(f"expected --output scores, argmax, topk:N with N from 1 on, u8 or u8:STEP, found {text!r}")
        return cls(kind == "argmax")

    @property
    def is_scores(self) -> bool:
        """Whether the network's outputs stay as they are."""
        return not self.classes and self.step is None

    def applied(self, network: str | onnx.ModelProto) -> str | onnx.ModelProto:
        """The network with this answer."""
        from qcompiler.frontend.ends import give_bytes, name_classes

        if self.step is not None:
            return give_bytes(network, self.step)
        return name_classes(network, self.count) if self.classes else network


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Ends:
    """What was chosen; `quantized` values and `scores` leave the network as it is."""

    input: str = "quantized"
    answer: Answer = Answer()

    @property
    def pixels(self) -> bool:
        """Whether the program takes bytes."""
        return self.input == "u8"

    @property
    def change(self) -> bool:
        """Whether anything is put into the network."""
        return self.pixels or not self.answer.is_scores

    def reading(self, how: Preprocessing) -> Preprocessing:
        """How data for the network itself is read: --layout is that of the program's pixels."""
        return replace(how, layout=None) if self.pixels else how

    def applied(self, model: str, how: Preprocessing, shapes: Shapes) -> tuple[str | onnx.ModelProto, Shapes]:
        """The network with its ends, and the shapes that are still to be fixed."""
        from qcompiler.frontend.ends import take_pixels

        if not self.change:
            return model, shapes
        several = next((name for name, forms in shapes.items() if len(forms) > 1), None)
        if self.pixels and several is not None:
            raise UsageError(f"--input u8 takes one shape of each input, found {len(shapes[several])} of '{several}'")
        single = {name: forms[0] for name, forms in shapes.items()}
        network = take_pixels(model, pixels_of(how), single) if self.pixels else model
        return self.answer.applied(network), {} if self.pixels else shapes

    def data(self, model: str, how: Preprocessing, data: Dataset) -> Dataset:
        """`data` of the network as the program takes it."""
        return in_pixels(model, pixels_of(how), data) if self.pixels else data


AS_IT_IS = Ends()


def pixels_of(how: Preprocessing) -> Pixels:
    """The options that images share with `--input u8`."""
    from qcompiler.frontend.ends import Pixels

    return Pixels(how.mean, how.std, how.scale, how.layout)


def in_pixels(model: str, pixels: Pixels, data: Dataset) -> Dataset:
    """Preprocessed images as the bytes they were."""
    from qcompiler.frontend.ends import as_pixels
    from qcompiler.frontend.load import load_model

    network = load_model(model)

    def read() -> Iterator[Batch]:
        return (Batch({name: as_pixels(x, network, pixels) for name, x in b.feeds.items()}, b.labels) for b in data.read())

    return Dataset(data.source, read, data.count)


def ends_options(command: F) -> F:
    """The flags of `Ends`, handed to the command as one argument `ends`."""

    def gathered(*args: object, **given: object) -> object:
        taken, answer = str(given.pop("input")), Answer.parse(str(given.pop("answer")))
        return command(*args, ends=Ends(taken, answer), **given)

    gathered.__doc__ = command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    chosen = (
        click.option("--input", type=click.Choice(["quantized", "u8"]), default="quantized", show_default=True, help=INPUT_HELP),
        click.option("--output", "answer", default="scores", show_default=True, metavar="scores|argmax|topk:N|u8[:STEP]", help=ANSWER_HELP),
    )
    return stacked(gathered, chosen)  # type: ignore[return-value]
