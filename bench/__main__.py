"""The commands of python -m bench: cpu, gpu, torch, sass, launch, batteries and report.

Each one measures, prints tables and writes its results as JSON. `report` only reads such files.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numba
import typer
from rich.console import Console
from rich.progress import Progress

from bench import contenders, drawing, family, gpu_contenders, gpu_here, gpu_report, neighbours, report, startup
from bench.cases import cpu_cases, gpu_cases
from bench.smi import smi
from gpudrop.testing.benchmark import gpu, records, runner

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "numba", "llvmlite", "torch", "transformers", "jax", "ml_dtypes")
SECTIONS = ("start-up", "drawing", *contenders.SECTIONS)
MADE_OF = {
    "": (cpu_cases, contenders.of, report.tables, 7),
    "family": (family.family_cases, lambda case: family.CONTENDERS, report.tables, 7),
    "neighbours": (neighbours.neighbour_cases, neighbours.of, neighbours.tables, 5),
}
"""What a run on the CPU measures alone, if anything -> cases, contenders of a case, tables, and rounds by default."""
GPU_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "triton", "nvidia-cuda-nvrtc")

app = typer.Typer(help="Compare gpudrop with copies of the same number of bytes and with other libraries.")


@app.callback()
def main():
    pass


@app.command()
def cpu(
    quick: Annotated[bool, typer.Option(help="Fewer cases and rounds, in under three minutes.")] = False,
    variants: Annotated[bool, typer.Option("--family", help="Measure all variants of dropout, and PyTorch's.")] = False,
    beside: Annotated[bool, typer.Option("--neighbours", help="Measure dropout_add and dropout_glu.")] = False,
    sections: Annotated[
        list[str] | None, typer.Option("--section", help=f"Measure only this part; repeatable: {', '.join(SECTIONS)}.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Measurements of each case: by default 3, 5 or 7.")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="File for the results; the chart is next to it.")] = None,
):
    """Compare the CPU kernels with copies, NumPy, PyTorch and JAX, at every size and dtype."""
    apart = ["family"] * variants + ["neighbours"] * beside
    if len(apart) + bool(sections) > 1:
        raise typer.BadParameter("can't be combined", param_hint="--section, --family and --neighbours")
    for name in sections or ():
        if name not in SECTIONS:
            raise typer.BadParameter(f"must be one of {', '.join(SECTIONS)}, got {name}", param_hint="--section")
    wanted = apart or sections or SECTIONS
    threads = numba.config.NUMBA_NUM_THREADS
    record = described(records.processor(), threads)
    cases_of, entered, tables, usual = MADE_OF["".join(apart)]
    record["rounds"] = rounds = rounds or (3 if quick else usual)
    record["startup"] = startup.measure(1 if quick else 3) if "start-up" in wanted else {}
    record["drawing"] = drawing.measure(rounds) if "drawing" in wanted else {}
    record["cases"] = []
    cases = [case for case in cases_of(threads, quick) if case.section in wanted]
    runner.touch(4 * max((case.bytes for case in cases), default=0))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for case in progress.track(cases, description="measuring"):
            record["cases"].append(runner.row(case, rounds, entered(case)))
    name = "-".join(["cpu", records.target(), *apart, *(["quick"] * quick)])
    finish(record, file or RESULTS / f"{name}.json", tables)


@app.command("torch")
def pytorch(
    quick: Annotated[bool, typer.Option(help="Small models and fewer rounds, in under two minutes.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None,
):
    """Measure training steps of PyTorch models without dropout, with torch's dropout and with gpudrop's."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise torch's profiler prints over the progress bar
    import torch

    from bench import torch_steps

    record = described(records.processor(), torch.get_num_threads())
    record["rounds"] = rounds = 3 if quick else 15
    record["cases"] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        names = torch_steps.QUICK if quick else torch_steps.CASES
        for name in progress.track(names, description="measuring"):
            record["cases"].append(torch_steps.measure(name, rounds))
    record["cases"] += torch_steps.calls(rounds)
    name = f"torch-{records.target()}{'-quick' * quick}.json"
    write(record, file or RESULTS / name, [*torch_steps.tables(record), *torch_steps.notes(record)])


