"""The instructions of the compiled CUDA kernels, and the speed that they allow: python -m bench sass.

Nothing is run. Every kernel is compiled for an architecture and disassembled. The counts are of the longest path
through its loop that stores whole chunks. A thread repeats this path, except at the two ends of an array. Two bounds on
the time per element follow from the counts. The first is the bytes moved over the GPU's bandwidth. The second is the
instructions over the issue rate of a multiprocessor, also for each kind at the rate of its pipe.
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
from gpudrop.formulas.noises import ADD
from gpudrop.kernels.chunks import chunks
from gpudrop.kernels.spec import Draws
from gpudrop.operations import Neighbours

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
"""The instructions that share a pipe with a rate in gpus.json. All others (loads, branches) are only issued."""


@dataclass(frozen=True)
class Figures:
    """The counts of one kernel, per element on the path through the loop unless stated otherwise.

    Attributes
    ----------
    registers : int
        Registers per thread.
    stack : int
        Bytes of stack per thread, including spills.
    local : int
        Accesses to local memory in the whole kernel.
    loads, stores : dict
        {bits: number of accesses to global memory of that width} on the path.
    elements : int
        Number of elements that the path computes.
    instructions : float
    pipes : dict
        {pipe: instructions per element}.
    divisions : int
        64-bit integer divisions that the loop calls, on any path.
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


def kernel_of(direction, activation, bits, dtype, saves_bits=False, adds=False):
    """The kernel of dropout with an activation of this name, in one direction.

    saves_bits: as in `operations`. adds: whether it is the kernel of dropout_add with a bias of the same dtype.
    """
    source = Draws(bits) if bits else None
    options = {"noise": ADD, "neighbours": Neighbours(dtype)} if adds else {}
    return getattr(operations, direction)(ACTIVATIONS[activation], dtype, source, bits=saves_bits, **options)


def described(kernel):
    """The first arguments from which `kernel_of` makes a kernel: direction, activation and random bits."""
    pattern = r"gpudrop_(\w+?)(?:_add_bias)?_(forward|backward)_(\d+)\w*"
    activation, direction, bits = re.fullmatch(pattern, kernel.name).groups()
    return direction, activation, int(bits)


def all_kernels(dtypes=DTYPES):
    """Every kernel of dropout with an activation, once, and some of dropout_add.

    A backward pass that reads the saved output draws no bits.
    """
    product = itertools.product(dtypes, ACTIVATIONS.values(), ("forward", "backward"), BITS, (False, True))
    kernels = [
        kernel_of(direction, row.name, bits, dtype, by_bits)
        for dtype, row, direction, bits, by_bits in product
        if not by_bits or row.slopes is not None
    ]
    # In float64 the path that loads a row element by element can't be told from the one with wide loads.
    narrow = [dtype for dtype in dtypes if dtype != "float64"]
    kernels += [kernel_of("forward", name, 16, dtype, adds=True) for dtype in narrow for name in ("identity", "relu")]
    return list(dict.fromkeys(kernels))


def measure(backend, kernels, architecture):
    """The Figures of kernels on contiguous arrays, in the order of the kernels."""
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
    """The Figures of a Numba kernel, from its machine code and from its PTX, which contains its name."""
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
    loads, (of_inputs, of_outputs) = _widths(way, "LDG"), widths(kernel)  # accesses to bits are narrower
    accesses, of = (stores, of_outputs) if kernel.num_outputs else (loads, of_inputs[: kernel.num_inputs])
    elements = accesses[max(of)] // of.count(max(of)) * step_of(kernel)
    pipes = Counter(pipe for instruction in way for pipe in PIPES if re.match(PIPES[pipe], instruction["opcode"]))
    return Figures(
        registers=resources["registers"],
        stack=max(resources["frame"], resources["stack"]),
        local=sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
        loads=loads,
        stores=stores,
        elements=elements,
        instructions=len(way) / elements,
        pipes={pipe: n / elements for pipe, n in pipes.items()},
        divisions=sum(bool(re.search("(div|rem)_[su]64", called)) for called in calls),
        float64=sum(bool(re.match(PIPES["float64"], opcode)) for opcode in opcodes),
    )


