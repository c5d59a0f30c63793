"""gpudrop bench: it runs, its ratios follow from the times, and it reports errors."""

import contextlib
import io
import json
import re
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
from rich.console import Console

from bench import gpu_here
from gpudrop import backends, cli
from gpudrop.testing.benchmark import comparison, contenders, gpu, gpu_contenders, runner
from gpudrop.testing.benchmark.cases import Case
from gpudrop.testing.benchmark.contenders import OURS, OURS_READY, PLAIN, Contender, ours
from gpudrop.testing.benchmark.gpu_contenders import COPY, CUPY
from gpudrop.testing.benchmark.gpu_contenders import PLAIN as PLAIN_CUPY
from tests.bench.test_bench_gpu import Host

CASE = Case("kinds", size=1000, threads=1)
FULL = Path("/dev/full")
TIMED = {"copy": 2e-3, "copy out=": 1e-3, OURS: 4e-3, OURS_READY: 1.25e-3, "PyTorch": 40e-3, "NumPy tuned": 2e-3}


def made(case=CASE, **results):
    """A record of one case, with seconds or whole results by contender."""
    row = asdict(case) | {"bytes": case.bytes, "results": {}}
    for name, found in results.items():
        timed = isinstance(found, float)
        row["results"][name] = {"seconds": found} | runner.rates(case.size, case.bytes, found) if timed else found
    return {"device": "a processor", "threads": 2, "versions": {"gpudrop": "1.2", "torch": None}, "cases": [row]}


