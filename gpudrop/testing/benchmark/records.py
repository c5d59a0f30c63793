"""The record of a run: facts about the machine, the format of the file, and figures computed from the cases."""

import json
import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import llvmlite.binding
import numba

from gpudrop.version import VERSION


def described(device, threads, packages):
    """Return the first entries of a record: the date, the device, the threads and the versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "threads": threads,
        "versions": versions(packages),
    }


def versions(packages):
    """Return the versions of Python, gpudrop and some packages by name; None if a package is not installed."""
    return {"python": platform.python_version(), "gpudrop": VERSION} | {name: _version(name) for name in packages}


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor():
    """Return the processor's name, LLVM's name of its architecture, the number of cores, and the target of Numba."""
    model, info = platform.machine(), Path("/proc/cpuinfo")  # platform.processor() starts a program
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    words = f"{model} ({llvmlite.binding.get_host_cpu_name()}), {os.cpu_count()} cores"
    if numba.config.CPU_NAME:
        words += f", compiled for {target()}"
        if numba.config.CPU_FEATURES is None:  # then the name only changes how Numba schedules instructions
            words += " with this processor's instructions"
    return words


def target():
    """Return LLVM's name of the processor that Numba compiles for. NUMBA_CPU_NAME sets it."""
    return numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()


def dumps(record):
    """Return a record as JSON with one line per case."""
    cases = ",\n".join(json.dumps(row) for row in record["cases"])
    head = json.dumps({key: value for key, value in record.items() if key != "cases"}, indent=2)
    return f'{head[:-2]},\n  "cases": [\n{cases}\n]}}\n'


def case_words(row):
    """Return a case in words: the computation, and the number of elements or the shape of a matrix."""
    what, columns = f"{row['activation']} {row['dtype']}", row.get("columns")
    if row.get("variant"):
        what = f"{row['variant']} {what}" if columns else row["variant"]
    if row.get("bits", 16) != 16:
        what += f" {row['bits']} bits"
    if row.get("layout", "C") != "C":
        what += f" {row['layout']}"
    back = " and back" if row.get("forward", True) else " backward"
    shape = f"{row['size'] // columns:,} x {columns:,}" if columns else f"{row['size']:,}"
    return f"{what}{back if row['backward'] else ''}", shape


def share(row, name, copy="copy"):
    """Return a contender's GB/s relative to a copy's, or None."""
    mine, copied = (row["results"].get(one, {}).get("bytes_per_second") for one in (name, copy))
    return mine / copied if mine and copied else None


def ratio(row, mine, other):
    """Return the speed of one contender relative to another, or None."""
    mine, other = seconds(row, mine), seconds(row, other)
    return other / mine if mine and other else None


def seconds(row, name):
    """Return the median time of a contender, or None."""
    return row["results"].get(name, {}).get("seconds")


def untimed(row, name):
    """Return the table entry of a contender that was not timed."""
    return next((state for state in ("wrong", "failed") if state in row["results"].get(name, {})), "-")


def notes(record):
    """Return one line per reason why contenders were not timed or not captured, with the cases, and skipped cases."""
    reasons: dict[str, list[str]] = {}
    for row in record["cases"]:
        for name, result in row["results"].items():
            for state in {"absent", "wrong", "failed", "uncaptured"} & set(result):
                cases = reasons.setdefault(f"{name}: {state} ({result[state]})", [])
                if state != "absent":
                    cases.append(" ".join(case_words(row)))
    left_out = [
        f"{' '.join(case_words(row))}: {state} ({row[state]})"
        for row in record["cases"]
        for state in ("absent", "failed")
        if state in row
    ]
    return [f"{reason} {', '.join(cases)}".strip() for reason, cases in reasons.items()] + left_out
