"""python -m bench cpu, or torch: measure, show tables, and write the results as JSON, for cpu with a chart."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import llvmlite.binding
import numba
import typer
from rich.console import Console
from rich.progress import Progress

from bench import contenders, family, report, runner, startup
from bench.cases import cpu_cases

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("gpudrop", "numpy", "numba", "llvmlite", "torch", "transformers", "jax", "ml_dtypes")

app = typer.Typer(help="Benchmarks of gpudrop against copies of as many bytes and against its peers.")


@app.callback()
def main():
    pass


@app.command()
def cpu(
    quick: Annotated[bool, typer.Option(help="Fewer cases and rounds, in under three minutes.")] = False,
    variants: Annotated[bool, typer.Option("--family", help="The variants of dropout against PyTorch's.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="For the results; the chart goes beside it.")] = None,
):
    """The host kernels, at every size and dtype, against copies, NumPy, PyTorch and JAX."""
    threads = numba.config.NUMBA_NUM_THREADS
    record = described(_processor(), threads)
    record["rounds"] = rounds = 3 if quick else 7
    record["startup"] = {} if variants else startup.measure(1 if quick else 3)
    record["cases"] = []
    cases = family.family_cases(threads, quick) if variants else cpu_cases(threads, quick)
    runner.touch(4 * max(case.bytes for case in cases))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for case in progress.track(cases, description="measuring"):
            results = runner.measure(case, rounds, family.CONTENDERS if variants else contenders.of(case))
            record["cases"].append(asdict(case) | {"bytes": case.bytes, "results": results})
    name = f"cpu-{llvmlite.binding.get_host_cpu_name()}{'-family' * variants}{'-quick' * quick}.json"
    finish(record, file or RESULTS / name)


@app.command("torch")
def pytorch(
    quick: Annotated[bool, typer.Option(help="Small models and fewer rounds, in under two minutes.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="For the results.")] = None,
):
    """Training steps of PyTorch models: without dropout, with torch's, and with gpudrop's in its place."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch's profiler writes across the progress bar
    import torch

    from bench import torch_steps

    record = described(_processor(), torch.get_num_threads())
    record["rounds"] = rounds = 3 if quick else 15
    record["cases"] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        names = torch_steps.QUICK if quick else torch_steps.CASES
        for name in progress.track(names, description="measuring"):
            record["cases"].append(torch_steps.measure(name, rounds))
    record["cases"] += torch_steps.calls(rounds)
    name = f"torch-{llvmlite.binding.get_host_cpu_name()}{'-quick' * quick}.json"
    write(record, file or RESULTS / name, [*torch_steps.tables(record), *torch_steps.notes(record)])


def described(device, threads):
    """The beginning of a record: what was measured, when and with what."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS)
    return {
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "device": device,
        "threads": threads,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def finish(record, path):
    """Show and write a complete record of the host kernels, with its chart beside it."""
    write(record, path, [*report.tables(record), *report.notes(record)])
    report.chart(record, path.with_suffix(".png"))


def write(record, path, shown):
    """Show a complete record's tables and notes, and write it."""
    console = Console()
    console = Console(width=max(console.width, 180))  # the tables are wide, and numbers that are cut off are none
    for part in shown:
        console.print(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(record))
    console.print(f"{path} is written")


def dumps(record):
    """JSON with a line for each case."""
    cases = ",\n".join(json.dumps(row) for row in record["cases"])
    head = json.dumps({key: value for key, value in record.items() if key != "cases"}, indent=2)
    return f'{head[:-2]},\n  "cases": [\n{cases}\n]}}\n'


def _processor():
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model} ({llvmlite.binding.get_host_cpu_name()}), {os.cpu_count()} cores"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    app()
