"""One program for several sequence lengths: the bits of the reference at each, the same answers whatever the padding, weights kept once."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from shutil import which

import numpy as np
import onnxruntime
import pytest
from command_line import invoke
from sentence_encoder import Encoder, padded, sentences

import qcompiler
from qcompiler.api import Program, compile
from qcompiler.errors import UnsupportedModel, UsageError
from qcompiler.frontend.lengths import each_form, form_names, import_forms, ordered_forms
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import IntRotate
from qcompiler.ir.ops import Input
from qcompiler.ir.pointwise import Tanh
from qcompiler.ir.types import DType, float_type
from qcompiler.passes.pipeline import Options
from qcompiler.passes.transfer import transferred
from qcompiler.runtime import InputError, damaged_files, read_manifest
from qcompiler.runtime.arena import allocate

LENGTHS = (8, 16, 33)
TOKENS = np.array([7, 1, 59, 30, 30, 2, 18])


def compiled(lengths: tuple[int, ...], target: str = "host", **kw) -> Program:
    shapes = {"ids": [(1, n) for n in lengths]}
    return compile(Encoder(**kw).built(), target, sentences(max(lengths)), shapes=shapes, options=Options(second_order="width" not in kw))


@cache
def program(target: str = "host") -> Program:
    return compiled(LENGTHS, target)


@pytest.mark.parametrize("target", ["host", "arm64"])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_gives_the_bits_of_the_reference(target: str, length: int) -> None:
    for feeds in sentences(length, 3, seed=length):
        found, expected = program(target).run(feeds), program(target).reference(feeds)
        assert found["hidden"].shape == (1, length, 32)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_answers_are_those_of_the_float_network() -> None:
    session = onnxruntime.InferenceSession(Encoder().built().SerializeToString())
    for length in LENGTHS:
        for feeds in sentences(length, 3, seed=length):
            real, seen = session.run(["hidden"], feeds)[0], feeds["mask"].astype(bool)
            noise = (program().run(feeds)["hidden"] - real)[seen]
            assert 10 * np.log10((real[seen] ** 2).mean() / (noise**2).mean()) > 20


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("filler", [0, 41])
def test_padding_changes_nothing(length: int, filler: int) -> None:
    """Neither its length nor its tokens, bit for bit."""
    expected, found = program().run(padded(TOKENS, 8)), program().run(padded(TOKENS, length, filler))
    np.testing.assert_array_equal(found["hidden"][:, : len(TOKENS)], expected["hidden"][:, : len(TOKENS)])
    np.testing.assert_array_equal(found["pooled"], expected["pooled"])


def test_masks_of_one_batch_may_be_ragged() -> None:
    """Every sample is what it is alone, exactly, however much the others show; what is hidden, also in the middle, changes nothing."""
    rows = [padded(np.arange(1, n + 1), 16) for n in (16, 1, 3, 15)]
    holes = {"ids": rows[0]["ids"], "mask": np.array([[1, 0, 1, 1, 0, 0, 1] + [0] * 8 + [1]])}
    rows.append(holes)
    batch = {name: np.concatenate([r[name] for r in rows]) for name in ("ids", "mask")}
    junk = {**batch, "ids": np.where(batch["mask"], batch["ids"], 41)}
    found, other = program().run(batch), program().run(junk)
    for n, row in enumerate(rows):
        expected, seen = program().reference(row), row["mask"][0].astype(bool)
        np.testing.assert_array_equal(found["hidden"][n], expected["hidden"][0])
        np.testing.assert_array_equal(found["hidden"][n, seen], other["hidden"][n, seen])
    np.testing.assert_array_equal(found["pooled"], other["pooled"])
    assert (found["hidden"][0] != found["hidden"][-1]).any(), "holes hide"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1] * 16, [1] * 3], "rows of different lengths; pad them"),
        (np.ones((1, 15), np.int64), r"expected shape \(1, 16\)|none of the shapes"),
        (np.ones((2, 16), np.int64), "same batch"),
        (np.full((1, 16), 2), r"expected integers in \[0, 1\], found 2 at \[0, 0\]"),
        (np.full((1, 16), -1), r"expected integers in \[0, 1\], found -1 at \[0, 0\]"),
        (np.ones((1, 16), np.float32), "expected int64, found float32"),
    ],
    ids=["ragged", "short", "batch", "two", "negative", "float"],
)
def test_wrong_masks_are_refused(mask, message: str) -> None:
    with pytest.raises(InputError, match=message):
        program().run({"ids": np.ones((1, 16), np.int64), "mask": mask})


def test_the_largest_length_is_what_it_is_alone() -> None:
    alone = compiled((33,))
    assert alone.interface.entries == ("model_run", "model_run_f32")
    for feeds in sentences(33, 3, seed=5):
        np.testing.assert_array_equal(program().run(feeds)["hidden"], alone.run(feeds)["hidden"])


def test_batches_threads_and_integers() -> None:
    batch = {name: np.concatenate([s[name] for s in sentences(16, 5, seed=1)]) for name in ("ids", "mask")}
    expected = np.concatenate([program().run({k: x[i : i + 1] for k, x in batch.items()})["hidden"] for i in range(5)])
    loaded = program()
    np.testing.assert_array_equal(loaded.run(batch)["hidden"], expected)
    q = loaded.run_integer(batch)["hidden"]
    hidden = loaded.interface.forms[1].outputs[0]
    np.testing.assert_array_equal((q.astype(np.float32) - hidden.zero_point) * np.float32(hidden.scale), expected)
    loaded.executable.threads = 2
    np.testing.assert_array_equal(loaded.run(batch)["hidden"], expected)
    loaded.executable.threads = 1


def test_other_lengths_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"\(1, 9\).* none of the shapes .* \(1, 33\), 'mask' \(1, 33\); 'ids' \(1, 16\).* \(1, 8\)"):
        program().run(padded(TOKENS, 9))
    with pytest.raises(InputError, match="expected inputs 'ids', 'mask', found 'ids'"):
        program().run({"ids": np.zeros((1, 8), np.int64)})
    mixed = {"ids": np.zeros((1, 8), np.int64), "mask": np.ones((1, 16), np.int64)}
    with pytest.raises(InputError, match="none of the shapes"):
        program().run(mixed)


@pytest.mark.parametrize("length", LENGTHS)
def test_tokens_outside_of_the_vocabulary_are_refused_at_every_length(length: int) -> None:
    with pytest.raises(InputError, match=r"input 'ids': expected integers in \[-60, 59\], found 60 at \[0, 3\]"):
        program().run(padded(np.array([1, 2, 3, 60]), length))


@pytest.mark.parametrize("target", ["host", "arm64"])
def test_all_entries_are_certified(target: str) -> None:
    for certificate, suffix in ((program(target).certificate, "_run"), (program(target).parallel_certificate, "_run_parallel")):
        assert certificate.ok
        assert certificate.entry == ", ".join(f"model_{n}{suffix}" for n in (33, 16, 8))
        assert {f"model_{n}{suffix}" for n in LENGTHS} <= set(certificate.functions)


@pytest.mark.parametrize("target", ["host", "arm64"])
def test_what_depends_on_the_length_is_of_each(target: str) -> None:
    """Rotary angles, held in 16 bits up to the rotation, and a causal mask: what comes later changes nothing before."""
    batches = [{"ids": s["ids"]} for s in sentences(24)]
    model = compile(Encoder().decoder(), target, batches, shapes={"ids": [(1, 10), (1, 24)]})
    for graph in model.model.integer_graphs:
        rotations = [v for v in graph.order if isinstance(v.op, IntRotate)]
        assert [v.inputs[0].type.dtype for v in rotations] == [DType.i16, DType.i16]
    tokens = np.random.default_rng(2).integers(0, 60, (1, 24))
    short, long = ({"ids": tokens[:, :n]} for n in (10, 24))
    for feeds in (short, long):
        for name, value in model.reference(feeds).items():
            np.testing.assert_array_equal(model.run(feeds)[name], value)
    ((early,), (late,)) = (model.run(feeds).values() for feeds in (short, long))
    np.testing.assert_array_equal(late[:, :10], early)
    assert (late[:, 10:] != late[:, :1]).any()


# --- the artifact --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lengths") / "model"
    program().save(folder)
    return folder


def test_artifacts_keep_all_lengths(artifact: Path) -> None:
    assert damaged_files(artifact) == {}
    assert read_manifest(artifact).interface == program().interface
    loaded = qcompiler.load(artifact)
    for length in LENGTHS:
        for feeds in sentences(length, 2, seed=3):
            np.testing.assert_array_equal(loaded.run(feeds)["hidden"], program().run(feeds)["hidden"])


def test_weights_are_kept_once(tmp_path: Path) -> None:
    """An artifact of three lengths beside that of one."""
    sizes = {}
    for lengths in ((48,), (16, 32, 48)):
        made = compiled(lengths, width=256, vocabulary=4000)
        made.save(tmp_path / str(len(lengths)), share=False)
        sizes[len(lengths)] = sum(p.stat().st_size for p in (tmp_path / str(len(lengths))).iterdir())
    assert sizes[3] < 1.3 * sizes[1]


MAIN = """
#include "model.h"
#include <stdio.h>
static int64_t ids[MODEL_8_INPUT_0_SIZE], mask[MODEL_8_INPUT_1_SIZE];
static signed char hidden[MODEL_8_OUTPUT_0_SIZE], pooled[MODEL_8_OUTPUT_1_SIZE];
static unsigned char memory[MODEL_ARENA_SIZE + MODEL_ARENA_ALIGNMENT];
int main(void) {
    const void *inputs[] = {ids, mask};
    void *outputs[] = {hidden, pooled}, *arena = memory + MODEL_ARENA_ALIGNMENT - (unsigned long)memory % MODEL_ARENA_ALIGNMENT;
    int i, status;
    for (i = 0; i < 7; i++) { ids[i] = 10 + i; mask[i] = 1; }
    status = model_8_run(inputs, outputs, arena);
    if (status) return status;
    for (i = 0; i < MODEL_8_OUTPUT_0_SIZE; i++) printf("%d ", hidden[i]);
    ids[2] = 60;
    return model_8_run(inputs, outputs, arena) == MODEL_OUT_OF_RANGE && MODEL_33_INPUT_0_SIZE == 33 ? 0 : 1;
}
"""


@pytest.mark.skipif(which("cc") is None, reason="no C compiler")
def test_the_header_documents_each_length(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("#include <stdint.h>\n" + MAIN)
    subprocess.run(["cc", "-std=c99", "-Wall", "-Werror", f"-I{artifact}", "main.c", artifact / "model.a", "-o", "main"], cwd=tmp_path, check=True)
    told = subprocess.run([tmp_path / "main"], capture_output=True, check=True, text=True).stdout
    expected = program().run_integer(padded(np.arange(10, 17), 8))["hidden"]
    assert [int(word) for word in told.split()] == expected.ravel().tolist()


def test_one_arena_serves_all() -> None:
    sizes = {f.arena_size for f in program().interface.forms}
    assert sizes == {program().interface.arena_size}
    assert allocate(program().interface.arena_size).nbytes > compiled((8,)).interface.arena_size


# --- shapes as they are given ------------------------------------------------------------------------------------------------


def test_shapes_become_forms() -> None:
    assert each_form({}) == [{}]
    assert each_form({"x": (1, 3), "y": [(4,), (5,)]}) == [{"x": (1, 3), "y": (4,)}, {"x": (1, 3), "y": (5,)}]
    assert each_form({"x": [(1, 3)]}) == [{"x": (1, 3)}]
    with pytest.raises(UsageError, match="'y' has 2 shapes where others have 3"):
        each_form({"x": [(1,), (2,), (3,)], "y": [(1,), (2,)]})


def test_forms_are_ordered_and_differ() -> None:
    model = Encoder().built()
    assert [f["ids"] for f in ordered_forms(model, {"ids": [(1, 4), (1, 9), (1, 6)]})] == [(1, 9), (1, 6), (1, 4)]
    with pytest.raises(UsageError, match=r"ids=1,4 mask=1,4 twice"):
        ordered_forms(model, {"ids": [(1, 4), (1, 9), (1, 4)]})
    with pytest.raises(UsageError, match="does not fit the model"):
        ordered_forms(model, {"ids": [(1, 4), (1, 9, 2)]})


def test_names_of_forms() -> None:
    assert list(form_names(import_forms(Encoder().built(), {"ids": (1, 4)}), "net")) == ["net"]
    graphs = [Graph((x,), (x,), ("x",)) for x in (apply(Input(float_type(1, h, w, 3)), name="x") for h, w in ((8, 6), (8, 4), (2, 6)))]
    assert list(form_names(graphs, "net")) == ["net_8x6", "net_8x4", "net_2x6"]


def chained(names: list[str]) -> tuple[Graph, list[Value]]:
    values = [apply(Input(float_type(1, 4)), name="x")]
    for name in names:
        values.append(apply(Tanh(), values[-1], name=name))
    return Graph(tuple(values[:1]), tuple(values[-1:]), ("y",)), values


def test_what_is_known_goes_by_names() -> None:
    (one, known), (other, same) = chained(["a", "b"]), chained(["a", "b"])
    assert transferred(dict(zip(known, range(3))), one, other, same) == dict(zip(same, range(3)))
    strange, values = chained(["a", "c"])
    with pytest.raises(UnsupportedModel, match=r"'x' \[1, 4\] the network takes another form .* 'c' has no counterpart"):
        transferred(dict.fromkeys(known, 0), one, strange, values)
    twice, values = chained(["a", "a"])
    with pytest.raises(UnsupportedModel, match="'a' has no counterpart"):
        transferred(dict.fromkeys(known, 0), one, twice, values)


# --- the command line ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "encoder.onnx"
    path.write_bytes(Encoder().built().SerializeToString())
    for length in (8, 16):
        feeds = sentences(length, 12)
        np.savez(path.with_name(f"{length}.npz"), **{name: np.concatenate([f[name] for f in feeds]) for name in ("ids", "mask")})
    return path


def test_a_repeated_name_is_a_list_of_shapes(network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    made = invoke(network, "--shape", "ids=1,8", "--shape", "ids=1,16", "--calib", network.with_name("16.npz"), "-o", folder)
    assert made.exit_code == 0, made.output
    assert "model_16_run, model_8_run" in made.output
    assert "Compiled for 2 shapes: model_16_run, model_8_run" in invoke("inspect", folder).output
    checked = json.loads(invoke("verify", folder, "--json").stdout)
    assert checked["passed"]
    assert all(c["passed"] for c in checked["checks"])
    for length in (8, 16):
        data = network.with_name(f"{length}.npz")
        assert invoke("verify", folder, "--data", data).exit_code == 0
        facts = json.loads(invoke("eval", folder, "--data", data, "--json").stdout)
        assert facts["sqnr"]["pooled"] > 15
        bench = invoke("bench", folder, "--shape", f"ids=1,{length}", "--seconds", "0.05", "--json")
        assert json.loads(bench.stdout)["milliseconds"]["compiled"]["calls"] > 0
    assert "'ids' int64[1,16], 'mask' int64[1,16]; 'ids' int64[1,8]" in invoke("bench", folder, "--shape", "ids=1,9").stderr


def test_onnx_targets_take_one_shape(network: Path, tmp_path: Path) -> None:
    refused = invoke(network, "--shape", "ids=1,8", "--shape", "ids=1,16", "-t", "onnx-qdq", "-o", tmp_path / "a.onnx")
    assert refused.exit_code == 2
    assert "the target onnx-qdq takes one shape of each input, found 2 of 'ids'" in refused.stderr
