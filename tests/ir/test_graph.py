from dataclasses import replace

import pytest
from float_graphs import Build, graph_of

from qcompiler.ir.graph import Declined, Graph, Sweep, Value, apply, rewrite, substitute
from qcompiler.ir.pointwise import Add, Exp, Neg, Sigmoid, Tanh


def negated_twice(v: Value, sweep: Sweep) -> Value | None:
    match v:
        case Value(Neg(), (Value(Neg(), (x,)),)):
            return x
    return None


def test_order_puts_producers_first_and_keeps_unused_inputs():
    b = Build()
    x, unused = b.input(2), b.input(3, name="unused")
    y = b.op(Add(), b.op(Exp(), x), b.op(Tanh(), x))
    graph = Graph((x, unused), (y,), ("y",))
    assert [v.name for v in graph.order] == ["x", "unused", "exp1", "tanh2", "add3"]


def test_a_deep_graph_needs_no_recursion():
    b = Build()
    x = b.input(2)
    for _ in range(5000):
        x = b.op(Exp(), x)
    assert len(graph_of(x).order) == 5001


def test_uses_count_every_reading():
    b = Build()
    x = b.input(2)
    y = b.op(Add(), x, x)
    graph = graph_of(y)
    assert graph.uses[x] == (y, y)
    assert graph.only_use(x) is None
    assert graph.only_use(y) is None


def test_rewriting_reaches_the_end_and_returns_the_same_graph_if_nothing_fits():
    b = Build()
    x = y = b.input(2)
    for _ in range(7):
        y = b.op(Neg(), y)
    after = rewrite(graph_of(y), [negated_twice])
    assert len(after.order) == 2
    assert after.outputs[0].inputs[0] is x
    assert rewrite(after, [negated_twice]) is after


def test_rules_that_undo_each_other_are_named():
    def forth(v: Value, sweep: Sweep) -> Value | None:
        return replace(v, op=Exp()) if isinstance(v.op, Tanh) else None

    def back(v: Value, sweep: Sweep) -> Value | None:
        return replace(v, op=Tanh()) if isinstance(v.op, Exp) else None

    b = Build()
    with pytest.raises(RuntimeError, match="'forth', 'back'"):
        rewrite(graph_of(b.op(Exp(), b.input(2))), [forth, back])


def test_rules_are_asked_in_order_and_may_say_why_not():
    asked = []

    def first(v: Value, sweep: Sweep) -> Value | None:
        asked.append("first")
        return sweep.declined(v, "not today")

    def second(v: Value, sweep: Sweep) -> Value | None:
        asked.append("second")
        return None

    declined = Declined()
    graph = graph_of(Build().input(2))
    assert rewrite(graph, [first, second], declined) is graph
    assert asked == ["first", "second"]
    assert list(declined.reasons) == [("x", "not today")]


def single_uses(graph: Graph, *rules):
    """The names of the values that their readers may take for themselves, after one sweep."""
    found: dict[str, bool] = {}

    def look(v: Value, sweep: Sweep) -> Value | None:
        found.update({i.name: sweep.single_use(i) for i in v.inputs})
        return None

    Sweep(graph, Declined()).run([*rules, look])
    return found


def test_single_use():
    b = Build()
    x = b.input(2)
    e, t = b.op(Exp(), x), b.op(Tanh(), x)
    y = b.op(Add(), e, t)
    assert single_uses(graph_of(y, t, b.op(Neg(), y))) == {"x": False, "exp1": True, "tanh2": False, "add3": False}


def test_single_use_counts_the_readers_of_what_a_rule_removed():
    """exp is read by neg(neg(exp)) alone, but that goes, and had two readers."""
    b = Build()
    e = b.op(Exp(), b.input(2))
    n = b.op(Neg(), b.op(Neg(), e))
    graph = graph_of(b.op(Add(), b.op(Tanh(), n), b.op(Sigmoid(), n)))
    assert single_uses(graph)["exp1"]
    assert not single_uses(graph, negated_twice)["exp1"]


def test_single_use_is_cautious_within_a_sweep_and_exact_in_the_next():
    b = Build()
    e = b.op(Exp(), b.input(2))
    graph = graph_of(b.op(Tanh(), b.op(Neg(), b.op(Neg(), e))))
    assert not single_uses(graph, negated_twice)["exp1"]
    assert single_uses(rewrite(graph, [negated_twice]))["exp1"]


def test_substitute_rebuilds_users():
    b = Build()
    graph = graph_of(b.op(Exp(), b.op(Tanh(), b.input(2))))
    after = substitute(graph, lambda v: replace(v, op=Sigmoid()) if isinstance(v.op, Tanh) else v)
    assert [type(v.op) for v in after.order[1:]] == [Sigmoid, Exp]
    assert substitute(graph, lambda v: v) is graph


def test_apply_infers_and_refuses():
    b = Build()
    with pytest.raises(ValueError, match="shape"):
        apply(Add(), b.input(2), b.input(3, name="z"), name="sum")
