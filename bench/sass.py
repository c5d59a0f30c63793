"""What the compiled CUDA kernels are made of, and what that says of their speed: python -m bench sass.

Nothing is run. Every kernel is compiled for an architecture and disassembled; counted is the longest way around its
loop through its store of whole chunks, which is what a thread does again and again, but for the two ends of an array.
From the counts come two bounds on the time of an element: the bytes that it moves over the GPU's bandwidth, and its
instructions over the rate at which a multiprocessor issues them, each kind at the rate of its own pipe as well.
"""

import concurrent.futures
import graphlib
import itertools
import json
import multiprocessing
import re
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from gpudrop import operations
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels.chunks import chunks
from gpudrop.kernels.spec import Draws

GPUS = json.loads(Path(__file__).with_name("gpus.json").read_text())
DTYPES = ("float16", "bfloat16", "float32", "float64")
BACKENDS = ("cupy_elementwise", "numba_cuda")
BITS = (8, 16, 32)

PIPES = {
    "float32": r"FADD|FMUL|FFMA|HADD2|HMUL2|HFMA2",
    "float64": r"D(ADD|MUL|FMA|SETP|MNMX)",
    "multiply": r"U?IMAD",
    "special": r"MUFU",
    "shuffle": r"SHFL",
    "convert": r"F2F|F2I|I2F|F2FP|I2FP|FRND",
    "integer": r"U?(ISETP|IADD|LOP3|LEA|SHF|SEL|PRMT|IMNMX|VIMNMX|VIADD|IABS|PLOP3|MOV|FLO)|FSEL|FMNMX|FSETP|FCHK|HSET",
}
"""Which instructions share a pipe with a rate in gpus.json; the others (loads, branches) are only issued."""


@dataclass(frozen=True)
class Figures:
    """Of one kernel; counts are of one element on the way through the loop, unless they say otherwise.

    Attributes
    ----------
    registers : int
        Of a thread.
    stack : int
        Bytes of a thread, spills among them.
    local : int
        Accesses to local memory in the whole kernel.
    loads, stores : dict
        {bits: how many accesses to global memory of that width} on the way.
    elements : int
        How many the way serves.
    instructions : float
    pipes : dict
        {pipe: instructions of an element}.
    divisions : int
        64-bit integer divisions that the loop calls, on whatever way.
    float64 : int
        Instructions of float64 in the whole kernel.
    """

    registers: int
    stack: int
    local: int
    loads: dict
    stores: dict
    elements: int
    instructions: float
    pipes: dict
    divisions: int
    float64: int


def kernel_of(direction, activation, bits, dtype):
    """The kernel of dropout with an activation of this name, in one direction."""
    source = Draws(bits) if bits else None
    return getattr(operations, direction)(ACTIVATIONS[activation], dtype, source)


def described(kernel):
    """The names and the number from which `kernel_of` makes a kernel, but for the dtype."""
    activation, direction, bits = re.fullmatch(r"gpudrop_(\w+)_(forward|backward)_(\d+)\w*", kernel.name).groups()
    return direction, activation, int(bits)


def all_kernels(dtypes=DTYPES):
    """Every kernel of dropout with an activation, each once: where the output is saved, backward draws no bits."""
    product = itertools.product(dtypes, ACTIVATIONS, ("forward", "backward"), BITS)
    return list(dict.fromkeys(kernel_of(direction, name, bits, dtype) for dtype, name, direction, bits in product))


def measure(backend, kernels, architecture):
    """The Figures of kernels on contiguous arrays, in their order."""
    from bench import offline

    if backend == "cupy_elementwise":
        code = offline.cubin(offline.cupy_source([(kernel, None) for kernel in kernels]), "c++", architecture)
        functions, resources = offline.disassembled(code), offline.resources(code)
        names = [f"kernel_{i}" for i in range(len(kernels))]
        return [figures(functions[n], resources[n], kernel) for n, kernel in zip(names, kernels, strict=True)]
    found = []
    for kernel in kernels:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = offline.numba_ptx((kernel, None), [architecture])[architecture]
        found.append(figures_of(offline.cubin(text, "ptx", architecture), text, kernel))
    return found


def figures_of(code, ptx, kernel):
    """The Figures of a kernel of Numba's, from its machine code and the PTX that tells its name."""
    from bench import offline

    name = re.search(r"\.entry (\w+)", ptx)[1]
    return figures(offline.disassembled(code)[name], offline.resources(code)[name], kernel)


def figures(instructions, resources, kernel):
    """The Figures of one kernel."""
    opcodes = [instruction["opcode"] for instruction in instructions]
    loop, way = loop_of(instructions)
    way = [instructions[k] for k in way]
    calls = [i["operands"] for i in instructions[min(loop) : max(loop)] if i["opcode"].startswith("CALL")]
    stores = _widths(way, "STG")
    elements = sum(bits * n for bits, n in stores.items()) // (8 * np.dtype(kernel.storage).itemsize)
    pipes = Counter(pipe for instruction in way for pipe in PIPES if re.match(PIPES[pipe], instruction["opcode"]))
    return Figures(
        registers=resources["registers"],
        stack=max(resources["frame"], resources["stack"]),
        local=sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
        loads=_widths(way, "LDG"),
        stores=stores,
        elements=elements,
        instructions=len(way) / elements,
        pipes={pipe: n / elements for pipe, n in pipes.items()},
        divisions=sum(bool(re.search("(div|rem)_[su]64", called)) for called in calls),
        float64=sum(bool(re.match(PIPES["float64"], opcode)) for opcode in opcodes),
    )


