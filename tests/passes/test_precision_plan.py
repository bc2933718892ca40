"""Explicit plans: their file, what they refuse, and that the pipeline follows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from float_graphs import Build, graph_of
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.integer import IntConv
from qcompiler.passes.pipeline import Options, quantize
from qcompiler.passes.precision.plan import ACTIVATION_BITS, WEIGHT_BITS, Plan, Precision, layers_of, parse_plan, plan_text, read_plan
from qcompiler.passes.widths import activation_widths

RNG = np.random.default_rng(4)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
PRECISIONS = st.builds(Precision, st.sampled_from(WEIGHT_BITS), st.sampled_from(ACTIVATION_BITS))


@given(st.dictionaries(NAMES, PRECISIONS, max_size=5), PRECISIONS)
def test_a_plan_is_what_its_text_says(layers: dict[str, Precision], default: Precision) -> None:
    plan = Plan(layers, default)
    assert parse_plan(plan_text(plan, "a heading\nof two lines")) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('default = "w9a8"', "default: expected a precision .* found 'w9a8'; name wNaM with N from 2 to 8 bits of weights"),
        ('default = "w8a3"', "default: expected a precision .* found 'w8a3'; .* M from 4 to 8, or 16, of activations"),
        ('[layers]\n"a" = "int4"', "a: expected a precision such as w8a8, .* found 'int4'"),
        ("[layers]\na.b = 4", "names that hold dots need quotes"),
        ("[layer]\n", "expected the keys default and layers, found 'layer'"),
        ("layers = 3", "expected a table"),
        ("= 3", "expected TOML"),
    ],
)
def test_errors_say_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_plan(text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the precision plan '.*none\.toml'"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[")
    with pytest.raises(UsageError, match=r"broken\.toml': expected TOML"):
        read_plan(tmp_path / "broken.toml")


def network() -> Graph:
    b = Build()
    x = b.input(1, 6, 6, 4)
    one = named(b.conv(x, 4, 3, pads=((1, 1), (1, 1))), "one")
    two, three = (named(b.conv(i, 4, 3, pads=((1, 1), (1, 1))), name) for i, name in ((x, "two"), (one, "three")))
    return graph_of(two, three)


def named(v: Value, name: str) -> Value:
    w = replace(v.inputs[1], name=f"w{name}")
    return replace(v, name=name, inputs=(v.inputs[0], w, v.inputs[2]))


def samples() -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.normal(size=(1, 6, 6, 4)).astype(np.float32)} for _ in range(3)]


def test_layers_get_the_bits_of_the_plan() -> None:
    plan = Plan({"one": Precision(4, 6), "three": Precision(2, 5)})
    made = quantize(network(), samples(), Options(plan=plan))
    convs = {v.inputs[1].name: v for v in made.integer_graph.order if isinstance(v.op, IntConv)}
    found = {name: (v.inputs[1].type.quant.bits, v.inputs[0].type.quant.bits) for name, v in convs.items()}  # type: ignore[union-attr]
    assert found == {"wone": (4, 8), "wtwo": (8, 8), "wthree": (2, 5)}


def test_a_value_has_the_most_bits_that_a_reader_asks_for() -> None:
    g = network()
    widths = {v.name: b for v, b in activation_widths(g, 8, Plan({"one": Precision(8, 5), "two": Precision(8, 6)})).items()}
    assert widths["x"] == 6


def test_unknown_layers_are_named_with_a_suggestion() -> None:
    message = r"names 'tow', but the network has no such layer\. Did you mean 'two'\? Its layers are 'two', 'one', 'three'"
    with pytest.raises(UsageError, match=message):
        quantize(network(), samples(), Options(plan=Plan({"tow": Precision(4, 8)})))


def test_layers_are_named_in_execution_order() -> None:
    assert [v.name for v in layers_of(network())] == ["two", "one", "three"]
