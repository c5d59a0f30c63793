"""The CPU and PyTorch benchmarks: contenders with wrong results are not timed, and a run writes its files."""

import inspect
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import gpudrop
from bench import __main__ as command
from bench import cases, contenders, family, report
from bench.contenders import CONTENDERS
from gpudrop.testing.benchmark import checks, records, runner
from gpudrop.testing.benchmark.cases import DTYPES, LARGE, LAYOUTS, Case
from gpudrop.testing.benchmark.contenders import OURS, OURS_READY, Absent, Contender, ours
from gpudrop.variants import FAMILY
from tests import ROOT

SMALL = [Case("sizes", size=1000, backward=b, threads=1) for b in (False, True)]


def prepared(contender, case):
    x, dy = runner.inputs(case)
    return x, dy, contender.prepare(case, x, dy)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "torch.compile"])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backward", [False, True])
def test_contenders_compute_their_case(monkeypatch, name, activation, dtype, backward):
    monkeypatch.setattr(contenders, "CACHED", 0)
    case = Case("sizes", activation, dtype, 20_000, backward, threads=os.cpu_count())
    contender = CONTENDERS[name]
    try:
        x, dy, call = prepared(contender, case)
    except Absent as reason:
        pytest.skip(str(reason))
    contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])


def ours_but(change):
    """The prepare function of a contender that changes gpudrop's results."""

    def prepare(case, x, dy):
        call = ours(case, x, dy)
        return lambda: change(x, dy, *call())

    return prepare


