"""gpudrop selftest passes here. For any wrong kernel it prints a line of Python that repeats the failure."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from typer.testing import CliRunner

import gpudrop
from gpudrop import backends
from gpudrop.cli import app, main
from gpudrop.kernels import cpu
from gpudrop.testing import selftest, statistics
from tests.conftest import SIMULATED
from tests.processes import RESTORE_SIGINT, run
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
    assert functions.isdisjoint(statistics.CHECKS), "two checks share a line of the report"
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


# The processes that compile CPU kernels

compiles = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")


@pytest.fixture
def started(monkeypatch):
    """The processes that are started, and four cores."""

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            processes.append(self)

    processes = []
    monkeypatch.setattr(selftest.subprocess, "Popen", Popen)
    monkeypatch.setattr(selftest.threads, "available", lambda: 4)
    return processes


def compile_something():
    numba.njit(lambda: 0)()


@compiles
def test_processes_start_after_the_first_compilation_and_end_with_the_run(started):
    def interrupted():
        with selftest._compilers(quick=True) as between_cases:
            between_cases()
            assert started == []
            compile_something()
            between_cases()
            between_cases()
            assert [process.poll() for process in started] == [None] * 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(process.poll() is not None for process in started)


@compiles
@pytest.mark.parametrize(("cores", "frozen", "count"), [(1, False, 0), (2, False, 1), (64, False, 3), (64, True, 0)])
def test_the_number_of_processes(monkeypatch, started, cores, frozen, count):
    monkeypatch.setattr(selftest.threads, "available", lambda: cores)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)  # the program would start itself again
    with selftest._compilers(quick=True) as between_cases:
        compile_something()
        between_cases()
        assert len(started) == count


@compiles
@pytest.mark.parametrize("executable", [__file__ + ".missing", None])
def test_a_process_that_cannot_be_started_is_no_error(monkeypatch, started, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with selftest._compilers(quick=True) as between_cases:
        compile_something()
        between_cases()
    assert started == []


@compiles
def test_the_processes_compile_the_kernels_of_all_exact_cases(monkeypatch):
    """Except that of masks for p = 0."""

    def launched(cases):
        kernels = set()
        monkeypatch.setattr(cpu, "launch", lambda kernel, *_: kernels.add(kernel))
        for case in cases:
            case.run()
        return kernels

    monkeypatch.setattr(cpu, "grow", lambda seeds, mask, block: np.ones(1, np.uint64))
    kinds = selftest._kinds(quick=True)
    cases = [case for case in selftest.plan("cpu", quick=True) if case.function != "statistic"]
    assert len(kinds) < len(cases) / 3
    assert {kernel.name for kernel in launched(cases) - launched(kinds)} == {"gpudrop_identity_mask_0"}


@compiles
def test_each_process_begins_with_another_kernel(monkeypatch):
    kinds, order = selftest._kinds(quick=False), []
    monkeypatch.setattr(selftest.Case, "run", lambda case: (order.append(case), None))
    for number in range(2):
        selftest._compile_kernels(False, number, 2)
    half = len(kinds) // 2
    assert order == [*kinds, *kinds[half:], *kinds[:half]]


KERNELS_OF_RELU = """
import sys
import numba.core.event
from gpudrop.testing import selftest
case = selftest.Case("values", {"backend": "cpu", "activation": "relu", "dtype": "float16", "size": 100})
selftest.plan = lambda *arguments, **options: [case]
with numba.core.event.install_recorder("numba:compile") as compiled:
    if sys.argv[1] == "compile":
        selftest._compile_kernels(True, 0, 1)
    else:
        assert not selftest.run("cpu").failures
print(len(compiled.buffer))
"""


@compiles
def test_a_run_loads_the_kernels_that_another_process_compiled(tmp_path):
    assert int(run(KERNELS_OF_RELU, "compile", NUMBA_CACHE_DIR=tmp_path).stdout) > 0
    assert int(run(KERNELS_OF_RELU, "run", NUMBA_CACHE_DIR=tmp_path).stdout) == 0


@compiles
def test_the_program_compiles_kernels_until_standard_input_closes(tmp_path):
    program = selftest.COMPILER.format(path=sys.path, quick=True, number=0, count=1)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    options = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, "env": environment}
    with subprocess.Popen([sys.executable, "-c", program], **options) as process:
        while not list(tmp_path.rglob("*.nbc")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    assert process.returncode == 0
    assert len(list(tmp_path.rglob("*.nbc"))) < len(selftest._kinds(quick=True)) / 2


NO_CACHE = """
import resource, sys
from gpudrop.testing import selftest
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no larger file can be written
cases, run = [], selftest.Case.run
selftest.Case.run = lambda case: cases.append(case) or run(case)
kinds = selftest._kinds(True)[:3]
selftest._kinds = lambda quick: kinds
selftest._compile_kernels(True, 0, 1)
print(len(cases))
"""


@compiles
@pytest.mark.skipif(sys.platform == "win32", reason="no limits for files")
def test_a_process_that_cannot_write_the_cache_ends(tmp_path):
    done = run(NO_CACHE, NUMBA_CACHE_DIR=tmp_path, PYTHONDONTWRITEBYTECODE=1)
    assert int(done.stdout) == 1


RUN = """
import subprocess, sys
from gpudrop.testing import selftest
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        print(self.pid, flush=True)
selftest.subprocess.Popen = Popen
selftest.threads.available = lambda: 4
selftest.run("cpu")
"""


def runs(process):
    """Whether a process runs. One that ended may remain as a zombie, if nobody waits for orphans here."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


@compiles
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("sent", few([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], signal.SIGKILL))
def test_no_process_outlives_the_run(tmp_path, sent):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", RESTORE_SIGINT + RUN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        others = [int(process.stdout.readline()) for _ in range(3)]
        assert all(map(runs, others))
        process.send_signal(sent)
        process.communicate()
    end = time.monotonic() + 30
    while any(map(runs, others)):
        assert time.monotonic() < end
        time.sleep(0.1)


SCRIPT = """
import json, sys
from pathlib import Path
from gpudrop.testing import selftest
with Path(sys.argv[1]).open("a") as file:
    file.write("imported\\n")
processes, popen = [], selftest.subprocess.Popen
def start(*arguments, **options):
    processes.append(popen(*arguments, **options))
    if sys.argv[2] == "killed":
        processes[-1].kill()
    return processes[-1]
selftest.subprocess.Popen = start
plan = selftest.plan
few = {"dtype": "float32", "check": "patterns"}
selftest.plan = lambda *arguments: [
    case for case in plan(*arguments) if all(case.arguments.get(name, value) == value for name, value in few.items())
]
selftest.threads.available = lambda: 1 if sys.argv[2] == "none" else 4
found = selftest.run("cpu", quick=True)
print(len(processes), json.dumps(found.as_dict() | {"summary": "", "backends": {}, "seconds": 0}))
"""


@compiles
@pytest.mark.slow
def test_results_are_the_same_with_and_without_other_processes(tmp_path):
    """A script without a check of __name__, which a process of multiprocessing would run again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    results = {}
    for others in ("none", "some", "killed"):
        log, environment = tmp_path / others, os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / f"cache of {others}")}
        command = [sys.executable, tmp_path / "script.py", log, others]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert (done.stderr, log.read_text()) == ("", "imported\n")
        count, results[others] = done.stdout.split(" ", 1)
        assert int(count) == (0 if others == "none" else 3)
    assert json.loads(results["none"])["passed"]
    assert results["none"] == results["some"] == results["killed"]
