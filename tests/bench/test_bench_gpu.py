"""The GPU benchmark, tested without a GPU: contenders run on the CPU, and a fake clock measures them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from bench import __main__ as command
from bench import cases, gpu_here, gpu_report, sanitize
from bench import gpu_contenders as repository
from bench.cases import GPU_ACTIVATIONS
from bench.gpu_contenders import CONTENDERS, NUMBA, PEERS
from bench.smi import smi
from gpudrop.testing.benchmark import checks, gpu, gpu_contenders, runner
from gpudrop.testing.benchmark.cases import DTYPES, LARGE, Case
from gpudrop.testing.benchmark.contenders import Absent
from gpudrop.testing.benchmark.gpu_contenders import COPY, CUPY, EAGER, PLAIN, GpuContender

ROOT = Path(command.__file__).parent.parent
BY_NAME = {contender.name: contender for contender in CONTENDERS}
NO_GPU = pytest.mark.skipif(gpu_here.missing() is None, reason="there is a GPU")


def numpy_as_cupy():
    """NumPy, with CuPy's RandomState."""
    xp, rng = ModuleType("numpy"), np.random.default_rng(0)
    vars(xp).update(vars(np))
    own = SimpleNamespace(random_sample=lambda shape, dtype: rng.random(shape, dtype))
    xp.random = SimpleNamespace(RandomState=lambda seed: own)
    return xp


class Host:
    """A replacement for Gpu with the CPU's arrays and clock. A captured graph is the work itself."""

    name, bus, id, cache = "no GPU at all", "none", 0, 2**16

    def __init__(self):
        self.xp, self.libraries = numpy_as_cupy(), []

    def facts(self):
        return {"cache_bytes": self.cache}

    def seconds(self, work, repetitions):
        return runner.warm_seconds(work, repetitions)

    def captured(self, library, build):
        self.libraries.append(library)
        return build()

    def peak_bytes(self, work):
        work()
        return 1000

    def release(self):
        pass

    def synchronize(self):
        pass

    def free(self):
        return 2**33


def admit(contender, case, host=None):
    host = host or Host()
    return gpu.admit(host, case, gpu.arrays(host.xp, case, 1)[0], contender)


def admit_everything(name, size):
    """Called in separate processes, because environment variables must be set before an import."""
    for activation in GPU_ACTIVATIONS:
        for dtype in DTYPES:
            admit(BY_NAME[name], Case("kinds", activation, dtype, size, backward=True))


def in_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


