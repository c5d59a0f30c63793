"""dieharder reads the bytes that the contract defines, and rejects wrong generators."""

import json
from itertools import islice

import numpy as np
import pytest
from scipy.stats import kstwo, norm

import gpudrop
from bench import __main__ as command
from bench import batteries
from bench.batteries import CALLS, CHUNKS, FIELDS, ORDERS, Entry
from gpudrop.testing import reference

DIEHARDER = pytest.mark.skipif(batteries.missing() is not None, reason=batteries.missing() or "")
SEED, CALL = 2**63 + 1, 2**33 - 5  # both words are used, and the calls carry into the high word

# The contract of each order: (call, m) of the i-th field.
INDICES = {
    "stream": lambda i: (0, i),
    "calls": lambda i: (i % CALLS, i // CALLS),
    "lanes": lambda i: (0, 8 * (i // (8 * CHUNKS) * CHUNKS + i % CHUNKS) + i // CHUNKS % 8),
}
# Output of dieharder 3.31.1 for tests 15, 102 with 10 samples, 207 and 0. Test 0 read a broken generator.
WRITTEN = """\
        diehard_runs,   0,    100000,     100,0.56105837,  PASSED  
          sts_serial,   3,    100000,      10,0.99992335,   WEAK   
        dab_filltree,  32,  15000000,       1,0.47918800,  PASSED  
   diehard_birthdays,   0,       100,     100,0.00000000,  FAILED  
"""  # noqa: W291


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_the_fields_of_the_contract(name):
    found = np.frombuffer(b"".join(islice(ORDERS[name](SEED, CALL), 3)), "<u2")
    rng = np.random.default_rng(0)
    borders = [
        edge + i
        for edge in (0, 2**16, CALLS, FIELDS * CALLS, CHUNKS, 8 * CHUNKS, found.size)
        for i in range(-20, 20)
        if 0 <= edge + i < found.size
    ]
    for i in map(int, (*borders, *rng.integers(found.size, size=2000))):
        call, m = INDICES[name](i)
        assert found[i] == reference.field(SEED, CALL + call, m, 16), i


def test_output_of_dieharder_is_parsed():
    rows = list(batteries.parsed(WRITTEN))
    assert rows[1] == {
        "test": "sts_serial",
        "ntuple": 3,
        "tsamples": 100_000,
        "psamples": 10,
        "p_value": 0.99992335,
        "assessment": "WEAK",
    }
    assert [row["p_value"] for row in rows] == [0.56105837, 0.99992335, 0.479188, 0]
    assert [row["assessment"] for row in rows] == ["PASSED", "WEAK", "PASSED", "FAILED"]
    with pytest.raises(ValueError, match="shorter"):
        list(batteries.parsed("# The file file_input_raw was rewound 2 times\n"))


def distance(p_values):
    """dieharder's Kolmogorov-Smirnov distance, to i / (n + 1)."""
    n = len(p_values)
    return np.abs(np.sort(p_values) - np.arange(1, n + 1) / (n + 1)).max()


@pytest.mark.slow
@DIEHARDER
@pytest.mark.parametrize("name", ORDERS)
def test_dieharder_reads_the_orders_word_by_word_and_uses_that_distance(name):
    """Its lagged sums, computed again: ten sums of every fourth word, and the p-value of their ten p-values."""
    (row,) = batteries.run(Entry(203, 3, 10), ORDERS[name](SEED, CALL))
    n, size = row["tsamples"], 16 * row["tsamples"] * row["psamples"]
    found = bytearray()
    for block in ORDERS[name](SEED, CALL):
        found += block
        if len(found) >= size:
            break
    sums = (np.frombuffer(found[:size], "<u4")[3::4].reshape(row["psamples"], n) / (2**32 - 1)).sum(axis=1)
    p_values = norm.cdf((sums - n / 2) / np.sqrt(n / 12))
    assert row["p_value"] == pytest.approx(kstwo.sf(distance(p_values), row["psamples"]), abs=2e-8)


def test_tail_counts_both_ends_of_one_sample_and_the_lower_end_of_several():
    rows = batteries.parsed(WRITTEN)
    assert [batteries.tail(row) for row in rows] == [0.56105837, 0.99992335, pytest.approx(2 * 0.479188), 0]
    assert batteries.tail({"p_value": 1.0, "psamples": 1}) == 0


@pytest.mark.slow
@pytest.mark.parametrize("psamples", [1, 10, 100])
def test_perfect_generators_are_doubtful_at_most_at_the_nominal_rate(psamples):
    """Counts are binomial, within five standard deviations. dieharder reports far too many p-values near 1."""
    trials, rng = 2000, np.random.default_rng(1)
    samples = rng.random((trials, psamples))
    reported = [row[0] if psamples == 1 else kstwo.sf(distance(row), psamples) for row in samples]
    tails = np.array([batteries.tail({"p_value": p, "psamples": psamples}) for p in reported])
    for rate in (0.05, 0.005):
        assert np.count_nonzero(tails <= rate) <= trials * rate + 5 * np.sqrt(trials * rate)
    assert np.count_nonzero(tails <= 0.05) > trials * 0.05 / 10  # the test still detects something


def philox(rounds):
    """The stream (0, 0) of Philox with fewer rounds."""
    for first in range(0, 2**32, 2**16):
        chunk = np.arange(first, first + 2**16, dtype=np.uint64)
        words = reference.philox4x32((chunk, 0 * chunk, 0 * chunk, 0 * chunk), (0, 0), rounds)
        yield np.stack(words, axis=-1).astype("<u4").tobytes()


def changed(change):
    """The stream (0, 0), with its fields changed."""
    for block in batteries.stream(0, 0):
        yield change(np.frombuffer(block, "<u2")).tobytes()


def low_words(fields):
    return fields.reshape(-1, 4, 2)[:, :, [0, 0]].copy()


BAD = {
    "2 rounds": (Entry(100), lambda: philox(2)),
    "4 rounds": (Entry(0), lambda: philox(4)),
    "a stuck bit": (Entry(100), lambda: changed(lambda fields: fields & 0xFFFE)),
    "the low word twice": (Entry(8), lambda: changed(low_words)),
    "every field twice": (Entry(8), lambda: changed(lambda fields: np.repeat(fields[::2], 2))),
}


@pytest.mark.slow
@DIEHARDER
@pytest.mark.parametrize("fault", BAD)
def test_known_bad_generators_fail(fault):
    test, blocks = BAD[fault]
    assert batteries.run(test, blocks())[0]["assessment"] == "FAILED"


@pytest.mark.slow
@DIEHARDER
def test_a_stream_that_ends_early_raises():
    with pytest.raises(RuntimeError, match=r"dieharder -g 200 -d 0 ended with status 0 and .*EOF"):
        batteries.run(Entry(0), [bytes(16)])


def test_a_doubtful_test_is_run_again_on_other_calls_and_all_results_count(monkeypatch):
    asked = []

    def order(seed, call):
        asked.append((seed, call))
        return call

    def found(test, call):
        p_value = 0.004 if call == CALLS and test == Entry(1) else 0.5
        return [{"psamples": test.psamples or 100, "p_value": p} for p in (0.9, p_value)]

    monkeypatch.setattr(batteries, "ORDERS", {"a": order})
    monkeypatch.setattr(batteries, "run", found)
    rows = batteries.measure([Entry(0), Entry(1), Entry(2, 3, 1)], SEED, lambda jobs, total: jobs)
    assert sorted(asked) == [(SEED, CALLS * i) for i in (0, 1, 2, 4)]
    assert [row["dieharder"] for row in rows if row["again"]] == ["-d 1 -p 400"] * 2
    assert [row["adjusted"] for row in rows if row["p_value"] == 0.004] == [pytest.approx(8 * 0.004)]


def measured(monkeypatch, path):
    """Run the command with two tests; returns the written record, and the exit message or None."""
    monkeypatch.setattr(batteries, "QUICK", (Entry(0), Entry(100)))
    try:
        command.batteries(quick=True, seed=SEED, file=path)
        return json.loads(path.read_text()), None
    except SystemExit as stopped:
        return json.loads(path.read_text()), stopped.code


@pytest.mark.slow
@DIEHARDER
def test_the_command_writes_its_results(monkeypatch, tmp_path, capsys):
    record, message = measured(monkeypatch, tmp_path / "results.json")
    assert message is None and record["seed"] == SEED and record["versions"]["dieharder"] == batteries.version()
    assert [(row["order"], row["test"]) for row in record["cases"] if not row["again"]] == [
        (order, test) for test in ("diehard_birthdays", "sts_monobit") for order in ORDERS
    ]
    row = record["cases"][0]  # each row can be reproduced by itself
    (again,) = batteries.run(Entry(0), batteries.stream(SEED, row["call"]))
    assert row == row | again
    assert "\npassed: " in capsys.readouterr().out


@pytest.mark.slow
@DIEHARDER
def test_a_generator_that_ignores_the_call_fails_only_in_the_order_of_calls(monkeypatch, tmp_path, capsys):
    drawn = batteries.random_bytes
    monkeypatch.setattr(batteries, "random_bytes", lambda stream, *args: drawn(gpudrop.Stream(stream.seed, 0), *args))
    record, message = measured(monkeypatch, tmp_path / "results.json")
    assert message == "python -m bench batteries: the bytes are not random"
    assert {row["order"] for row in batteries.failed(record)} == {"calls"}
    assert "calls: diehard_birthdays of 0, p-value 0.00000000, call 0" in capsys.readouterr().out


def test_the_error_without_dieharder_names_the_package_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        command.batteries(quick=True, file=tmp_path / "results.json")
    assert stopped.value.code.startswith("python -m bench batteries: dieharder is not installed; on Debian")
    assert "\n" not in stopped.value.code and not list(tmp_path.iterdir())
