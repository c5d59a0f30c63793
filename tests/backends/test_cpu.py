"""The CPU kernels: every code path produces the contract's mask, loops vectorise, and the kernel cache works."""

import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import tracemalloc

import llvmlite.binding
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpudrop
from gpudrop import Stream, operations
from gpudrop.formulas.activations import ACTIVATIONS, Activation
from gpudrop.kernels import cpu, threads
from gpudrop.kernels.cpu import compiling, pages, processors, tiles
from gpudrop.kernels.cpu.map import BLOCK, GROUP
from gpudrop.kernels.spec import Draws
from gpudrop.testing import reference
from tests import ROOT
from tests.family import test_properties
from tests.sampling import few

# Sizes around each unit of the kernels: a group of draws, a block, a slice, and the size from which threads share it.
UNITS = [4, 8, 16, 2 * GROUP, 4 * GROUP, 8 * GROUP, 16 * GROUP, BLOCK, 2 * BLOCK]
UNITS += [threads.SLICE, threads.SHARED]
SIZES = st.sampled_from(UNITS).flatmap(lambda unit: st.integers(unit - 1, unit + 1)) | st.integers(0, 5 * BLOCK)
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
FUSIONS = list(itertools.product([None, "relu", "leaky_relu"], DTYPES, [8, 16, 32]))
SOME_FUSIONS = [fusion for fusion in test_properties.FUSIONS if fusion in FUSIONS]
STREAM = Stream(2**63 + 5, 2**40 + 3)


@given(size=SIZES, bits=st.sampled_from([8, 16, 32]), start=st.integers(0, 2**40))
def test_mask_of_any_size_at_any_offset(size, bits, start):
    want = reference.keep_mask(size, 0.4, STREAM.seed, STREAM.call, bits=bits, start=start)
    np.testing.assert_array_equal(gpudrop.keep_mask(size, 0.4, STREAM, bits=bits, start=start), want)


@pytest.mark.parametrize(("activation", "dtype", "bits"), few(FUSIONS, *SOME_FUSIONS))
@settings(max_examples=settings.default.max_examples // 3)
@given(size=SIZES, place=st.sampled_from(["a new array", "out", "in place", "strided"]))
def test_forward_and_backward_of_any_size_into_any_target(size, bits, dtype, activation, place):
    """At p = 0.5 powers of two are scaled exactly, so the expected values are exact too."""
    x, dy = (2.0 ** (np.arange(size) % 7)).astype(dtype), (-(2.0 ** (np.arange(size) % 5))).astype(dtype)
    mask = reference.keep_mask(size, 0.5, STREAM.seed, STREAM.call, bits=bits)
    want_y, want_dx = np.where(mask, x * dtype(2), dtype(0)), np.where(mask, dy * dtype(2), dtype(0))

    def target(array):
        return {"out": np.full_like(array, 9), "in place": array}.get(place)

    if place == "strided":
        x, dy = (np.repeat(array, 2)[::2] for array in (x, dy))
    options = {"activation": activation, "rng": STREAM, "bits": bits}
    _, backprop = gpudrop.dropout_vjp(x, 0.5, **options)
    np.testing.assert_array_equal(backprop(dy, out=target(dy)), want_dx)
    np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, out=target(x), **options), want_y)


MEMORY = {
    "Fortran order": lambda a: np.asfortranarray(a),
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every other column": lambda a: every_other_column(a),
    "every third row, backwards": lambda a: np.repeat(a, 3, axis=0)[::-1][::3][::-1],
    "a part of its rows": lambda a: np.concatenate([a, a], axis=-1)[..., : a.shape[-1]],
    "columns backwards": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "misaligned": lambda a: misaligned(a),
    "the last axis first": lambda a: np.ascontiguousarray(np.moveaxis(a, -1, 0)).transpose(*range(1, a.ndim), 0),
    "a middle axis last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, a.ndim // 2, -1)), -1, a.ndim // 2),
}
"""Copies of an array that lie differently in memory."""
SHAPES = [(300, 520), (3, 70, 64), (5, 3, 40, 30), (40, 2, 3), (1, 5000), (5000, 1), (0, 3), (17,), (2, 1, 1000)]


