"""Damaged, hostile and unsupported models: always one of our errors, which names the value and the remedy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError, QCompilerError, UnsupportedModel, UsageError
from qcompiler.frontend import import_model, input_shapes

RNG = np.random.default_rng(0)


def tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model(nodes: list[onnx.NodeProto], initializers: Sequence[TensorProto] = (), shape: Sequence[int | str | None] = (1, 3, 8, 8)) -> onnx.ModelProto:
    """A model with the input x and the output y."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None)))
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], initializers), opset_imports=[helper.make_opsetid("", 17)])


def network() -> onnx.ModelProto:
    """A small network with one of everything that is parsed in its own way."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c1", "g", "b", "m", "v"], ["n1"]),
        node("Clip", ["n1", "lo", "hi"], ["r1"]),
        node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Resize", ["r1", "", "", "size"], ["z1"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Concat", ["p1", "z1"], ["k1"], axis=1),
        node("Pad", ["k1", "pads"], ["q1"]),
        node("Slice", ["q1", "from", "to", "axes"], ["s1"]),
        node("Shape", ["s1"], ["d"]),
        node("Gather", ["d", "zero"], ["d0"]),
        node("Unsqueeze", ["d0", "zeros"], ["d1"]),
        node("Concat", ["d1", "rest"], ["shape"], axis=0),
        node("Reshape", ["s1", "shape"], ["f"]),
        node("Gemm", ["f", "w2", "b2"], ["l"], transB=1),
        node("Softmax", ["l"], ["y"], axis=-1),
    ]
    numbers = [numpy_helper.from_array(np.float32(v), n) for n, v in (("lo", 0), ("hi", 6))]
    weights = [tensor("w1", 4, 3, 3, 3), tensor("b1", 4), *(tensor(n, 4) for n in "gbm"), numpy_helper.from_array(np.ones(4, np.float32), "v")]
    shapes = [integers("size", 1, 4, 2, 2), integers("pads", 0, 0, 1, 1, 0, 0, 1, 1), integers("from", 1), integers("to", 4), integers("axes", 3)]
    more = [numpy_helper.from_array(np.int64(0), "zero"), integers("zeros", 0), integers("rest", -1), tensor("w2", 5, 96), tensor("b2", 5)]
    return model(nodes, [*weights, *numbers, *shapes, *more])


def relu(**attributes: object) -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"], **attributes)


def conv(w: np.ndarray, **attributes: object) -> onnx.ModelProto:
    return model([helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], [numpy_helper.from_array(w, "w")])


def refused(bad: onnx.ModelProto | Path | str, kind: type[QCompilerError], *words: str) -> None:
    """`bad` is refused with an error of `kind`, one line that holds all `words`."""
    with pytest.raises(kind) as caught:
        import_model(bad)
    message = str(caught.value)
    assert "\n" not in message
    assert [w for w in words if w not in message] == []


# --- the file ---


def test_network_is_good() -> None:
    assert import_model(network()).outputs[0].shape == (1, 5)


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", UsageError, "absent.onnx", "No such file")
    refused(str(tmp_path), UsageError, "directory")


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x08\x07" * 50, bytes(1000), "caf\u00e9".encode() * 9])
def test_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, ModelError)


NETWORK = network().SerializeToString()


def only_our_errors(tmp: Path, content: bytes) -> None:
    path = tmp / "m.onnx"
    path.write_bytes(content)
    message = ""
    try:
        import_model(path)
    except (ModelError, UnsupportedModel, UsageError) as e:
        message = str(e)
    assert "\n" not in message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, len(NETWORK) - 1))
def test_truncated(folder: Path, length: int) -> None:
    only_our_errors(folder, NETWORK[:length])


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(NETWORK) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_bytes(folder: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(NETWORK)
    for position, value in changes:
        content[position] = value
    only_our_errors(folder, bytes(content))


NUMBERS = [0, 1, -1, 2, 7, -5, 100, 2**31, 2**62, -(2**63)]


def mutate(proto: onnx.ModelProto, rng: random.Random) -> None:
    """One change of meaning: an attribute, a dimension, a constant, a name, a node."""
    graph, number = proto.graph, rng.choice(NUMBERS)
    node, stored = rng.choice(graph.node), rng.choice(graph.initializer)
    names = [name for n in graph.node for name in (*n.input, *n.output)]

    def attribute() -> None:
        if node.attribute:
            a = rng.choice(node.attribute)
            a.i = number
            if a.ints:
                a.ints[rng.randrange(len(a.ints))] = number

    def constant() -> None:
        raw, odd = stored.raw_data, np.float32(rng.choice([np.nan, np.inf, -np.inf, 0, 1e38, -1e-38]))
        start = rng.choice([np.int64(number).tobytes(), odd.tobytes()])[: len(raw)]
        stored.raw_data = start + raw[len(start) :]

    def dimension() -> None:
        rng.choice(graph.input[0].type.tensor_type.shape.dim).dim_value = number

    def rewire() -> None:
        target = rng.choice([node.input, node.output])
        target[rng.randrange(len(target))] = rng.choice(names)

    def operator() -> None:
        node.op_type = rng.choice([n.op_type for n in graph.node] + ["ReduceMean", "Expand", "Tile", "LRN", "Split", "ConvTranspose"])

    def stored_type() -> None:
        stored.data_type = rng.randrange(26)

    def remove() -> None:
        graph.node.remove(node)

    rng.choice([attribute, attribute, constant, constant, dimension, rewire, operator, stored_type, remove])()


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 3))
def test_mutated_meaning(folder: Path, seed: int, count: int) -> None:
    proto, rng = network(), random.Random(seed)
    for _ in range(count):
        mutate(proto, rng)
    only_our_errors(folder, proto.SerializeToString())


# --- the graph ---


def test_cycle() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["y"])]
    refused(model(nodes), ModelError, "cycle", "'first'")


def test_missing_tensor() -> None:
    refused(model([helper.make_node("Add", ["x", "ghost"], ["y"], name="sum")]), ModelError, "'ghost'", "'sum'", "export")


def test_missing_output() -> None:
    refused(model([helper.make_node("Relu", ["x"], ["z"])]), ModelError, "'y'", "outputs")


def test_produced_twice() -> None:
    refused(model([relu(), relu()]), ModelError, "'y'", "more than once")


def test_nodes_in_any_order() -> None:
    graph = import_model(model([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]))
    assert [v.name for v in graph.order] == ["x", "a", "y"]


def test_all_unsupported_operators_at_once() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"),
        helper.make_node("Whirl", ["a"], ["b"], name="second", domain="com.acme"),
        helper.make_node("MaxPool", ["x"], ["c", "i"], name="third", kernel_shape=[2, 2]),
        helper.make_node("Resize", ["x", "", "f"], ["d"], name="fourth", mode="cubic"),
        helper.make_node("Sum", ["b", "c", "i", "d"], ["y"]),
    ]
    scales = numpy_helper.from_array(np.ones(4, np.float32), "f")
    refused(
        model(nodes, [scales]), UnsupportedModel, "NonZero", "'first'", "com.acme.Whirl", "'second'", "MaxPool 'third'", "Resize 'fourth'", "cubic"
    )


def test_opset() -> None:
    for version, remedy in ((6, "version_converter"), (99, "upgrade")):
        m = model([relu()])
        m.opset_import[0].version = version
        refused(m, UnsupportedModel, str(version), remedy)


@pytest.mark.parametrize(
    "node, words",
    [
        (helper.make_node("Relu", ["x", "x"], ["y"]), ["operands", "found 2"]),
        (helper.make_node("Concat", ["x"], ["y"]), ["axis", "missing"]),
        (helper.make_node("Concat", ["x"], ["y"], axis=1.5), ["axis", "FLOAT", "INT"]),
        (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 0, 1, 2]), ["perm"]),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[9, 9]), ["window of 9"]),
        (helper.make_node("Flatten", ["x"], ["y"], axis=9), ["axis 9"]),
    ],
)
def test_malformed_node(node: onnx.NodeProto, words: list[str]) -> None:
    node.name = "here"
    refused(model([node]), ModelError, "'here'", *words)


# --- inputs ---


def test_open_batch_is_one() -> None:
    assert import_model(model([relu()], shape=["N", 3, 8, 8])).inputs[0].shape == (1, 3, 8, 8)


def test_open_dimension() -> None:
    m = model([relu()], shape=["N", 3, "H", None])
    refused(m, UsageError, "'x'", "[N, 3, H, ?]", "--shape")
    assert import_model(m, {"x": (2, 3, 8, 9)}).inputs[0].shape == (2, 3, 8, 9)
    assert input_shapes(m) == {"x": ("N", 3, "H", None)}


def test_unknown_rank_and_zero_size() -> None:
    unknown = model([relu()])
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    refused(unknown, UsageError, "'x'", "--shape")
    refused(model([relu()], shape=[1, 0, 8, 8]), UsageError, "'x'", "--shape")


@pytest.mark.parametrize("given_shapes", [{"z": (1,)}, {"x": (1, 4, 8, 8)}, {"x": (3, 8)}, {"x": (1, 3, 0, 8)}])
def test_wrong_shape_option(given_shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError, match="--shape"):
        import_model(model([relu()], shape=[1, 3, "H", 8]), given_shapes)


# --- constants ---


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bad: float) -> None:
    w = np.ones((4, 3, 3, 3), np.float32)
    w[0, 0, 0, 0] = bad
    refused(conv(w), ModelError, "'w'", "1 of 108")


def test_damaged_tensor() -> None:
    m = conv(np.ones((4, 3, 3, 3), np.float32))
    m.graph.initializer[0].dims[0] = 5
    refused(m, ModelError, "'w'", "5, 3, 3, 3")


def test_sparse_and_odd_types() -> None:
    m = conv(np.ones((4, 3, 3, 3), np.float32))
    m.graph.initializer[0].data_type = TensorProto.BFLOAT16
    refused(m, UnsupportedModel, "'w'", "BFLOAT16")


def test_enormous_constant() -> None:
    nodes = [helper.make_node("Tile", ["c", "r"], ["t"]), helper.make_node("Add", ["x", "t"], ["y"])]
    refused(model(nodes, [tensor("c", 1), integers("r", 2**40)]), ModelError, "'t'", "bytes")


# --- external data ---


def external(location: str, **more: str) -> onnx.ModelProto:
    m = conv(np.ones((4, 3, 3, 3), np.float32))
    w = m.graph.initializer[0]
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        w.external_data.add(key=key, value=value)
    return m


def saved(folder: Path, m: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(m.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(bytes(16) + np.full(108, 3, np.float32).tobytes())
    graph = import_model(saved(tmp_path, external("data/w.bin", offset="16", length="432")))
    assert {float(v.op.data.flat[0]) for v in graph.order if v.name == "w"} == {3.0}


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "../secret", "a/../../secret", "", ".", "nul\0l", "absent", "link"])
def test_external_data_outside(tmp_path: Path, location: str) -> None:
    home = tmp_path / "model"
    home.mkdir()
    (tmp_path / "secret").write_bytes(bytes(432))
    (home / "link").symlink_to(tmp_path / "secret")
    refused(saved(home, external(location)), ModelError, "'w'")


@pytest.mark.parametrize(
    "more", [{"offset": "-1"}, {"offset": "1"}, {"length": "999"}, {"offset": "x"}, {"length": str(2**70)}, {"offset": str(2**64)}]
)
def test_external_data_out_of_bounds(tmp_path: Path, more: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(432))
    refused(saved(tmp_path, external("w.bin", **more)), ModelError, "'w'")


def test_external_data_of_a_proto() -> None:
    refused(external("w.bin"), ModelError, "'w'", "path")
