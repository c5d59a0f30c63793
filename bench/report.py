"""Tables and a chart of a run on the CPU."""

import numpy as np
from rich.table import Table

from bench.contenders import CONTENDERS, STREAMING_READY
from gpudrop.testing.benchmark import records
from gpudrop.testing.benchmark.contenders import OURS, OURS_READY, PLAIN, PLAIN_READY

NOTE = ": x is the speed of gpudrop over the peer's; NumPy runs on one thread"
CEILINGS = (PLAIN, PLAIN_READY, STREAMING_READY)
COLOURS = ("#0072B2", "#56B4E9", "#000000", "#555555", "#AAAAAA", "#D55E00", "#CC79A7", "#E69F00", "#B59B00")
COLOURS += ("#009E73", "#7A5195", "#A05A2C")


def tables(record):
    """A table for each section, and one of the start-up times."""
    for section in dict.fromkeys(row["section"] for row in record["cases"]):
        rows = [row for row in record["cases"] if row["section"] == section]
        present = [name for name in CONTENDERS if any(name in row["results"] for row in rows)]
        peers = [name for name in present if name not in (OURS, OURS_READY, *CEILINGS)]
        speeds = [f"{name} G/s" for name in (OURS, OURS_READY)]
        shares, times = [f"of {name}" for name in CEILINGS], [f"x {name}" for name in peers]
        table = Table("case", "elements", *speeds, *shares, *times, title=section + NOTE, padding=(0, 0))
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*_cells(row, peers))
        yield table
    if not record["startup"]:
        return
    once = Table("step", "seconds", title="start-up, medians of new processes")
    for what, seconds in record["startup"].items():
        once.add_row(what, f"{seconds:.3f}")
    yield once


def _cells(row, peers):
    """Speeds, fractions of the ceilings and ratios to each peer. New arrays are compared with new arrays."""
    results = row["results"]
    yield from records.case_words(row)
    for name in (OURS, OURS_READY):
        yield f"{results[name]['elements_per_second'] / 1e9:.3g}" if "seconds" in results[name] else "wrong"
    for name in (*CEILINGS, *peers):
        ratio = records.ratio(row, OURS_READY if name in (PLAIN_READY, STREAMING_READY) else OURS, name)
        if ratio is None:
            yield records.untimed(row, name)
        else:
            yield f"{ratio:.2f}" if name in CEILINGS else f"{ratio:.3g}"


def chart(record, path):
    """Draw a record: the family if it was measured, otherwise speed against size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    draw = _family_chart if all(row.get("variant") for row in record["cases"]) else _size_chart
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