BROKEN = {
    "no scale": lambda x, dy, y, dx: (y * np.float32(0.9), dx),
    "nothing dropped": lambda x, dy, y, dx: (np.maximum(x, 0) / np.float32(0.9), dx),
    "too much dropped": lambda x, dy, y, dx: (y * (np.arange(y.size) % 10 > 0), dx * (np.arange(y.size) % 10 > 0)),
    "no activation": lambda x, dy, y, dx: (np.where(y != 0, y, x / np.float32(0.9) * (x < 0)), dx),
    "another mask for the gradient": lambda x, dy, y, dx: (y, np.roll(dx, 1)),
    "one element wrong": lambda x, dy, y, dx: (y, np.where(np.arange(y.size) == y.size - 1, 7, dx)),
    "no gradient": lambda x, dy, y, dx: (y,),
    "nan in the middle": lambda x, dy, y, dx: (np.where(np.arange(y.size) == 90_000, np.nan, y).astype(y.dtype), dx),
    "nothing kept in the middle": lambda x, dy, y, dx: (np.where(np.arange(y.size) // 30_000 == 3, 0, y), dx),
    "another dtype": lambda x, dy, y, dx: (y.astype(np.float64), dx),
}


@pytest.mark.slow
@pytest.mark.parametrize("check", [CONTENDERS["PyTorch"].check, CONTENDERS[OURS].check], ids=["any mask", "our mask"])
@pytest.mark.parametrize("fault", BROKEN)
def test_contenders_with_wrong_results_are_not_timed(fault, check):
    case = Case("sizes", size=200_000, backward=True, threads=1)
    broken = Contender("broken", ours_but(BROKEN[fault]), check)
    right = Contender("right", ours_but(lambda x, dy, y, dx: (y, dx)), check)
    results = runner.measure(case, 1, [broken, right])
    assert set(results["broken"]) == {"wrong"}
    assert results["right"]["seconds"] > 0


def test_the_mask_of_gpudrop_is_checked_bit_by_bit():
    """A shifted mask passes the check for any mask, but not the check for the contract's mask."""
    case = Case("sizes", "identity", size=200_000, threads=1)

    def prepare(case, x, dy):
        kept = ours(case, x, dy)()[0] != 0
        return lambda: (np.where(np.roll(kept, 1), x / np.float32(0.9), np.float32(0)),)

    for check, state in ((CONTENDERS["PyTorch"].check, "seconds"), (CONTENDERS[OURS].check, "wrong")):
        assert state in runner.measure(case, 1, [Contender("rolled", prepare, check)])["rolled"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copy", "copy out=", "streaming copy out="])
def test_ceilings_are_checked(monkeypatch, name):
    case = Case("sizes", size=200_000, threads=1)
    monkeypatch.setattr(contenders, "CACHED", 0)
    assert "seconds" in runner.measure(case, 1, [CONTENDERS[name]])[name]
    x, dy, call = prepared(CONTENDERS[name], case)
    (y,) = call()
    y[-1] += 1
    with pytest.raises(checks.Wrong, match="not a copy"):
        CONTENDERS[name].check(case, x, dy, [y])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 15, 100, 5000, 100_001])
def test_streaming_copy_of_every_size(monkeypatch, size, dtype):
    monkeypatch.setattr(contenders, "CACHED", 0)
    case = Case("sizes", "relu", dtype, size, backward=True, threads=2)
    contender = CONTENDERS["streaming copy out="]
    x, dy, call = prepared(contender, case)
    contender.check(case, x, dy, list(call()))


# The passes, the bits and the layouts of a case


def backward_case(activation, dtype="float32", size=20_000):
    return Case("memory", activation, dtype, size, backward=True, threads=1, forward=False)


@pytest.mark.parametrize("name", [OURS, OURS_READY, "copy", "copy out=", "streaming copy out="])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_backward_pass_is_measured_alone(monkeypatch, name, activation, dtype):
    monkeypatch.setattr(contenders, "CACHED", 0)
    passes, vjp = [], gpudrop.dropout_vjp
    monkeypatch.setattr(gpudrop, "dropout_vjp", lambda *args, **options: passes.append(1) or vjp(*args, **options))
    case = backward_case(activation, dtype)
    x, dy, call = prepared(CONTENDERS[name], case)
    for _ in range(2):
        (dx,) = call()
        dx_before = dx.copy()
        CONTENDERS[name].check(case, x, dy, [dx])
        dx.fill(1)  # so that the next call must write it
    assert len(passes) == (name in (OURS, OURS_READY))  # the forward pass ran once, before the calls
    with pytest.raises(checks.Wrong):
        CONTENDERS[name].check(case, x, dy, [np.roll(dx_before, 1)])
    with pytest.raises(checks.Wrong, match="2 arrays"):
        CONTENDERS[name].check(case, x, dy, [dx_before, dx_before])


def test_a_gradient_alone_is_checked_with_any_mask():
    case = backward_case("gelu", size=200_000)
    x, dy, call = prepared(CONTENDERS[OURS], case)
    (dx,) = call()
    check = CONTENDERS["PyTorch"].check
    check(case, x, dy, [dx])
    with pytest.raises(checks.Wrong, match=r"dx\[199999\] is 7"):
        check(case, x, dy, [np.where(np.arange(dx.size) == dx.size - 1, np.float32(7), dx)])


def test_the_mask_is_checked_with_the_bits_of_the_case():
    case = Case("in the cache", "identity", size=200_000, threads=1, bits=8)
    x, dy, call = prepared(CONTENDERS[OURS], case)
    CONTENDERS[OURS].check(case, x, dy, call())
    with pytest.raises(checks.Wrong):
        CONTENDERS[OURS].check(replace(case, bits=16), x, dy, call())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrices_of_each_layout_are_measured_and_checked(layout):
    case = Case("layouts", size=300**2, threads=1, layout=layout)
    x, dy, call = prepared(CONTENDERS[OURS_READY], case)
    (y,) = call()
    fortran = layout in ("Fortran", "transposed")
    strides = {"every other column": (2400, 8)}.get(layout, (4, 1200) if fortran else (1200, 4))
    assert x.shape == y.shape == (300, 300)
    assert x.strides == strides and y.strides == ((4, 1200) if layout == "Fortran" else (1200, 4))
    assert np.array_equal(x, runner.inputs(replace(case, layout="C"))[0])
    CONTENDERS[OURS_READY].check(case, x, dy, [y])
    with pytest.raises(checks.Wrong):
        CONTENDERS[OURS_READY].check(case, x.T, dy, [y.T])  # the mask of another order


def test_the_ceilings_do_not_depend_on_the_package():
    assert not re.search(r"^\s*(from|import) gpudrop", inspect.getsource(contenders.ceilings), re.MULTILINE)


def test_bytes_that_must_move():
    assert Case("sizes", "relu", "float32", 10).bytes == 80
    assert Case("sizes", "relu", "float32", 10, backward=True).bytes == 200  # and dy, y, dx
    assert Case("sizes", "identity", "bfloat16", 10, backward=True).bytes == 80  # and dy, dx
    assert backward_case("relu", size=10).bytes == 120  # dy, y, dx
    assert backward_case("identity", "bfloat16", 10).bytes == 40  # dy, dx


@pytest.mark.parametrize("quick", [True, False])
def test_cases_are_unique_and_cover_all_dtypes_activations_and_sizes(quick):
    every = cases.cpu_cases(2, quick)
    assert len(set(every)) == len(every)
    assert {case.threads for case in every} == {1, 2}
    if not quick:
        assert {case.dtype for case in every} == set(DTYPES)
        assert {case.activation for case in every} == {"identity", "relu", "leaky_relu", *cases.SMOOTH}
        for backward, also in ((False, {2**25}), (True, set())):
            sizes = [case.size for case in every if case.section == "sizes" and case.backward == backward]
            assert sizes == sorted({10**k for k in range(2, 9)} | also)  # in this order, for the chart
    assert list(dict.fromkeys(case.section for case in every)) == list(contenders.SECTIONS)
    memory = {(case.forward, case.backward) for case in every if case.section == "memory"}
    assert memory == {(True, False), (False, True)}
    assert {case.bits for case in every if case.section == "in the cache"} == {8, 16}
    assert [case.layout for case in every if case.section == "layouts"] == list(LAYOUTS)


def test_a_run_writes_a_table_json_and_a_chart(tmp_path, capsys):
    names = (OURS, OURS_READY, "copy", "copy out=", "NumPy tuned")
    record = command.described("a processor", 1) | {"startup": {"import": 0.25}, "rounds": 2}
    contestants = [CONTENDERS[name] for name in names]
    record["cases"] = [
        asdict(case) | {"bytes": case.bytes, "results": runner.measure(case, 2, contestants)} for case in SMALL
    ]
    path = tmp_path / "new" / "cpu.json"
    command.finish(record, path)
    read = json.loads(path.read_text())
    assert read == record
    assert {"device", "threads", "versions", "commit", "date", "command"} <= set(read)
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    for row in read["cases"]:
        tuned, mine = row["results"]["NumPy tuned"]["seconds"], row["results"][OURS]["seconds"]
        assert f"{tuned / mine:.3g}" in shown
        fast = row["results"][OURS]["elements_per_second"]
        assert math.isclose(fast, row["size"] / mine)
    assert "0.250" in shown


# Sections and targets


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The folder of the results, which is empty."""
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "described", lambda device, threads: {"device": device, "threads": threads})
    return tmp_path


def test_a_run_of_some_sections_measures_nothing_else(monkeypatch, results, capsys):
    monkeypatch.setattr(command.startup, "measure", lambda rounds: pytest.fail("start-up was measured"))
    monkeypatch.setattr(cases, "CACHE_SIZES", (2000,))
    command.cpu(quick=True, sections=["in the cache", "drawing"])
    (path,) = results.iterdir()  # and no chart
    assert path.name == f"cpu-{records.target()}-quick.json"
    record = json.loads(path.read_text())
    assert [(row["section"], row["size"], row["bits"]) for row in record["cases"]] == [
        ("in the cache", 2000, 16),
        ("in the cache", 2000, 8),
    ]
    assert all("seconds" in result for row in record["cases"] for result in row["results"].values())
    assert record["drawing"]["fields_per_second"] > 0 and record["startup"] == {}
    assert record["drawing"]["in_a_users_kernel"]["fields_per_second"] > 0
    shown = capsys.readouterr().out
    assert "relu float32 8 bits" in shown and "fields of 16 bits, one thread" in shown


@pytest.mark.parametrize(
    "arguments, error",
    [(["--section", "cache"], "must be one of start-up, "), (["--family", "--section", "kinds"], "--family")],
)
def test_wrong_sections_are_refused(monkeypatch, results, arguments, error):
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(command.app, ["cpu", *arguments])
    assert done.exit_code == 2 and error in done.output
    assert not list(results.iterdir())


@pytest.mark.parametrize("features, words", [("+avx2", ""), (None, " with this processor's instructions")])
def test_results_name_the_processor_of_the_compiled_code(monkeypatch, results, features, words):
    monkeypatch.setattr(numba.config, "CPU_NAME", None)
    plain = records.processor()
    monkeypatch.setattr(numba.config, "CPU_NAME", "haswell")
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    monkeypatch.setattr(command.drawing, "measure", lambda rounds: {})
    command.cpu(sections=["drawing"])
    assert [path.name for path in results.iterdir()] == ["cpu-haswell.json"]
    record = json.loads((results / "cpu-haswell.json").read_text())
    assert record["device"] == f"{plain}, compiled for haswell{words}"


def test_a_contender_is_timed_once_the_threads_of_the_previous_one_sleep(monkeypatch):
    """They used 1.5 ms of two intervals, and then nothing."""
    used = iter([0.0, 1.5e-3, 2e-3, 3.5e-3, 4e-3, 4e-3, 5e-3, 5e-3])
    clock = SimpleNamespace(process_time=lambda: next(used), sleep=lambda seconds: None, perf_counter=time.perf_counter)
    monkeypatch.setattr(runner, "time", clock)
    assert runner.warm_seconds(lambda: None, 1) >= 0
    assert list(used) == [5e-3, 5e-3]


def test_threads_that_never_sleep_are_measured_too(monkeypatch):
    clock = SimpleNamespace(process_time=itertools.count().__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(runner, "time", clock)
    runner.wait_until_idle()


@pytest.mark.parametrize("loop", ["_fill", "_fill_by_user"])
def test_drawn_fields_are_checked(monkeypatch, loop):
    monkeypatch.setattr(command.drawing, loop, lambda words, fills, seed, call: words.fill(1))
    with pytest.raises(checks.Wrong):
        command.drawing.measure(1)


# Tables


def with_rates(case, **rates):
    """A row of a record, with the bytes per second of contenders; out is gpudrop's."""
    names = {"out": OURS_READY, "plain": "copy out=", "streaming": "streaming copy out="}
    results = {
        names[name]: {"seconds": 1 / rate, "elements_per_second": rate, "bytes_per_second": rate}
        for name, rate in rates.items()
    }
    return asdict(case) | {"bytes": case.bytes, "results": results}


def shown(record):
    console = Console(width=180, record=True, file=io.StringIO())
    for table in report.tables({"startup": {}} | record):
        console.print(table)
    return console.export_text()


def test_the_share_of_the_ceiling_is_that_of_the_faster_copy():
    case = Case("memory", threads=1)
    assert report.of_ceiling(with_rates(case, out=3e9, plain=4e9, streaming=6e9)) == 0.5
    assert report.of_ceiling(with_rates(case, out=3e9, plain=4e9, streaming=2e9)) == 0.75
    assert report.of_ceiling(with_rates(case, out=3e9, plain=4e9)) == 0.75
    assert report.of_ceiling(with_rates(case, plain=4e9)) is None
    assert "0.38" in shown({"cases": [with_rates(case, out=3e9, plain=4e9, streaming=8e9)]})


def test_layouts_are_compared_with_c_order():
    rows = [
        with_rates(Case("layouts", threads=1, layout=layout), out=rate)
        for layout, rate in (("C", 4e9), ("Fortran", 1e9))
    ]
    lines = [line.split("│")[-2].strip() for line in shown({"cases": rows}).splitlines() if "relu" in line]
    assert lines == ["1.00", "0.25"]


def test_a_case_that_failed_has_empty_cells():
    rows = [asdict(SMALL[0]) | {"bytes": 1, "results": {}, "failed": "MemoryError"}, with_rates(SMALL[0], out=1e9)]
    assert "1,000" in shown({"cases": rows})


def test_processors_are_compared_side_by_side(tmp_path):
    large = replace(backward_case("relu", "bfloat16"), size=LARGE)
    rows = [with_rates(large, out=3e9, plain=4e9), with_rates(Case("kinds", threads=1), out=1e9, plain=1e9)]
    for name, found in (("one", rows), ("old-2", []), ("one-family", rows), ("one-quick", rows)):
        (tmp_path / f"cpu-{name}.json").write_text(json.dumps({"cases": found}))
    header, _, *lines = report.by_processor(tmp_path).splitlines()
    assert header == "| case | [old-2](../bench/results/cpu-old-2.json) | [one](../bench/results/cpu-one.json) |"
    assert [line for line in lines if not line.endswith("| - | - |")] == ["| relu bfloat16 backward | - | 0.75 |"]
    assert len(lines) == 18 and "| relu float32 | - | - |" in lines


def test_the_page_has_the_table_of_the_results(capsys):
    """If this fails, copy the output of `python -m bench report` to docs/performance.md."""
    command.shares()
    table = capsys.readouterr().out
    assert f"\n\n{table}\n" in (ROOT / "docs/performance.md").read_text()


def test_a_contender_that_fails_does_not_end_the_run():
    def fails(case, x, dy):
        raise OSError("no compiler")

    results = runner.measure(SMALL[0], 1, [Contender("broken", fails), CONTENDERS[OURS]])
    assert results["broken"] == {"failed": "OSError: no compiler"}
    assert "seconds" in results[OURS]


def test_notes_say_why_a_contender_is_missing():
    results = {
        "a": {"absent": "not installed"},
        "b": {"wrong": "y[0] is 1, not 2"},
        OURS: {"seconds": 1.0, "elements_per_second": 1.0},
        OURS_READY: {"failed": "OSError"},
    }
    row = {"activation": "relu", "dtype": "float32", "size": 1000, "backward": True, "results": results}
    assert records.notes({"cases": [row, row | {"backward": False}]}) == [
        "a: absent (not installed)",
        "b: wrong (y[0] is 1, not 2) relu float32 and back 1,000, relu float32 1,000",
        "gpudrop out=: failed (OSError) relu float32 and back 1,000, relu float32 1,000",
    ]


# The family


def family_case(name, backward):
    return Case("family", "identity", size=2**19, backward=backward, threads=1, variant=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("contender", family.CONTENDERS, ids=lambda contender: contender.name)
@pytest.mark.parametrize("name", family.ROWS)
def test_contenders_of_the_family_compute_their_case(name, contender, backward):
    case = family_case(name, backward)
    try:
        x, dy, call = prepared(contender, case)
    except Absent as reason:
        pytest.skip(str(reason))
    contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])


