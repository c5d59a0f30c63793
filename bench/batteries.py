"""Runs dieharder, an independent battery of tests, on the generator's bytes in three orders.

Each test reads an endless pipe, and draws from calls of its own, so no two tests see the same numbers. Holm's method
combines all p-values into one verdict. dieharder's own WEAK is not a verdict: at least 1 p-value in 100 is called so.

Source: Brown, Eddelbuettel and Bauer, "Dieharder: a random number test suite", version 3.31.1.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import NamedTuple

import numpy as np
from rich.table import Table

from gpudrop.generator import Stream
from gpudrop.kernels.cpu import random_bytes
from gpudrop.testing.statistics import ALPHA, holm

LANES = 8  # 16-bit fields in a chunk; 16 bits are the default
CALLS = 4096  # number of calls that "calls" interleaves, so each test has that many of its own
FIELDS = 1024  # number of fields that "calls" draws of each call at a time
TILE = 32  # number of calls transposed together: their fields stay in the second-level cache
CHUNKS = 2**18  # number of chunks that "lanes" transposes at a time
DOUBTFUL = 0.005  # a test with a p-value below this is run again


def stream(seed, call):
    """Field i is field i of the call, as `gpudrop bits` writes it."""
    for first in count(0, 2**16):
        yield random_bytes(Stream(seed, call), first, 2**16)


def calls(seed, call):
    """Field i is field i // CALLS of call number `call + i % CALLS`: the fields that one unit gets in training."""
    for first in count(0, FIELDS // LANES):
        block = np.empty((FIELDS, CALLS), "<u2")
        for c in range(0, CALLS, TILE):
            drawn = [random_bytes(Stream(seed, call + c + i), first, FIELDS // LANES) for i in range(TILE)]
            block[:, c : c + TILE] = np.frombuffer(b"".join(drawn), "<u2").reshape(TILE, FIELDS).T
        yield block.tobytes()


def lanes(seed, call):
    """The first lane of CHUNKS chunks, then the second, up to the eighth. Then the same of the next chunks."""
    for first in count(0, CHUNKS):
        drawn = random_bytes(Stream(seed, call), first, CHUNKS)
        yield np.frombuffer(drawn, "<u2").reshape(CHUNKS, LANES).T.tobytes()


ORDERS = {order.__name__: order for order in (stream, calls, lanes)}


class Entry(NamedTuple):
    """A test of dieharder, by its number in dieharder -l. None selects dieharder's default."""

    number: int
    ntuple: int | None = None
    psamples: int | None = None

    def arguments(self):
        options = zip(("-d", "-n", "-p"), self, strict=True)
        return [word for flag, value in options if value is not None for word in (flag, str(value))]


TESTS = (
    *(Entry(number) for number in (0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 15, 16)),
    Entry(17, psamples=10),  # each sample takes 80 MB and two seconds
    *(Entry(number) for number in (100, 101, 102)),
    *(Entry(200, ntuple) for ntuple in (1, 2, 3, 4, 6, 8)),  # 12 alone takes half a minute
    *(Entry(201, ntuple) for ntuple in (2, 3, 4, 5)),
    *(Entry(202, ntuple) for ntuple in (2, 3, 4, 5)),
    *(Entry(203, lag, 20) for lag in (0, 1, 3, 7, 15, 31)),  # lag 3 sums one of the four words of a chunk
    *(Entry(number) for number in range(204, 210)),
)
QUICK = (Entry(0), Entry(8), Entry(15), Entry(100), Entry(101), Entry(202, 3), Entry(203, 3, 20))
LEFT_OUT = {
    "5 (OPSO), 6 (OQSO), 7 (DNA)": "dieharder -l calls them Suspect",
    "14 (sums)": "dieharder -l says Do Not Use",
    "200 with tuples of 5, 7 and 9 to 12 bits, 203 with other lags": "they would take longer than all the rest",
}


def missing():
    """The reason why dieharder can't be run, or None."""
    if not shutil.which("dieharder"):
        return "dieharder is not installed; on Debian and Ubuntu it is the package of that name: apt install dieharder"
    return None


def version():
    listing = subprocess.run(["dieharder", "-l"], capture_output=True, text=True, check=True).stdout
    return re.search(r"dieharder version (\S+)", listing)[1]


COLUMNS = (  # in dieharder's order: our name of a column, dieharder's name, and its conversion
    ("test", "test_name", str.strip),
    ("ntuple", "ntuple", int),
    ("tsamples", "tsamples", int),
    ("psamples", "psamples", int),
    ("p_value", "pvalues", float),
    ("assessment", "assessment", str.strip),
)
FLAGS = ["-c", ",", *(word for _, flag, _ in COLUMNS for word in ("-D", flag))]


def run(test, blocks):
    """Run a test on an endless stream, which nothing else reads. Returns one row for each p-value."""
    command = ["dieharder", "-g", "200", *test.arguments()]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, *FLAGS], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        with suppress(BrokenPipeError), process.stdin:  # dieharder closes the pipe when it has read enough
            for block in blocks:
                process.stdin.write(block)
        output, error = process.stdout.read().decode(), process.stderr.read().decode()
    rows = list(parsed(output))
    if process.returncode or not rows:  # dieharder exits with 0 at the end of its input
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode} and {output + error!r}")
    return rows


def parsed(output):
    """The rows of a table that dieharder writes with FLAGS."""
    for line in output.splitlines():
        yield {key: kind(cell) for (key, _, kind), cell in zip(COLUMNS, line.split(","), strict=True)}


def tail(row):
    """The p-value against the generator, two-sided.

    From the p-values of several samples dieharder computes one, by a Kolmogorov-Smirnov test. The test detects p-values
    that gather at either end, so its result is small whichever way the generator errs. A result near 1 would mean that
    the samples are spread too evenly, but dieharder is wrong there. It measures the distance of the i-th value of n to
    i / (n + 1). The correct distance is the larger one of the distances to (i - 1) / n and i / n. So distances are too
    short, and results near 1 are too frequent. Of 100 good samples 0.99999 is exceeded 30 times as often as it should
    be, of 10 samples 2000 times. At the other end the error is on the safe side.
    """
    p_value = row["p_value"]
    return 2 * min(p_value, 1 - p_value) if row["psamples"] == 1 else p_value


def measure(tests, seed, progress):
    """The rows of all tests on all orders, with p-values adjusted together. A doubtful test is run again.

    The second run uses other calls, and 4 times as many samples, at least 10. Its results count as much as the first
    ones.
    """

    def rows(job):
        order, index, test, again = job
        call = CALLS * (index + again * len(tests))
        about = {"order": order, "dieharder": " ".join(test.arguments()), "call": call, "again": again}
        return [about | row for row in run(test, ORDERS[order](seed, call))]

    first = [(order, i, test, False) for i, test in enumerate(tests) for order in ORDERS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(progress(pool.map(rows, first), total=len(first)))
        second = [
            (order, i, test._replace(psamples=max(10, 4 * job_rows[0]["psamples"])), True)
            for (order, i, test, _), job_rows in zip(first, found, strict=True)
            if min(map(tail, job_rows)) < DOUBTFUL
        ]
        found += progress(pool.map(rows, second), total=len(second))
    cases = [row for job_rows in found for row in job_rows]
    for row, adjusted in zip(cases, holm([tail(row) for row in cases]), strict=True):
        row["adjusted"] = float(adjusted)
    return cases


def failed(record):
    """The rows that reject the generator, at a false-alarm rate of ALPHA for all together."""
    return [row for row in record["cases"] if row["adjusted"] <= ALPHA]


def tables(record):
    """A row for each p-value, a column for each order."""
    title = f"p-values of dieharder {record['versions']['dieharder']}, seed {record['seed']}"
    table = Table("test", "ntuple", "tsamples", "psamples", *ORDERS, title=title)
    lines, seen = {}, {}
    for row in record["cases"]:
        what = (row["test"], *(str(row[key]) for key in ("ntuple", "tsamples", "psamples")))
        nth = seen[row["order"], what] = seen.get((row["order"], what), 0) + 1  # some tests have several p-values
        mark = "" if row["assessment"] == "PASSED" else f" {row['assessment']}"
        lines.setdefault((*what, nth), {})[row["order"]] = f"{row['p_value']:.8f}{mark}"
    for (*what, _), cells in lines.items():
        table.add_row(*what, *(cells.get(order, "") for order in ORDERS))
    yield table


def notes(record):
    """The verdict, and dieharder's own assessments."""
    cases, bad = record["cases"], failed(record)
    said = [row["assessment"] for row in cases]
    yield f"{len(cases)} p-values; dieharder says {', '.join(f'{said.count(s)} {s}' for s in sorted(set(said)))}"
    again = {(row["order"], row["call"]) for row in cases if row["again"]}
    yield f"{len(again)} tests had a p-value below {DOUBTFUL} and were run again with more samples"
    least = min(row["adjusted"] for row in cases)
    verdict = f"{len(bad)} of them speak against the generator" if bad else "passed"
    yield f"{verdict}: the least, adjusted by Holm's method, is {least:.3g}, and {ALPHA:g} or less would be a failure"
    for row in bad:
        yield f"  {row['order']}: {row['test']} of {row['ntuple']}, p-value {row['p_value']:.8f}, call {row['call']}"
