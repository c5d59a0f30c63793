"""Compiles the kernels of both CUDA backends without a GPU: a few of each skeleton, or all of them under --full."""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import re
from pathlib import Path

import pytest

from gpudrop import operations
from gpudrop.formulas import noises
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels.chunks import chunks, thread_count
from gpudrop.kernels.spec import Draws, Reads
from gpudrop.testing import reference

pytest.importorskip("cupy", reason="CuPy is not installed")
pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytest.importorskip("nvidia.cu13", reason="CUDA 13's compilers from PyPI are not installed")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the CUDA simulator compiles nothing", allow_module_level=True)

from bench import offline, sass
from tests.sampling import covering

ARCHITECTURES = [75, 80, 90, 100, 120]
ENDS = [75, *(pytest.param(architecture, marks=pytest.mark.slow) for architecture in ARCHITECTURES[1:-1]), 120]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def made(direction, activation, dtype, source, noise=noises.DROPOUT):
    """A kernel of `gpudrop.operations`."""
    return getattr(operations, direction)(activation, dtype, source, noise)


def with_bits(direction, activation, dtype, source):
    """The same for a kernel that reads or writes one bit per element."""
    return getattr(operations, direction)(ACTIVATIONS[activation], dtype, source, bits=True)


# Kernels differ in these ways, beside their formula. Each entry maps direction, activation and dtype to (kernel, form).
SKELETONS = {
    "plain": lambda *of: (made(*of, Draws(16)), None),
    "window": lambda *of: (made(*of, Draws(16, window=True)), None),
    "stored": lambda *of: (made(*of, Draws(16, stored=True)), None),
    "masked": lambda *of: (made(*of, Reads()), None),
    "counted": lambda *of: (made(*of, Reads(counted=True)), None),
    "deviates": lambda *of: (made(*of, Draws(32), noises.GAUSSIAN), None),
    "strided": lambda *of: (made(*of, Draws(16)), (3, True)),
    "mask": lambda *of: (operations.drawing("keep", "bool", Draws(16)), None),
    "two gradients": lambda _, *of: (operations.backward(*of, Draws(16), noises.ZONEOUT, ("dx", "dprevious")), None),
    "bits": lambda direction, _, dtype: (with_bits(direction, "leaky_relu", dtype, Draws(16)), None),
    "bits alone": lambda direction, _, dtype: (with_bits(direction, "relu", dtype, Draws(16)), None),
    "strided bits": lambda direction, _, dtype: (with_bits(direction, "relu", dtype, Draws(16)), (3, True)),
    "pack": lambda *_: (operations.PACK, None),
    "unpack": lambda *_: (operations.UNPACK, None),
}
PRODUCT = list(itertools.product(SKELETONS, ("forward", "backward"), ("identity", "silu"), ("float16", "float32")))


def key(skeleton, direction, activation, dtype):
    return SKELETONS[skeleton](direction, ACTIVATIONS[activation], dtype)


SAMPLE = list({key(*row): row for row in map(PRODUCT.__getitem__, covering(PRODUCT))}.values())
"""Covers each skeleton with a smooth and a plain activation, and with a 16-bit and a 32-bit dtype."""


def kernels(dtype):
    """(kernel, form) of every kernel for a dtype. Other widths, and strided forms, are limited to two activations."""
    directions = ("forward", "backward")
    keys = [(kernel, None) for kernel in sass.all_kernels([dtype]) if kernel.bits in (0, 16)]
    some = ACTIVATIONS["identity"], ACTIVATIONS["silu"]
    keys += [(made(d, a, dtype, s), None) for d in directions for a in some for s in (None, Draws(8), Draws(32))]
    keys += [(made(d, a, dtype, Draws(16)), (3, True)) for d in directions for a in some]
    keys += [(made(d, some[1], dtype, Draws(16, window=True, stored=True)), None) for d in directions]
    keys += [(described, None) for described in varied(dtype, some[1])]
    keys += [(made("forward", some[1], dtype, Reads()), (3, False))]
    sources = Draws(8), Draws(32), Draws(16, window=True, stored=True), Reads(), Reads(counted=True)
    keys += [(with_bits(d, a, dtype, s), None) for d in directions for a in ("relu", "leaky_relu") for s in sources]
    keys += [(with_bits(d, "leaky_relu", dtype, Draws(16)), (3, True)) for d in directions]
    if dtype == "float32":
        sources = None, Draws(8), Draws(16), Draws(32), Reads(), Draws(16, window=True), Draws(16, stored=True)
        keys += [(operations.drawing("keep", "bool", source), None) for source in sources]
        keys += [(kernel, form) for kernel in (operations.PACK, operations.UNPACK) for form in (None, (3, True))]
    return list(dict.fromkeys(keys))  # the backward pass of relu from bits draws nothing


