"""The fuzz target finds no fault, detects faults put in on purpose, and its earlier findings stay fixed."""

import itertools
import math
import sys

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, plan
from gpudrop.kernels import cpu
from tests import fuzz, fuzz_arguments
from tests.sampling import few

ENOUGH = 6000  # enough calls for every public function to be called and to return


@pytest.fixture(autouse=True)
def few_kernels(request, monkeypatch):
    """Limit calls to one dtype, width and activation. Only slow tests run long enough to compile more kernels."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(fuzz_arguments, "SETTINGS", fuzz_arguments.SETTINGS[:1])


@pytest.mark.parametrize("calls", few([300, ENOUGH], 300))
def test_random_calls_do_what_is_documented(calls):
    record = fuzz.run(0, range(calls))
    assert record["findings"] == []
    if calls == ENOUGH:
        assert [name for name, outcomes in record["outcomes"].items() if "returned" not in outcomes] == []
        assert set(record["outcomes"]) == {call.name for call in fuzz.CALLS}


def test_everything_public_is_called():
    names = {call.name.partition(".")[0] for call in fuzz.CALLS}
    assert names == set(gpudrop.__all__) - {"warmup"}
    assert {"dropout2d.vjp", "layers.Zoneout.backward", "Generator.spawn", "schedules.late"} <= {
        c.name for c in fuzz.CALLS
    }


def test_every_argument_has_a_pool():
    names = {(call.name, parameter.name) for call in fuzz.CALLS for parameter in call.parameters}
    assert {(call, name) for call, name in names if not {name, f"{call}.{name}"} & {*fuzz_arguments.POOLS}} == set()


def test_an_argument_without_a_pool_raises():
    def function(x, novelty):
        raise AssertionError("must not be called")

    with pytest.raises(KeyError, match="novelty"):
        fuzz.Case(0, 0).arguments(fuzz.Call("function", function))


def test_a_number_always_selects_the_same_call():
    for number in range(30):
        first, second = fuzz.Trial(5, number), fuzz.Trial(5, number)
        assert (first.text, first.outcome) == (second.text, second.outcome)


# Faults that the fuzz target must detect. Each replaces the kernels' launch(launch, kernel, inputs, outputs, draw).


def raises(launch, kernel, inputs, outputs, draw):
    raise IndexError("index is out of bounds")


def warns(launch, kernel, inputs, outputs, draw):
    np.float32(3e38) * np.float32(10)
    launch(kernel, inputs, outputs, draw)


def overwrites(launch, kernel, inputs, outputs, draw):
    launch(kernel, inputs, outputs, draw)
    if kernel.num_inputs and inputs[0] is not outputs[0] and inputs[0].flags.writeable:
        inputs[0][...] = 7


def reaches_beyond(launch, kernel, inputs, outputs, draw):
    launch(kernel, inputs, outputs, draw)
    root = outputs[0]
    while isinstance(root.base, np.ndarray):
        root = root.base
    if root is not outputs[0]:
        root[:1] ^= 1


def draws_another_mask(launch, kernel, inputs, outputs, draw):
    launch(kernel, inputs, outputs, draw._replace(start=draw.start + 1))


def multiplies(launch, kernel, inputs, outputs, draw):
    launch(kernel, inputs, outputs, draw)
    if kernel.outputs[0].name == "y":
        outputs[0][outputs[0] == 0] = -0.0


CALLS_SO_FAR = itertools.count(1)


def forgets(launch, kernel, inputs, outputs, draw):
    launch(kernel, inputs, outputs, draw._replace(call=draw.call + next(CALLS_SO_FAR)))


def writes_first(launch, kernel, inputs, outputs, draw):
    outputs[0][...] = 0
    raise ValueError("too late")


FAULTS = {
    raises: "IndexError is not documented",
    warns: "RuntimeWarning is not documented",
    overwrites: "an input was overwritten",
    reaches_beyond: "memory beside out was overwritten",
    draws_another_mask: "the mask differs from the reference",
    multiplies: "y is not +0.0 at an element that the reference drops",
    forgets: "the same stream returned different results",
    writes_first: "an array was written to before an error",
}
FEW = [call for call in fuzz.CALLS if call.name in ("dropout", "dropout_vjp", "keep_mask", "drop_path")]


def problems(monkeypatch, calls=FEW, numbers=300):
    monkeypatch.setattr(fuzz, "OFTEN", calls)
    return {finding["problem"] for finding in fuzz.run(0, range(numbers), report=lambda text: None)["findings"]}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_kernels_is_detected(monkeypatch, fault):
    launch = cpu.launch
    monkeypatch.setattr(cpu, "launch", lambda *arguments: fault(launch, *arguments))
    assert any(problem.startswith(FAULTS[fault]) for problem in problems(monkeypatch))


def test_correct_kernels_cause_no_findings(monkeypatch):
    assert problems(monkeypatch) == set()


def test_a_stream_that_is_drawn_too_early_is_detected(monkeypatch):
    rng_of = plan.rng_of

    def early(rng, context):
        chosen = rng_of(rng, context)
        if isinstance(chosen, Generator):
            chosen.next()
        return chosen

    monkeypatch.setattr(plan, "rng_of", early)
    found = problems(monkeypatch)
    assert "a generator or a state changed before an error" in found and "2 streams were drawn" in found


def test_an_error_for_valid_arguments_is_detected(monkeypatch):
    def check_p(p):
        raise ValueError("p is never right")

    monkeypatch.setitem(gpudrop.keep_mask.__globals__, "check_p", check_p)
    assert "correct arguments are rejected: p is never right" in problems(monkeypatch)


def test_a_result_of_another_type_is_detected(monkeypatch):
    monkeypatch.setattr(gpudrop.Generator, "next", lambda self: self._take())
    calls = [call for call in fuzz.CALLS if call.last == "next"]
    assert "returned tuple, not Stream" in problems(monkeypatch, calls, 5)


# Earlier findings


@pytest.mark.parametrize("std", [1.5, 1e30])
def test_noise_of_any_strength_can_be_switched_off(std):
    x = np.arange(-3, 3, dtype=np.float32)
    np.testing.assert_array_equal(gpudrop.gaussian_noise(x, std, training=False), x)
    np.testing.assert_array_equal(gpudrop.layers.GaussianNoise(std).eval()(x), x)
    with gpudrop.no_dropout():
        y, backprop = gpudrop.gaussian_noise.vjp(x, std, rng=Stream(0, 0))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(backprop(x), x)


@pytest.mark.filterwarnings("error")
def test_moments_of_infinite_results_do_not_warn():
    x = np.float32([[1, np.inf], [np.nan, 3e38]])
    mean, variance = gpudrop.mc_samples(lambda x: x, x, 3, Stream(0, 0))
    assert mean[0, 0] == 1 and mean[1, 1] == np.float32(3e38) and not np.isfinite(mean[[0, 1], [1, 0]]).any()
    assert variance[0, 0] == variance[1, 1] == 0 and np.isnan(variance[[0, 1], [1, 0]]).all()


def keyword(x, *, scale=2):
    return x


def several(x, *more):
    return x


def inverts(x):
    return ~x


def indexes(x):
    return x[0]


def calls_with_two(x):
    return math.exp(x, x)


LONG = fuzz_arguments.formula("that is long", "def f(x):\n    return " + " + ".join(["x"] * 400) + "\n")


def undefined_at_a_half(x):
    return math.log(x - 1)


@pytest.mark.parametrize(
    ("error", "message", "formula"),
    [
        (TypeError, r"slope must take one number, keyword takes \(x, \*, scale=2\)", keyword),
        (TypeError, r"slope must take one number, several takes \(x, \*more\)", several),
        (TypeError, r"slope must be computable from a number, inverts\(0.5\) fails: bad operand type", inverts),
        (TypeError, r"slope must be computable from a number, indexes\(0.5\) fails", indexes),
        (TypeError, r"slope must be computable from a number, calls_with_two\(0.5\) fails", calls_with_two),
        (SyntaxError, "slope is nested too deeply", LONG),
    ],
)
def test_a_formula_that_can_not_be_compiled_is_refused_at_once(error, message, formula):
    """Recursion limits differ between processes: mypy, for example, raises its own."""
    limit = sys.getrecursionlimit()
    for recursion in (limit, 2**14):
        sys.setrecursionlimit(recursion)
        try:
            with pytest.raises(error, match=message):
                gpudrop.register_activation("refused", undefined_at_a_half, formula)
        finally:
            sys.setrecursionlimit(limit)
    assert "refused" not in gpudrop.formulas.activations.ACTIVATIONS
