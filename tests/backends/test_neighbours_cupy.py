"""CuPy's kernels with rows, several dtypes and sums, built by g++, equal the formulas in float64."""

from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from gpudrop import operations
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.formulas.noises import ADD, DROPOUT, GAUSSIAN, UNIFORM, Noise
from gpudrop.kernels.spec import Draw, Draws, Mask, Reads
from gpudrop.operations import Neighbours
from gpudrop.testing import reference

host = pytest.importorskip("tests.backends.cupy_on_host", reason="CuPy is not installed", exc_type=ImportError)
from gpudrop.kernels.cupy_elementwise import ROWS, launching, source  # noqa: E402

SEED, CALL, P = 2**63 + 5, 2**40 + 3, 0.4
DTYPES = {"bfloat16": ml_dtypes.bfloat16} | {name: np.dtype(name) for name in ("float16", "float32", "float64")}
EPSILON = {name: float(ml_dtypes.finfo(dtype).eps) for name, dtype in DTYPES.items()}


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


def build(cases):
    """Build the kernels of cases at once."""
    kernels = {case.kernel for case in cases}
    host.build({kernel: (source.raw(kernel), kernel.name) for kernel in kernels})


def numbers(shape, dtype, seed):
    """Normal deviates of the named dtype."""
    return np.random.default_rng(seed).normal(size=shape).astype(DTYPES[dtype])


def contiguous(shape, dtype):
    return np.empty(shape, DTYPES[dtype])


def unaligned(shape, dtype):
    return np.empty(int(np.prod(shape)) + 1, DTYPES[dtype])[1:].reshape(shape)


def transposed(shape, dtype):
    return np.empty(shape[::-1], DTYPES[dtype]).T


def every_other(shape, dtype):
    return np.empty((*shape[:-1], 2 * shape[-1]), DTYPES[dtype])[..., ::2]


def filled(layout, shape, dtype, seed):
    array = layout(shape, dtype)
    array[...] = numbers(shape, dtype, seed)
    return array


def poisoned(layout, shape, dtype):
    array = layout(shape, dtype)
    array[...] = np.nan
    return array