def varied(dtype, activation):
    """A kernel of every noise, in both directions, once with drawn bits and once with a mask."""
    rows = {noises.ALPHA: 16, noises.GAUSSIAN: 32, noises.UNIFORM: 16, noises.ADDITIVE: 32, noises.ZONEOUT: 16}
    for noise, bits in rows.items():
        for source in (Draws(bits), Reads()):
            yield made("forward", activation, dtype, source, noise)
            yield made("backward", activation, dtype, source, noise)
    for source in (Draws(16), Reads()):
        yield operations.backward(activation, dtype, source, noises.ZONEOUT, ("dx", "dprevious"))
        yield operations.backward(activation, dtype, source, noises.ZONEOUT, ("dprevious",))
    yield made("forward", activation, dtype, None, noises.EXPECTED_ZONEOUT)
    yield operations.backward(activation, dtype, None, noises.EXPECTED_ZONEOUT, ("dx", "dprevious"))
    for direction in ("forward", "backward"):
        yield made(direction, activation, dtype, Reads())
        yield made(direction, activation, dtype, Reads(counted=True))
    if dtype.startswith("float") and dtype != "float16":
        yield operations.drawing("normal", dtype, Draws(32))


STORED = json.loads((Path(offline.__file__).parent / "results/sass-sm_90.json").read_text())
FIGURES = {(row["backend"], row["dtype"], row["kernel"]): row for row in STORED["cases"]}
MARGIN = 1.03
"""The largest ratio of a kernel's instructions per element to its stored figure."""


def check_figures(backend, kernel, figures):
    """Check that the sm_90 machine code obeys the rules and, if a figure is stored, is not larger than allowed."""
    name = f"{backend} {kernel.dtype} {kernel.name}"
    stored = FIGURES.get((backend, kernel.dtype, kernel.name))
    assert sass.faults(kernel, figures) == (stored["faults"] if stored else []), name
    if stored:
        assert not sass.over_the_bar(sass.row(backend, kernel, figures, sass.GPUS["gpus"]["H100"])), name
        if STORED["versions"]["nvidia-cuda-nvrtc"] == importlib.metadata.version("nvidia-cuda-nvrtc"):
            assert figures.instructions <= MARGIN * stored["instructions"], name


def test_the_stored_figures_cover_every_kernel_and_meet_the_limits():
    kernels = [f for f in sass.all_kernels() if sass.described(f)[1] in reference.ACTIVATIONS]  # other tests add more
    expected = {(backend, f.dtype, f.name) for backend in sass.BACKENDS for f in kernels}
    assert set(FIGURES) == expected and len(STORED["cases"]) == len(expected)
    assert [row["kernel"] for row in STORED["cases"] if sass.over_the_bar(row)] == []
    smooth = {"gelu", "gelu_tanh", "silu"}
    for row in STORED["cases"]:
        if row["dtype"] == "float32" and row["activation"] in smooth:
            assert row["predicted_share"] == 1, row["kernel"]