def command(monkeypatch, *arguments):
    """Run `gpudrop bench`; the message that it exits with, or 0."""
    monkeypatch.setattr(sys, "argv", ["gpudrop", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def table_rows(text):
    """The table's cells for each contender, without bars and empty cells."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return {name: [cell for cell in cells if not set(cell) <= set("━╸")] for name, *cells in rows}


@pytest.fixture
def no_gpu(monkeypatch):
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: "no driver" if name == "cupy_elementwise" else load(name))


@pytest.mark.filterwarnings("ignore")
def test_the_command_measures_the_cpu_and_writes_a_file(monkeypatch, no_gpu, tmp_path, capsys):
    monkeypatch.setattr(comparison, "run", partial(comparison.run, size=20_000, rounds=1))
    assert command(monkeypatch, "--json", tmp_path / "found.json") == 0
    record = json.loads((tmp_path / "found.json").read_text())
    assert {"date", "device", "threads", "versions", "rounds", "cases"} <= set(record)
    for row, case in zip(record["cases"], comparison.CPU_CASES, strict=True):
        assert (row["activation"], row["dtype"], row["backward"], row["size"]) == (*case, 20_000)
        assert set(row["results"]) == set(contenders.CONTENDERS)
        for name, result in row["results"].items():
            assert "seconds" in result or ("absent" in result and name not in comparison.COPIES), (name, result)
    assert "seconds" in record["cases"][0]["results"]["NumPy course"]
    shown = capsys.readouterr().out
    assert (
        record["device"] in shown and f"numpy {np.__version__}" in shown and "no GPU was measured: no driver" in shown
    )
    assert "20,000 elements, p = 0.1" in shown and "gelu float32 and back" in shown and "━" in shown


def test_ratios_follow_from_the_times(monkeypatch, capsys):
    """8,000 bytes in milliseconds. Results in new arrays are compared with a copy in a new array, out= with out=."""
    monkeypatch.setattr(comparison, "run", lambda progress: made(**TIMED))
    assert command(monkeypatch) == 0
    rows = table_rows(capsys.readouterr().out)
    assert rows["copy"] == ["0.004", "1.00", "2"]
    assert rows["copy out="] == ["0.008", "1.00", "1"]
    assert rows["gpudrop"] == ["0.002", "0.50", "4"]
    assert rows["gpudrop out="] == ["0.0064", "0.80", "1.25"]
    assert rows["PyTorch"] == ["0.0002", "0.05", "10", "40"]
    assert rows["NumPy tuned"] == ["0.004", "1.00", "0.5", "2"]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("scale", [1, 1 / 3, 3e-5])
def test_numbers_are_whole_at_every_width(width, scale):
    """Narrow tables have no bars, and the narrowest have no times. Names may wrap there."""
    row = made(**{name: seconds * scale for name, seconds in TIMED.items()})["cases"][0]
    row["activation"] = "gelu_tanh"
    console = Console(width=width, file=io.StringIO())
    console.print(comparison.table({"cases": [row]}, width), width=width)
    shown = console.file.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    assert ("━" in shown, "ms" in shown.split()) == (width >= 70, width >= 56)
    lines = [re.findall(r"(?<= )[0-9.e-]+(?= |$)", line) for line in shown.splitlines()]
    for name, seconds in TIMED.items():
        share, times = comparison.ratios(row, name)
        wanted = [f"{8e-6 / seconds / scale:.3g}", f"{share:.2f}", *([f"{times:.3g}"] if times else [])]
        wanted += [f"{seconds * scale * 1e3:.4g}"] if width >= 56 else []
        assert wanted in lines, (name, shown)


def test_speeds_above_1000_have_no_exponent(capsys):
    Console(width=100).print(comparison.table(made(copy=8e-6 / 4831)))
    assert table_rows(capsys.readouterr().out)["copy"][0] == "4831"


def test_bar_lengths_are_proportional_to_speeds():
    record = made(**TIMED)
    console = Console(width=200, file=io.StringIO())
    console.print(comparison.table(record))
    lengths = {}
    for line in console.file.getvalue().splitlines():
        lengths[re.split(r"\s{2,}", line.strip())[0]] = line.count("━") + line.count("╸") / 2
    for name, seconds in TIMED.items():
        assert abs(lengths[name] - lengths["copy out="] * 1e-3 / seconds) <= 0.5


def test_absent_and_wrong_contenders_are_reported(monkeypatch, capsys):
    others = {"PyTorch": {"absent": "not installed"}, "NumPy course": {"wrong": "y[0] is 1"}}
    monkeypatch.setattr(comparison, "run", lambda progress: made(**{OURS: 1e-3, OURS_READY: 1e-3, **others}))
    assert command(monkeypatch) == 0
    shown = capsys.readouterr().out
    rows = table_rows(shown)
    assert rows["gpudrop"] == ["0.008", "1"]  # without a copy there is no ratio to it
    assert rows["NumPy course"] == ["wrong"] and "PyTorch" not in rows
    assert "PyTorch: absent (not installed)" in shown and "NumPy course: wrong (y[0] is 1) relu float32 1,000" in shown


def test_a_contender_with_a_wrong_result_is_not_timed(monkeypatch, no_gpu):
    calls = []

    def unscaled(case, x, dy):
        call = ours(case, x, dy)

        def once():
            calls.append(case)
            return tuple(result * np.float32(0.9) for result in call())

        return once

    broken = {name: Contender(name, unscaled) for name in (OURS, "PyTorch")}
    monkeypatch.setattr(contenders, "CONTENDERS", {PLAIN: contenders.CONTENDERS[PLAIN]} | broken)
    monkeypatch.setattr(comparison, "CPU_CASES", comparison.CPU_CASES[:1])
    record = comparison.run(size=1000, rounds=2)
    (row,) = record["cases"]
    assert set(row["results"][OURS]) == set(row["results"]["PyTorch"]) == {"wrong"}
    assert row["results"][PLAIN]["seconds"] > 0
    assert len(calls) == 2  # once each, for the check


@pytest.mark.parametrize("result", [{"wrong": "y[0] is 1"}, {"failed": "OSError"}, None])
def test_the_command_fails_if_gpudrop_is_wrong_or_fails(monkeypatch, tmp_path, result):
    monkeypatch.setattr(comparison, "run", lambda progress: made(**TIMED | {OURS_READY: result} if result else {}))
    message = command(monkeypatch, "--json", tmp_path / "found.json")
    assert message == "gpudrop bench: gpudrop is wrong or fails in relu float32 1,000; run gpudrop selftest for details"
    assert (tmp_path / "found.json").exists()


def test_a_lack_of_memory_for_x_becomes_a_row(monkeypatch, no_gpu, capsys):
    monkeypatch.setattr(runner, "touch", lambda size: None)  # it would fill half of the memory
    monkeypatch.setattr(comparison, "CPU_CASES", comparison.CPU_CASES[:1])
    monkeypatch.setattr(comparison, "run", partial(comparison.run, size=2**53, rounds=1))
    assert command(monkeypatch).startswith("gpudrop bench: gpudrop is wrong or fails in relu float32 ")
    assert re.search(r"relu float32 9,007,199,254,740,992: failed \(\w*MemoryError: Unable", capsys.readouterr().out)


@pytest.mark.parametrize(("threads", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_the_number_of_threads_is_in_words(threads, words):
    assert next(comparison.lines(made() | {"threads": threads})) == f"a processor, {words}"


def test_a_case_that_does_not_fit_in_memory_is_no_failure(monkeypatch, capsys):
    record = made()
    record["cases"][0]["absent"] = "it needs 90.0 GB"
    monkeypatch.setattr(comparison, "run", lambda progress: record)
    assert command(monkeypatch) == 0
    assert "relu float32 1,000: absent (it needs 90.0 GB)" in capsys.readouterr().out


def test_a_missing_folder_is_reported_before_the_measurement(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "run", lambda progress: pytest.fail("it was measured"))
    path = tmp_path / "no" / "such.json"
    message = command(monkeypatch, "--json", path)
    assert message == f"gpudrop bench: the folder of the results must exist, got {path}"


@pytest.mark.parametrize("before", [None, "older results"])
def test_a_failed_measurement_leaves_the_file_as_it_was(monkeypatch, tmp_path, before):
    def run(progress):
        raise RuntimeError("it failed")

    monkeypatch.setattr(comparison, "run", run)
    path = tmp_path / "found.json"
    if before:
        path.write_text(before)
    assert command(monkeypatch, "--json", path) == "gpudrop bench: it failed"
    assert (path.read_text() if path.exists() else None) == before


@pytest.mark.parametrize("argument", ["size", "rounds"])
@pytest.mark.parametrize(
    ("value", "message"), [(0, "at least 1, got 0"), (-1, "at least 1, got -1"), (1e3, "an integer, got 1000.0")]
)
def test_wrong_arguments_are_named(argument, value, message):
    with pytest.raises((TypeError, ValueError), match=f"^{argument} must be {message}$"):
        comparison.run(**{argument: value}, progress=lambda cases: pytest.fail("it was measured"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("processor", ["cpu", "gpu"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_state_of_other_libraries_is_unchanged(monkeypatch, no_gpu, processor, interrupted):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if processor == "gpu":
        monkeypatch.setattr(backends, "load", lambda name: gpu)
        monkeypatch.setattr(gpu, "Gpu", Host)

    def progress(cases):
        yield cases[0]
        if interrupted:
            raise KeyboardInterrupt

    def state():
        numbers = numba.get_num_threads(), torch.get_num_threads()
        return numbers, np.random.get_state()[1:3], torch.get_rng_state().tolist()  # noqa: NPY002

    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(3)
    try:
        wanted = state()
        with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
            comparison.run(size=1000, rounds=1, progress=progress)
        np.testing.assert_equal(state(), wanted)
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("what", ["file", "output"])
def test_a_write_error_is_one_line(monkeypatch, what):
    monkeypatch.setattr(comparison, "run", lambda progress: made(**TIMED))
    if what == "output":
        monkeypatch.setattr(sys, "stdout", FULL.open("w"))
    message = command(monkeypatch, *(["--json", FULL] if what == "file" else []))
    assert message == "gpudrop bench: [Errno 28] No space left on device"


# On a GPU


def test_a_usable_gpu_is_measured(monkeypatch):
    """NumPy replaces CuPy here."""
    load = backends.load
    monkeypatch.setattr(backends, "load", lambda name: gpu if name == "cupy_elementwise" else load(name))
    monkeypatch.setattr(gpu, "Gpu", Host)
    record = comparison.run(size=5000, rounds=1)
    assert record["device"] == Host.name and "facts" in record and "no_gpu" not in record
    passes = [(name, dtype, forward) for name, dtype in comparison.GPU_CASES for forward in (True, False)]
    assert [(row["activation"], row["dtype"], row["forward"]) for row in record["cases"]] == passes
    for row in record["cases"]:
        assert set(row["results"]) == set(gpu_contenders.CONTENDERS)
        assert all("seconds" in row["results"][name] for name in (COPY, CUPY, PLAIN_CUPY))
        share, none = comparison.ratios(row, CUPY)
        _, times = comparison.ratios(row, PLAIN_CUPY)
        assert share == pytest.approx(rate(row, CUPY) / rate(row, COPY)) and none is None
        assert times == pytest.approx(rate(row, CUPY) / rate(row, PLAIN_CUPY))
        assert comparison.right(row)


def rate(row, name):
    return row["results"][name]["bytes_per_second"]


@pytest.mark.gpu
def test_the_command_on_a_gpu(capsys):
    if gpu_here.missing():
        pytest.skip(gpu_here.missing())
    record = comparison.run(size=2**16, rounds=1)
    assert all(comparison.right(row) for row in record["cases"])
    assert comparison.ratios(record["cases"][0], PLAIN_CUPY)[1] > 0
