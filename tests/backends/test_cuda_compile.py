"""The kernels of both CUDA backends compiled without a GPU: of every skeleton, and under --full all that there are."""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from gpudrop import reference
from gpudrop.formulas import noises
from gpudrop.formulas.activations import ACTIVATIONS, find_activation
from gpudrop.fusion import Fusion
from gpudrop.kernels import thread_count

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
IDENTITY, DRAWN = ACTIVATIONS["identity"], noises.DRAWN

# What sets kernels apart beside their formula: (fusion, form) of a direction, an activation and a dtype.
SKELETONS = {
    "plain": lambda *of: (Fusion(*of[:2], 16, *of[2:]), None),
    "window": lambda *of: (Fusion(*of[:2], 16, *of[2:], window=True), None),
    "stored": lambda *of: (Fusion(*of[:2], 16, *of[2:], stored=True), None),
    "given": lambda *of: (Fusion(*of[:2], 0, *of[2:], given=True), None),
    "counted": lambda *of: (Fusion(*of[:2], 0, *of[2:], given=True, counted=True), None),
    "deviates": lambda *of: (Fusion(*of[:2], 32, *of[2:], noises.GAUSSIAN), None),
    "strided": lambda *of: (Fusion(*of[:2], 16, *of[2:]), (3, True)),
    "mask": lambda *of: (Fusion("mask", IDENTITY, 16, "bool", DRAWN["keep"]), None),
}
PRODUCT = list(itertools.product(SKELETONS, ("forward", "backward"), ("identity", "silu"), ("float16", "float32")))


def kernel(skeleton, direction, activation, dtype):
    return SKELETONS[skeleton](direction, ACTIVATIONS[activation], dtype)


SAMPLE = list({kernel(*row): row for row in map(PRODUCT.__getitem__, covering(PRODUCT))}.values())
"""One smooth and one plain activation, a 16-bit and a 32-bit dtype, each in every skeleton."""


def fusions(dtype):
    """(fusion, form) of every kernel there is for a dtype; other bits and strided ones for two activations."""
    directions = ("forward", "backward")
    keys = [(fusion, None) for fusion in sass.kernels([dtype]) if fusion.bits in (0, 16)]
    some = ACTIVATIONS["identity"], ACTIVATIONS["silu"]
    keys += [(Fusion(d, a, bits, dtype), None) for d in directions for a in some for bits in (0, 8, 32)]
    keys += [(Fusion(d, a, 16, dtype), (3, True)) for d in directions for a in some]
    keys += [(Fusion(d, some[1], 16, dtype, window=True, stored=True), None) for d in directions]
    keys += [(described, None) for described in varied(dtype, some[1])]
    keys += [(Fusion("forward", some[1], 0, dtype, noises.DROPOUT, given=True), (3, False))]
    if dtype == "float32":
        keys += [(Fusion("mask", some[0], bits, "bool", DRAWN["keep"]), None) for bits in (0, 8, 16, 32)]
        keys += [(Fusion("mask", some[0], 0, "bool", DRAWN["keep"], given=True), None)]
        keys += [(Fusion("mask", some[0], 16, "bool", DRAWN["keep"], window=w, stored=not w), None) for w in (0, 1)]
    return keys


def varied(dtype, activation):
    """A fusion of every noise, in both directions, with what is drawn in the kernel and with what is given."""
    rows = {noises.ALPHA: 16, noises.GAUSSIAN: 32, noises.UNIFORM: 16, noises.ADDITIVE: 32, noises.ZONEOUT: 16}
    for noise, bits in rows.items():
        yield Fusion("forward", activation, bits, dtype, noise)
        yield Fusion("forward", activation, 0, dtype, noise, given=True)
        drawn = (noise.gradient or noise).drawn
        yield Fusion("backward", activation, bits if drawn else 0, dtype, noise)
        yield Fusion("backward", activation, 0, dtype, noise, given=drawn is not None)
    for direction in ("forward", "backward"):
        yield Fusion(direction, activation, 0, dtype, noises.EXPECTED_ZONEOUT)
        yield Fusion(direction, activation, 0, dtype, noises.DROPOUT, given=True)
        yield Fusion(direction, activation, 0, dtype, noises.DROPOUT, given=True, counted=True)
    if dtype.startswith("float") and dtype != "float16":
        yield Fusion("mask", find_activation(None), 32, dtype, DRAWN["normal"])


STORED = json.loads((Path(offline.__file__).parent / "results/sass-sm_90.json").read_text())
FIGURES = {(row["backend"], row["dtype"], row["kernel"]): row for row in STORED["cases"]}
MARGIN = 1.03
"""How many times the stored instructions of an element a kernel may have."""


def check_figures(backend, fusion, figures):
    """That the machine code of sm_90 keeps the rules, and is no fatter than what is stored, if that is known."""
    name = f"{backend} {fusion.dtype} {fusion.name}"
    stored = FIGURES.get((backend, fusion.dtype, fusion.name))
    assert sass.faults(fusion, figures) == (stored["faults"] if stored else []), name
    if stored:
        assert not sass.over_the_bar(sass.row(backend, fusion, figures, sass.GPUS["gpus"]["H100"])), name
        if STORED["versions"]["nvidia-cuda-nvrtc"] == importlib.metadata.version("nvidia-cuda-nvrtc"):
            assert figures.instructions <= MARGIN * stored["instructions"], name