@app.command("gpu")
def on_gpu(
    quick: Annotated[bool, typer.Option(help="Fewer cases and rounds, in under two minutes.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="File for the results; the chart is next to it.")] = None,
):
    """Compare the GPU kernels with a copy in GPU memory, PyTorch, Triton and CuPy, each pass separately."""
    reason = gpu_here.missing()
    if reason:
        sys.exit(f"python -m bench gpu: {reason}")
    device = gpu.Gpu()
    path = file or RESULTS / device.name.replace(" ", "-") / f"gpu{'-quick' * quick}.json"
    measure_on(device, gpu_cases(quick), 3 if quick else 7, gpu_contenders.CONTENDERS, path)


def measure_on(device, cases, rounds, entered, path):
    """Measure all cases on a `gpu.Gpu`, print the results, and write them with a chart."""
    facts = device.facts() | {"smi": smi(device.bus)}
    record = described(device.name) | {"facts": facts, "rounds": rounds, "complete": False, "cases": []}
    record["versions"] |= records.versions(GPU_PACKAGES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for case in progress.track(cases, description="measuring"):
            record["cases"] += gpu.measure(device, case, rounds, entered)
            path.write_text(records.dumps(record))  # partial results count if the run is stopped
    record |= {"complete": True, "copy_bytes_per_second": gpu_report.ceiling(record)}
    write(record, path, [*gpu_report.tables(record), *gpu_report.notes(record)])
    gpu_report.chart(record, path.with_suffix(".png"))


@app.command()
def sass(
    arch: Annotated[str, typer.Option(help="The architecture to compile for.")] = "sm_90",
    file: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None,
):
    """Compile the CUDA kernels, and predict their speed from the machine code; no GPU is needed."""
    from bench import sass

    gpus = {gpu["arch"]: gpu for gpu in reversed(sass.GPUS["gpus"].values())}
    if arch not in gpus:
        raise typer.BadParameter(f"must be one of {', '.join(gpus)}, got {arch}", param_hint="--arch")
    record = described(gpus[arch]["name"]) | {"arch": arch, "rates": sass.GPUS["source"], "cases": []}
    record["versions"] |= records.versions(GPU_PACKAGES)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for rows in progress.track(sass.measure_all(gpus[arch]), total=sass.jobs_count(), description="compiling"):
            record["cases"] += rows
    record["cases"].sort(
        key=lambda row: [str(row[key]) for key in ("dtype", "activation", "direction", "bits", "backend")]
    )
    write(record, file or RESULTS / f"sass-{arch}.json", [*sass.tables(record), *sass.notes(record)])
    if any(row["faults"] or sass.over_the_bar(row) for row in record["cases"]):
        sys.exit("python -m bench sass: some kernels break a rule or exceed the instruction limit")


@app.command()
def launch(
    file: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None,
):
    """Measure the CPU time of a call on device arrays up to the launch, which a stub driver replaces."""
    from rich.table import Table

    from bench import launch

    record = described(records.processor()) | {"rounds": (rounds := 15), "cases": []}
    record["versions"] |= records.versions(GPU_PACKAGES)
    table = Table("call", "microseconds", title=f"{launch.ELEMENTS} elements of float32, medians of {rounds} rounds")
    for what, microseconds in launch.measure(rounds).items():
        record["cases"].append({"call": what, "microseconds": round(microseconds, 2)})
        table.add_row(what, f"{microseconds:.2f}")
    write(record, file or RESULTS / f"launch-{records.target()}.json", [table])


@app.command()
def batteries(
    quick: Annotated[bool, typer.Option(help="Few tests, in under a minute.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of the tested streams.")] = 0,
    file: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None,
):
    """Test the generator's bytes with dieharder, in three orders; the exit status is 1 if they are not random."""
    from bench import batteries

    if reason := batteries.missing():
        sys.exit(f"python -m bench batteries: {reason}")
    record = described(records.processor(), os.cpu_count()) | {"seed": seed, "alpha": batteries.ALPHA}
    record["versions"]["dieharder"] = batteries.version()
    record["orders"] = {name: order.__doc__ for name, order in batteries.ORDERS.items()}
    record |= {"CALLS": batteries.CALLS, "CHUNKS": batteries.CHUNKS, "left_out": batteries.LEFT_OUT}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        tests = batteries.QUICK if quick else batteries.TESTS
        try:
            record["cases"] = batteries.measure(tests, seed, progress.track)
        except RuntimeError as error:
            sys.exit(f"python -m bench batteries: {error}")
    path = file or RESULTS / f"batteries{'-quick' * quick}.json"
    write(record, path, [*batteries.tables(record), *batteries.notes(record)])
    if batteries.failed(record):
        sys.exit("python -m bench batteries: the bytes are not random")


@app.command("report")
def shares():
    """Print the table of docs/performance.md that shows the share of the ceiling on each measured processor."""
    print(report.by_processor(RESULTS), end="")


def described(device, threads=None):
    """The first entries of a record: command, commit, device, versions and date."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS)
    return {
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or "unknown",
        **records.described(device, threads, PACKAGES),
    }


def finish(record, path, tables=report.tables):
    """Print a complete record of the CPU kernels, and write it with its chart."""
    write(record, path, [*tables(record), *records.notes(record)])
    report.chart(record, path.with_suffix(".png"))


def write(record, path, shown):
    """Print the tables and notes of a complete record, and write the record."""
    console = Console()
    console = Console(width=max(console.width, 180))  # the tables are wide, and truncated numbers are useless
    for part in shown:
        console.print(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(records.dumps(record))
    console.print(f"{path} is written")


if __name__ == "__main__":
    app()
