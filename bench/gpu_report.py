"""Tables, targets and a chart of a run on a GPU."""

import itertools
from typing import NamedTuple

from rich.table import Table

from bench import report
from bench.gpu_contenders import CONTENDERS, OURS, PEERS
from gpudrop.testing.benchmark import records
from gpudrop.testing.benchmark.cases import LARGE
from gpudrop.testing.benchmark.gpu_contenders import COPY, CUPY, EAGER
from gpudrop.testing.benchmark.records import case_words, ratio, seconds, share

NAMES = tuple(contender.name for contender in CONTENDERS)
NOTE = "of the copy: fraction of its speed; x: speed of gpudrop on CuPy arrays over the peer's; *: timed differently"
HALVES_AND_SINGLE = ("float32", "float16", "bfloat16")
COLOURS = (report.COLOURS[2], *report.COLOURS[:2], *report.COLOURS[5:])


class Target(NamedTuple):
    """A speed that gpudrop should reach.

    Attributes
    ----------
    text : str
    least : float
        The lower limit for every case.
    found : float or None
        The value of the worst case; None if no case can be judged.
    where : str
        The worst case.
    lost : int
        The number of cases that can't be judged because gpudrop was wrong or failed.
    """

    text: str
    least: float
    found: float | None = None
    where: str = ""
    lost: int = 0

    def __str__(self):
        if self.found is None and not self.lost:
            return f"not measured: {self.text}"
        found = [] if self.found is None else [f"worst case {self.found:.3f}, {self.where}"]
        lost = [f"wrong or failed in {self.lost} cases"] if self.lost else []
        state = "reached" if not self.lost and self.found >= self.least else "NOT reached"
        return f"{state}: {self.text}: {'; '.join(found + lost)}"


def tables(record):
    """For each section a table of speeds and one of memory; for launches a table of CPU times."""
    for section in dict.fromkeys(row["section"] for row in record["cases"]):
        rows = [row for row in record["cases"] if row["section"] == section and row["results"]]
        if section == "launch":
            yield _right(_launches(rows))
        else:
            rows = list(itertools.chain(*map(with_both, _pairs(rows))))
            yield _right(_speeds(rows, section))
            yield _right(_memory(rows, section))


def _pairs(rows):
    """The forward and the backward pass of each case that has both."""
    for _, pair in itertools.groupby(rows, lambda row: (row["section"], row["activation"], row["dtype"], row["size"])):
        pair = list(pair)
        if len(pair) == 2:
            yield pair


def with_both(pair):
    """A case's two passes and their sum, as rows."""
    forward, backward = pair
    results = {}
    for name in NAMES:
        one, other = (row["results"].get(name, {}) for row in pair)
        if "seconds" in one and "seconds" in other:
            seconds = one["seconds"] + other["seconds"]
            moved = sum(result["seconds"] * result["bytes_per_second"] for result in (one, other))
            timed = one["timed"] if one["timed"] == other["timed"] else "mixed"
            results[name] = {"seconds": seconds, "bytes_per_second": moved / seconds, "timed": timed}
        else:
            results[name] = other if "seconds" in one else one
    return forward, backward, backward | {"forward": True, "results": results}


def _speeds(rows, section):
    ours = itertools.chain(*((f"{name} GB/s", "of the copy") for name in OURS))
    table = Table("case", "elements", "copy GB/s", *ours, *(f"x {name}" for name in PEERS), title=f"{section}: {NOTE}")
    for row in rows:
        cells = [_speed(row, COPY)]
        for name in OURS:
            cells += [_speed(row, name), _cell(share(row, name), row, name)]
        cells += [_cell(ratio(row, CUPY, name), row, name, not _alike(row, CUPY, name)) for name in PEERS]
        table.add_row(*case_words(row), *cells)
    return table


def _memory(rows, section):
    title = f"{section}: peak memory of forward and backward in MB, without x and dy"
    table = Table("case", "elements", *(name for name in NAMES if name != COPY), title=title)
    for row in rows[1::3]:  # the backward passes; all passes of a case have the same peak
        cells = (row["results"].get(name, {}).get("peak_bytes") for name in NAMES if name != COPY)
        table.add_row(f"{row['activation']} {row['dtype']}", f"{row['size']:,}", *map(_megabytes, cells))
    return table


