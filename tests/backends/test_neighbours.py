"""Kernels with rows, operands of several dtypes and partial sums equal the formulas in float64, on every backend."""

import math
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from gpudrop import arrays, backends, operations
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.formulas.noises import ADD, DROPOUT, GAUSSIAN, SUM, UNIFORM, Noise
from gpudrop.kernels.spec import Draw, Draws, Mask, Reads
from gpudrop.operations import Neighbours
from gpudrop.testing import reference
from tests.conftest import SIMULATED

SEED, CALL, P = 2**63 + 5, 2**40 + 3, 0.4
DTYPES = {"bfloat16": ml_dtypes.bfloat16} | {name: np.dtype(name) for name in ("float16", "float32", "float64")}


def epsilon(dtype):
    return float(ml_dtypes.finfo(DTYPES[dtype]).eps)


class Case(NamedTuple):
    """A kernel of `gpudrop.operations`."""

    dtype: str
    neighbours: Neighbours
    activation: str = "identity"
    source: Any = Draws(16)
    noise: Noise = ADD
    bits: bool = False
    gradients: tuple = ()

    @property
    def bits_alone(self):
        """Whether the saved bits also say which elements were dropped."""
        return self.bits and self.activation == "relu"

    @property
    def kernel(self):
        activation, direction = ACTIVATIONS[self.activation], "backward" if self.gradients else "forward"
        more = {"gradients": self.gradients} if self.gradients else {}
        return getattr(operations, direction)(
            activation, self.dtype, self.source, self.noise, bits=self.bits, neighbours=self.neighbours, **more
        )

    def __str__(self):
        return f"{self.dtype} {self.kernel.name}"


FORWARD = [
    Case("float32", Neighbours("float32"), "relu"),
    Case("float32", Neighbours("float32", "gain", "float32"), source=Draws(8)),
    Case("float64", Neighbours("float32", "gain", "float64"), "silu", Draws(32)),
    Case("float16", Neighbours("float16"), "silu", noise=DROPOUT),
    Case("bfloat16", Neighbours("float32", "gain", "bfloat16"), "relu"),
    Case("bfloat16", Neighbours("bfloat16", wide="float32"), source=Draws(8)),
    Case("bfloat16", Neighbours("float16", "value", "bfloat16", "float32"), "silu", Draws(32)),
    Case("float16", Neighbours("float64", "gain", "float32"), source=Draws(16, stored=True)),
    Case("float32", Neighbours("bfloat16", "gain", "float64"), "relu"),
    Case("float32", Neighbours("float64", wide="float64")),
    Case("float16", Neighbours(wide="float32"), "relu", Draws(16, stored=True)),
    Case("float32", Neighbours("", "value", "float32"), "silu", noise=DROPOUT),
    Case("float32", Neighbours("float32", "gain", "float32"), "silu", None, SUM),
    Case("float32", Neighbours("float32", "gain", "float32"), "relu", Reads()),
    Case("bfloat16", Neighbours("float32", wide="float32"), "relu", Reads()),
    Case("float64", Neighbours("float64"), source=Reads(counted=True)),
    Case("float32", Neighbours("float32"), "relu", bits=True),
    Case("bfloat16", Neighbours("bfloat16", wide="float32"), "relu", Draws(8), bits=True),
    Case("float16", Neighbours("float32"), "leaky_relu", noise=DROPOUT, bits=True),
]
BACKWARD = [
    Case("float32", Neighbours("float32"), "silu", gradients=("dx",)),
    Case("bfloat16", Neighbours("bfloat16", wide="float32"), "relu", gradients=("dx",)),
    Case("float16", Neighbours("", "value", "float16"), "silu", gradients=("dx", "dvalue")),
    Case("bfloat16", Neighbours("float32", "value", "bfloat16", "float32"), "silu", gradients=("dx", "dvalue")),
    Case("float32", Neighbours("float32", wide="float64"), "relu", Draws(8), gradients=("dx",)),
    Case("float32", Neighbours("float32"), "relu", bits=True, gradients=("dx",)),
    Case("bfloat16", Neighbours("float32", wide="float32"), "leaky_relu", bits=True, gradients=("dx",)),
]
SUMS = [
    Case("float32", Neighbours("float32"), gradients=("dx", "dbias")),
    Case("float32", Neighbours("float32"), "silu", Draws(8), gradients=("dx", "dbias")),
    Case("float64", Neighbours("float32", "gain", "float64"), "silu", Draws(32), gradients=("dx", "dbias", "dgain")),
    Case("float64", Neighbours("float64"), "relu", Draws(8), gradients=("dx", "dbias")),
    Case("bfloat16", Neighbours("bfloat16", wide="float32"), "relu", gradients=("dx", "dbias")),
    Case("bfloat16", Neighbours("float32", "gain", "bfloat16"), "silu", Draws(8), gradients=("dx", "dbias", "dgain")),
    Case("float16", Neighbours("", "gain", "float16"), source=Draws(16, stored=True), gradients=("dx", "dgain")),
    Case("float16", Neighbours("float16"), "silu", Draws(32), DROPOUT, gradients=("dx", "dbias")),
    Case("float32", Neighbours("float32", "value", "float32"), "silu", gradients=("dx", "dvalue", "dbias")),
    Case("bfloat16", Neighbours("bfloat16"), "relu", bits=True, gradients=("dx", "dbias")),
    Case("float32", Neighbours("float32", wide="float64"), "leaky_relu", bits=True, gradients=("dx", "dbias")),
    Case("float32", Neighbours("float32", "gain", "float32"), "relu", Reads(), gradients=("dx", "dbias", "dgain")),
    Case("float16", Neighbours("float16", wide="float32"), "silu", Reads(), gradients=("dx", "dbias")),
    Case("float32", Neighbours("float32"), "silu", Reads(counted=True), gradients=("dx", "dbias")),
]
WINDOWS = [
    case._replace(source=case.source._replace(window=True))
    for case in (*FORWARD, *BACKWARD, *SUMS)
    if isinstance(case.source, Draws)
]
STRIDED = [case for case in (*FORWARD, *BACKWARD, *SUMS) if case.dtype != "float64" and case.activation != "identity"]


