"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from .data import Dataset, Input, open_data
from .images import Preprocessing, from_folder

F = TypeVar("F", bound=Callable[..., Any])
DATA = "an .npz archive keyed by input name, a folder of images, or package.module:function that yields dicts"


def numbers(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    """Comma-separated numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers separated by commas, found {text!r}.") from None


def byte_count(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Bytes, from 1.5MB and the like (of 1024 and 1024^2)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KM]?)B?", text, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"expected a size such as 1.5MB, 800KB or 50000, found {text!r}.")
    return int(float(found[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[found[2].upper()])


def named_shapes(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> dict[str, list[tuple[int, ...]]]:
    """NAME=1,3,224,224 of each; the last = or : separates, since names may hold either. A name may come again, with another shape."""
    shapes = dict[str, list[tuple[int, ...]]]()
    for name, shape in map(named_shape, texts):
        shapes.setdefault(name, []).append(shape)
    return shapes


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """One of them."""
    found = re.fullmatch(r"(.+)[=:](\d+(?:,\d+)*)", text)
    if found is None:
        raise click.BadParameter(f"expected NAME=1,3,224,224, found {text!r}.")
    return found[1], tuple(int(d) for d in found[2].split(","))


def resizing(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, float]:
    """How images come to the network's size: kind, and the fraction that is left by cropping."""
    kind, _, fraction = text.partition(":")
    try:
        share = float(fraction or 1)
    except ValueError:
        share = 0
    if kind not in ("crop", "stretch", "pad") or not 0 < share <= 1 or (fraction and kind != "crop"):
        raise click.BadParameter(f"expected crop, crop:0.875, stretch or pad, found {text!r}.")
    return kind, share


_IMAGES = (
    click.option("--mean", callback=numbers, metavar="N,N,N", default="0", help="images: subtracted, per channel, after --scale"),
    click.option("--std", callback=numbers, metavar="N,N,N", default="1", help="images: divided by, per channel"),
    click.option("--scale", type=float, default=1 / 255, show_default="1/255", help="images: pixels are multiplied by it first"),
    click.option("--color", type=click.Choice(["rgb", "bgr", "gray"]), help="images: order of channels [default: rgb, gray for one channel]"),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="images: order of dimensions [default: from the input's shape]"),
    click.option("--resize", callback=resizing, metavar="HOW", default="crop", show_default=True, help="images: crop, crop:0.875, stretch or pad"),
)


def stacked(command: F, options: Sequence[Callable[[F], F]]) -> F:
    """`command` with all of `options`, in the order in which they are listed."""
    return reduce(lambda f, option: option(f), reversed(options), command)


def image_options(command: F) -> F:
    """The flags of `Preprocessing`, handed to the command as one argument `how`."""

    def gathered(*args: Any, **given: Any) -> Any:
        kind, fraction = given.pop("resize")
        taken = {name: given.pop(name) for name in ("mean", "std", "scale", "color", "layout")}
        return command(*args, how=Preprocessing(**taken, resize=kind, fraction=fraction), **given)

    gathered.__doc__ = command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return stacked(gathered, _IMAGES)  # type: ignore[return-value]


json_option = click.option("--json", "as_json", is_flag=True, help="print JSON and nothing else")
LABELS = "name of the array with the right answers; for a folder of images any word: its subfolders are the classes"
labels_option = click.option("--labels", help=LABELS)


def data_option(flag: str, help: str) -> Callable[[F], F]:
    """The option `flag` that names a data set."""
    return click.option(flag, metavar="DATA", help=f"{help}: {DATA}")


def read_data(source: str, inputs: Sequence[Input], how: Preprocessing, labels: str | None = None) -> Dataset:
    """The data set that the user named."""

    def images(folder: Path, wanted: Input, key: str | None) -> Dataset:
        return from_folder(folder, wanted, key, how)

    return open_data(source, inputs, labels, images)