def step_of(kernel):
    """The elements of an access."""
    return chunks(kernel).width // np.dtype(kernel.storage).itemsize


def widths(kernel):
    """The bits of an access to each full input and row, and to each full output. 128 are the most."""
    step = step_of(kernel)
    return [[min(128, 8 * step * np.dtype(storage).itemsize) for storage in kinds] for kinds in kernel.storages]


def _widths(instructions, operation):
    """{bits: number of accesses of that width}."""
    opcodes = [i["opcode"] for i in instructions if i["opcode"].startswith(operation)]
    return dict(Counter(_width(opcode) for opcode in opcodes))


def _width(opcode):
    return next((int(part.strip("US")) for part in opcode.split(".") if part.strip("US").isdigit()), 32)


def loop_of(instructions):
    """The indices of all instructions of the loop with the widest stores, and of those on the path through it.

    A compiler may unroll the loop, so the path must have the most stores, and then the most wide loads: those of
    a row are wide or narrow. Of these paths the longest is chosen. Shorter ones are for special
    values, or are never taken. Paths with calls are excluded, because they are the slow paths of quotients.
    """
    stored = {k: _width(i["opcode"]) for k, i in enumerate(instructions) if i["opcode"].startswith("STG")}
    wide = [k for k in stored if stored[k] == max(stored.values())]
    loaded = {k for k, i in enumerate(instructions) if i["opcode"].startswith("LDG") and _width(i["opcode"]) >= 64}
    called = {k for k, i in enumerate(instructions) if i["opcode"].startswith("CALL")}
    for avoided in (called, set()):  # some kernels of float64 have calls on every path
        there = set(range(len(instructions))) - avoided
        after = {k: there.intersection(_after(k, instruction)) for k, instruction in enumerate(instructions)}
        before = _reversed(after)
        for store in wide:  # the first round may be before the loop
            loop = _reached(store, after) & _reached(store, before)
            if store in loop:
                top = min(loop)
                ends = {k for k in loop if top in after[k]}
                after = {k: following & loop - {top} for k, following in after.items()}
                inner = _inner(after)
                after = {k: following - inner for k, following in after.items()}
                count = len(instructions)
                weights = {k: count * (k in loaded) + count**2 * (k in wide) + 1 for k in loop}
                return loop, sorted({*_longest(top, {store}, after, weights), *_longest(store, ends, after, weights)})
    raise ValueError("no wide store is in a loop")


def _inner(after):
    """The instructions of loops within the loop, which run only at the ends of an array."""
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
    """All instructions that can be reached from start. start is among them if a path returns to it."""
    found, front = set(), [start]
    while front:
        new = after[front.pop()] - found
        found |= new
        front += new
    return found


def _longest(start, ends, after, weights):
    """The path with the largest weight from start to one of the ends."""
    before = _reversed(after)
    among = (_reached(start, after) | {start}) & set().union(*({end} | _reached(end, before) for end in ends))
    best = {}  # (weight, predecessor)
    for k in graphlib.TopologicalSorter({k: before[k] & among for k in among}).static_order():
        weight, origin = max(((best[b][0], b) for b in before[k] & among), default=(0, None))
        best[k] = weight + weights[k], origin
    way = [max(ends & among, key=lambda end: best[end][0])]
    while way[-1] is not None:
        way.append(best[way[-1]][1])
    return way[:-1]


def _after(k, instruction):
    """The instructions that can follow instruction number k."""
    opcode, operands = instruction["opcode"], instruction.get("operands", "")
    conditional = "predicate" in instruction or (opcode == "BRA" and operands.count(",") > 0)
    if opcode == "EXIT":
        return [k + 1] if conditional else []
    if opcode == "BRA":
        target = int(operands.split(",")[-1], 16) // 16  # an instruction has 16 bytes
        return [k + 1, target] if conditional else [target]
    return [] if opcode.startswith(("RET", "BRX", "JMP")) else [k + 1]