def _widths(instructions, operation):
    """{bits: how many of the accesses are so wide}."""
    opcodes = [i["opcode"] for i in instructions if i["opcode"].startswith(operation)]
    return dict(Counter(_width(opcode) for opcode in opcodes))


def _width(opcode):
    return next((int(part.strip("US")) for part in opcode.split(".") if part.strip("US").isdigit()), 32)


def loop_of(instructions):
    """The numbers of the instructions of the loop with the widest stores, and of those on the way through it.

    Of the ways through the most of the stores, for a compiler may do several rounds in one, it is the longest, since
    shorter ones are those of special numbers, and some that nothing ever goes. Calls aren't on it: they are the slow
    ways of quotients.
    """
    stored = {k: _width(i["opcode"]) for k, i in enumerate(instructions) if i["opcode"].startswith("STG")}
    wide = [k for k in stored if stored[k] == max(stored.values())]
    called = {k for k, i in enumerate(instructions) if i["opcode"].startswith("CALL")}
    for avoided in (called, set()):  # some kernels of float64 have no way without
        there = set(range(len(instructions))) - avoided
        after = {k: there.intersection(_after(k, instruction)) for k, instruction in enumerate(instructions)}
        before = _reversed(after)
        for store in wide:  # the first round may stand before the loop
            loop = _reached(store, after) & _reached(store, before)
            if store in loop:
                top = min(loop)
                ends = {k for k in loop if top in after[k]}
                after = {k: following & loop - {top} for k, following in after.items()}
                inner = _inner(after)
                after = {k: following - inner for k, following in after.items()}
                weights = {k: len(instructions) * (k in wide) + 1 for k in loop}
                return loop, sorted({*_longest(top, {store}, after, weights), *_longest(store, ends, after, weights)})
    raise ValueError("no wide store is in a loop")


def _inner(after):
    """What lies in loops within the loop, which the ends of an array go through."""
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError:
        return {k for k in after if k in _reached(k, after)}
    return set()


def _reversed(after):
    before = {k: set() for k in after}
    for k, following in after.items():
        for f in following:
            before[f].add(k)
    return before


def _reached(start, after):
    """All that some way from start leads to; start itself if one comes back."""
    found, front = set(), [start]
    while front:
        new = after[front.pop()] - found
        found |= new
        front += new
    return found


def _longest(start, ends, after, weights):
    """The way from start to one of the ends that weighs most."""
    before = _reversed(after)
    among = (_reached(start, after) | {start}) & set().union(*({end} | _reached(end, before) for end in ends))
    best = {}  # (weight, where it came from)
    for k in graphlib.TopologicalSorter({k: before[k] & among for k in among}).static_order():
        weight, origin = max(((best[b][0], b) for b in before[k] & among), default=(0, None))
        best[k] = weight + weights[k], origin
    way = [max(ends & among, key=lambda end: best[end][0])]
    while way[-1] is not None:
        way.append(best[way[-1]][1])
    return way[:-1]


def _after(k, instruction):
    """Where it goes on after instruction number k."""
    opcode, operands = instruction["opcode"], instruction.get("operands", "")
    conditional = "predicate" in instruction or (opcode == "BRA" and operands.count(",") > 0)
    if opcode == "EXIT":
        return [k + 1] if conditional else []
    if opcode == "BRA":
        target = int(operands.split(",")[-1], 16) // 16  # the bytes of an instruction
        return [k + 1, target] if conditional else [target]
    return [] if opcode.startswith(("RET", "BRX", "JMP")) else [k + 1]


def faults(kernel, figures):
    """What no kernel may have, in words."""
    width = 8 * chunks(kernel).width
    others = kernel.masked or kernel.stored  # a mask's accesses may be of any size, and a stream's numbers have 64 bits
    accesses = {*figures.stores} if others else {*figures.loads, *figures.stores}
    found = {
        f"{figures.stack} bytes of stack": figures.stack,
        f"{figures.local} accesses to local memory": figures.local,
        f"{figures.divisions} 64-bit divisions in the loop": figures.divisions,
        f"{figures.float64} instructions of float64": figures.float64 and kernel.real == "float32",
        f"accesses of {sorted(accesses)} bits": accesses - {width},
    }
    return [words for words, is_one in found.items() if is_one]


BAR = 22
"""Instructions of an element at most, for what `has_bar` names."""


def has_bar(kernel):
    """Whether a kernel is one of those that are held to BAR: of identity and relu, in at most 32 bits."""
    _, activation, bits = described(kernel)
    return activation in ("identity", "relu") and bits in (0, 16) and kernel.dtype != "float64"


