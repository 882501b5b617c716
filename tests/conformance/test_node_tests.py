"""Every operator of ONNX's node tests: no gradient is wrong, and the README's table says what is so."""

import dataclasses
import datetime

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxcam.export.gradients import engine

from . import table
from .judge import Kind, Outcome, judge
from .node_tests import NodeTest, node_tests
from .table import PASS, WRONG, describe, outcomes, recorded, render, verdict

LEAST = 134


def test_the_table_lists_every_operator_that_has_such_tests():
    assert set(recorded()) == set(node_tests())
    assert sum(row == PASS for row in recorded().values()) >= LEAST


@pytest.mark.parametrize("operator", recorded())
def test_the_outcome_is_the_recorded_one(operator):
    found = outcomes(operator)
    row = verdict(operator, found)
    assert row != WRONG, describe(operator, found)
    assert row == recorded()[operator], (
        f"`python benchmarks/conformance.py --write`: {describe(operator, found)}"
    )


# -- the judge ----------------------------------------------------------------------------------


def a_test(operator, x):
    """y = operator(x) as a case."""
    x = np.asarray(x)
    word = {"f": "float", "d": "double"}[x.dtype.char]
    text = (
        f'<ir_version: 8, opset_import: ["" : 18]> g ({word}[N] x) => ({word}[N] y) {{ y = {operator}(x) }}'
    )
    model = onnx.parser.parse_model(text)
    y = ReferenceEvaluator(model).run(None, {"x": x})[0]
    return NodeTest("here", operator, model, (x,), (y,))


def replaced(monkeypatch, function):
    """Another rule for Tanh."""
    find, wants = engine.find_rule, frozenset(("op", "g"))

    def found(*asked):
        return dataclasses.replace(find(*asked), function=function, wants=wants)

    monkeypatch.setattr(engine, "find_rule", found)


@pytest.mark.parametrize("share", [0, 0.999, 1.001])
def test_a_rule_that_is_off_by_a_thousandth_is_wrong(monkeypatch, share):
    replaced(monkeypatch, lambda op, g, output: g * (1 - output * output) * share)
    (found,) = judge(a_test("Tanh", np.float32([0.3, -1])))
    assert found.kind == Kind.WRONG
    assert "slope" in found.note


def test_a_rule_of_the_wrong_shape_is_wrong(monkeypatch):
    replaced(monkeypatch, lambda op, g, output: op.sum(g, [0]))
    (found,) = judge(a_test("Tanh", np.float32([0.3, -1])))
    assert found.kind == Kind.WRONG
    assert "shape (1,) for (2,)" in found.note


def test_a_rule_that_onnx_runtime_does_not_run_is_wrong(monkeypatch):
    replaced(monkeypatch, lambda op, g, output: g * (1 - output * output) + 0 * op.Hardmax(output, dims=(2,)))
    (found,) = judge(a_test("Tanh", np.float64([0.3, -1])))  # it has no Hardmax in float64
    assert found.kind == Kind.WRONG
    assert "ONNX Runtime does not run the gradient" in found.note
    assert found.in_ort is False


def test_a_right_rule_passes_in_both():
    (found,) = judge(a_test("Tanh", np.float32([0.3, -1])))
    assert (found.kind, found.in_ort, found.exact, found.nudged) == (Kind.PASS, True, True, False)


def test_a_case_that_nobody_evaluates_to_its_own_value_is_not_judged():
    test = dataclasses.replace(a_test("Tanh", np.float32([0.3, -1])), outputs=(np.float32([7, 7]),))
    (found,) = judge(test)
    assert found.kind == Kind.UNEVALUATED
    assert found.note.startswith("onnx.reference gives another value than the case; ONNX Runtime gives")


def test_data_on_a_kink_is_moved_off_it():
    (found,) = judge(a_test("Relu", np.float32([0, 1, -1])))
    assert (found.kind, found.nudged) == (Kind.PASS, True)


def test_data_at_which_the_size_of_the_result_jumps_is_moved_off_it():
    found = [o for test in node_tests()["Range"] if not test.spelt_out for o in judge(test)]
    assert {(o.kind, o.nudged) for o in found if "delta" in o.pair} == {(Kind.PASS, True)}


def test_what_is_stopped_and_what_has_no_rule_says_why():
    (found,) = judge(a_test("Floor", np.float32([0.3])))
    assert (found.kind, found.note) == (
        Kind.STOPPED,
        "piecewise constant: its gradient is zero wherever it exists",
    )
    held = [o for test in node_tests()["Clip"] if test.name == "test_clip" for o in judge(test)]
    assert {o.pair: o.note for o in held}["d y / d max"] == "held constant: the bounds are taken as constants"


# -- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "row"),
    [
        ([Kind.PASS, Kind.STOPPED], PASS),
        ([Kind.PASS, Kind.UNEVALUATED], PASS),
        ([Kind.UNEVALUATED], "cannot be evaluated: Op x: why; more"),
        ([Kind.PASS, Kind.NO_RULE], "no rule: why"),
        ([Kind.PASS, Kind.NO_RULE, Kind.WRONG], WRONG),
        ([Kind.STOPPED], "not differentiable: Op x: why; more"),
    ],
)
def test_an_operator_passes_only_if_all_its_cases_do(kinds, row):
    assert verdict("Op", [Outcome(kind, "case", "d y / d x", "Op x: why; more") for kind in kinds]) == row


def test_what_has_no_rule_says_why_if_there_is_a_reason():
    def row(note):
        return verdict("Op", [Outcome(Kind.NO_RULE, "case", "d y / d x", note)])

    assert row("Op x: no gradient rule") == "no rule"
    assert row("Op x: it is odd; Other y: no gradient rule") == "no rule: it is odd"
    assert row("Scan x: it loops") == "no rule: its definition has Scan: it loops"
    assert row("ShapeUnknown: The gradient needs") == "no rule: a shape that inference does not find"
    assert row("ModelError: It is old. Export it again.") == "no rule: It is old"


def test_what_is_missing_in_a_definition_is_another_operator():
    passed = Outcome(Kind.PASS, "case", "d y / d x")
    for kind, row in ((Kind.NO_RULE, PASS), (Kind.WRONG, WRONG)):
        assert verdict("Op", [passed, Outcome(kind, "case_expanded", "d y / d x", spelt_out=True)]) == row


def test_the_table_reads_back_as_it_was_written(monkeypatch, tmp_path):
    kinds = {"Abs": Kind.PASS, "Exp": Kind.PASS, "Floor": Kind.STOPPED, "Scan": Kind.NO_RULE}
    found = {name: [Outcome(kind, f"{name}_case", "d y / d x", "steps")] for name, kind in kinds.items()}
    found["Abs"] += [Outcome(Kind.NO_RULE, "Abs_expanded", "d y / d x", "steps", spelt_out=True)]
    monkeypatch.setattr(table, "README", tmp_path / "README.md")
    table.README.write_text("before\n<!-- table: operators -->\nold\n<!-- /table -->\nafter")
    table.write(render(found, datetime.date(2026, 1, 2)))
    assert recorded() == {name: verdict(name, outcomes) for name, outcomes in found.items()}
    text = table.README.read_text()
    assert (
        "4 operators: 2 pass, 1 no rule, 1 not differentiable. 3 of their 4 cases have the right gradient, "
        "and 0 of the 1 that spell an operator out as the graph that defines it." in text
    )
    assert text.startswith("before\n")
    assert text.endswith("<!-- /table -->\nafter")