def _launches(rows):
    table = Table("case", "elements", *NAMES, title="launch: CPU time of a call in us, without waiting for the GPU")
    for row in rows:
        cells = (_cell(seconds(row, name), row, name, factor=1e6) for name in NAMES)
        table.add_row(*case_words(row), *cells)
    return table


def _right(table):
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _alike(row, one, other):
    return row["results"].get(one, {}).get("timed") == row["results"].get(other, {}).get("timed")


def _speed(row, name):
    return _cell(row["results"].get(name, {}).get("bytes_per_second"), row, name, factor=1e-9)


def _cell(number, row, name, starred=False, factor=1):
    if number is None:
        return records.untimed(row, name)
    return f"{number * factor:.4g}{'*' * starred}"


def _megabytes(size):
    return "-" if size is None else f"{size / 1e6:.4g}"


def notes(record):
    """Missing contenders with the reason, cases that were left out, the copy's speed, and the targets."""
    rate = ceiling(record)
    copy = [] if rate is None else [f"copy in GPU memory: {rate / 1e9:.4g} GB/s, reads and writes together"]
    return [*records.notes(record), *copy, *map(str, targets(record))]


def ceiling(record):
    """The highest speed of a large copy in bytes per second, reads and writes together, or None."""
    rows = [row["results"].get(COPY, {}) for row in record["cases"] if row["size"] >= LARGE]
    return max((result["bytes_per_second"] for result in rows if "seconds" in result), default=None)


def targets(record):
    """Every target with its worst case. Targets for large arrays consider cases of at least 2**26 elements."""
    rows = [row for row in record["cases"] if row["section"] != "launch"]
    large = [row for row in rows if row["size"] >= LARGE]
    for name in OURS:
        for activations, least in ((("identity", "relu"), 0.93), (("gelu", "silu"), 0.85)):
            judged = [row for row in large if row["activation"] in activations and row["dtype"] in HALVES_AND_SINGLE]
            text = f"{name}: {' and '.join(activations)} at {least} of the copy's speed"
            yield _target(text, least, [(share(row, name), row) for row in judged if seconds(row, COPY)])
        # Small arrays: launches take most of the time, so only results timed in the same way are compared.
        pairs = [(row, peer) for row in rows for peer in PEERS if row["size"] >= LARGE or _alike(row, name, peer)]
        faster = [(ratio(row, name, peer), row, f"against {peer}") for row, peer in pairs if seconds(row, peer)]
        yield _target(f"{name}: faster than every peer", 1, faster)
        relu = [with_both(pair)[2] for pair in _pairs([row for row in large if row["activation"] == "relu"])]
        text = f"{name}: twice as fast as {EAGER}, relu forward and backward"
        yield _target(text, 2, [(ratio(row, name, EAGER), row) for row in relu if seconds(row, EAGER)])


def _target(text, least, judged):
    """The target, judged by (number or None, row, other words for the output) of each case."""
    found = [one for one in judged if one[0] is not None]
    if not found:
        return Target(text, least, lost=len(judged))
    number, row, *against = min(found, key=lambda one: one[0])
    return Target(text, least, number, " ".join((*case_words(row), *against)), len(judged) - len(found))


def chart(record, path):
    """GB/s against size, relu in float32, a line for each contender, the copy dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in record["cases"] if row["section"] == "sizes"]
    panels = {
        "forward": [row for row in rows if row["forward"]],
        "backward": [row for row in rows if not row["forward"]],
    }
    lines = dict(zip(NAMES, COLOURS, strict=False))
    figure = report.against_size(pyplot, panels, "bytes_per_second", lines, dashed=(COPY,), bold=OURS, unit=1e9)
    figure.axes[0].set_ylabel("GB/s (bytes that must move)")
    figure.suptitle(f"relu and dropout, p = 0.1, float32, {record['device']}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