def test_every_variant_is_measured():
    assert set(FAMILY) - {"dropout"} == set(family.ROWS)


FAMILY_FAULTS = {
    "no scale": lambda y, *gradients: (y * np.float32(0.9), *gradients),
    "shifted": lambda y, *gradients: (np.roll(y, 1), *gradients),
    "one element wrong": lambda y, *gradients: (np.where(np.arange(y.size).reshape(y.shape) == 7, 9, y), *gradients),
    "one gradient wrong": lambda y, dx, *rest: (y, np.where(np.arange(y.size).reshape(y.shape) == 7, 9, dx), *rest),
    "no gradient": lambda y, *gradients: (y,),
    "nan": lambda y, *gradients: (np.where(np.arange(y.size).reshape(y.shape) == 7, np.nan, y), *gradients),
    "all dropped": lambda y, *gradients: (np.zeros_like(y), *gradients),
}


@pytest.mark.slow
@pytest.mark.parametrize("check", [family.check_ours, family.check_peer])
@pytest.mark.parametrize("fault", FAMILY_FAULTS)
@pytest.mark.parametrize("name", family.ROWS)
def test_variants_with_wrong_results_are_not_timed(name, fault, check):
    case = family_case(name, True)
    right = next(contender for contender in family.CONTENDERS if contender.check is check)

    def prepare(case, x, dy):
        call = right.prepare(case, x, dy)
        return lambda: FAMILY_FAULTS[fault](*map(right.to_numpy, call()))

    if check is family.check_peer and name == "gaussian_noise" and fault == "one element wrong":
        pytest.skip("a normal deviate may have any value")
    results = runner.measure(case, 1, [Contender("broken", prepare, check), replace(right, name="right")])
    assert set(results["broken"]) == {"wrong"}
    assert results["right"]["seconds"] > 0