def every_other_column(array):
    memory = np.full((*array.shape[:-1], 2 * array.shape[-1]), 9, array.dtype)
    memory[..., ::2] = array
    return memory[..., ::2]


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


@pytest.mark.parametrize("dtype", few(DTYPES, np.float16))
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_and_values_do_not_depend_on_the_memory_layout(shape, memory, dtype, monkeypatch):
    monkeypatch.setattr(tiles, "SMALL", 0)
    x = (2.0 ** (np.arange(np.prod(shape)) % 7)).astype(dtype).reshape(shape)
    x[..., ::3] *= -1
    want = np.where(reference.keep_mask(shape, 0.5, STREAM.seed, STREAM.call), x * dtype(2), dtype(0))
    placed = MEMORY[memory](x)
    y, backprop = gpudrop.dropout_vjp(placed, 0.5, activation="relu", rng=STREAM)
    np.testing.assert_array_equal(y, np.maximum(want, dtype(0)))
    np.testing.assert_array_equal(backprop(MEMORY[memory](x)), np.where(want > 0, want, dtype(0)))
    for out in (np.full(shape, 9, dtype), MEMORY[memory](np.full(shape, 9, dtype))):  # to other memory than x's
        np.testing.assert_array_equal(gpudrop.dropout(placed, 0.5, rng=STREAM, out=out), want)
    np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, rng=STREAM, out=out), want)
    gpudrop.dropout(placed, 0.5, rng=STREAM, out=placed)
    np.testing.assert_array_equal(placed, want)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1], ids=str)