def test_the_stored_figures_are_of_every_kernel_and_hold_the_bars():
    kernels = [f for f in sass.kernels() if f.activation.name in reference.ACTIVATIONS]  # other tests add some
    expected = {(backend, f.dtype, f.name) for backend in sass.BACKENDS for f in kernels}
    assert set(FIGURES) == expected and len(STORED["cases"]) == len(expected)
    assert [row["kernel"] for row in STORED["cases"] if sass.over_the_bar(row)] == []
    smooth = {"gelu", "gelu_tanh", "silu"}
    for row in STORED["cases"]:
        if row["dtype"] == "float32" and row["activation"] in smooth:
            assert row["predicted_share"] == 1, row["kernel"]


def test_a_fat_kernel_and_a_broken_rule_are_seen():
    fusion = Fusion("forward", ACTIVATIONS["relu"], 16, "float16")
    (good,) = sass.measure("cupy_elementwise", [fusion], 90)
    check_figures("cupy_elementwise", fusion, good)
    for changed in ({"instructions": 1.05 * good.instructions}, {"stack": 8}, {"local": 1}, {"divisions": 1}):
        with pytest.raises(AssertionError, match="cupy_elementwise float16 gpudrop_relu_forward_16"):
            check_figures("cupy_elementwise", fusion, dataclasses.replace(good, **changed))
    with pytest.raises(AssertionError, match="relu"):
        check_figures("cupy_elementwise", fusion, dataclasses.replace(good, loads={32: 8}))


@pytest.mark.parametrize("architecture", [75, 120])
def test_cupy_kernels_of_every_skeleton_compile(architecture):
    keys = [kernel(*row) for row in SAMPLE]
    code = offline.cubin(offline.cupy_source(keys), "c++", architecture)
    assert [i for i in range(len(keys)) if f"kernel_{i}\0".encode() not in code] == []


def test_cupy_machine_code_of_every_skeleton():
    fusions = [fusion for fusion, form in (kernel(*row) for row in SAMPLE) if form is None]
    for fusion, figures in zip(fusions, sass.measure("cupy_elementwise", fusions, 90), strict=True):
        check_figures("cupy_elementwise", fusion, figures)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", SAMPLE, ids=" ".join)
def test_a_numba_kernel_of_every_skeleton_compiles(row):
    check_numba(*kernel(*row), (75, 90, 120))


def check_numba(fusion, form, architectures):
    texts = offline.numba_ptx((fusion, form), architectures)
    codes = {architecture: offline.cubin(text, "ptx", architecture) for architecture, text in texts.items()}
    check_ptx(fusion, form, texts[90])
    if form is None:
        check_figures("numba_cuda", fusion, sass.figures_of(codes[90], texts[90], fusion))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_machine_code(dtype):
    """Of every kernel there is a figure of, and of those with more operands."""
    keys = {*sass.kernels([dtype]), *(fusion for fusion, form in fusions(dtype) if form is None)}
    for fusion, figures in zip(keys, sass.measure("cupy_elementwise", list(keys), 90), strict=True):
        check_figures("cupy_elementwise", fusion, figures)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_kernels_compile(dtype, architecture):
    keys = fusions(dtype)
    code = offline.cubin(offline.cupy_source(keys), "c++", architecture)
    assert [i for i in range(len(keys)) if f"kernel_{i}\0".encode() not in code] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("direction", ["forward", "backward", "mask"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numba_kernels_compile(dtype, direction):
    for fusion, form in fusions(dtype):
        if fusion.direction == direction:
            check_numba(fusion, form, ARCHITECTURES)


# One access of 16 or of 8 bytes, by whatever types.
VECTOR = {16: r"(v4\.[buf]32|v2\.[buf]64)", 8: r"v2\.[buf]32"}


def check_ptx(fusion, form, ptx):
    name = f"{fusion.name} {fusion.dtype} {form}"
    assert ".local" not in ptx, f"{name} uses local memory"
    assert fusion.real == "float64" or ".f64" not in ptx, f"{name} computes in float64"
    size = fusion.chunk * np.dtype(fusion.storage).itemsize
    width = min(16, size)
    if form is None and width in VECTOR:
        loads, stores = (len(re.findall(rf"{op}\.global\S*\.{VECTOR[width]}", ptx)) for op in ("ld", "st"))
        rounds = stores // (size // width)  # a compiler may do several in one
        expected = (rounds * fusion.reads * size // width, rounds * size // width)
        assert rounds >= 1 and (loads, stores) == expected, f"{name}: {loads} loads, {stores} stores"


def test_threads_fill_the_device_first_and_then_do_several_chunks_each():
    plain = Fusion("forward", ACTIVATIONS["relu"], 16, "float32")
    given = Fusion("forward", ACTIVATIONS["relu"], 0, "float32", given=True)
    for fusion, chunks, wanted in (
        (plain, 10, 10),
        (plain, 3000, 1000),
        (plain, 40_000, 10_000),
        (given, 10_000, 1000),
        (given, 160_000, 10_000),
    ):
        assert thread_count(fusion, chunks, 1000) == wanted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ENDS)
def test_other_kernels_compile(architecture):
    from numba.cuda import compile_ptx, types

    from bench.cupy_text import elementwise_source, program
    from gpudrop.kernels.numba_cuda.launch import advance_kernel, grow_kernel
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