def test_a_larger_kernel_and_a_broken_rule_are_detected():
    kernel = sass.kernel_of("forward", "relu", 16, "float16")
    (good,) = sass.measure("cupy_elementwise", [kernel], 90)
    check_figures("cupy_elementwise", kernel, good)
    for changed in ({"instructions": 1.05 * good.instructions}, {"stack": 8}, {"local": 1}, {"divisions": 1}):
        with pytest.raises(AssertionError, match="cupy_elementwise float16 gpudrop_relu_forward_16"):
            check_figures("cupy_elementwise", kernel, dataclasses.replace(good, **changed))
    with pytest.raises(AssertionError, match="relu"):
        check_figures("cupy_elementwise", kernel, dataclasses.replace(good, loads={32: 8}))


@pytest.mark.parametrize("architecture", [75, 120])
def test_cupy_kernels_of_every_skeleton_compile(architecture):
    keys = [key(*row) for row in SAMPLE]
    code = offline.cubin(offline.cupy_source(keys), "c++", architecture)
    assert [i for i in range(len(keys)) if f"kernel_{i}\0".encode() not in code] == []


def test_cupy_machine_code_of_every_skeleton():
    every = [kernel for kernel, form in (key(*row) for row in SAMPLE) if form is None]
    for kernel, figures in zip(every, sass.measure("cupy_elementwise", every, 90), strict=True):
        check_figures("cupy_elementwise", kernel, figures)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", SAMPLE, ids=" ".join)
def test_a_numba_kernel_of_every_skeleton_compiles(row):
    check_numba(*key(*row), (75, 90, 120))


def check_numba(kernel, form, architectures):
    texts = offline.numba_ptx((kernel, form), architectures)
    codes = {architecture: offline.cubin(text, "ptx", architecture) for architecture, text in texts.items()}
    check_ptx(kernel, form, texts[90])
    if form is None:
        check_figures("numba_cuda", kernel, sass.figures_of(codes[90], texts[90], kernel))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_machine_code(dtype):
    """Covers every kernel that has a stored figure, and the kernels with more operands."""
    keys = {*sass.all_kernels([dtype]), *(kernel for kernel, form in kernels(dtype) if form is None)}
    for kernel, figures in zip(keys, sass.measure("cupy_elementwise", list(keys), 90), strict=True):
        check_figures("cupy_elementwise", kernel, figures)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_kernels_compile(dtype, architecture):
    keys = kernels(dtype)
    code = offline.cubin(offline.cupy_source(keys), "c++", architecture)
    assert [i for i in range(len(keys)) if f"kernel_{i}\0".encode() not in code] == []


DRAWN = Draws(16)


def added(activation, dtype, source=DRAWN, bias="", factor="", wide="", bits=False):
    """dropout_add's forward kernel with neighbours. Rows have one dtype."""
    neighbours = operations.Neighbours(bias, factor, bias or dtype, wide)
    return operations.forward(ACTIVATIONS[activation], dtype, source, noises.ADD, bits, neighbours)


WITH_BIAS = [added(activation, dtype, bias=dtype) for activation in ("identity", "relu") for dtype in DTYPES[1:3]]
WITH_NEIGHBOURS = [
    *WITH_BIAS,
    added("silu", "float64", bias="float32", factor="gain"),
    added("silu", "float16", bias="float32", factor="gain"),
    added("relu", "bfloat16", bias="bfloat16", wide="float32", bits=True),
    added("identity", "bfloat16", Draws(8), bias="float32", wide="float32"),
    added("silu", "bfloat16", factor="value"),
    added("silu", "float32", Draws(16, window=True), bias="float32", factor="gain"),
    added("relu", "float16", Draws(16, window=True), bias="float16", wide="float32"),
]
"""Kernels with rows, with several dtypes or with a factor."""


def summed(activation, dtype, source=DRAWN, bias="", gain="", wide="", bits=False):
    """dropout_add's backward kernel with the sums of rows."""
    neighbours = operations.Neighbours(bias, gain and "gain", gain, wide)
    gradients = ("dx", *["dbias"] * bool(bias), *["dgain"] * bool(gain))
    return operations.backward(ACTIVATIONS[activation], dtype, source, noises.ADD, gradients, bits, neighbours)