def test_other_masks_do_not_depend_on_the_memory_layout(shape, memory, monkeypatch):
    """The mask of a shard, a mask that is broadcast, one of real numbers, and kernels with two operands."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    placed, shard = MEMORY[memory](x), gpudrop.Shard(tuple(n + 3 for n in shape), (2,) * len(shape))
    columns = gpudrop.Shard((*shape[:-1], shape[-1] + 3), (0,) * (len(shape) - 1) + (2,))  # one window
    for function, options in [
        (gpudrop.dropout, {"shard": shard}),
        (gpudrop.dropout, {"shard": columns}),
        (gpudrop.dropout, {"mask_shape": (1, *(None,) * (len(shape) - 1))}),
        (gpudrop.dropout, {"mask_shape": (None,) * (len(shape) - 1) + (1,), "shard": shard}),
        (gpudrop.gaussian_dropout, {"bits": 32}),
    ]:
        want = function(x, 0.4, rng=STREAM, **options)
        for small in (2**30, 0):
            monkeypatch.setattr(tiles, "SMALL", small)
            np.testing.assert_array_equal(function(placed, 0.4, rng=STREAM, **options), want, err_msg=str(options))
    want, backprop = gpudrop.zoneout.vjp(x, x * 2, 0.4, rng=STREAM)
    y, backprop_placed = gpudrop.zoneout.vjp(placed, x * 2, 0.4, rng=STREAM)
    np.testing.assert_array_equal(y, want)
    for got, exact in zip(backprop_placed(placed), backprop(x), strict=True):
        np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize(
    ("shape", "memory", "rectangles"),
    [
        ((300, 300), "Fortran order", True),
        ((300, 300), "a part of its rows", True),
        ((100, 100), "Fortran order", False),
        ((3, 20000), "Fortran order", False),
        ((20000, 3), "Fortran order", False),
        ((20000, 3), "a part of its rows", False),
        ((3, 20000), "a part of its rows", True),
    ],
)
def test_small_and_narrow_arrays_are_computed_in_ranges(shape, memory, rectangles, monkeypatch):
    """Each row of a rectangle takes time. With three columns, ranges are ten times as fast."""
    found = []
    monkeypatch.setattr(cpu, "entry", lambda kernel, rows=False: found.append(rows) or compiling.entry(kernel, rows))
    gpudrop.dropout(MEMORY[memory](np.ones(shape, np.float32)), 0.5, rng=STREAM)
    assert any(found) == rectangles


@pytest.mark.parametrize("repeated", [(300, 1), (1, 500), (1, 1)])
def test_inputs_that_repeat_their_elements(repeated):
    x = np.random.default_rng(0).standard_normal(repeated).astype(np.float32)
    y = gpudrop.dropout(np.broadcast_to(x, (300, 500)), 0.5, rng=STREAM)
    want = np.where(reference.keep_mask((300, 500), 0.5, STREAM.seed, STREAM.call), 2 * x, np.float32(0))
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("memory", ["Fortran order", "every other column", "a middle axis last"])
def test_arrays_that_are_not_contiguous_are_not_copied_as_a_whole(memory):
    x = MEMORY[memory](np.ones((64, 512, 256), np.float32))
    y = gpudrop.dropout(x, 0.5, rng=STREAM)
    tracemalloc.start()
    try:
        gpudrop.dropout(x, 0.5, rng=STREAM, out=y)
        assert tracemalloc.get_traced_memory()[1] < 0.2 * y.nbytes
    finally:
        tracemalloc.stop()


@pytest.fixture
def streamed(monkeypatch):
    """All results are written past the caches; the list has one entry per launch."""
    launches = []
    monkeypatch.setattr(cpu, "SHAPE", cpu.SHAPE._replace(streamed=1))
    monkeypatch.setattr(cpu, "_worth_streaming", lambda sources, targets: launches.append(1) or True)
    return launches


@pytest.mark.parametrize("dtype", few(DTYPES, np.float32, np.float16))
@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("size", [3 * BLOCK + 77, BLOCK, 70, 17, 3])
def test_results_written_past_the_caches_are_the_same(streamed, dtype, offset, size):
    """They begin and end anywhere in a cache line, and nothing beside them is written."""
    x = (2.0 ** (np.arange(size) % 7)).astype(dtype)
    want = np.where(reference.keep_mask(x.size, 0.5, STREAM.seed, STREAM.call), x * dtype(2), dtype(0))
    memory = np.full(x.size + 40, 9, dtype)
    gpudrop.dropout(x, 0.5, rng=STREAM, out=memory[offset : offset + x.size])
    assert streamed
    np.testing.assert_array_equal(memory[offset : offset + x.size], want)
    np.testing.assert_array_equal(np.delete(memory, np.s_[offset : offset + x.size]), dtype(9))
    dx, dprevious = gpudrop.zoneout.vjp(x, x, 0.5, rng=STREAM)[1](x)  # two results
    kept = want != 0
    np.testing.assert_array_equal(dx, np.where(kept, x, dtype(0)))
    np.testing.assert_array_equal(dprevious, np.where(kept, dtype(0), x))
    assert len(streamed) == 3


@pytest.mark.parametrize(
    ("shape", "memory", "past"),
    [
        ((300, 300), "a part of its rows", True),
        ((300, 300), "Fortran order", True),
        ((300, 300), "every other column", False),
        ((30000, 3), "a part of its rows", False),
    ],
)
def test_buffers_are_not_written_past_the_caches(streamed, shape, memory, past, monkeypatch):
    """They are read again at once. Results that are copied from buffers would take twice as long."""
    found = []

    def entry(kernel, rows=False):
        compiled, number = compiling.entry(kernel, rows), 12 if rows else 11
        return lambda *arguments: found.append(arguments[number]) or compiled(*arguments)

    monkeypatch.setattr(cpu, "entry", entry)
    out = MEMORY[memory](np.ones(shape, np.float32))
    gpudrop.dropout(np.ones(shape, np.float32), 0.5, rng=STREAM, out=out)
    assert streamed and set(found) == {past}


def test_only_results_in_memory_of_their_own_are_written_past_the_caches():
    x, new = np.ones(2**22, np.float32), np.empty(2**25, np.float32)
    y = x.copy()
    assert cpu._worth_streaming([x], [y]) == pages.exist(y)
    assert not cpu._worth_streaming([x], [x])
    assert not cpu._worth_streaming([x], [new])


@pytest.mark.parametrize("offset", [0, 3])
def test_wide_rows_of_a_part_are_written_past_the_caches(streamed, offset):
    """Each row takes several blocks, and rows begin anywhere in a cache line."""
    x = np.random.default_rng(0).standard_normal((50, 4001)).astype(np.float32)
    memory = np.full((50, 4040), 9, np.float32)
    gpudrop.dropout(x, 0.5, rng=STREAM, out=memory[:, offset : offset + 4001])
    assert streamed
    mask = reference.keep_mask(x.shape, 0.5, STREAM.seed, STREAM.call)
    np.testing.assert_array_equal(memory[:, offset : offset + 4001], np.where(mask, 2 * x, np.float32(0)))
    assert (np.delete(memory, np.s_[offset : offset + 4001], axis=1) == 9).all()


@pytest.mark.parametrize("first", [0, 5])
def test_short_rows_of_a_window_are_written_past_the_caches(streamed, first):
    """Many blocks then end in one cache line, and blocks begin inside a chunk of the mask."""
    x = np.ones((3000, 7), np.float32)
    y = gpudrop.dropout(x, 0.5, rng=STREAM, shard=gpudrop.Shard((3000, 20), (0, first)))
    assert streamed
    mask = reference.keep_mask((3000, 20), 0.5, STREAM.seed, STREAM.call)[:, first : first + 7]
    np.testing.assert_array_equal(y, np.where(mask, np.float32(2), np.float32(0)))


FENCED = """
import sys
import numpy as np
import gpudrop
from gpudrop.kernels import cpu
from gpudrop.kernels.cpu import tiles
from tests.fences import fenced