# Layouts: the shape of an array that contains the operand, and the operand as a view of it

LAYOUTS: dict[str, Any] = {
    "contiguous": (lambda shape: shape, lambda array, shape: array),
    "unaligned": (lambda shape: (math.prod(shape) + 1,), lambda array, shape: array[1:].reshape(*shape)),
    "transposed": (lambda shape: shape[::-1], lambda array, shape: array.T),
    "every other": (lambda shape: (shape[0], 2 * shape[1]), lambda array, shape: array[:, ::2]),
}


class Launcher:
    """Launches kernels of a backend. Inputs have known numbers, and outputs contain nan before."""

    def __init__(self, backend):
        self.put, self.get, self.name = backend.put, backend.get, backend.name
        self.module: Any = backends.load({"cupy_text": "cupy_elementwise"}.get(backend.name, backend.name))

    def laid_out(self, layout, values):
        """The values as an array in the backend's memory."""
        outer, view = LAYOUTS[layout]
        array = np.zeros(outer(values.shape), values.dtype)
        view(array, values.shape)[...] = values
        return view(self.put(array), values.shape)

    def launch(self, kernel, inputs, outputs, draw):
        full = next(array for array in (*outputs, *inputs) if not isinstance(array, Mask))
        backends.launch(self.module, arrays.as_operand("x", full), kernel, inputs, outputs, draw)

    def groups(self, rows):
        return -(-rows // self.module.ROWS)

    def grouped(self, values):
        """The sum of each group of rows."""
        values, rows = values.reshape(-1, values.shape[-1]), self.module.ROWS
        return np.stack([values[first : first + rows].sum(axis=0) for first in range(0, len(values), rows)])

    def inputs_of(self, case, shape, layout):
        """({slot: its numbers in float64}, the arrays)."""
        kernel, found, given = case.kernel, {}, []
        dtypes = iter(kernel.dtypes[0])
        for k, slot in enumerate(kernel.inputs):
            rng = np.random.default_rng(k)
            if slot.layout == "bits":
                found["bits"] = rng.integers(0, 2, shape).astype(bool)
                given.append(self.put(np.packbits(found["bits"], axis=None, bitorder="little")))
            elif slot.layout in ("full", "row"):
                whole = slot.layout == "full"
                values = rng.normal(size=shape if whole else shape[-1:]).astype(DTYPES[next(dtypes)])
                given.append(self.laid_out(layout if whole or layout == "unaligned" else "contiguous", values))
                found[slot.name] = values.astype(np.float64)
        return found, given

    def outputs_of(self, case, shape, layout="contiguous"):
        kernel, size, made = case.kernel, math.prod(shape), []
        dtypes = iter(kernel.dtypes[1])
        for slot in kernel.outputs:
            if slot.layout == "bits":
                made.append(self.put(np.full(arrays.bytes_of_bits(size), 255, np.uint8)))
            elif slot.layout == "sums":
                partial_sums = self.groups(size // shape[-1]), shape[-1]
                made.append(self.put(np.full(partial_sums, np.nan, kernel.real)))
            else:
                made.append(self.laid_out(layout, np.full(shape, np.nan, DTYPES[next(dtypes)])))
        return made

    def drawn(self, case, shape, rule, start, row, pitch):
        """(keep, the mask as a list of at most one input, the Draw)."""
        kernel, size, bits = case.kernel, math.prod(shape), case.kernel.bits or 16
        threshold, scale, _ = reference.quantize(P, bits)
        draw = Draw(SEED, CALL, start, threshold - 1, scale, 0.0, row, pitch)
        if case.source is None:
            return np.ones(shape, bool), [], Draw()
        if kernel.masked:
            period, repeat, run = rule or (shape[-1], size // shape[-1], 1)  # all rows share a mask
            of = np.arange(size) // (run * period * repeat) * period + np.arange(size) // run % period
            values = np.random.default_rng(7).random(of.max() + 1) > P
            keep = values[of].reshape(shape)
            mask = Mask(self.put(values), period, repeat, run, self.put(np.array([keep.sum()], np.uint64)))
            return keep, [mask], draw._replace(scale=size / max(1, keep.sum()) if kernel.counted else scale)
        if kernel.stored:
            draw = draw._replace(seed=self.put(np.array([SEED, CALL], np.uint64)))
        row = row or size
        lines = [reference.keep_mask(row, P, SEED, CALL, bits, start + k * pitch) for k in range(size // row)]
        return np.concatenate(lines).reshape(shape), [], draw

    def check(self, case, shape, layout="contiguous", rule=None, start=0, row=0, pitch=0):
        if self.name == "cpu" and isinstance(case.source, Draws):  # only a GPU reads streams that are stored on it
            case = case._replace(source=case.source._replace(stored=False))
        kernel = case.kernel
        found, inputs = self.inputs_of(case, shape, layout)
        outputs = self.outputs_of(case, shape, layout)
        keep, mask, draw = self.drawn(case, shape, rule, start, row, pitch)
        self.launch(kernel, [*inputs, *mask], outputs, draw)
        wanted = expected(case, found, keep, draw.scale)
        for slot, got in zip(kernel.outputs, map(self.get, outputs), strict=True):
            (want, terms), message = wanted[slot.name], f"{slot.name} {shape} {layout} {rule} {start} {row} {pitch}"
            if slot.layout == "bits":
                bits = np.unpackbits(got.view(np.uint8), bitorder="little")
                np.testing.assert_array_equal(bits[: keep.size].reshape(shape) != 0, want, message)
                continue
            got = got if slot.layout != "full" else got.view(DTYPES[kernel.dtypes[1][kernel.outputs.index(slot)]])
            rounding = 8 * epsilon("float64" if kernel.real == "float64" else "float32")
            if slot.layout == "sums":
                assert got.dtype == kernel.real
                want, terms = self.grouped(want), self.grouped(terms)
            elif not case.gradients or slot.name == "dx":  # the mask, to the bit
                dropped = ~keep & (not case.gradients or not case.bits_alone)
                exact = found["residual"] if case.noise is ADD and not case.gradients else np.zeros(shape)
                np.testing.assert_array_equal(got[dropped], exact[dropped].astype(got.dtype), message)
            finfo = ml_dtypes.finfo(got.dtype)
            limit = terms * rounding + abs(want) * float(finfo.eps) + float(finfo.smallest_subnormal)
            assert (abs(got.astype(np.float64) - want) <= limit).all(), message  # false for nan


def expected(case, found, keep, scale):
    """Each output in float64, and a bound of all terms in its computation."""
    value, slope = reference.ACTIVATIONS[case.activation]
    factor, bias = found.get("gain", found.get("value", 1.0)), found.get("bias", 0.0)
    z, size = found.get("x", 0) + bias, abs(found.get("x", 0)) + abs(bias) + 1
    if not case.gradients:
        other = found["residual"] if case.noise in (ADD, SUM) else 0
        y = other + np.where(keep, factor * value(z) * scale, 0)
        ones = (slope(z) == 1) & (keep if case.bits_alone else True)
        return {"y": (y, abs(other) + abs(factor) * size * scale), "bits": (ones, 0)}
    dz = found["dy"] * scale if case.bits_alone else np.where(keep, found["dy"] * scale, 0)
    if "bits" in found:
        inner = np.where(found["bits"], 1, float(slope(np.float64(-1))))
    else:
        inner = slope(z) if "x" in found else 1
    dx = dz * inner * factor, abs(dz * factor) * size
    dfactor = dz * value(z), abs(dz) * size
    return {"dx": dx, "dbias": dx, "dgain": dfactor, "dvalue": dfactor}


# One element, odd widths, widths of whole chunks, several groups of rows. The simulator is slow.
SHAPES = [(1, 1), (9, 33), (2, 136), (2, 3, 24), (70, 7)]
SHAPES += (
    [] if SIMULATED else [(5, 3), (3, 100), (5, 257), (33, 64), (13, 16), (1, 4096), (33, 128), (1100, 1), (600, 2)]
)
RAGGED = [(9, 33)] if SIMULATED else [(9, 33), (20, 64), (1, 300)]
RULES = [(1, 1, 1), (1, 1, 6), (4, 2, 1)]


@pytest.fixture
def on(backend):
    return Launcher(backend)


@pytest.fixture(scope="module")
def built():
    """All kernels for g++. Built one by one, they would take minutes."""
    if not SIMULATED:
        host = pytest.importorskip("tests.backends.cupy_on_host", reason="CuPy is not installed", exc_type=ImportError)
        from gpudrop.kernels.cupy_elementwise import source

        kernels = {case.kernel for case in (*FORWARD, *BACKWARD, *SUMS, *WINDOWS)}
        host.build({kernel: (source.raw(kernel), kernel.name) for kernel in kernels})


@pytest.mark.parametrize("case", [*FORWARD, *BACKWARD, *SUMS], ids=str)
def test_rows_and_dtypes(built, on, case):
    for shape in SHAPES:
        on.check(case, shape)
    for shape in RAGGED:
        on.check(case, shape, "unaligned")
        for start in (3, 2**33 + 5) if SIMULATED else (3, 4, 16, 2**33 + 5):
            on.check(case, shape, start=start)
    for rule in RULES if case.kernel.masked else ():
        on.check(case, (9, 33), rule=rule)


@pytest.fixture(params=[1, 5])
def threads(request, monkeypatch, backend):
    """The number of threads of a kernel that g++ builds. Other backends choose theirs."""
    if backend.name == "cupy_text":
        from gpudrop.kernels.cupy_elementwise import launching
        from tests.backends import cupy_on_host

        monkeypatch.setattr(launching, "run", partial(cupy_on_host.run, threads=request.param))
    elif request.param > 1:
        pytest.skip("the backend chooses its threads")


PLACES = [  # shape, row, pitch
    ((20, 64), 64, 128),
    ((20, 64), 128, 192),
    ((41, 33), 33, 67),
    ((12, 33), 99, 100),
    ((12, 32), 96, 104),
    ((30, 3), 3, 16),
    ((30, 1), 10, 17),
    ((40, 2, 16), 32, 48),
    ((6, 100), 100, 150),
]


@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_rows_and_dtypes_in_windows(built, threads, on, case):
    for k, (shape, row, pitch) in enumerate(PLACES):
        for start in (0, 5, 32)[k % 3 :][:1] if SIMULATED else (0, 5, 32):
            on.check(case, shape, start=start, row=row, pitch=pitch)
    on.check(case, (20, 64), "unaligned", start=64, row=64, pitch=128)


@pytest.mark.parametrize("layout", ["transposed", "every other"])
@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_rows_and_dtypes_of_arrays_that_are_not_contiguous(on, case, layout):
    on.check(case, (16, 33), layout, start=0 if case.kernel.masked else 7)


@pytest.mark.parametrize("layout", ["transposed", "every other"])
@pytest.mark.parametrize("case", WINDOWS[::9], ids=str)
def test_windows_of_arrays_that_are_not_contiguous(on, case, layout):
    on.check(case, (16, 33), layout, start=7, row=66, pitch=70)


@pytest.mark.parametrize("case", SUMS, ids=str)
def test_sums(built, threads, on, case):
    for shape in ((70, 64), (100, 33), (33, 128), (200, 16))[SIMULATED * 2 :]:
        on.check(case, shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (70, 7), (64, 128), (33, 100), (300, 5), (2, 1100)])
def test_adding_up_rows(on, dtype, shape):
    """The order of the additions depends on the shape alone: the results have the same bits at any address."""
    x, found = np.random.default_rng(1).normal(size=shape).astype(dtype), []
    for layout in ("contiguous", "unaligned"):
        sums = on.put(np.full((on.groups(shape[0]), shape[1]), np.nan, dtype))
        on.launch(operations.adding(dtype), [on.laid_out(layout, x)], [sums], Draw())
        found.append(on.get(sums))
    np.testing.assert_array_equal(*found)
    wide = x.astype(np.float64)
    assert (abs(found[0] - on.grouped(wide)) <= on.grouped(abs(wide)) * 8 * epsilon(dtype)).all()


def test_sums_of_nothing_are_not_written(on):
    sums = on.put(np.full((1, 7), 5, np.float32))
    on.launch(operations.adding("float32"), [on.put(np.empty((0, 7), np.float32))], [sums], Draw())
    assert (on.get(sums) == 5).all()


OTHERS = [(GAUSSIAN, Draws(32)), (UNIFORM, Draws(8)), (UNIFORM, Draws(16, window=True)), (DROPOUT, Reads(counted=True))]


@pytest.mark.parametrize(("noise", "source"), OTHERS, ids=["normal", "field", "fields of a window", "counted"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_with_and_without_sums_compute_equal_gradients(on, dtype, noise, source):
    case = Case(dtype, Neighbours(dtype), "leaky_relu", source, noise, gradients=("dx",))
    summed = case._replace(gradients=("dx", "dbias"))
    for shape in ((70, 7), (3, 100)) if SIMULATED else ((70, 7), (70, 64), (3, 100)):
        _, inputs = on.inputs_of(case, shape, "contiguous")
        _, mask, _ = on.drawn(case._replace(source=Reads(counted=True)), shape, None, 0, 0, 0)
        inputs += mask if case.kernel.masked else []
        draw = Draw(SEED, CALL, 0 if mask and case.kernel.masked else 5, 0, 1.5, 0.25, shape[1], shape[1] + 9)
        (dx,), (also, sums) = (on.outputs_of(each, shape) for each in (case, summed))
        on.launch(case.kernel, inputs, [dx], draw)
        on.launch(summed.kernel, inputs, [also, sums], draw)
        dx, also = (on.get(array).view(DTYPES[dtype]).astype(np.float64) for array in (dx, also))
        np.testing.assert_array_equal(also, dx)
        assert (abs(on.get(sums) - on.grouped(dx)) <= on.grouped(abs(dx)) * epsilon(dtype) * 8 + 1e-4).all()