WITH_SUMS = [
    *(summed("identity", dtype, bias=dtype) for dtype in DTYPES),
    summed("relu", "bfloat16", bias="bfloat16", wide="float32"),
    summed("relu", "float16", bias="float16", bits=True),
    summed("silu", "bfloat16", Draws(8), "float32", "bfloat16"),
    summed("silu", "float32", Draws(16, window=True, stored=True), "float32", "float32"),
    summed("relu", "float32", Reads(), "float32"),
    summed("identity", "float16", Draws(32), gain="float32"),
    operations.adding("float32"),
    operations.adding("float64"),
]
"""Kernels with sums."""


@pytest.mark.parametrize("architecture", [75, *(pytest.param(a, marks=pytest.mark.slow) for a in (80, 100)), 120])
def test_cupy_kernels_with_neighbours_compile(architecture):
    masked = [added("relu", "bfloat16", Reads(counted), bias="bfloat16", wide="float32") for counted in (False, True)]
    keys = [(kernel, None) for kernel in (*WITH_NEIGHBOURS, *masked)]
    keys += [(kernel, (3, True)) for kernel in WITH_NEIGHBOURS[4:]] + [(kernel, None) for kernel in WITH_SUMS]
    code = offline.cubin(offline.cupy_source(keys), "c++", architecture)
    assert [i for i in range(len(keys)) if f"kernel_{i}\0".encode() not in code] == []