streamed, small = map(int, sys.argv[1:])
cpu.SHAPE, tiles.SMALL = cpu.SHAPE._replace(streamed=streamed), small
cpu._worth_streaming = lambda sources, targets: True
stream = gpudrop.Stream(7, 3)
for last in (True, False):
    for dtype in (np.float32, np.float16, np.float64):
        for shape in ((1,), (7,), (63,), (1025,), (5000,), (70, 130), (33, 255), (200, 97)):
            x, y, dx = (fenced(shape, dtype, last) for _ in range(3))
            out, back = gpudrop.dropout.vjp(x, 0.5, activation="relu", rng=stream, out=y)
            back(x, out=dx)
            gpudrop.dropout(x, 0.5, rng=stream, out=x, bits=8)
            gpudrop.zoneout.vjp(x, y, 0.5, rng=stream)[1](dx)
            if len(shape) == 2:
                gpudrop.dropout(x, 0.5, rng=stream, out=y, mask_shape=(None, 1))
                gpudrop.dropout(x, 0.5, rng=stream, out=y, shard=gpudrop.Shard((None, 300), (0, 5)))
                for view in (lambda a: a.T, lambda a: a[:, ::2], lambda a: a[:, 1::2], lambda a: a[:, ::-1]):
                    gpudrop.dropout(view(x), 0.5, rng=stream, out=view(y))
                    gpudrop.dropout(view(x), 0.5, rng=stream)
                wide = fenced(shape[::-1], dtype, last)
                gpudrop.dropout(x.T, 0.5, rng=stream, out=wide)
