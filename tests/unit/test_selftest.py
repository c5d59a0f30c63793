"""gpudrop selftest passes here. For any wrong kernel it prints a line of Python that repeats the failure."""

import inspect
import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import gpudrop
from gpudrop import backends
from gpudrop.cli import app, main
from gpudrop.testing import selftest, statistics
from tests.conftest import SIMULATED
from tests.sampling import few

pytestmark = pytest.mark.simulator
minutes = pytest.mark.slow if SIMULATED else pytest.mark.simulator
ON = "numba_cuda" if SIMULATED else "cpu"


def invoke(*arguments):
    return CliRunner().invoke(app, ["selftest", "--backend", ON, *arguments], env={"COLUMNS": "200"})


@minutes
def test_it_passes_here(tmp_path):
    done = invoke("--quick", "--json", str(tmp_path / "found.json"))
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("gpudrop selftest passed: ")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] and found["failures"] == []
    assert found["summary"] in done.output
    checked = {row["check"]: row["checked"] for row in found["checks"]}
    assert checked["known_answer"] > (5 if SIMULATED else 40)
    assert {"mask", "backward", "strides", "values", "mean_and_variance", "launch_shapes"} <= set(checked)
    assert all(count > 0 for count in checked.values())


@pytest.mark.slow
@pytest.mark.skipif(SIMULATED, reason="starts a process that tests the CPU")
def test_by_default_all_usable_backends_are_tested_and_others_have_a_reason():
    command = [sys.executable, "-m", "gpudrop", "selftest", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in backends.BACKENDS:
        module = backends.load(name)
        if isinstance(module, str):
            assert f"not tested: {name}: {module}" in done.stdout
        else:
            assert f" {name} " in done.stdout
    assert done.stderr == ""  # no warnings


@pytest.mark.skipif(SIMULATED, reason="the simulator runs a subset")
def test_the_full_plan_has_all_checks():
    cases = list(selftest.plan("cpu"))
    functions = {
        name for name, of in vars(selftest).items() if "backend" in _parameters(of) and "device" in _parameters(of)
    }
    assert {case.function for case in cases} == functions - {"plan", "Placed"}
    assert {case.arguments["check"] for case in cases if case.function == "statistic"} == set(statistics.CHECKS)
    quick = list(selftest.plan("cpu", quick=True))
    assert len(quick) < len(cases)
    assert len({case.line for case in cases}) == len(cases)


def _parameters(of):
    return (
        inspect.signature(of).parameters if callable(of) and getattr(of, "__module__", "") == selftest.__name__ else ()
    )


@pytest.mark.parametrize("name", selftest.VARIANTS)
def test_the_variants_that_quick_leaves_out_pass(name):
    assert selftest.Case("variant", {"backend": ON, "name": name}).run() == ([], None)


def test_cases_name_another_device():
    case = next(iter(selftest.plan(ON, device=3)))
    assert case.line == (
        f"from gpudrop.testing import selftest; selftest.known_answer(backend={ON!r}, device=3, counter=(0, 0, 0, 0), "
        "key=(0, 0), words=(1713891541, 3781805453, 3159862348, 2600524760))"
    )


# Each mistake replaces a part of the package. MISTAKES names the function or check that detects it first.


def fields_of_another_width(monkeypatch):
    keep_mask = gpudrop.keep_mask
    monkeypatch.setattr(gpudrop, "keep_mask", lambda *a, bits, **o: keep_mask(*a, bits=max(16, bits), **o))


def wrong_seed(monkeypatch):
    stream = gpudrop.Stream
    monkeypatch.setattr(gpudrop, "Stream", lambda seed, call: stream(seed & 0xFFFFFFFF, call))


def wrong_tail(monkeypatch):
    """The last element of a large array is wrong."""
    vjp = gpudrop.dropout.vjp

    def forgetful(x, *args, **options):
        y, backprop = vjp(x, *args, **options)
        if x.size == 257:
            y[-1] = 7
        return y, backprop

    monkeypatch.setattr(gpudrop.dropout, "vjp", forgetful)


def another_mask_backward(monkeypatch):
    vjp = gpudrop.dropout.vjp

    def other(x, *args, rng, **options):
        y, _ = vjp(x, *args, rng=rng, **options)
        _, backprop = vjp(x, *args, rng=gpudrop.Stream(rng.seed, rng.call + 1), **options)
        return y, backprop

    monkeypatch.setattr(gpudrop.dropout, "vjp", other)


def a_shard_is_taken_for_the_whole(monkeypatch):
    vjp = gpudrop.dropout.vjp
    monkeypatch.setattr(gpudrop.dropout, "vjp", lambda x, *args, shard=None, **options: vjp(x, *args, **options))


def gradients_in_another_order(monkeypatch):
    vjp = gpudrop.zoneout.vjp

    def exchanged(*args, **options):
        y, backprop = vjp(*args, **options)
        return y, lambda dy: backprop(dy)[::-1]

    monkeypatch.setattr(gpudrop.zoneout, "vjp", exchanged)


def wrong_values(monkeypatch):
    """gelu is replaced by its approximation with tanh."""
    dropout_vjp = gpudrop.dropout_vjp

    def approximate(*args, activation, **options):
        return dropout_vjp(*args, activation="gelu_tanh" if activation == "gelu" else activation, **options)

    monkeypatch.setattr(gpudrop, "dropout_vjp", approximate)


def another_p(monkeypatch):
    """Half as many elements are dropped. The scale is adjusted, so the expected value is right."""
    right = gpudrop.dropout

    def dropout(x, p, **options):
        return right(x, p / 2, **options)

    dropout.vjp = right.vjp
    monkeypatch.setattr(gpudrop, "dropout", dropout)


def a_kernel_that_fails(monkeypatch):
    def launch(*args):
        raise RuntimeError("out of resources")

    monkeypatch.setattr(backends.load(ON), "launch", launch)


MISTAKES = [
    (fields_of_another_width, "mask"),
    (wrong_seed, "known_answer"),
    (wrong_tail, "backward"),
    (another_mask_backward, "backward"),
    (a_shard_is_taken_for_the_whole, "shard"),
    (gradients_in_another_order, "two_arrays"),
    (wrong_values, "values"),
    (another_p, "keep_rate"),
    (a_kernel_that_fails, "known_answer"),
]


@pytest.mark.skipif(SIMULATED, reason="takes minutes in the simulator, and does not depend on the backend")
@pytest.mark.parametrize(
    ("mistake", "function"), few(MISTAKES, *MISTAKES[2:3]), ids=[of.__name__ for of, _ in MISTAKES]
)
def test_a_mistake_is_reported_with_a_line_that_repeats_it(monkeypatch, mistake, function):
    with monkeypatch.context() as patch:
        mistake(patch)
        done = invoke("--quick")
        assert done.exit_code == 1
        *_, line, summary = done.output.splitlines()
        assert summary.startswith("gpudrop selftest FAILED")
        assert line.startswith("from gpudrop.testing import selftest") and function in line
        with pytest.raises((AssertionError, RuntimeError)):
            exec(line, {})
    exec(line, {})  # passes without the mistake


def test_wrong_arguments_are_reported_in_one_line(tmp_path, monkeypatch):
    for arguments, message in (
        (["--backend", "cuda"], "unknown backend 'cuda'; known: cpu, cupy_elementwise, numba_cuda"),
        (["--json", str(tmp_path / "no" / "such.json")], "the folder of the results must exist, got "),
    ):
        monkeypatch.setattr(sys, "argv", ["gpudrop", "selftest", *arguments])
        with pytest.raises(SystemExit, match=f"^gpudrop selftest: {message}"):
            main()


@pytest.mark.skipif(SIMULATED, reason="the simulator makes the backend usable")
def test_a_requested_backend_must_be_usable():
    if not isinstance(reason := backends.load("numba_cuda"), str):
        pytest.skip("numba_cuda is usable here")
    with pytest.raises(RuntimeError, match=re.escape(f"backend 'numba_cuda' is not available: {reason}")):
        selftest.run("numba_cuda")


@pytest.mark.slow
@pytest.mark.skipif(SIMULATED, reason="starts a process that tests the CPU")
def test_the_self_test_refuses_to_run_without_its_assertions():
    code = (
        "import sys; from gpudrop.cli import main; sys.argv[1:] = ['selftest', '--quick', '--backend', 'cpu']; main()"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "gpudrop selftest: the test needs assertions, which python -O removes: run it without -O\n",
    )
