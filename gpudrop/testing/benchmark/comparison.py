"""gpudrop bench: the speed of dropout on this machine, compared with a copy, NumPy or CuPy, and PyTorch.

It measures CuPy arrays if a GPU is available, and NumPy arrays otherwise. `python -m bench` measures more.
"""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba

from gpudrop import backends
from gpudrop.checks import check_count, check_writable
from gpudrop.testing.benchmark import contenders, gpu, gpu_contenders, records, runner
from gpudrop.testing.benchmark.cases import LARGE, Case
from gpudrop.testing.benchmark.contenders import OURS, OURS_READY, PLAIN, PLAIN_READY
from gpudrop.testing.benchmark.gpu_contenders import CUPY

SIZE, ROUNDS = 2**24, 5
WIDTH = 100  # maximum width of the table in characters
BAR_WIDTH, MS_WIDTH = 70, 56  # minimum widths of a table with bars, and of one with the column "ms"
CPU_CASES = (
    ("relu", "float32", False),
    ("relu", "float32", True),
    ("gelu", "float32", True),
    ("relu", "bfloat16", False),
)
"""(activation, dtype, whether the gradient is computed too)"""

GPU_CASES = (("relu", "float32"), ("gelu", "float32"), ("relu", "bfloat16"))
"""(activation, dtype); forward and backward pass are measured separately."""

PACKAGES = ("numpy", "numba", "torch")
GPU_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x")
CAPTION = (
    "GB/s: the speed, in bytes that must move. of copy: the speed relative to a copy, or to a copy with out= for "
    "results in out=. ratio: the speed of gpudrop relative to this peer. Medians; all calls take turns."
)
NAMES = tuple(dict.fromkeys((*contenders.CONTENDERS, *gpu_contenders.CONTENDERS)))
COPIES = {PLAIN: PLAIN, PLAIN_READY: PLAIN_READY, OURS: PLAIN, OURS_READY: PLAIN_READY, CUPY: PLAIN}
"""Name of a copy or of one of gpudrop's contenders -> the copy that it is compared with."""


def run(
    size: int | None = None, rounds: int = ROUNDS, progress: Callable[[list[Case]], Iterable[Case]] = list
) -> dict[str, Any]:
    """Measure gpudrop and other implementations of dropout on this machine, in turn.

    The results of each contender are first compared with `gpudrop.testing.reference`. A contender with wrong results
    is not timed. The measurement sets the number of threads of Numba and PyTorch and draws from PyTorch's generators.
    Both are restored at the end.

    Parameters
    ----------
    size : int, optional
        The number of elements of the arrays, at least 1. The default is 2**24 on the CPU and 2**26 on a GPU.
    rounds : int, optional
        The number of measurements per median, at least 1.
    progress : callable, optional
        A function that receives the list of cases and returns an iterable of them, such as a progress bar.

    Returns
    -------
    dict
        The record: the device, the versions, and "cases", a list. Each case has "results" by contender. A result has
        "seconds" (the median time of a call), "bytes_per_second" and "elements_per_second". A contender that was not
        timed has "absent", "wrong" or "failed" instead, with the reason. A case that could not be measured, for example
        for lack of memory, has "absent" or "failed" and no results.

    Raises
    ------
    TypeError, ValueError
        If size or rounds is not an integer, or less than 1.

    Examples
    --------
    >>> from gpudrop.testing.benchmark import comparison
    >>> record = comparison.run(size=1000, rounds=1)
    >>> record["cases"][0]["results"]["copy"]["seconds"] > 0
    True
    """
    size, rounds = None if size is None else check_count("size", size), check_count("rounds", rounds)
    module = backends.load("cupy_elementwise")
    if isinstance(module, str):
        with runner.torch_restored():
            return on_cpu(size or SIZE, rounds, progress) | {"no_gpu": module}
    device = gpu.Gpu()
    with runner.torch_restored(device.id):
        return on_gpu(device, size or LARGE, rounds, progress)


def on_cpu(size, rounds, progress):
    """Measure NumPy arrays and return the record."""
    threads = numba.config.NUMBA_NUM_THREADS
    cases = [Case("kinds", name, dtype, size, backward, threads) for name, dtype, backward in CPU_CASES]
    runner.touch(4 * max(case.bytes for case in cases))
    entered = list(contenders.CONTENDERS.values())
    record = records.described(records.processor(), threads, PACKAGES) | {"rounds": rounds}
    return record | {"cases": [runner.row(case, rounds, entered) for case in progress(cases)]}


