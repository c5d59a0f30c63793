"""Tables and a chart of a run on the CPU, and the table of all processors in docs/performance.md."""

import functools
import json
from dataclasses import asdict

import numpy as np
from rich.table import Table

from bench.cases import memory_cases
from bench.contenders import CONTENDERS, SAVES_ARRAY, SAVES_BITS, STREAMING_READY
from gpudrop.testing.benchmark import records
from gpudrop.testing.benchmark.cases import LARGE
from gpudrop.testing.benchmark.contenders import OURS, OURS_READY, PLAIN, PLAIN_READY

NOTE = ": x is the speed of gpudrop over the peer's; NumPy runs on one thread"
APART = ("-family", "-neighbours", "-quick")  # the ends of the names of files that by_processor does not show
READY_CEILINGS = (PLAIN_READY, STREAMING_READY)
READY = (*READY_CEILINGS, SAVES_ARRAY, SAVES_BITS)
CEILINGS = (PLAIN, *READY_CEILINGS)
COLOURS = ("#0072B2", "#56B4E9", "#000000", "#555555", "#AAAAAA", "#D55E00", "#CC79A7", "#E69F00", "#B59B00")
COLOURS += ("#009E73", "#7A5195", "#A05A2C", "#F0E442", "#4D4D4D")


def tables(record):
    """A table for each section, one of the speed of drawing, and one of the start-up times."""
    for section in dict.fromkeys(row["section"] for row in record["cases"]):
        rows = [row for row in record["cases"] if row["section"] == section]
        columns = dict(_columns(rows))
        title = section + NOTE * any(header.startswith("x ") for header in columns)
        table = Table("case", "elements", *columns, title=title, padding=(0, 0))
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*records.case_words(row), *(cell(row) for cell in columns.values()))
        yield table
    if drawn := record.get("drawing"):
        table = Table("drawing alone", "G fields/s")
        table.add_row(f"fields of {drawn['bits']} bits, one thread", f"{drawn['fields_per_second'] / 1e9:.3g}")
        if users := drawn.get("in_a_users_kernel"):  # older files do not have it
            table.add_row("the same in a user's kernel", f"{users['fields_per_second'] / 1e9:.3g}")
        yield table
    if record["startup"]:
        once = Table("step", "seconds", title="start-up, medians of new processes")
        for what, seconds in record["startup"].items():
            once.add_row(what, f"{seconds:.3f}")
        yield once


def _columns(rows):
    """Pairs of a header and a function of a row: speeds, fractions of the ceilings, and ratios to each peer."""
    present = [name for name in CONTENDERS if any(name in row["results"] for row in rows)]
    for name in (OURS, OURS_READY):
        if name in present:
            yield f"{name} G/s", functools.partial(_speed, name)
    for name in CEILINGS:
        if name in present:
            yield f"of {name}", functools.partial(_against, name, ".2f")
    peers = [name for name in present if name not in (OURS, OURS_READY, *CEILINGS)]
    if STREAMING_READY in present and not peers:  # with peers the table would be too wide
        yield "of the ceiling", lambda row: _number(of_ceiling(row))
    if any(row.get("layout", "C") != "C" for row in rows):
        yield "of C order", lambda row: _number(of_c_order(row, rows))
    for name in peers:
        yield f"x {name}", functools.partial(_against, name, ".3g")


def _speed(name, row):
    rate = row["results"].get(name, {}).get("elements_per_second")
    return f"{rate / 1e9:.3g}" if rate else records.untimed(row, name)


def _against(name, form, row):
    """The speed of gpudrop over another's. New arrays are compared with new arrays."""
    ratio = records.ratio(row, OURS_READY if name in READY else OURS, name)
    return f"{ratio:{form}}" if ratio else records.untimed(row, name)


def _number(ratio):
    return f"{ratio:.2f}" if ratio else "-"


def of_ceiling(row):
    """The speed of gpudrop with out= over that of the faster copy (with two arrays read: of the faster triad)."""
    return min(filter(None, (records.share(row, OURS_READY, name) for name in READY_CEILINGS)), default=None)