# Contenders


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [COPY, CUPY, EAGER, PLAIN])
@pytest.mark.parametrize("activation", GPU_ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_contenders_compute_their_case(name, activation, dtype):
    case = Case("kinds", activation, dtype, 20_000, backward=True)
    if name == EAGER:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    _, peak = admit(BY_NAME[name], case)
    assert peak == 1000 + (2 * case.array_bytes if name in (COPY, CUPY) else 0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "cupy_text"], indirect=True)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpudrop_on_each_cpu_backend(backend, activation, dtype):
    admit(BY_NAME[CUPY], Case("kinds", activation, dtype, 20_001, backward=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_computes_its_case():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler")
    admit(BY_NAME["torch.compile"], Case("kinds", "relu", "float32", 20_000, backward=True))


@pytest.mark.slow
def test_triton_computes_its_cases_in_its_interpreter():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("triton", reason="Triton is not installed")
    in_process("from tests.bench import test_bench_gpu as t; t.admit_everything('Triton', 5000)", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_numba_computes_its_cases_in_the_simulator():
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    code = """
from numba import cuda
from tests.bench import test_bench_gpu as t

cuda.as_cuda_array = lambda array, sync: cuda.to_device(array)
t.admit_everything(t.NUMBA, 100)
"""
    in_process(code, NUMBA_ENABLE_CUDASIM="1")


def test_absent_contenders_say_why(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setitem(sys.modules, "bench.triton_dropout", None)
    with pytest.raises(Absent, match="Triton can't be imported"):
        repository.triton(Case("kinds"), numpy_as_cupy())
    monkeypatch.setattr(repository.backends, "load", lambda name: f"{name} is not here")
    with pytest.raises(Absent, match="numba_cuda is not here"):
        repository.ours_numba(Case("kinds"), numpy_as_cupy())
    monkeypatch.setattr(gpu_contenders.torch_for(Case("kinds")).cuda, "is_available", lambda: False)
    with pytest.raises(Absent, match="this PyTorch finds no CUDA GPU"):
        gpu_contenders.pytorch(Case("kinds"), ModuleType("cupy"))


# Wrong results and failures


def ours_but(change):
    """The prepare function of a contender whose results are gpudrop's, changed by change(x, y, dx)."""

    def prepare(case, xp):
        vjp = gpu_contenders.ours(case, xp)

        def changed(x, dy, y, dx):
            y, backprop = vjp(x, dy, y, dx)
            y, dx = change(x, y, backprop())
            return y, lambda: dx

        return changed

    return prepare


def idle(case, xp):
    return lambda x, dy, y, dx: (y, lambda: dx)


BROKEN = {
    "no scale": ours_but(lambda x, y, dx: (y * np.float32(0.9), dx)),
    "nothing dropped": ours_but(lambda x, y, dx: (np.maximum(x, 0) / np.float32(0.9), dx)),
    "too much dropped": ours_but(lambda x, y, dx: (y * (np.arange(y.size) % 10 > 0), dx)),
    "another mask for the gradient": ours_but(lambda x, y, dx: (y, np.roll(dx, 1))),
    "no scale of the gradient": ours_but(lambda x, y, dx: (y, dx * np.float32(0.9))),
    "no slope": ours_but(lambda x, y, dx: (y, np.where(x > 0, dx, 1))),
    "another dtype": ours_but(lambda x, y, dx: (y.astype(np.float64), dx)),
    "half of the results": ours_but(lambda x, y, dx: (y[: y.size // 2], dx[: y.size // 2])),
    "the end is not written": ours_but(lambda x, y, dx: (np.where(np.arange(y.size) < y.size - 9, y, np.nan), dx)),
    "nothing computed": idle,
}


@pytest.mark.slow
@pytest.mark.parametrize("check", [gpu_contenders.any_mask, gpu_contenders.our_mask, gpu_contenders.same])
@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("whole", [True, False])
def test_contenders_with_wrong_results_are_not_timed(monkeypatch, fault, check, whole):
    if not whole:
        monkeypatch.setattr(gpu, "WHOLE", 2**16)
        monkeypatch.setattr(gpu, "PART", 2**15)
    case = Case("kinds", size=200_000, backward=True)
    right = BY_NAME[COPY if check is gpu_contenders.same else CUPY]
    for row in gpu.measure(Host(), case, 1, [right, GpuContender("broken", BROKEN[fault], check)]):
        assert set(row["results"]["broken"]) == {"wrong"}
        assert row["results"][right.name]["seconds"] > 0


def test_the_mask_of_gpudrop_is_checked_bit_by_bit():
    """The mask of another seed passes the check for any mask, but not the check for the contract's mask."""
    case = Case("kinds", size=20_000, backward=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_contenders, "SEED", gpu_contenders.SEED + 1)
        vjp = gpu_contenders.ours(case, np)
    other = GpuContender("another", lambda case, xp: vjp, gpu_contenders.any_mask)
    admit(other, case)
    with pytest.raises(checks.Wrong):
        admit(replace(other, check=gpu_contenders.our_mask), case)


def test_a_contender_that_fails_does_not_end_the_run():
    def fails(case, xp):
        raise MemoryError("out of memory")

    rows = gpu.measure(
        Host(), Case("kinds", size=5000, backward=True), 1, [GpuContender("broken", fails), CONTENDERS[1]]
    )
    for row in rows:
        assert row["results"]["broken"] == {"failed": "MemoryError: out of memory"}
        assert "seconds" in row["results"][CUPY]


def test_tiny_arrays_need_a_limited_number_of_sets():
    host = Host()
    host.cache = 2**26
    for row in gpu.measure(host, Case("sizes", size=1, backward=True), 1, [CONTENDERS[1]]):
        assert row["sets"] == gpu.SETS and "seconds" in row["results"][CUPY]


def test_a_failure_during_timing_does_not_end_the_run():
    host = Host()
    host.seconds = lambda work, repetitions: 1 / 0
    for row in gpu.measure(host, Case("launch", size=5000, backward=True), 1, [CONTENDERS[1]]):
        assert "seconds" in row["results"][CUPY]
    host.synchronize = lambda: 1 / 0
    for row in gpu.measure(host, Case("launch", size=5000, backward=True), 1, [CONTENDERS[1]]):
        assert row["failed"].startswith("ZeroDivisionError")


# Cases


@pytest.mark.parametrize("quick", [True, False])
def test_cases_are_unique_and_cover_all_dtypes_activations_and_sizes(quick):
    every = cases.gpu_cases(quick)
    assert len(set(every)) == len(every)
    assert all(case.forward and case.backward for case in every)
    assert {case.activation for case in every} == set(GPU_ACTIVATIONS)
    if not quick:
        sizes = [case.size for case in every if case.section == "sizes"]
        assert (min(sizes), max(sizes)) == (2**14, 2**30)
        large = {(case.activation, case.dtype, case.size) for case in every if case.size >= LARGE}
        assert {(a, d, s) for a in GPU_ACTIVATIONS for d in DTYPES for s in cases.GPU_LARGE} <= large


def test_bytes_of_each_pass():
    for activation, backward in (("identity", 80), ("relu", 120), ("gelu", 120)):
        case = Case("kinds", activation, "float32", 10, backward=True)
        assert [one.bytes for one in case.passes] == [80, backward]
        assert sum(one.bytes for one in case.passes) == case.bytes
        assert [gpu_contenders.copied(one) for one in case.passes] == [80, 80]


def test_arrays_repeat_a_block_of_normal_deviates(monkeypatch):
    monkeypatch.setattr(gpu, "PERIOD", 1000)
    sets = gpu.arrays(np, Case("kinds", "relu", "bfloat16", 2300, backward=True), 3)
    assert len(sets) == 3
    for x, dy, y, dx in sets:
        assert x.shape == dy.shape == y.shape == dx.shape == (2300,)
        assert abs(x.astype(np.float32).std() - 1) < 0.1 and not np.array_equal(x, dy)
        np.testing.assert_array_equal(x[:1300], x[1000:])
        np.testing.assert_array_equal(x, sets[0].x)
    addresses = [array.ctypes.data for each in sets for array in each]
    assert len(set(addresses)) == 12


@pytest.mark.parametrize("size", [1, 2**24, 2**24 + 1, 2**30])
def test_both_ends_are_checked(size):
    ends = gpu.parts(size)
    assert ends[0].start == 0 and ends[-1].stop == size
    assert sum(part.stop - part.start for part in ends) <= 2**24


# Measuring


class Clock(Host):
    """A fake clock: a forward pass takes second_per_call, and a backward pass twice as long."""

    def __init__(self, second_per_call):
        super().__init__()
        self.per_call, self.now, self.seen = second_per_call, 0.0, []

    def contender(self, **options):
        def prepare(case, xp):
            vjp = gpu_contenders.ours(case, xp)

            def counted(x, dy, y, dx):
                self.now += self.per_call
                self.seen.append(x.ctypes.data)
                y, backprop = vjp(x, dy, y, dx)

                def back():
                    self.now += 2 * self.per_call
                    return backprop()

                return y, back

            return counted

        return GpuContender("timed", prepare, gpu_contenders.our_mask, **options)

    def seconds(self, work, repetitions):
        work()
        begin = self.now
        for _ in range(repetitions):
            work()
        return (self.now - begin) / repetitions


@pytest.mark.parametrize(("graph", "timed"), [("cupy", "graph"), (None, "events")])
def test_seconds_are_per_call_and_the_sets_of_arrays_exceed_the_cache(graph, timed):
    clock, case = Clock(1e-3), Case("sizes", size=1000, backward=True)
    forward, backward = gpu.measure(clock, case, 2, [clock.contender(graph=graph, writes=True)])
    assert forward["sets"] * 8000 > 2 * clock.cache
    assert len(set(clock.seen)) == forward["sets"]
    for row, seconds, moved in ((forward, 1e-3, 8000), (backward, 2e-3, 12000)):
        result = row["results"]["timed"]
        assert result["seconds"] == pytest.approx(seconds)
        assert result["bytes_per_second"] == pytest.approx(moved / seconds)
        assert result["elements_per_second"] == pytest.approx(1000 / seconds)
        assert (result["timed"], result["peak_bytes"]) == (timed, 1000 + 8000)
        assert row["bytes"] == moved
    assert (forward["forward"], forward["backward"]) == (True, False)
    assert (backward["forward"], backward["backward"]) == (False, True)


def test_large_passes_are_timed_without_a_graph(monkeypatch):
    monkeypatch.setattr(gpu, "GRAPHED", 8000)
    clock = Clock(1e-3)
    rows = gpu.measure(clock, Case("sizes", size=1000, backward=True), 1, [clock.contender(graph="cupy")])
    assert [row["results"]["timed"]["timed"] for row in rows] == ["events", "events"]
    assert not clock.libraries


def test_work_that_cannot_be_captured_is_timed_by_events():
    clock = Clock(1e-3)

    def captured(library, build):
        build()
        raise RuntimeError("not permitted when stream is capturing")

    clock.captured = captured
    for row in gpu.measure(clock, Case("sizes", size=1000, backward=True), 1, [clock.contender(graph="torch")]):
        result = row["results"]["timed"]
        assert result["timed"] == "events"
        assert result["uncaptured"] == "RuntimeError: not permitted when stream is capturing"
        assert result["seconds"] == pytest.approx(1e-3 if row["forward"] else 2e-3)


def test_a_case_that_does_not_fit_in_memory_is_left_out():
    host = Host()
    host.free = lambda: 10_000
    for row in gpu.measure(host, Case("sizes", size=1000, backward=True), 1, CONTENDERS):
        assert row["results"] == {}
        assert row["absent"].startswith("it needs 0.0 GB")


def test_launches_are_timed_by_the_cpu():
    rows = gpu.measure(Host(), Case("launch", size=1000, backward=True), 1, [CONTENDERS[1]])
    for row in rows:
        result = row["results"][CUPY]
        assert result["timed"] == "host" and 0 < result["seconds"] < 1
        assert "bytes_per_second" not in result


class Cupy(ModuleType):
    """The parts of CuPy that Gpu uses, with a clock in milliseconds and a log of the calls."""

    def __init__(self):
        super().__init__("cupy")
        self.log, self.now, self.held = [], 0.0, 0
        pool = SimpleNamespace(free_all_blocks=lambda: self.log.append("free"), total_bytes=lambda: self.held)
        self.get_default_memory_pool = lambda: pool
        outer = self

        class Event:
            def record(self):
                self.at = outer.now
                outer.log.append("event")

            def synchronize(self):
                outer.log.append("wait")

        class Stream:
            def __init__(self, non_blocking):
                pass

            def __enter__(self):
                outer.log.append("on")

            def __exit__(self, *reason):
                outer.log.append("off")

            def synchronize(self):
                outer.log.append("wait")

            def begin_capture(self):
                outer.log.append("begin")

            def end_capture(self):
                outer.log.append("end")
                return SimpleNamespace(launch=lambda: outer.log.append("replay"))

        properties = {"name": b"NVIDIA Zero"}
        runtime = SimpleNamespace(
            cudaDevAttrL2CacheSize=1,
            cudaDevAttrMultiProcessorCount=2,
            getDevice=lambda: 0,
            deviceGetAttribute=lambda attribute, device: {1: 50, 2: 132}[attribute],
            getDeviceProperties=lambda device: properties,
            deviceGetPCIBusId=lambda device: "0000:00:00.0",
            deviceSynchronize=lambda: None,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13010,
            memGetInfo=lambda: (7, 9),
        )
        elapsed = staticmethod(lambda begin, end: end.at - begin.at)
        self.cuda = SimpleNamespace(Event=Event, Stream=Stream, runtime=runtime, get_elapsed_time=elapsed)


@pytest.fixture
def cupy(monkeypatch):
    stub = Cupy()
    monkeypatch.setitem(sys.modules, "cupy", stub)
    return stub


def test_gpu_times_work_by_events_after_a_warm_up(cupy):
    device = gpu.Gpu()

    def work():
        cupy.log.append("work")
        cupy.now += 5

    assert device.seconds(work, 3) == pytest.approx(5e-3)
    assert cupy.log == ["free", "work", "event", "work", "work", "work", "event", "wait"]


def test_gpu_captures_after_a_warm_up_on_the_same_stream(cupy):
    replay = gpu.Gpu().captured("cupy", lambda: cupy.log.append("build") or (lambda: cupy.log.append("work")))
    assert cupy.log == ["on", "build", "work", "wait", "begin", "work", "end", "off"]
    replay()
    assert cupy.log[-1] == "replay"


def test_gpu_ends_a_capture_that_fails(cupy):
    def work():
        if "begin" in cupy.log:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        gpu.Gpu().captured("cupy", lambda: work)
    assert cupy.log[-2:] == ["end", "off"]


def test_gpu_adds_the_memory_that_each_library_allocates(cupy, monkeypatch):
    torch = SimpleNamespace(
        is_available=lambda: True,
        empty_cache=lambda: cupy.log.append("empty"),
        reset_peak_memory_stats=lambda: cupy.log.append("reset"),
        memory_allocated=lambda: 30,
        max_memory_allocated=lambda: 75,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=torch))
    cupy.held = 100

    def work():
        cupy.held = 112

    assert gpu.Gpu().peak_bytes(work) == 12 + 45
    assert cupy.log == ["free", "empty", "reset"]
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.Gpu().peak_bytes(lambda: None) == 0


def test_gpu_describes_itself(cupy):
    device = gpu.Gpu()
    assert device.name == "NVIDIA Zero"
    facts = device.facts()
    assert facts["cache_bytes"] == 50 and facts["multiprocessors"] == 132 and facts["memory_bytes"] == 9
    assert json.loads(json.dumps(facts)) == facts


def test_smi_is_read_if_it_exists(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert smi("0") is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '580.1, 1980 MHz, 2619 MHz, Enabled, 700.00 W'\n")
    program.chmod(0o755)
    assert smi("0")["ecc.mode.current"] == "Enabled"
    program.write_text("#!/bin/sh\nexit 6\n")
    assert smi("0") is None


def test_cupy_and_torch_have_the_attributes_that_are_used():
    runtime = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.runtime
    used = set(vars(Cupy().cuda.runtime))
    assert {name for name in used if not hasattr(runtime, name)} == set()
    import cupy
    from cupyx.scipy.special import erf  # noqa: F401

    assert (
        callable(cupy.cuda.Graph.launch) and callable(cupy.random.RandomState.random_sample) and callable(cupy.copyto)
    )
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for name in ("CUDAGraph", "Stream", "graph", "stream", "synchronize", "max_memory_allocated", "memory_allocated"):
        assert hasattr(torch.cuda, name)
    from torch._functorch import config

    assert config.donated_buffer in (True, False)


@pytest.mark.gpu
def test_every_contender_is_measured_on_a_gpu():
    if gpu_here.missing():
        pytest.skip(gpu_here.missing())
    device = gpu.Gpu()
    for case in (Case("sizes", size=2**16, backward=True), Case("launch", size=1000, backward=True)):
        for row in gpu.measure(device, case, 1, CONTENDERS):
            wrong = {name: result for name, result in row["results"].items() if not {"seconds", "absent"} & set(result)}
            assert "failed" not in row and not wrong
            assert row["results"][CUPY]["timed"] == ("host" if case.section == "launch" else "graph")


# Reports


def made(activation="relu", dtype="float32", size=LARGE, section="kinds", **seconds):
    """Rows of a record. seconds has for each contender the times of both passes, or why they are not timed."""
    case = Case(section, activation, dtype, size, backward=True)
    rows = [asdict(one) | {"bytes": one.bytes, "sets": 1, "results": {}} for one in case.passes]
    for name, both in seconds.items():
        for one, row, took in zip(case.passes, rows, both, strict=True):
            if isinstance(took, str):
                row["results"][name] = {took: "because"}
                continue
            result = {"seconds": took, "fastest": took, "slowest": took, "timed": "events", "peak_bytes": 5_000_000}
            row["results"][name] = result | runner.rates(case.size, BY_NAME[name].moves(one), took)
    return rows


GOOD = {COPY: (1.0, 1.0), CUPY: (1.05, 1.6), NUMBA: (1.0, 1.5), EAGER: (4.0, 4.0), "Triton": (2.0, 2.5)}


def lines(*rows):
    return [str(target) for target in gpu_report.targets({"cases": [row for pair in rows for row in pair]})]


def test_targets_are_judged_by_the_worst_case():
    found = lines(made(**GOOD), made("gelu", **GOOD), made(size=2**20, **{COPY: (1.0, 1.0), CUPY: (9.0, 9.0)}))
    start, case = "reached: gpudrop, CuPy: ", "float32 backward 67,108,864"
    assert found[:4] == [
        f"{start}identity and relu at 0.93 of the copy's speed: worst case 0.938, relu {case}",
        f"{start}gelu and silu at 0.85 of the copy's speed: worst case 0.938, gelu {case}",
        f"{start}faster than every peer: worst case 1.562, relu {case} against Triton",
        (
            f"{start}twice as fast as PyTorch, relu forward and backward: worst case 3.019, "
            "relu float32 and back 67,108,864"
        ),
    ]
    assert len(found) == 8 and all(line.startswith("reached: ") for line in found)


def test_targets_that_are_missed_say_so():
    slow = lines(made(**GOOD | {CUPY: (1.1, 4.1)}))
    text = "gpudrop, CuPy: identity and relu at 0.93 of the copy's speed"
    assert slow[0].startswith(f"NOT reached: {text}: worst case 0.366")
    assert slow[1] == "not measured: gpudrop, CuPy: gelu and silu at 0.85 of the copy's speed"
    assert slow[2].endswith("worst case 0.610, relu float32 backward 67,108,864 against Triton")
    assert slow[3].startswith("NOT reached: ") and "worst case 1.538, relu float32 and back" in slow[3]


def test_a_target_is_not_reached_if_gpudrop_is_wrong():
    found = lines(made(**GOOD), made(dtype="float16", **GOOD | {CUPY: ("wrong", "wrong")}))
    assert found[0].startswith("NOT reached: ") and found[0].endswith("; wrong or failed in 2 cases")
    assert lines(made(**GOOD | {NUMBA: ("failed", "failed")}))[4].endswith("'s speed: wrong or failed in 2 cases")


def test_launch_overhead_is_not_compared():
    """A peer that is timed with its launches looks slow in small arrays, so it is judged by large ones only."""
    rows = made(size=2**14, section="sizes", **{COPY: (1.0, 1.0), CUPY: (1.0, 1.0), PLAIN: (0.5, 0.5)})
    assert "NOT reached" in lines(rows)[2]
    for row in rows:
        row["results"][CUPY]["timed"] = "graph"
    assert lines(rows)[2].startswith("not measured")


@pytest.mark.slow
def test_tables_notes_and_chart_of_a_record(tmp_path, capsys):
    missing = {"torch.compile": ("absent", "absent"), PLAIN: ("failed", "wrong")}
    record = {"device": "NVIDIA Zero", "cases": made(size=2**14, section="sizes", **GOOD)}
    record["cases"] += made(section="sizes", **GOOD) + made("gelu", "float16", **GOOD | missing)
    record["cases"] += made(size=1000, section="launch", **GOOD)
    left_out = made(dtype="float64", size=2**30)
    record["cases"] += [row | {"absent": "it needs 90.0 GB, and 1.0 are free"} for row in left_out]
    record["cases"][0]["results"][CUPY] |= {"timed": "graph", "uncaptured": "RuntimeError: no"}
    command.write(record, tmp_path / "gpu.json", [*gpu_report.tables(record), *gpu_report.notes(record)])
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    assert json.loads((tmp_path / "gpu.json").read_text()) == record
    both = [line for line in shown.splitlines() if "gelu float16 and back" in line]
    assert both and "failed" in both[0] and "3.019" in both[0]  # PyTorch takes 8 seconds, and gpudrop 2.65
    assert "1.905*" in shown  # Triton takes 2 seconds, and gpudrop 1.05, timed differently
    assert "1.05e+06" in shown  # us of a launch
    assert "torch.compile: absent (because)" in text
    assert "cupy.random: wrong (because) gelu float16 backward 67,108,864" in text
    assert "gpudrop, CuPy: uncaptured (RuntimeError: no) relu float32 16,384" in text
    assert "relu float64 1,073,741,824: absent (it needs 90.0 GB, and 1.0 are free)" in text
    assert "copy in GPU memory: 0.5369 GB/s, reads and writes together" in text
    assert "reached: gpudrop, Numba: identity and relu" in text
    gpu_report.chart(record, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.filterwarnings("ignore")
def test_a_run_writes_tables_json_and_a_chart(tmp_path, capsys):
    host, path = Host(), tmp_path / "no-GPU" / "gpu.json"
    entered = [BY_NAME[name] for name in (COPY, CUPY, PLAIN)]
    some = [Case("launch", size=1000), Case("sizes", size=2**14), Case("kinds", "silu", size=2**14)]
    some = [replace(case, backward=True) for case in some]
    command.measure_on(host, some, 2, entered, path)
    record = json.loads(path.read_text())
    assert {"device", "facts", "versions", "commit", "date", "command", "rounds"} <= set(record)
    assert record["complete"] and record["device"] == host.name
    assert record["copy_bytes_per_second"] is None  # because no case was large enough
    assert {"cupy-cuda13x", "triton", "numba-cuda", "torch"} <= set(record["versions"])
    assert len(record["cases"]) == 6
    for row in record["cases"]:
        for name in (COPY, CUPY, PLAIN):
            assert 0 < row["results"][name]["fastest"] <= row["results"][name]["seconds"]
    assert path.with_suffix(".png").exists()
    shown = capsys.readouterr().out
    assert "silu float32 backward" in shown and "not measured: gpudrop, Numba" in shown
    assert set(host.libraries) == {"cupy"}


def test_peers_are_all_contenders_but_the_copy_and_gpudrop():
    assert {COPY, CUPY, NUMBA, *PEERS} == set(BY_NAME)


# The commands


@pytest.mark.slow
@NO_GPU
def test_bench_gpu_fails_with_one_line_without_a_gpu():
    done = subprocess.run([sys.executable, "-m", "bench", "gpu", "--quick"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("python -m bench gpu: ") and done.stderr.count("\n") == 1
    assert gpu_here.missing() in done.stderr


@pytest.mark.slow
@NO_GPU
def test_make_gpu_fails_with_one_line_without_a_gpu():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # As from a shell: if make runs the tests, the variables of the outer make change the inner one's output.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "gpu", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode != 0 and not done.stdout
    line, makes = done.stderr.splitlines()
    assert line == f"make gpu: {gpu_here.missing()}"
    assert makes.startswith("make: *** ")


def driver(result, count):
    def number(pointer):
        pointer._obj.value = count
        return 0

    return SimpleNamespace(cuInit=lambda flags: result, cuDeviceGetCount=number)


def test_missing_returns_the_reason(monkeypatch):
    def none(name):
        raise OSError("no such file")

    monkeypatch.setattr(gpu_here.ctypes, "CDLL", none)
    assert gpu_here.missing() == "no CUDA GPU here (no NVIDIA driver: no such file)"
    for result, count in ((100, 0), (0, 0)):
        monkeypatch.setattr(gpu_here.ctypes, "CDLL", lambda name, r=result, c=count: driver(r, c))
        assert gpu_here.missing() == "no CUDA GPU here (the NVIDIA driver finds none)"
    monkeypatch.setattr(gpu_here.ctypes, "CDLL", lambda name: driver(0, 1))
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu_here.missing().startswith(f"a package is missing for {sys.executable} (")


# compute-sanitizer


def test_the_small_run_finds_masks_that_differ():
    sanitize.run(lambda x: x, lambda x: x, "cpu")
    with pytest.raises(AssertionError):
        sanitize.run(lambda x: x, lambda x: np.roll(x, 1), "cpu")


@pytest.mark.parametrize(
    ("script", "failed", "said"),
    [
        ("exit 0", 0, "memcheck: no errors"),
        ("echo a hazard; exit 9", 2, "racecheck: a hazard"),
        ("echo Device not supported; exit 1", 0, "it does not support this GPU"),
    ],
)
def test_sanitizers_print_their_findings(monkeypatch, tmp_path, capsys, script, failed, said):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.main(["nothing"]) == 0
    assert "not on this machine" in capsys.readouterr().out
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert sanitize.main(["nothing"]) == failed
    assert said in capsys.readouterr().out
