"""The benchmark of dropout_add and dropout_glu: wrong results are not timed, and a run writes its file."""

import functools
import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import __main__ as command
from bench import neighbours, report
from bench.neighbours import CONTENDERS, GROUPS, Case, group_of, neighbour_cases
from gpudrop.testing.benchmark import checks, records, runner
from gpudrop.testing.benchmark.contenders import OURS, OURS_READY, PLAIN_READY, Absent, Contender

COLUMNS = 64


def small(group, activation, dtype="float32", rows=1024):
    return Case(
        "neighbours",
        activation,
        dtype,
        rows * COLUMNS,
        group.backward,
        os.cpu_count(),
        variant=group.variant,
        forward=not group.backward,
        columns=COLUMNS,
    )


def case_of(variant, backward, activation="identity", dtype="float32", rows=1024):
    return small(group_of(variant, backward, activation), activation, dtype, rows)


def prepared(contender, case):
    x, dy = runner.inputs(case)
    return x, dy, contender.prepare(case, x, dy)


ALL = [(group, activation, name) for group in GROUPS for activation in group.activations for name in group.contenders]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", neighbours.DTYPES)
@pytest.mark.parametrize(
    "group, activation, name", ALL, ids=["-".join((g.variant, "back" * g.backward, a, n)) for g, a, n in ALL]
)
def test_contenders_compute_their_case(monkeypatch, group, activation, name, dtype):
    monkeypatch.setattr("bench.contenders.CACHED", 0)
    if name == neighbours.COMPILED and (activation, dtype) not in (("relu", "float32"), ("silu", "bfloat16")):
        pytest.skip("compiling takes seconds")
    case, contender = small(group, activation, dtype, rows=5000), CONTENDERS[name]
    try:
        x, dy, call = prepared(contender, case)
    except Absent as reason:
        pytest.skip(str(reason))
    for _ in range(2 if case.backward else 1):  # the backward pass repeats, and the forward pass draws the next mask
        contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])


def test_bytes_that_must_move():
    forward, back = case_of("dropout_add", False, rows=1), case_of("dropout_add", True, rows=1)
    assert forward.bytes == 3 * 4 * COLUMNS  # x, residual, y
    assert back.bytes == 2 * 4 * COLUMNS  # dy, dx
    assert replace(back, activation="relu").bytes == 2 * 4 * COLUMNS  # and bits
    assert replace(back, activation="gelu").bytes == 3 * 4 * COLUMNS  # and x
    assert case_of("dropout_glu", False, "silu", "bfloat16", 1).bytes == 3 * 2 * COLUMNS
    for name in ("identity", "silu"):
        assert case_of("dropout_glu", True, name, rows=1).bytes == 5 * 4 * COLUMNS  # dy, gate, value, dgate, dvalue


def swapped(first, second, *rest):
    return second, first, *rest


def at_end(change):
    """Change the last element of an array."""

    def changed(array):
        array = array.copy()
        array[(-1,) * array.ndim] = change(array[(-1,) * array.ndim])
        return array

    return changed


last_wrong = at_end(lambda value: value + 1)
FORWARD_FAULTS = {
    "the scale is left out": lambda x, second, row, y: second + (y - second) * np.float32(0.9),
    "another mask": lambda x, second, row, y: second + np.roll(y - second, 1),
    "the bias is off by one": lambda x, second, row, y: np.where(
        y != second, second + (x + np.roll(row, 1)) / np.float32(0.9), second
    ),
    "the residual is dropped too": lambda x, second, row, y: np.where(y != second, y, 0),
    "one element is wrong": lambda x, second, row, y: last_wrong(y),
    "a number is not finite": lambda x, second, row, y: at_end(lambda value: np.nan)(y),
    "another dtype": lambda x, second, row, y: y.astype(np.float64),
}


@pytest.mark.parametrize("check", [CONTENDERS[OURS].check, CONTENDERS["PyTorch"].check], ids=["our mask", "any mask"])
@pytest.mark.parametrize("fault", FORWARD_FAULTS)
def test_wrong_sums_are_not_timed(fault, check):
    case = case_of("dropout_add", False)

    def prepare(case, x, dy, change=FORWARD_FAULTS[fault]):
        matrix, second, _, row = neighbours.operands(case, x, dy)
        (y,) = CONTENDERS[OURS].prepare(case, x, dy)()
        return lambda: (change(matrix, second, row, y),)

    right = functools.partial(prepare, change=lambda x, second, row, y: y)
    results = runner.measure(case, 1, [Contender("broken", prepare, check), Contender("right", right, check)])
    assert set(results["broken"]) == {"wrong"} and results["right"]["seconds"] > 0


BACKWARD_FAULTS = {
    "dx has another mask": lambda dx, *rest: (np.roll(dx, 1), *rest),
    "one element is wrong": lambda dx, *rest: (last_wrong(dx), *rest),
    "the second gradient is wrong": lambda dx, second, *rest: (dx, last_wrong(second), *rest),
    "both are exchanged": swapped,
    "one is missing": lambda dx, *rest: rest,
}