def of_c_order(row, rows):
    """The speed of gpudrop with out= over that in C order. The rows differ in the layout only."""
    in_order = [records.seconds(other, OURS_READY) for other in rows if other["layout"] == "C"]
    mine = records.seconds(row, OURS_READY)
    return in_order[0] / mine if mine and any(in_order) else None


def by_processor(folder):
    """The Markdown table, for docs/, of the share of the ceiling on each processor with a results file in the folder.

    The rows are the cases of the section "memory" with LARGE elements. "-" means that a file lacks the case.
    """
    files = sorted(path for path in folder.glob("cpu-*.json") if not path.stem.endswith(APART))
    names = [f"[{path.stem.removeprefix('cpu-')}](../bench/results/{path.name})" for path in files]
    shares = []
    for path in files:
        rows = [row for row in json.loads(path.read_text())["cases"] if row["section"] == "memory"]
        shares.append({records.case_words(row): of_ceiling(row) for row in rows})
    lines = [["case", *names], ["---"] * (1 + len(names))]
    for case in memory_cases(threads=1, quick=False):
        if case.size == LARGE:
            words = records.case_words(asdict(case))
            lines.append([words[0], *(_number(share.get(words)) for share in shares)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def chart(record, path):
    """Draw a record: the family or the section "sizes". If neither was measured, there is no chart."""
    sections = {row["section"] for row in record["cases"]}
    draw = _family_chart if "family" in sections else _size_chart if "sizes" in sections else None
    if draw is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = draw(record, pyplot)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _family_chart(record, pyplot):
    """The speed of each variant over PyTorch's, forward, and forward and backward."""
    names = list(dict.fromkeys(row["variant"] for row in record["cases"]))[::-1]
    figure, panel = pyplot.subplots(figsize=(9, 8), layout="constrained")
    for backward, colour, shift in ((False, COLOURS[0], 0.2), (True, COLOURS[1], -0.2)):
        ratios = {
            row["variant"]: row["results"]["PyTorch"]["seconds"] / row["results"][OURS]["seconds"]
            for row in record["cases"]
            if row["backward"] == backward and all("seconds" in row["results"].get(n, {}) for n in ("PyTorch", OURS))
        }
        positions = [i + shift for i, name in enumerate(names) if name in ratios]
        bars = panel.barh(positions, [ratios[name] for name in names if name in ratios], 0.38, color=colour)
        panel.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        bars.set_label("forward and backward" if backward else "forward")
    panel.axvline(1, color="black", linewidth=1)
    panel.set(xscale="log", yticks=range(len(names)), yticklabels=names, xlabel="times as fast as PyTorch")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    size = record["cases"][0]["size"]
    figure.suptitle(f"float32, {size:,} elements, {record['threads']} threads of {record['device']}", fontsize=10)
    return figure


def _size_chart(record, pyplot):
    """Elements per second against size, the ceilings dashed."""
    rows = [row for row in record["cases"] if row["section"] == "sizes"]
    panels = {
        "forward": [row for row in rows if not row["backward"]],
        "forward and backward": [row for row in rows if row["backward"]],
    }
    lines = dict(zip(CONTENDERS, COLOURS, strict=True))
    figure = against_size(pyplot, panels, "elements_per_second", lines, dashed=CEILINGS, bold=(OURS, OURS_READY))
    figure.axes[0].set_ylabel("elements per second")
    figure.suptitle(f"relu and dropout, p = 0.1, float32, {record['threads']} threads of {record['device']}")
    return figure


def against_size(pyplot, panels, quantity, lines, dashed, bold, unit=1):
    """Plot a quantity, divided by unit, against size. panels is {title: rows}, and lines is {contender: colour}."""
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 5), sharey=True, layout="constrained")
    for panel, (title, rows) in zip(axes, panels.items(), strict=True):
        for name, colour in lines.items():
            points = [(row["size"], row["results"].get(name, {}).get(quantity)) for row in rows]
            sizes, rates = np.array([point for point in points if point[1]], float).reshape(-1, 2).T / [[1], [unit]]
            style, width = "--" if name in dashed else "-", 2.5 if name in bold else 1.5
            panel.loglog(sizes, rates, style, color=colour, linewidth=width, marker="o", markersize=3, label=name)
        panel.set(title=title, xlabel="elements")
        panel.grid(alpha=0.3)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