def test_cupy_machine_code_with_neighbours():
    for kernel, figures in zip(WITH_NEIGHBOURS, sass.measure("cupy_elementwise", WITH_NEIGHBOURS, 90), strict=True):
        check_figures("cupy_elementwise", kernel, figures)
        if kernel in WITH_BIAS:
            assert figures.instructions <= 24, kernel.name
            step = sass.step_of(kernel)
            assert figures.loads == {128: 3 * figures.elements // step}, kernel.name
            assert figures.stores == {128: figures.elements // step}, kernel.name


def test_cupy_kernels_with_sums_use_registers_and_wide_accesses():
    code = offline.cubin(offline.cupy_source([(kernel, None) for kernel in WITH_SUMS]), "c++", 90)
    functions, resources = offline.disassembled(code), offline.resources(code)
    for i, kernel in enumerate(WITH_SUMS):
        opcodes = [instruction["opcode"] for instruction in functions[f"kernel_{i}"]]
        check_sums(kernel, opcodes, resources[f"kernel_{i}"])


def check_sums(kernel, opcodes, resources):
    assert resources["frame"] == resources["stack"] == 0, kernel
    assert not any(opcode.startswith(("LDL", "STL")) for opcode in opcodes), kernel
    parts, (inputs, outputs) = chunks(kernel).parts, sass.widths(kernel)
    for operation, kinds in (("LDG", inputs[: kernel.num_inputs]), ("STG", outputs)):
        for width in {*kinds}:
            wide = sum(opcode.startswith(operation) and sass._width(opcode) == width for opcode in opcodes)
            assert wide >= parts * kinds.count(width), (kernel.name, operation, width)


def some(kernels, *chosen):
    """Kernels as parameters. All but the ones with the chosen indices are marked as slow."""
    marks = [[] if k in chosen else [pytest.mark.slow] for k in range(len(kernels))]
    names = [f"{kernel.name}_{kernel.dtype}" for kernel in kernels]
    return [pytest.param(kernel, marks=m, id=name) for kernel, m, name in zip(kernels, marks, names, strict=True)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", some(WITH_NEIGHBOURS, *range(len(WITH_BIAS)), 6))
def test_a_numba_kernel_with_neighbours_compiles(kernel):
    texts = offline.numba_ptx((kernel, None), (75, 90, 120))
    codes = {architecture: offline.cubin(text, "ptx", architecture) for architecture, text in texts.items()}
    figures = sass.figures_of(codes[90], texts[90], kernel)
    assert ".local" not in texts[90]
    check_figures("numba_cuda", kernel, figures)
    if kernel in WITH_BIAS:
        assert figures.instructions <= 24 and figures.registers <= 64
        step = sass.step_of(kernel)
        assert figures.loads == {128: 3 * figures.elements // step}
        assert figures.stores == {128: figures.elements // step}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", some(WITH_SUMS, 4, 10))
def test_a_numba_kernel_with_sums_uses_registers_and_wide_accesses(kernel):
    texts = offline.numba_ptx((kernel, None), (75, 90, 120))
    codes = {architecture: offline.cubin(text, "ptx", architecture) for architecture, text in texts.items()}
    name = re.search(r"\.entry (\w+)", texts[90])[1]
    instructions, resources = offline.disassembled(codes[90])[name], offline.resources(codes[90])[name]
    check_sums(kernel, [instruction["opcode"] for instruction in instructions], resources)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", some([WITH_NEIGHBOURS[6], WITH_SUMS[4]], 1))
def test_a_numba_kernel_with_neighbours_compiles_for_any_strides(kernel):
    texts = offline.numba_ptx((kernel, (3, True)), (75, 120))
    for architecture, text in texts.items():
        assert ".local" not in text and offline.cubin(text, "ptx", architecture)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("direction", ["forward", "backward", "mask"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numba_kernels_compile(dtype, direction):
    for kernel, form in kernels(dtype):
        if f"_{direction}_" in kernel.name:
            check_numba(kernel, form, ARCHITECTURES)


# Matches one access of 16 or 8 bytes, of any types.
VECTOR = {16: r"(v4\.[buf]32|v2\.[buf]64)", 8: r"v2\.[buf]32"}


def check_ptx(kernel, form, ptx):
    name = f"{kernel.name} {kernel.dtype} {form}"
    assert ".local" not in ptx, f"{name} uses local memory"
    assert kernel.real == "float64" or ".f64" not in ptx, f"{name} computes in float64"
    _, _, width, parts, *_ = chunks(kernel)
    if form is None and width in VECTOR:
        loads, stores = (len(re.findall(rf"{op}\.global\S*\.{VECTOR[width]}", ptx)) for op in ("ld", "st"))
        operands = kernel.num_inputs, kernel.num_outputs
        rounds = (loads + stores) // (parts * sum(operands))  # the compiler may unroll the loop
        expected = [rounds * parts * count for count in operands]
        assert rounds >= 1 and [loads, stores] == expected, f"{name}: {loads} loads, {stores} stores"


def test_threads_fill_the_device_before_each_takes_several_chunks():
    plain = sass.kernel_of("forward", "relu", 16, "float32")
    masked = made("forward", ACTIVATIONS["relu"], "float32", Reads())
    for kernel, count, wanted in (
        (plain, 10, 10),
        (plain, 3000, 1000),
        (plain, 40_000, 10_000),
        (masked, 10_000, 1000),
        (masked, 160_000, 10_000),
        (plain, 2**40, 2**31),  # kernels divide the number of a thread as a 32-bit integer
    ):
        assert thread_count(kernel, count, 1000) == wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ENDS)
def test_other_kernels_compile(architecture):
    from numba.cuda import compile_ptx, types

    from bench.cupy_text import elementwise_source, program
    from gpudrop.kernels.numba_cuda.launching import advance_kernel, grow_kernel
    from tests.backends import cupy_on_host

    kernels = cupy_on_host.GROW(), cupy_on_host.ADVANCE()
    text = program([(elementwise_source(kernel), kernel.name) for kernel in kernels])
    code = offline.cubin(text, "c++", architecture)
    assert b"kernel_0" in code and b"kernel_1" in code
    maps, counts = types.Array(types.uint8, 3, "C"), types.Array(types.uint64, 1, "C")
    for kernel, arguments in (
        (grow_kernel(), types.void(maps, maps, types.int64, types.int64, counts)),
        (advance_kernel(), types.void(counts, counts)),
    ):
        ptx, _ = compile_ptx(kernel.py_func, arguments, cc=divmod(architecture, 10))
        assert ".local" not in ptx and offline.cubin(ptx, "ptx", architecture)