print("inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages with mprotect")
@pytest.mark.parametrize("small", [0, 2**30], ids=["tiles", "ranges"])
@pytest.mark.parametrize("streamed", [0, 1])
def test_kernels_stay_inside_their_arrays(streamed, small):
    """Arrays begin or end at a page that can't be read. A fault ends the process."""
    command = [sys.executable, "-c", FENCED, str(streamed), str(small)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "inside\n", (done.returncode, done.stderr[-2000:])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may not know")
def test_pages_exist_once_they_are_written():
    array = np.empty(2**26, np.uint8)
    assert not pages.exist(array)
    array.fill(1)
    assert pages.exist(array)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize("direction", few(["forward", "backward"], "backward"))
@pytest.mark.parametrize("name", few(ACTIVATIONS, "gelu"))
def test_loops_vectorise(name, direction):
    """A scalar loop is correct but ten times slower. It appears if LLVM doesn't inline, or unrolls too early."""
    kernel = getattr(operations, direction)(ACTIVATIONS[name], "float32", Draws(16))
    function, signature = compiling.specialised(kernel)
    dispatcher = cpu.jit(signature)(function)
    (assembly,) = dispatcher.inspect_asm().values()
    packed = len(re.findall(r"\bv?(?:mulps|fn?m(?:add|sub)\d*ps)\b", assembly))
    assert packed > 0
    # A round has 2 products. A group of chunks has several registers, and LLVM or the Shape may unroll the rounds.
    assert not kernel.bits or len(re.findall(r"\bv?pmuludq\b", assembly)) >= 8
    assert not re.search(r"\b(?:expf?|expm1f?|log1pf?|tanhf?|erff?)\b", assembly), "calls the C library"


CROSS_COMPILED = """
import re, sys, llvmlite.binding as llvm
from numba.core.codegen import CPUCodeLibrary
from gpudrop import operations
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels.cpu import compiling, pages, processors
from gpudrop.kernels.cpu.map import BLOCK, GROUP
from gpudrop.kernels.spec import Draws

unoptimised = []
CPUCodeLibrary._optimize_functions = lambda library, module: None
CPUCodeLibrary._optimize_final_module = lambda library: unoptimised.append(str(library._final_module))
function, signature = compiling.specialised(operations.forward(ACTIVATIONS["gelu"], "float32", Draws(16)))
compiling.jit(signature)(function)
module = llvm.parse_assembly(unoptimised[-1])
llvm.initialize_all_targets(), llvm.initialize_all_asmprinters()
triple, processor, *patterns = sys.argv[1:]
machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3)
module.triple, module.data_layout = triple, str(machine.target_data)
options = llvm.create_pipeline_tuning_options(speed_level=3)
options.loop_vectorization = True
passes = llvm.create_pass_builder(machine, options)
passes.getModulePassManager().run(module, passes)
assembly = machine.emit_assembly(module)
print(*(len(re.findall(pattern, assembly)) for pattern in patterns))
"""
CALLS = r"\b(?:erff?|expf?)\b"
ARM = r"\bumull2?(?:\.2d|\s+v)", r"\bfmla(?:\.4s|\s+[vz]\d+\.4?s)", r"\b(?:umull|umulh)\s+[xw]", CALLS
X86 = r"\bvpmuludq\s+[^\n]*%ymm", r"\bvf\w*ps\s+[^\n]*%ymm", r"\bmulq\b", CALLS
TARGETS = [
    ("neon", "aarch64-unknown-linux-gnu", "neoverse-v2", ARM),
    ("neon", "aarch64-apple-darwin", "apple-m1", ARM),
    ("avx2", "x86_64-unknown-linux-gnu", "haswell", X86),
]


@pytest.mark.parametrize(("shape", "triple", "processor", "patterns"), TARGETS, ids=[target[2] for target in TARGETS])
def test_loops_vectorise_on_other_processors(shape, triple, processor, patterns):
    """The code is compiled for the processor and not run."""
    if processor == "neoverse-v2" and llvmlite.binding.llvm_version_info < (16,):
        pytest.skip("this version of LLVM does not know the processor")
    environment = os.environ | {processors.VARIABLE: shape}
    command = [sys.executable, "-c", CROSS_COMPILED, triple, processor, *patterns]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert not done.returncode, done.stderr
    products, fused, scalar, calls = map(int, done.stdout.split())
    assert products >= 16 and fused >= 5
    assert scalar <= 2 and calls == 0


@pytest.mark.parametrize("shape", few(processors.SHAPES, "avx512", "avx2", "neon"))
def test_every_shape_of_the_loops_draws_the_same_mask(shape):
    """The tests of masks and values above, in a process that uses another shape."""
    if shape == processors.NAME:
        pytest.skip("the tests in this process use it")
    selection = "(of_any_size and (mask or float32 or bfloat16)) or (values_do_not and 300 and Fortran)"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-k", selection, __file__],
        capture_output=True, text=True, env=os.environ | {processors.VARIABLE: shape}, timeout=600,
    )  # fmt: skip
    assert re.search(r"\b\d+ passed", done.stdout) and not done.returncode, done.stdout