def faults(kernel, figures):
    """The rules that a kernel breaks, in words."""
    expected = {width for kinds in widths(kernel) for width in kinds}
    others = kernel.masked or kernel.stored  # accesses to a mask have any size, and stored streams have 64 bits
    accesses = {*figures.stores} if others else {*figures.loads, *figures.stores}
    accesses -= {8 * kernel.reads_bits, 32 * kernel.writes_bits}
    found = {
        f"{figures.stack} bytes of stack": figures.stack,
        f"{figures.local} accesses to local memory": figures.local,
        f"{figures.divisions} 64-bit divisions in the loop": figures.divisions,
        f"{figures.float64} instructions of float64": figures.float64 and kernel.real == "float32",
        f"accesses of {sorted(accesses)} bits": accesses - expected,
    }
    return [words for words, is_one in found.items() if is_one]


SMOOTH = ("gelu", "gelu_tanh", "silu")
"""The activations with a limit in 16-bit dtypes."""


def bar(kernel):
    """The largest number of instructions per element with 0 or 16 bits, or None for kernels without a limit.

    The slopes of gelu and gelu_tanh need more than 22: see docs/performance.md.
    """
    direction, activation, bits = described(kernel)
    if bits not in (0, 16) or kernel.dtype == "float64":
        return None
    if kernel.num_rows:
        return 24
    if kernel.reads_bits or kernel.writes_bits:
        return 14 if direction == "backward" and activation == "relu" else None
    if activation in SMOOTH and kernel.approximate:
        return {"forward": 22, "backward": 23 if activation == "silu" else 26}[direction]
    return 22 if activation in ("identity", "relu") else None


def bounds(kernel, figures, gpu):
    """Lower bounds on the seconds per element: {"memory": s, "issue": s, and s for each pipe}."""
    rates = GPUS["rates"][gpu["arch"]]
    each = gpu["multiprocessors"] * gpu["clock_hz"]
    inputs, outputs = kernel.storages  # rows stay in the cache
    moved = sum(np.dtype(storage).itemsize for storage in (*inputs[: kernel.num_inputs], *outputs))
    moved += (kernel.reads_bits + kernel.writes_bits) / 8
    found = {"memory": moved / gpu["bytes_per_second"], "issue": figures.instructions / rates["issue"] / each}
    return found | {pipe: n / rates[pipe] / each for pipe, n in figures.pipes.items()}


def predicted_share(bounds):
    """The largest possible share of the peak bandwidth: 1 if memory is the limit."""
    return bounds["memory"] / max(bounds.values())


def measure_all(gpu, processes=None):
    """Yield rows of every kernel of both backends as they are measured, with a prediction for a GPU."""
    architecture = int(gpu["arch"].removeprefix("sm_"))
    kernels = all_kernels()
    jobs = [("numba_cuda", kernels[i::20]) for i in range(20)]  # equal parts, so that all end at about the same time
    jobs += [("cupy_elementwise", [kernel for kernel in kernels if kernel.dtype == dtype]) for dtype in DTYPES]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        done = {pool.submit(_measure_by_name, b, _names(of), architecture): (b, of) for b, of in jobs}
        for future in concurrent.futures.as_completed(done):
            backend, of = done[future]
            yield [row(backend, kernel, found, gpu) for kernel, found in zip(of, future.result(), strict=True)]


def jobs_count():
    """The number of times that `measure_all` yields."""
    return 20 + len(DTYPES)


def _names(kernels):
    """All arguments from which `kernel_of` makes each kernel."""
    return [
        (*described(kernel), kernel.dtype, kernel.reads_bits or kernel.writes_bits, kernel.num_rows > 0)
        for kernel in kernels
    ]


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
        "bar": bar(kernel),
        "predicted_seconds": found,
        "predicted_share": predicted_share(found),
    }


NOTE = """
for each backend: instructions per element (of them integer multiplications), registers per thread, and the PREDICTED
share of the peak bandwidth with its limit; nothing is measured"""


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
    """One line for each broken rule and bar, and a summary of the predictions."""
    rows = record["cases"]
    for r in rows:
        name = f"{r['backend']} {r['dtype']} {r['kernel']}"
        yield from (f"{name}: {fault}" for fault in r["faults"])
        if over_the_bar(r):
            yield f"{name}: {r['instructions']:.1f} instructions per element, the limit is {r['bar']}"
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
    return row["bar"] is not None and (row["instructions"] > row["bar"] or row["predicted_share"] < 1)