def bounds(kernel, figures, gpu):
    """Seconds of an element at the least: {"memory": s, and for each pipe and for issuing them all: s}."""
    rates = GPUS["rates"][gpu["arch"]]
    each = gpu["multiprocessors"] * gpu["clock_hz"]
    moved = (kernel.num_inputs + len(kernel.outputs)) * np.dtype(kernel.storage).itemsize
    found = {"memory": moved / gpu["bytes_per_second"], "issue": figures.instructions / rates["issue"] / each}
    return found | {pipe: n / rates[pipe] / each for pipe, n in figures.pipes.items()}


def predicted_share(bounds):
    """Which share of the peak bandwidth is possible: 1 where memory is the limit."""
    return bounds["memory"] / max(bounds.values())


def measure_all(gpu, processes=None):
    """Rows of every kernel of both backends, as they are found, with a prediction for a GPU."""
    architecture = int(gpu["arch"].removeprefix("sm_"))
    kernels = all_kernels()
    jobs = [("numba_cuda", kernels[i::20]) for i in range(20)]  # alike, so that the last ones end together
    jobs += [("cupy_elementwise", [kernel for kernel in kernels if kernel.dtype == dtype]) for dtype in DTYPES]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        done = {pool.submit(_measure_by_name, b, _names(of), architecture): (b, of) for b, of in jobs}
        for future in concurrent.futures.as_completed(done):
            backend, of = done[future]
            yield [row(backend, kernel, found, gpu) for kernel, found in zip(of, future.result(), strict=True)]


def jobs_count():
    """How many times `measure_all` yields."""
    return 20 + len(DTYPES)


def _names(kernels):
    return [(*described(kernel), kernel.dtype) for kernel in kernels]


def _measure_by_name(backend, names, architecture):
    return measure(backend, [kernel_of(*name) for name in names], architecture)


def row(backend, kernel, figures, gpu):
    """One case of a record."""
    found = bounds(kernel, figures, gpu)
    direction, activation, bits = described(kernel)
    return {
        "backend": backend,
        "kernel": kernel.name,
        "dtype": kernel.dtype,
        "activation": activation,
        "direction": direction,
        "bits": bits,
        **asdict(figures),
        "faults": faults(kernel, figures),
        "barred": has_bar(kernel),
        "predicted_seconds": found,
        "predicted_share": predicted_share(found),
    }


NOTE = """
for each backend: instructions of an element (its multiplications of integers), registers of a thread, and the PREDICTED
share of the peak bandwidth with what would limit it; nothing is measured"""


def tables(record):
    """A table for each dtype, with both backends side by side."""
    for dtype in DTYPES:
        names = [name.partition("_")[0] for name in BACKENDS]
        table = Table("kernel", *names, *(f"{name}: predicted" for name in names), title=f"{dtype}{NOTE}")
        rows = [row for row in record["cases"] if row["dtype"] == dtype]
        for kernel in dict.fromkeys(row["kernel"] for row in rows):
            pair = [next(r for r in rows if (r["kernel"], r["backend"]) == (kernel, name)) for name in BACKENDS]
            counts = [
                f"{r['instructions']:.1f} ({r['pipes'].get('multiply', 0):.1f}), {r['registers']} registers"
                for r in pair
            ]
            table.add_row(kernel.removeprefix("gpudrop_"), *counts, *map(_prediction, pair))
        yield table


def _prediction(row):
    limit = max(row["predicted_seconds"], key=row["predicted_seconds"].get)
    issued = row["predicted_seconds"]["issue"] / row["predicted_seconds"]["memory"]
    return f"{row['predicted_share']:.2f} ({limit}; issue {issued:.2f} of memory's time)"


def notes(record):
    """What breaks a rule or a bar, and what the predictions come to, in a line each."""
    rows = record["cases"]
    for r in rows:
        name = f"{r['backend']} {r['dtype']} {r['kernel']}"
        yield from (f"{name}: {fault}" for fault in r["faults"])
        if over_the_bar(r):
            yield f"{name}: {r['instructions']:.1f} instructions of an element, {BAR} are the bar"
    bound = sum(r["predicted_share"] == 1 for r in rows)
    yield f"{len(rows)} kernels, {bound} of them PREDICTED to be limited by memory alone on {record['device']}"
    pairs = {}
    for r in rows:
        pairs.setdefault((r["dtype"], r["kernel"]), []).append(r["instructions"])
    apart = {key: max(pair) / min(pair) for key, pair in pairs.items()}
    yield f"the backends' instructions differ by at most {max(apart.values()) - 1:.0%}; by more than 10%: " + (
        ", ".join(
            f"{dtype} {kernel} ({apart[dtype, kernel] - 1:.0%})"
            for dtype, kernel in apart
            if apart[dtype, kernel] > 1.1
        )
        or "none"
    )


def over_the_bar(row):
    return row["barred"] and (row["instructions"] > BAR or row["predicted_share"] < 1)