def on_gpu(device, size, rounds, progress):
    """Measure CuPy arrays on a `gpu.Gpu` and return the record."""
    cases = [Case("kinds", name, dtype, size, backward=True) for name, dtype in GPU_CASES]
    entered = list(gpu_contenders.CONTENDERS.values())
    record = records.described(device.name, None, PACKAGES + GPU_PACKAGES)
    record |= {"facts": device.facts(), "rounds": rounds}
    rows = (gpu.measure(device, case, rounds, entered) for case in progress(cases))
    return record | {"cases": list(itertools.chain.from_iterable(rows))}


def ratios(row, name):
    """Return a contender's speed relative to its copy, and gpudrop's relative to the contender; each may be None."""
    times = None if name in COPIES else records.ratio(row, CUPY if CUPY in row["results"] else OURS, name)
    return records.share(row, name, COPIES.get(name, PLAIN)), times


def table(record, width=WIDTH):
    """Return a table of a record, with a bar for the speed of each contender if it is wide enough."""
    from rich import box
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table
    from rich.text import Text

    bars, headers = width >= BAR_WIDTH, ("GB/s", "of copy", "ratio", "ms")[: 4 if width >= MS_WIDTH else 3]
    numbers = [Column(name, justify="right", no_wrap=True) for name in headers]
    # Rich narrows columns that may wrap first: in a narrow table these are the names, and numbers are never cut.
    columns = [Column("", no_wrap=bars), *([Column("speed", ratio=1, min_width=10)] if bars else []), *numbers]
    title = f"dropout of {record['cases'][0]['size']:,} elements, p = {record['cases'][0]['p']}"
    shown = Table(*columns, title=title, caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD, expand=bars)
    results = [result for row in record["cases"] for result in row["results"].values()]
    fastest = max((result.get("bytes_per_second", 0) for result in results), default=0)
    for row in record["cases"]:
        shown.add_section()
        shown.add_row(Text(records.case_words(row)[0], style="bold"))
        for name in NAMES:
            result = row["results"].get(name, {"absent": ""})
            label = Padding(name, (0, 0, 0, 2))
            if "seconds" in result:
                speed = result["bytes_per_second"]
                values = speed / 1e9, *ratios(row, name), result["seconds"] * 1e3
                cells = list(map(_cell, values, (".3g", ".2f", ".3g", ".4g")))[: len(headers)]
                shown.add_row(label, *([ProgressBar(fastest, speed)] if bars else []), *cells)
            elif "absent" not in result:
                shown.add_row(label, records.untimed(row, name))
    return shown


def _cell(number, form):
    if number is None:
        return ""
    return f"{number:{form}}" if number < 1000 else f"{number:.0f}"  # not 4.83e+03, as for the GB/s of a GPU


def main(file: Path | None = None) -> None:
    """Measure, print the table and write the record.

    Raises
    ------
    OSError
        If the file can't be written; FileNotFoundError if its folder does not exist.
    RuntimeError
        If gpudrop's own results are wrong, or if it fails.
    """
    if file is not None:
        check_writable("results", file)
    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        record = run(progress=lambda cases: bar.track(cases, description="measuring"))
    console = Console()
    width = min(console.width, WIDTH)
    console.print(table(record, width), width=width)
    for line in lines(record):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if file is not None:
        file.write_text(records.dumps(record))
    if failed := [" ".join(records.case_words(row)) for row in record["cases"] if not right(row)]:
        raise RuntimeError(f"gpudrop is wrong or fails in {', '.join(failed)}; run gpudrop selftest for details")


def lines(record):
    """Generate the lines below the table: the machine, the versions, and contenders that were not timed."""
    threads = record["threads"]
    yield f"{record['device']}{f', {threads} thread' + 's' * (threads > 1) if threads else ''}"
    yield ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    if "no_gpu" in record:
        yield f"no GPU was measured: {record['no_gpu']}"
    yield from records.notes(record)


def right(row):
    """Whether gpudrop was timed in a case; true if the case was skipped."""
    ours = [result for name, result in row["results"].items() if name in (OURS, OURS_READY, CUPY)]
    return "absent" in row or (bool(ours) and all("seconds" in result for result in ours))