@pytest.mark.slow
def test_a_run_of_the_family_writes_a_table_json_and_a_chart(tmp_path, capsys):
    record = command.described("a processor", 1) | {"startup": {}, "rounds": 1}
    rows = [family_case(name, backward) for name in ("drop_path", "zoneout") for backward in (False, True)]
    record["cases"] = [
        asdict(case) | {"bytes": case.bytes, "results": runner.measure(case, 1, family.CONTENDERS)} for case in rows
    ]
    path = tmp_path / "family.json"
    command.finish(record, path)
    assert json.loads(path.read_text()) == record
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "drop_path and back" in shown and "zoneout" in shown


# PyTorch


@pytest.fixture
def steps(monkeypatch):
    """bench.torch_steps on one thread, because the threads of a small model slow each other on a busy machine."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from bench import torch_steps

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield torch_steps
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_only_the_torch_command_imports_torch():
    code = "import sys, bench.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=command.RESULTS.parent.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small encoder", "small gpt2"])
def test_torch_steps_are_measured_each_way(monkeypatch, steps, name):
    if name == "small gpt2":
        pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr(steps, "peak_bytes", lambda name, way: 1000)
    row = steps.measure(name, 2)
    assert json.loads(json.dumps(row)) == row
    results = row["results"]
    assert list(results) == list(steps.WAYS)
    for result in results.values():
        assert 0 < result["fastest"] <= result["seconds"] <= result["slowest"]
        assert result["peak_bytes"] == 1000
    # GPT-2's attention calls dropout as a function, which `convert` does not change.
    torchs = {"small encoder": [], "small gpt2": ["aten::bernoulli_"]}[name]
    assert {way: result["drawn_by"] for way, result in results.items()} == {
        "no dropout": [],
        "torch": ["aten::bernoulli_"],
        "accelerate": ["gpudrop::forward"],
        "convert": [*torchs, "gpudrop::forward"],
    }
    saved = {way: result["saved_bytes"] for way, result in results.items()}
    assert saved["no dropout"] < min(saved["accelerate"], saved["convert"])
    assert max(saved["accelerate"], saved["convert"]) < saved["torch"]


def another_model(model):
    for parameter in model.parameters():
        parameter.data *= 1.1


TORCH_FAULTS = {
    "dropout where none should be": ("no dropout", {"p": 0.1}, "drawn by aten::bernoulli_"),
    "no dropout at all": ("torch", {"p": 0.0}, "drawn by no operator"),
    "gpudrop for torch": ("torch", {"change": lambda model: gpudrop.torch.convert(model)}, "drawn by gpudrop::forward"),
    "torch for gpudrop": ("accelerate", {"around": nullcontext}, "drawn by aten::bernoulli_"),
    "nothing converted": ("convert", {"change": lambda model: model}, "drawn by aten::bernoulli_"),
    "another model": ("convert", {"change": another_model}, "its output without training"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", TORCH_FAULTS)
def test_torch_steps_with_the_wrong_dropout_are_not_timed(monkeypatch, steps, fault):
    way, changed, reason = TORCH_FAULTS[fault]
    monkeypatch.setitem(steps.WAYS, way, replace(steps.WAYS[way], **changed))
    monkeypatch.setattr(steps, "in_turns", lambda *args: pytest.fail("it was timed"))
    with pytest.raises(checks.Wrong, match=f"{way}: .*{reason}"):
        steps.measure("small encoder", 1)


def test_torch_calls_that_drop_nothing_are_not_timed(monkeypatch, steps):
    monkeypatch.setattr(gpudrop.torch.functional, "dropout", lambda x, p: x)
    monkeypatch.setattr(steps, "in_turns", lambda *args: pytest.fail("it was timed"))
    with pytest.raises(checks.Wrong, match="gpudrop: "):
        list(steps.calls(1))


def test_torch_bytes_saved_are_counted_once_and_without_parameters(steps):
    linear, x = steps.nn.Linear(3, 5), steps.torch.ones(2, 3)
    side = SimpleNamespace(model=linear, way=steps.Way(), loss=lambda: linear(x).square().sum() + linear(x[:1]).sum())
    assert steps.saved_bytes(side) == 4 * (2 * 3 + 2 * 5)  # x, and the input of square()


@pytest.mark.slow
def test_torch_peak_is_measured_in_a_separate_process(steps):
    if not steps.RESET.exists():
        pytest.skip("this system does not report peak memory")
    large = np.ones(2**27, np.uint8)  # must not count in the other process's peak
    assert 0 < steps.peak_bytes("small encoder", "accelerate") < large.nbytes


@pytest.mark.slow
def test_a_run_of_torch_steps_writes_tables_and_json(monkeypatch, steps, tmp_path, capsys):
    monkeypatch.setattr(steps, "peak_bytes", lambda name, way: None if way == "torch" else 123_400_000)
    monkeypatch.setitem(sys.modules, "transformers", None)
    path = tmp_path / "new" / "torch.json"
    command.pytorch(quick=True, file=path)
    record = json.loads(path.read_text())
    assert {"device", "threads", "versions", "commit", "date", "command", "rounds"} <= set(record)
    assert [entry.name for entry in path.parent.iterdir()] == ["torch.json"]  # and no chart
    encoder, gpt2, *calls = record["cases"]
    assert "transformers" in gpt2["absent"]
    assert [(row["elements"], row["gradient"]) for row in calls] == [(1000, False), (1000, True)]
    shown = capsys.readouterr().out
    assert "small gpt2: absent" in shown
    assert "123.4" in shown
    least = encoder["results"]["no dropout"]["seconds"]
    for way, result in encoder["results"].items():
        (line,) = [line for line in shown.splitlines() if line.startswith(f"│ {way} ")]
        assert f"{result['seconds'] * 1e3:.1f}" in line
        assert f"{result['seconds'] / least:.2f}" in line
        assert f"{result['saved_bytes'] / 1e6:.1f}" in line
    for row in calls:
        torchs, own = row["results"]["torch"]["seconds"], row["results"]["gpudrop"]["seconds"]
        assert f"{own * 1e6:.2f}" in shown and f"{own / torchs:.2f}" in shown