@pytest.mark.parametrize("fault", BACKWARD_FAULTS)
@pytest.mark.parametrize("variant, activation", [("dropout_add", "gelu"), ("dropout_glu", "silu")])
def test_wrong_gradients_are_not_timed(variant, activation, fault):
    case = case_of(variant, True, activation)
    x, dy, call = prepared(CONTENDERS[OURS], case)
    gradients = call()
    CONTENDERS[OURS].check(case, x, dy, gradients)
    with pytest.raises(checks.Wrong):
        CONTENDERS[OURS].check(case, x, dy, BACKWARD_FAULTS[fault](*gradients))


@pytest.mark.parametrize("dtype", neighbours.DTYPES)
def test_the_gradient_of_the_bias_is_a_sum_over_all_rows(dtype):
    """Sums without the last 64 rows, and sums of the wrong columns, are refused, although dx is right."""
    case = case_of("dropout_add", True, "relu", dtype)
    x, dy, call = prepared(CONTENDERS[OURS], case)
    dx, dresidual, dbias = call()
    without = (dbias.astype(np.float64) - dx[-64:].astype(np.float64).sum(axis=0)).astype(dbias.dtype)
    for wrong in (without, np.roll(dbias, 1)):
        with pytest.raises(checks.Wrong, match="dbias"):
            CONTENDERS[OURS].check(case, x, dy, (dx, dresidual, wrong))


@pytest.mark.parametrize("variant, backward", [(group.variant, group.backward) for group in GROUPS])
def test_ceilings_move_the_bytes_of_the_case_and_are_checked(variant, backward):
    case = case_of(variant, backward)
    x, dy, call = prepared(CONTENDERS[PLAIN_READY], case)
    results = call()
    CONTENDERS[PLAIN_READY].check(case, x, dy, results)
    assert len(results) == 1 + (backward and case.is_product)
    for k in range(len(results)):
        wrong = [last_wrong(array) if i == k else array for i, array in enumerate(results)]
        with pytest.raises(checks.Wrong, match="not a copy"):
            CONTENDERS[PLAIN_READY].check(case, x, dy, wrong)


@pytest.mark.parametrize("quick", [True, False])
def test_cases_are_unique_and_have_contenders(quick):
    every = neighbour_cases(2, quick)
    assert len(set(every)) == len(every)
    assert {case.columns for case in every} == ({256} if quick else {256, 1024})
    for case in every:
        assert case.forward != case.backward
        assert {OURS_READY, PLAIN_READY} <= {contender.name for contender in neighbours.of(case)}
        assert set(group_of(case.variant, case.backward, case.activation).required) <= set(neighbours.FIGURES)


# The table


def with_seconds(case, **seconds):
    """A row of a record. The names of the contenders are those of the module's variables."""
    results = {
        getattr(neighbours, name): {"seconds": value, "bytes_per_second": case.bytes / value}
        for name, value in seconds.items()
    }
    return asdict(case) | {"bytes": case.bytes, "results": results}


def cells(row):
    (table,) = neighbours.tables({"cases": [row]})
    return {column.header: next(column.cells) for column in table.columns}


def test_the_table_shows_what_is_missed():
    row = with_seconds(
        case_of("dropout_add", False), OURS_READY=1.0, OURS=2.0, PLAIN_READY=0.9, STREAMING_READY=0.8, TWO_CALLS=1.6
    )
    shown = cells(row)
    assert shown["of the ceiling"] == "0.80 < 0.88"  # of the faster triad
    assert shown["x dropout, addition"] == "1.6 (1.5)"
    assert shown["x PyTorch"] == shown["of it, no bias"] == "-"
    assert (shown["case"], shown["shape"]) == ("dropout_add identity float32", "1,024 x 64")
    for seconds, cell in ((1.1, "1.10 (1.15)"), (1.2, "1.20 > 1.15")):
        row = with_seconds(case_of("dropout_add", True), OURS_READY=seconds, NO_BIAS=1.0)
        assert cells(row)["time with bias / without"] == cell
    row = with_seconds(case_of("dropout_glu", False, "silu"), OURS_READY=1.0, PLAIN_READY=0.7)
    assert cells(row)["of the ceiling"] == "0.70 (0.7)"


def test_a_run_writes_a_table_and_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "described", lambda device, threads: {"device": device, "threads": threads})
    monkeypatch.setattr(neighbours, "QUICK_SHAPES", ((512, 64),))
    ready = [group._replace(contenders=(OURS_READY, PLAIN_READY)) for group in GROUPS]
    monkeypatch.setattr(neighbours, "GROUPS", ready)
    command.cpu(quick=True, beside=True, rounds=1)
    (path,) = tmp_path.iterdir()  # and no chart
    assert path.name == f"cpu-{records.target()}-neighbours-quick.json"
    record = json.loads(path.read_text())
    assert len(record["cases"]) == len(neighbour_cases(1, True)) == 18
    assert all("seconds" in result for row in record["cases"] for result in row["results"].values())
    shown = capsys.readouterr().out
    assert "dropout_glu silu bfloat16 backward" in shown and "512 x 64" in shown
    path.rename(tmp_path / "cpu-one-neighbours.json")
    assert report.by_processor(tmp_path).startswith("| case |\n")  # the file is not in the table of processors


@pytest.mark.parametrize("other", [["--family"], ["--section", "kinds"]])
def test_it_is_measured_alone(monkeypatch, tmp_path, other):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    done = CliRunner().invoke(command.app, ["cpu", "--neighbours", *other])
    assert done.exit_code == 2 and "can't be combined" in done.output
    assert not list(tmp_path.iterdir())