def test_an_unknown_shape_is_reported():
    code = "import numpy, gpudrop; gpudrop.dropout(numpy.ones(8))"
    environment = os.environ | {processors.VARIABLE: "avx1024"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "RuntimeError: backend 'cpu' is not available: GPUDROP_CPU_SHAPE must be one of avx512, " in done.stderr


@pytest.mark.parametrize(
    ("triple", "processor", "features", "name"),
    [
        ("x86_64-unknown-linux-gnu", "znver5", "+avx512f,+avx2", "zen4"),
        ("x86_64-unknown-linux-gnu", "znver3", "-avx512f,+avx2", "zen"),
        ("x86_64-unknown-linux-gnu", "sapphirerapids", "+avx2,+avx512f", "avx512"),
        ("x86_64-pc-windows-msvc", "alderlake", "+avx2", "avx2"),
        ("x86_64-unknown-linux-gnu", "generic", "", "avx2"),
        ("arm64-apple-darwin", "apple-m1", "+neon", "neon"),
    ],
)
def test_the_processor_selects_the_shape(triple, processor, features, name):
    assert processors.name_for(triple, processor, features) == name


UNCACHED = """
import numpy as np, gpudrop
from numba.core import caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, function, path: None)
assert gpudrop.dropout(np.ones(8, np.float32), 0).sum() == 8
print("ok")
"""


@pytest.mark.slow
def test_without_a_folder_for_the_cache():
    done = subprocess.run([sys.executable, "-c", UNCACHED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize("dtype", few(DTYPES, np.float32))
def test_tanh_keeps_the_sign_of_zero(dtype):
    y = gpudrop.dropout(np.array([0.0, -0.0] * 20, dtype), 0, activation="tanh")
    np.testing.assert_array_equal(np.signbit(y.astype(np.float64)), [False, True] * 20)


def test_a_disabled_compiler_is_reported():
    code = "import numpy, gpudrop; gpudrop.dropout(numpy.ones(8))"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "RuntimeError: backend 'cpu' is not available: NUMBA_DISABLE_JIT is set" in done.stderr


HALVES = """
import numpy as np, gpudrop
halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
y = gpudrop.dropout(halves, 0)
same = (y.view(np.uint16) == halves.view(np.uint16)) | (np.isnan(y) & np.isnan(halves))
assert same.all(), halves[~same]
# Products with a scale of 4 / 3 round to nearest even, into subnormals and into inf.
y = gpudrop.dropout(halves, 0.25, rng=gpudrop.Stream(0, 0))
kept = gpudrop.keep_mask(2**16, 0.25, gpudrop.Stream(0, 0))
with np.errstate(all="ignore"):
    want = np.where(kept, halves.astype(np.float32) * np.float32(4 / 3), np.float32(0)).astype(np.float16)
same = (y.view(np.uint16) == want.view(np.uint16)) | (np.isnan(y) & np.isnan(want))
assert same.all(), halves[~same]
print("ok")
"""


@pytest.mark.parametrize("cpu", few(["host", "generic"], "generic"))
def test_float16_on_a_processor_with_and_without_instructions_for_it(cpu):
    environment = os.environ | ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""} if cpu == "generic" else {})
    done = subprocess.run([sys.executable, "-c", HALVES], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "ok\n", done.stderr


CACHED = """
import sys, numpy as np, numba.core.event, gpudrop
sys.path.insert(0, sys.argv[2])
if sys.argv[1] == "edited":
    from edited import value, slope
    gpudrop.register_activation("edited", value, slope)
with numba.core.event.install_recorder("numba:compile") as compiled:
    y = gpudrop.dropout(np.linspace(-2, 2, 9, dtype=np.float32), 0, activation=sys.argv[1])
print(len(compiled.buffer), *y)
"""


def run_at_once(names, cache):
    """Start one process per activation, all at once. Return each one's number of compilations, and its values."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    commands = [[sys.executable, "-c", CACHED, name, str(cache)] for name in names]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for command in commands]
    lines = [process.communicate()[0].split() for process in processes]
    return [int(compiled) for compiled, *_ in lines], [[float(y) for y in line[1:]] for line in lines]


@pytest.mark.slow
def test_processes_that_start_at_once_share_a_cache_and_later_ones_compile_nothing(tmp_path):
    names = ["relu", "silu", "relu", "silu"]
    compiled, _ = run_at_once(names, tmp_path)
    assert max(compiled) > 0
    files = sorted(tmp_path.rglob("*.nb?"))
    compiled, values = run_at_once(names, tmp_path)
    assert compiled == [0] * len(names)
    assert sorted(tmp_path.rglob("*.nb?")) == files
    # Numba doesn't lock its files, so no two kernels may share one.
    assert sum(file.suffix == ".nbi" for file in files) == len(set(names))
    x = np.linspace(-2, 2, 9, dtype=np.float32).astype(np.float64)
    for name, y in zip(names, values, strict=True):
        np.testing.assert_allclose(y, reference.ACTIVATIONS[name][0](x), rtol=1e-6)


COMPUTED = """
import hashlib, numpy as np, gpudrop
x, other = np.random.default_rng(0).normal(size=(2, 37, 53)).astype(np.float32)
y = gpudrop.zoneout(x, other, 0.3, activation="relu", training=False)
print(hashlib.sha256(y.tobytes()).hexdigest())
"""


def test_the_compiling_process_and_later_ones_compute_equal_results(tmp_path):
    """Bit for bit. The compiler decides whether to fuse products with sums, and it must decide once."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPUTED]
    first, second = (subprocess.run(command, capture_output=True, text=True, env=environment) for _ in range(2))
    assert len(first.stdout) == 65 and first.stdout == second.stdout, first.stderr + second.stderr


def test_results_do_not_depend_on_the_address():
    """Bit for bit, although LLVM fuses products and sums differently in the last elements of a block."""
    x, other = np.random.default_rng(0).normal(size=(2, 1961)).astype(np.float32)
    found = set()
    for offset in range(20):
        out = np.empty(2000, np.float32)[offset : offset + x.size]
        gpudrop.zoneout(x, other, 0.3, activation="relu", training=False, out=out)
        found.add(out.tobytes())
    assert len(found) == 1


def test_a_window_is_computed_by_the_kernel_of_whole_arrays():
    plain = operations.forward(ACTIVATIONS["relu"], "float32", Draws(16))
    window = operations.forward(ACTIVATIONS["relu"], "float32", Draws(16, window=True))
    assert cpu.entry(plain) is cpu.entry(window)


@pytest.mark.parametrize("options", [{"p": 0.3}, {"p": 0}, {"p": 0.3, "training": False}], ids=str)
def test_weights_for_many_samples_are_not_copied_for_each(options):
    weights = np.ones(2**18, np.float32)
    gpudrop.drop_connect(weights, **options, samples=2)
    tracemalloc.start()
    try:
        y = gpudrop.drop_connect(weights, **options, samples=8)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * y.nbytes
    finally:
        tracemalloc.stop()


def test_kernels_are_identified_by_their_formula_not_its_name():
    """Numba's cache identifies a kernel by its name."""

    def named(value):
        function, _ = compiling.specialised(operations.forward(Activation("same", value, value), "float32", Draws(16)))
        return function.__qualname__

    def double(x):
        return x + x

    def square(x):
        return x * x

    assert named(double) == named(double) != named(square)


@pytest.mark.slow
def test_an_edited_formula_is_never_taken_from_the_cache(tmp_path):
    """The same holds if only a helper of the formula was edited, in a file of the same size and time."""
    x = np.linspace(-2, 2, 9)
    for factor in (3, 5, 3):
        source = tmp_path / "edited.py"
        source.write_text(
            f"def helper(x):\n    return x * {factor}\n\n\n"
            "def value(x):\n    return helper(x)\n\n\ndef slope(x):\n    return helper(1)\n"
        )
        os.utime(source, (1_000_000, 1_000_000))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # Python's bytecode cache compares size and time
        _, values = run_at_once(["edited"], tmp_path)
        np.testing.assert_array_equal(values[0], factor * x)


@pytest.mark.slow
def test_with_a_damaged_cache_kernels_are_compiled_again(tmp_path):
    run_at_once(["relu"], tmp_path)
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(b"")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CACHED, "relu", str(tmp_path)],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split()[-1] == "2.0"
        assert "RuntimeWarning: Numba's cache can't be used" in done.stderr


WARMUP = [sys.executable, "-m", "gpudrop", "warmup"]


@pytest.mark.slow
def test_warmup_leaves_nothing_to_compile(tmp_path):
    command = [*WARMUP, "silu", "relu", "--dtype", "bfloat16", "--dtype", "float32"]
    subprocess.run(command, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, check=True, capture_output=True)
    compiled, _ = run_at_once(["silu", "relu"], tmp_path)
    assert compiled == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "message"), [("gelo", "unknown activation 'gelo'"), ("--dtype=int8", "int8")])
def test_warmup_rejects_unknown_names(argument, message):
    done = subprocess.run([*WARMUP, argument], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("gpudrop warmup: ")