def drawn(case, shape, start=0, row=0, pitch=0):
    """(keep, the mask or nothing as an input, the Draw)."""
    bits, size = case.kernel.bits or 16, int(np.prod(shape))
    limit, (_, scale, _) = reference.quantize(P, bits)[0] - 1, reference.quantize(P, bits)
    draw = Draw(SEED, CALL, start, limit, scale, 0.0, row, pitch)
    if case.kernel.stored:
        draw = draw._replace(seed=np.array([SEED, CALL], np.uint64))
    if isinstance(case.source, Reads) and shape[0] % 2:  # all rows share a mask
        per_column = reference.keep_mask(shape[1], P, SEED, CALL)
        return np.broadcast_to(per_column, shape), [Mask(per_column, shape[1], shape[0])], draw
    if isinstance(case.source, Reads):  # the elements of two rows share a value
        per_row = reference.keep_mask(-(-shape[0] // 2), P, SEED, CALL)
        keep = np.repeat(per_row, 2)[: shape[0]]
        return np.broadcast_to(keep[:, None], shape), [Mask(per_row, per_row.size, 1, 2 * shape[1])], draw
    row = row or size
    lines = [reference.keep_mask(row, P, SEED, CALL, bits, start + k * pitch) for k in range(size // row)]
    return np.concatenate(lines).reshape(shape), [], draw


def run(case, shape, layout=contiguous, **where):
    """Run the kernel. Return {operand: array} and the elements that are kept."""
    kernel, found = case.kernel, {}
    dtypes = iter(kernel.dtypes[0])
    inputs, outputs = [], []
    for k, slot in enumerate(kernel.inputs):
        if slot.layout == "bits":
            found["bits"] = np.random.default_rng(k).integers(0, 2, shape).astype(bool)
            inputs.append(np.packbits(found["bits"], axis=None, bitorder="little"))
        elif slot.layout in ("full", "row"):
            of = layout, shape
            if slot.layout == "row":
                of = unaligned if layout is unaligned else contiguous, shape[-1:]
            inputs.append(filled(*of, next(dtypes), k))
            found[slot.name] = inputs[-1].astype(np.float64)
    dtypes = iter(kernel.dtypes[1])
    for slot in kernel.outputs:
        if slot.layout == "bits":
            outputs.append(np.full(-(-int(np.prod(shape)) // 32) * 4, 255, np.uint8))
        elif slot.layout == "sums":
            outputs.append(poisoned(contiguous, (-(-shape[0] // ROWS), shape[1]), kernel.real))
        else:
            outputs.append(poisoned(layout, shape, next(dtypes)))
    keep, mask, draw = drawn(case, shape, **where)
    launching.launch(kernel, [*inputs, *mask], outputs, draw)
    return found, {slot.name: array for slot, array in zip(kernel.outputs, outputs, strict=True)}, keep, draw.scale


def expected(case, found, keep, scale):
    """Each output in float64, and a bound of all terms in its computation."""
    value, slope = reference.ACTIVATIONS[case.activation]
    factor, bias = found.get("gain", found.get("value", 1.0)), found.get("bias", 0.0)
    z, size = found.get("x", 0) + bias, abs(found.get("x", 0)) + abs(bias) + 1
    if not case.gradients:
        other = found["residual"] if case.noise is ADD else 0
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


def check(case, shape, layout=contiguous, **where):
    found, outputs, keep, scale = run(case, shape, layout, **where)
    wanted = expected(case, found, keep, scale)
    for slot, (name, got) in zip(case.kernel.outputs, outputs.items(), strict=True):
        want, terms = wanted[name]
        message = f"{named(case)} {shape} {where} {name}"
        if slot.layout == "bits":
            got = np.unpackbits(got, bitorder="little")[: keep.size].reshape(shape).astype(bool)
            np.testing.assert_array_equal(got, want, message)
            continue
        epsilon = 8 * EPSILON["float64" if case.kernel.real == "float64" else "float32"]
        if slot.layout == "sums":
            want, terms = grouped(want), grouped(terms)
        elif not case.gradients or name == "dx":  # the mask, to the bit
            dropped = np.zeros(shape, bool) if case.gradients and case.bits_alone else ~keep
            exact = found["residual"] if case.noise is ADD and not case.gradients else np.zeros(shape)
            np.testing.assert_array_equal(got[dropped], exact[dropped].astype(got.dtype), message)
        rounding = abs(want) * float(ml_dtypes.finfo(got.dtype).eps) + float(
            ml_dtypes.finfo(got.dtype).smallest_subnormal
        )
        assert (abs(got.astype(np.float64) - want) <= terms * epsilon + rounding).all(), message  # false for nan


def grouped(array):
    """The sum of each group of rows."""
    groups = range(0, len(array), ROWS)
    return np.stack([array[first : first + ROWS].sum(axis=0) for first in groups])


PLAIN = Neighbours()
FORWARD = [
    Case("float32", Neighbours("float32"), "relu"),
    Case("float32", Neighbours("float32", "gain", "float32"), source=Draws(8)),
    Case("float64", Neighbours("float32", "gain", "float64"), "silu", Draws(32)),
    Case("float16", Neighbours("float16"), "silu", noise=DROPOUT),
    Case("bfloat16", Neighbours("float32", "gain", "bfloat16"), "relu"),
    Case("bfloat16", Neighbours("bfloat16", wide="float32"), source=Draws(8)),
    Case("bfloat16", Neighbours("float16", "value", "bfloat16", "float32"), "silu", Draws(32)),
    Case("float32", Neighbours("float64", wide="float64")),
    Case("float16", Neighbours(wide="float32"), "relu", Draws(16, stored=True)),
    Case("float32", Neighbours("", "value", "float32"), "silu", noise=DROPOUT),
    Case("float32", Neighbours("float32", "gain", "float32"), "relu", Reads()),
    Case("bfloat16", Neighbours("float32", wide="float32"), "relu", Reads()),
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
]
WINDOWS = [
    case._replace(source=case.source._replace(window=True))
    for case in (*FORWARD, *BACKWARD, *SUMS)
    if isinstance(case.source, Draws)
]
SHAPES = [(1, 1), (5, 3), (70, 7), (9, 33), (3, 100), (5, 257), (1, 4096), (70, 64), (33, 128), (13, 16), (2, 136)]
SHAPES += [(1100, 1), (600, 2)]

STRIDED = [*(FORWARD[k] for k in (0, 6, 11, 14)), BACKWARD[3], SUMS[4], SUMS[9], SUMS[12], WINDOWS[4], WINDOWS[-1]]


@pytest.fixture(autouse=True)
def on_host(monkeypatch):
    host.replace_launches(monkeypatch.setattr)


@pytest.fixture(scope="module")
def built():
    build((*FORWARD, *BACKWARD, *SUMS, *WINDOWS))


def named(case):
    return f"{case.dtype} {case.kernel.name}"


@pytest.mark.parametrize("case", [*FORWARD, *BACKWARD, *SUMS], ids=named)
def test_rows_and_dtypes(built, case):
    for shape in SHAPES:
        check(case, shape)
    for start in (3, 4, 16, 2**33 + 5):
        for shape in ((9, 33), (20, 64), (1, 300)):
            check(case, shape, start=start)
    for shape in ((9, 33), (20, 64), (1, 300)):
        check(case, shape, unaligned)


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("case", WINDOWS, ids=named)
def test_rows_and_dtypes_in_windows(monkeypatch, built, case, threads):
    monkeypatch.setattr(launching, "run", partial(host.run, threads=threads))
    for shape, row, pitch in (
        ((40, 64), 64, 128),
        ((40, 64), 128, 192),
        ((41, 33), 33, 67),
        ((12, 33), 99, 100),
        ((12, 32), 96, 104),
        ((30, 3), 3, 16),
        ((30, 1), 10, 17),
        ((6, 100), 100, 150),
    ):
        for start in (0, 5, 32):
            check(case, shape, start=start, row=row, pitch=pitch)
    check(case, (20, 64), unaligned, start=64, row=64, pitch=128)


@pytest.mark.parametrize("layout", [transposed, every_other])
@pytest.mark.parametrize("case", STRIDED, ids=named)
def test_rows_and_dtypes_of_arrays_that_are_not_contiguous(case, layout):
    where = {"row": 66, "pitch": 70} if case.kernel.window else {}
    check(case, (16, 33), layout, start=0 if isinstance(case.source, Reads) else 7, **where)


@pytest.mark.parametrize("case", SUMS, ids=named)
def test_sums_of_several_threads(monkeypatch, built, case):
    monkeypatch.setattr(launching, "run", partial(host.run, threads=5))
    for shape in ((70, 64), (100, 33), (33, 128), (200, 16)):
        check(case, shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (70, 7), (64, 128), (33, 100), (100, 33)])
def test_adding_up_rows(dtype, shape):
    """In increasing order of the rows, so the sums have the bits of the same additions by NumPy."""
    x = numbers(shape, dtype, 1)
    sums = poisoned(contiguous, (-(-shape[0] // ROWS), shape[1]), dtype)
    launching.launch(operations.adding(dtype), [x], [sums], Draw())
    wanted = np.zeros_like(sums)
    for k, row in enumerate(x):
        wanted[k // ROWS] += row
    np.testing.assert_array_equal(sums, wanted)


def test_sums_of_nothing_are_not_written():
    sums = np.full((1, 7), 5, np.float32)
    launching.launch(operations.adding("float32"), [np.empty((0, 7), np.float32)], [sums], Draw())
    assert (sums == 5).all()


OTHERS = [(GAUSSIAN, Draws(32)), (UNIFORM, Draws(8)), (UNIFORM, Draws(16, window=True)), (DROPOUT, Reads(counted=True))]


@pytest.mark.parametrize(("noise", "source"), OTHERS, ids=["normal", "field", "fields of a window", "counted"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_with_and_without_sums_compute_equal_gradients(dtype, noise, source):
    case = Case(dtype, Neighbours(dtype), "leaky_relu", source, noise, gradients=("dx",))
    for shape in ((70, 7), (70, 64), (3, 100)):
        arrays = [numbers(shape, dtype, 1), numbers(shape, dtype, 2), numbers(shape[-1:], dtype, 3)]
        keep = reference.keep_mask(shape[1], P, SEED, CALL)
        mask = Mask(keep, shape[1], shape[0], 1, np.array([shape[0] * keep.sum()], np.uint64))
        arrays += [mask] * isinstance(source, Reads)
        draw = Draw(SEED, CALL, 0 if isinstance(source, Reads) else 5, 0, 1.5, 0.25, shape[1], shape[1] + 9)
        dx, also = poisoned(contiguous, shape, dtype), poisoned(contiguous, shape, dtype)
        sums = poisoned(contiguous, (-(-shape[0] // ROWS), shape[1]), "float32")
        launching.launch(case.kernel, arrays, [dx], draw)
        launching.launch(case._replace(gradients=("dx", "dbias")).kernel, arrays, [also, sums], draw)
        np.testing.assert_array_equal(also, dx)
        wanted = grouped(dx.astype(np.float64))
        bound = grouped(abs(dx.astype(np.float64))) * EPSILON[dtype] * 8 + 1e-4
        assert (abs(sums - wanted) <= bound).all()
