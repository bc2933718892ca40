"""--precision and --method, and what inspect tells of widths."""

from __future__ import annotations

import json
from pathlib import Path

import net
import onnx
import pytest
import transformer_networks
from command_line import Run, failed

from qcompiler.cli.inspect import widths


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "vit.onnx"
    onnx.save(net.NETWORKS[transformer_networks.vit.__name__](), path)
    return path


def report(run: Run, *arguments: object) -> dict:  # type: ignore[type-arg]
    *_, folder = arguments
    assert run(*arguments, "--json").exit_code == 0
    return json.loads(run("inspect", folder, "--json").stdout)["report"]  # type: ignore[no-any-return]


def test_narrow_layers_streams_and_codebooks(run: Run, transformer: Path, tmp_path: Path) -> None:
    found = report(run, transformer, "--precision", "w4a4", "-o", tmp_path / "a")
    dense = [r for r in found["layers"] if r["weight_bits"] is not None]
    assert {(r["weight_bits"], r["operand_bits"]) for r in dense[1:-1]} == {(4, 4)}
    assert (dense[0]["weight_bits"], dense[-1]["weight_bits"]) == (8, 8)
    assert {r["levels"] for r in found["layers"]} == {None, 16}
    assert {r["wide"] for r in found["layers"]} == {None, "residual stream", "read by a layer in 16 bits", "output of the network"}
    assert len(found["reparameterized"]) == 4
    shown = run("inspect", tmp_path / "a").stdout
    assert "w4 a4 (stored in 8" in shown
    assert "Reparameterized, channel by channel: 4 normalizations" in shown


def test_plain_methods_say_that_nothing_was_reparameterized(run: Run, transformer: Path, tmp_path: Path) -> None:
    found = report(run, transformer, "--method", "mse", "-o", tmp_path / "a")
    assert found["reparameterized"] == []
    assert [reason for _, reason in found["declined"]].count("is not reparameterized: the method is plain") == 5


def test_the_default_is_repquant(run: Run, transformer: Path, tmp_path: Path) -> None:
    one, other = (report(run, transformer, *how, "-o", tmp_path / "a") for how in ((), ("--method", "repquant", "--precision", "w8a8")))
    assert one == other
    assert one["reparameterized"]


@pytest.mark.parametrize(("precision", "clipped"), [("w4a4", True), ("w8a8", False)])
def test_dual_clipping_is_of_few_bits(run: Run, transformer: Path, tmp_path: Path, precision: str, clipped: bool) -> None:
    for n, method in enumerate(("repquant", "repquant-dual")):
        report(run, transformer, "--method", method, "--precision", precision, "-o", tmp_path / str(n))
    one, other = ((tmp_path / str(n) / "model.img").read_bytes() for n in range(2))
    assert (one != other) == clipped


@pytest.mark.parametrize("text", ["w4", "w9a8", "w1a8", "w8a3", "w4a12", "w16a16", "8", "W4A4"])
def test_strange_precisions_are_refused(run: Run, network: Path, text: str) -> None:
    assert "expected a precision such as w8a8" in failed(run(network, "--precision", text), 2)


def test_widths_in_words() -> None:
    assert widths({"bits": 16, "wide": "residual stream", "weight_bits": 7, "operand_bits": 8}) == "w7 a8, 16: residual stream"
    assert widths({"bits": 8, "levels": 16}) == "codebook of 16 levels"
    assert widths({"operand_bits": 6}) == "a6 (stored in 8 bits)"
