"""Numba's kernels with rows, with several dtypes and with sums, in the CUDA simulator, against NumPy in float64."""

import ml_dtypes
import numpy as np
import pytest

from gpudrop import operations
from gpudrop.formulas import noises
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels.spec import Draw, Draws, Mask, Reads
from gpudrop.operations import Neighbours
from gpudrop.testing import reference
from tests.conftest import SIMULATED

pytestmark = [
    pytest.mark.simulator,
    pytest.mark.skipif(not SIMULATED, reason="needs the CUDA simulator: NUMBA_ENABLE_CUDASIM=1"),
]
if SIMULATED:
    from gpudrop.kernels import numba_cuda

SEED, CALL, P = 2**63 + 5, 2**40 + 3, 0.4
NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
DTYPES = tuple(NUMPY)
TOLERANCE = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 3e-6, "float64": 1e-13}
ACTIVE = {
    "identity": (lambda x: x, lambda x: np.ones_like(x)),
    "relu": (lambda x: np.where(x > 0, x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "silu": (lambda x: x / (1 + np.exp(-x)), lambda x: (s := 1 / (1 + np.exp(-x))) * (1 + x * (1 - s))),
}
SHAPES = [(3, 1), (5, 3), (4, 7), (3, 33), (2, 100), (2, 257), (1, 64), (9, 8), (3, 128), (4, 20), (2, 3, 24), (7, 333)]
SOME = [(5, 3), (3, 128), (2, 100)]


def put(array, offset=0, layout=None):
    """A device array with the same elements. offset: its address is so many elements above an aligned one."""
    if layout == "transposed":
        return numba_cuda.put(np.ascontiguousarray(array.T)).T
    flat = np.concatenate([np.zeros(offset, array.dtype), array.reshape(-1)])
    return numba_cuda.put(flat)[offset:].reshape(*array.shape)


def get(array, dtype):
    return array.copy_to_host().view(dtype)


def drawn_mask(shape, source, start, row=0, pitch=0):
    size = int(np.prod(shape))
    if source.window:
        rows = [reference.keep_mask(row, P, SEED, CALL, source.bits, start + k * pitch) for k in range(size // row)]
        return np.concatenate(rows).reshape(shape)
    return reference.keep_mask(shape, P, SEED, CALL, source.bits, start)


def draw_of(source, start=0, row=0, pitch=0):
    threshold, scale, _ = reference.quantize(P, source.bits)
    seed, call = SEED, CALL
    if source.stored:
        seed, call = numba_cuda.put(np.array([SEED, CALL], np.uint64)), 0
    return Draw(seed, call, start, threshold - 1, scale, 0.0, row, pitch)


def operands_of(kernel, shape, seed=0):
    """Random arrays for a kernel's full inputs and rows, by name. No element of x + bias is close to 0."""
    rng, found = np.random.default_rng(seed), {}
    dtypes, _ = kernel.dtypes
    for slot, dtype in zip(kernel.inputs, dtypes, strict=False):
        own = shape[-1:] if slot.layout == "row" else shape
        numbers = rng.choice([-1, 1], own) * rng.uniform(1, 2, own)
        if slot.name == "bias":
            numbers = numbers / 8
        found[slot.name] = numbers.astype(NUMPY[dtype])
    return found


def launched(kernel, operands, shape, draw, mask=None, offset=0, layout=None, row_offset=0, packed=None):
    """The outputs of a launch, as NumPy arrays by name. They contain nan before it."""
    _, written = kernel.dtypes
    inputs, outputs, found = [], [], {}
    for slot in kernel.inputs:
        if slot.layout == "full":
            inputs.append(put(operands[slot.name], offset, layout))
        elif slot.layout == "row":
            inputs.append(put(operands[slot.name], row_offset))
        elif slot.layout == "bits":
            inputs.append(put(packed))
        else:
            inputs.append(mask)
    size, columns = int(np.prod(shape)), shape[-1]
    for slot, dtype in zip(kernel.outputs, [*written, *[""] * 2], strict=False):
        if slot.layout == "full":
            outputs.append((slot.name, put(np.full(shape, np.nan, NUMPY[dtype]), offset, layout), NUMPY[dtype]))
        elif slot.layout == "bits":
            outputs.append((slot.name, put(np.full(-(-size // 32), 0xFFFFFFFF, np.uint32)), np.uint8))
        else:
            groups = -(-(size // columns) // numba_cuda.ROWS)
            outputs.append((slot.name, put(np.full((groups, columns), np.nan, kernel.real)), np.dtype(kernel.real)))
    numba_cuda.launch(kernel, inputs, [array for _, array, _ in outputs], draw)
    for name, array, dtype in outputs:
        found[name] = get(array, dtype)
    return found


def expected(activation, noise, operands, keep, scale, names):
    """The float64 results by name, from the operands by name."""
    full = {name: array.astype(np.float64) for name, array in operands.items()}
    act, slope = ACTIVE[activation]
    factor = full.get("gain", full.get("value", 1.0))
    results = {}
    if "dy" not in full:
        z = full["x"] + full.get("bias", 0.0)
        added = np.where(keep, factor * scale * act(z), 0.0)
        results["y"] = added + full["residual"] if noise is noises.ADD else added
        return results
    dy = np.where(keep, full["dy"] * scale, 0.0)
    z = full["x"] + full.get("bias", 0.0) if "x" in full else np.ones_like(dy)
    results["dx"] = results["dbias"] = dy * factor * slope(z)
    results["dgain"] = results["dvalue"] = dy * act(z)
    return {name: results[name] for name in names}


def check(got, want, dtypes):
    for name, dtype in dtypes.items():
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(
            got[name].astype(np.float64), want[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def check_forward(kernel, activation, noise, shape, draw, keep, **options):
    operands = operands_of(kernel, shape)
    got = launched(kernel, operands, shape, draw, **options)
    scale = draw.scale
    want = expected(activation, noise, operands, keep, scale, ["y"])
    check(got, want, {"y": kernel.dtypes[1][0]})
    dropped = operands["residual"].astype(got["y"].dtype) if noise is noises.ADD else np.zeros(shape)
    same = got["y"] == dropped
    zeroed = ~keep if activation == "identity" else ~keep | (want["y"] == dropped.astype(np.float64))
    np.testing.assert_array_equal(same, zeroed)
    return got


def forward(activation="identity", dtype="float32", source=None, noise=noises.ADD, bits=False, of=None):
    of = Neighbours(dtype) if of is None else of
    return operations.forward(ACTIVATIONS[activation], dtype, source or Draws(16), noise, bits, of)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("start", [0, 1, 8, 2**33 + 13])
def test_a_bias_and_a_residual(shape, dtype, bits, start):
    source = Draws(bits)
    kernel, draw = forward(dtype=dtype, source=source), draw_of(source, start)
    check_forward(kernel, "identity", noises.ADD, shape, draw, drawn_mask(shape, source, start))


MIXED = [  # the dtype of x, and those of the neighbours
    ("bfloat16", Neighbours("float32")),
    ("float16", Neighbours("float64", "gain", "float32")),
    ("bfloat16", Neighbours("bfloat16", "gain", "float32", "float32")),
    ("float16", Neighbours("", "gain", "float16", "float32")),
    ("float32", Neighbours("bfloat16", "gain", "float64")),
    ("float32", Neighbours("float32", "gain", "float32", "float64")),
    ("bfloat16", Neighbours("bfloat16", "", "", "float32")),
    ("float32", Neighbours("", "", "", "float64")),
    ("bfloat16", Neighbours("", "value", "bfloat16")),
    ("float32", Neighbours("float16", "value", "float32", "float64")),
]


@pytest.mark.parametrize(("dtype", "of"), MIXED)
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize("noise", [noises.ADD, noises.DROPOUT], ids=["add", "dropout"])
@pytest.mark.parametrize("shape", SOME, ids=str)
def test_dtypes_of_their_own(dtype, of, activation, noise, shape):
    if noise is noises.DROPOUT:
        of = of._replace(wide="")
    source = Draws(16)
    kernel, draw = forward(activation, dtype, source, noise, of=of), draw_of(source, 5)
    check_forward(kernel, activation, noise, shape, draw, drawn_mask(shape, source, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 2])
@pytest.mark.parametrize("row_offset", [0, 1])
@pytest.mark.parametrize("layout", [None, "transposed"])
def test_addresses_and_layouts(dtype, offset, row_offset, layout):
    source, shape = Draws(16), (5, 128)
    kernel, draw = forward(dtype=dtype, source=source), draw_of(source)
    where = {"offset": offset, "row_offset": row_offset, "layout": layout}
    check_forward(kernel, "identity", noises.ADD, shape, draw, drawn_mask(shape, source, 0), **where)


WINDOWS = [  # shape, start, row, pitch
    ((6, 8), 3, 8, 11),
    ((6, 24), 16, 24, 40),
    ((9, 5), 1, 15, 23),
    ((4, 3, 7), 8, 21, 64),
    ((5, 33), 0, 33, 64),
    ((3, 100), 16, 100, 128),
    ((40, 1), 5, 4, 9),
    ((100, 17), 5, 17, 19),  # threads process several chunks
]


@pytest.mark.parametrize(("shape", "start", "row", "pitch"), WINDOWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("stored", [False, True])
def test_windows(shape, start, row, pitch, dtype, bits, stored):
    source = Draws(bits, window=True, stored=stored)
    kernel, draw = forward(dtype=dtype, source=source), draw_of(source, start, row, pitch)
    keep = drawn_mask(shape, source, start, row, pitch)
    check_forward(kernel, "identity", noises.ADD, shape, draw, keep)


@pytest.mark.parametrize("shape", SOME, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 3])
def test_bits_that_the_backward_pass_reads(shape, dtype, start):
    source = Draws(16)
    kernel = forward("relu", dtype, source, bits=True)
    draw, keep = draw_of(source, start), drawn_mask(shape, source, start)
    got = check_forward(kernel, "relu", noises.ADD, shape, draw, keep)
    operands = operands_of(kernel, shape)
    positive = operands["x"].astype(np.float64) + operands["bias"].astype(np.float64) > 0
    alone = operations._bits_alone(ACTIVATIONS["relu"], noises.ADD, source)
    bits = np.packbits(positive & keep if alone else positive, axis=None, bitorder="little")
    np.testing.assert_array_equal(got["bits"][: bits.size], bits)
    assert not got["bits"][bits.size :].any()


def masked(shape, period=1, repeat=1, run=1, seed=7):
    """A mask that is broadcast: its values, and the value of each element."""
    i = np.arange(int(np.prod(shape)))
    of = i // (run * period * repeat) * period + i // run % period
    values = np.random.default_rng(seed).random(int(of.max()) + 1) > P
    return values, values[of].reshape(shape)


@pytest.mark.parametrize("shape", SOME, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", [(1, 1, 1), (1, 1, 6), (4, 2, 1)])
@pytest.mark.parametrize("counted", [False, True])
def test_masks_that_were_drawn_before(shape, dtype, rule, counted):
    values, keep = masked(shape, *rule)
    kernel = forward(dtype=dtype, source=Reads(counted))
    kept = numba_cuda.put(np.array([max(1, keep.sum())], np.uint64))
    mask = Mask(numba_cuda.put(values), *rule, kept)
    scale = keep.size / max(1, keep.sum()) if counted else 1.5
    operands = operands_of(kernel, shape)
    got = launched(kernel, operands, shape, Draw(scale=1.5), mask)
    check(got, expected("identity", noises.ADD, operands, keep, scale, ["y"]), {"y": dtype})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SOME, ids=str)
def test_without_randomness(dtype, shape):
    kernel = forward("silu", dtype, None, noises.SUM, of=Neighbours(dtype, "gain", dtype))
    operands = operands_of(kernel, shape)
    got = launched(kernel, operands, shape, Draw())
    want = expected("silu", noises.ADD, operands, np.ones(shape, bool), 1.0, ["y"])
    check(got, want, {"y": dtype})


GRADIENTS = [
    ("identity", Neighbours("float32", "gain", "float32"), ("dx",)),
    ("silu", Neighbours("float32"), ("dx",)),
    ("relu", Neighbours("", "value", "float32"), ("dx", "dvalue")),
    ("silu", Neighbours("float32", "value", "float32", "float64"), ("dx", "dvalue")),
]


def of_dtype(of, dtype):
    """Neighbours of x of another dtype."""
    if dtype == "float64":
        of = of._replace(wide="")
    return of._replace(bias=of.bias and dtype, factor_dtype=of.factor and dtype)


@pytest.mark.parametrize(("activation", "of", "names"), GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SOME, ids=str)
@pytest.mark.parametrize("noise", [noises.ADD, noises.DROPOUT], ids=["add", "dropout"])
def test_gradients(activation, of, names, dtype, shape, noise):
    source, of = Draws(16), of_dtype(of, dtype)
    of = of._replace(wide="float32") if of.wide and dtype != "float32" else of
    of = of._replace(wide="") if noise is noises.DROPOUT else of
    kernel = operations.backward(ACTIVATIONS[activation], dtype, source, noise, names, neighbours=of)
    operands, draw, keep = operands_of(kernel, shape), draw_of(source, 3), drawn_mask(shape, source, 3)
    got = launched(kernel, operands, shape, draw)
    want = expected(activation, noise, operands, keep, draw.scale, names)
    check(got, want, dict(zip(names, kernel.dtypes[1], strict=True)))


SUMMED = [
    ("identity", Neighbours("float32"), ("dx", "dbias")),
    ("silu", Neighbours("", "gain", "float32"), ("dx", "dgain")),
    ("silu", Neighbours("float32", "gain", "float32"), ("dx", "dbias", "dgain")),
    ("relu", Neighbours("float32", "gain", "float32", "float32"), ("dx", "dbias", "dgain")),
    ("relu", Neighbours("float32", "value", "float32"), ("dx", "dvalue", "dbias")),
]
TALL = [(1, 7), (40, 3), (70, 1), (33, 33), (2, 100), (66, 16), (5, 128), (3, 257), (2, 17, 8)]


def grouped(numbers):
    """The sums of groups of rows."""
    rows = numbers.reshape(-1, numbers.shape[-1])
    return np.array([rows[k : k + numba_cuda.ROWS].sum(0) for k in range(0, len(rows), numba_cuda.ROWS)])


def check_sums(kernel, activation, noise, operands, draw, keep, scale, **options):
    """Check full outputs as elsewhere, and sums against the sums of numbers that are not rounded."""
    names = [slot.name for slot in kernel.outputs]
    got = launched(kernel, operands, keep.shape, draw, **options)
    want = expected(activation, noise, operands, keep, scale, names)
    full = dict(zip(names, kernel.dtypes[1], strict=False))
    check(got, want, full)
    for name in names[len(full) :]:
        size = grouped(abs(want[name])).max() + 1
        assert got[name].dtype == kernel.real
        # The arithmetic of each result is approximate if all results are rounded to 16 bits.
        tolerance = (2e-3 if kernel.approximate else TOLERANCE[kernel.real]) * size
        np.testing.assert_allclose(got[name], grouped(want[name]), rtol=0, atol=tolerance, err_msg=name)
    return got


def summing(activation, of, names, dtype, source, noise=noises.ADD):
    return operations.backward(ACTIVATIONS[activation], dtype, source, noise, names, neighbours=of_dtype(of, dtype))


@pytest.mark.parametrize(("activation", "of", "names"), SUMMED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", TALL, ids=str)
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("start", [0, 3, 32])
@pytest.mark.parametrize("stored", [False, True])
def test_sums(activation, of, names, dtype, shape, bits, start, stored):
    source = Draws(bits, stored=stored)
    kernel, draw = summing(activation, of, names, dtype, source), draw_of(source, start)
    keep = drawn_mask(shape, source, start)
    check_sums(kernel, activation, noises.ADD, operands_of(kernel, shape), draw, keep, draw.scale)


@pytest.mark.parametrize(("activation", "of", "names"), SUMMED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize(("shape", "start", "row", "pitch"), [*WINDOWS, ((40, 2, 16), 16, 32, 48)])
def test_sums_of_windows(activation, of, names, dtype, bits, shape, start, row, pitch):
    source = Draws(bits, window=True)
    kernel, draw = summing(activation, of, names, dtype, source), draw_of(source, start, row, pitch)
    keep = drawn_mask(shape, source, start, row, pitch)
    check_sums(kernel, activation, noises.ADD, operands_of(kernel, shape), draw, keep, draw.scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 3), (2, 100), (34, 16)], ids=str)
@pytest.mark.parametrize("rule", [(1, 1, 1), (1, 1, 6), (4, 2, 1)])
@pytest.mark.parametrize("counted", [False, True])
def test_sums_with_masks_that_were_drawn_before(dtype, shape, rule, counted):
    values, keep = masked(shape, *rule)
    mask = Mask(numba_cuda.put(values), *rule, numba_cuda.put(np.array([max(1, keep.sum())], np.uint64)))
    scale = keep.size / max(1, keep.sum()) if counted else 1.5
    kernel = summing(*SUMMED[2], dtype, Reads(counted))
    check_sums(kernel, "silu", noises.ADD, operands_of(kernel, shape), Draw(scale=1.5), keep, scale, mask=mask)


@pytest.mark.parametrize("noise", [noises.ADD, noises.DROPOUT], ids=["add", "dropout"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 3), (2, 100), (34, 16)], ids=str)
def test_sums_of_gradients_from_bits(noise, dtype, shape):
    source = Draws(16)
    kernel = operations.backward(ACTIVATIONS["relu"], dtype, source, noise, ("dx", "dbias"), True, Neighbours(dtype))
    positive = np.random.default_rng(5).random(shape) > 0.3
    draw, keep = draw_of(source if kernel.bits else Draws(16), 3), drawn_mask(shape, source, 3)
    bits = positive if kernel.bits else positive & keep
    packed = np.packbits(bits, axis=None, bitorder="little")
    operands = operands_of(kernel, shape)
    check_sums(kernel, "identity", noise, operands, draw, positive & keep, draw.scale, packed=packed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"offset": 1}, {"layout": "transposed"}, {"row_offset": 1}], ids=str)
def test_sums_are_the_same_for_any_layout(dtype, options):
    source, shape = Draws(16), (35, 16)
    kernel, draw, keep = summing(*SUMMED[2], dtype, source), draw_of(source), drawn_mask(shape, source, 0)
    operands = operands_of(kernel, shape)
    first = check_sums(kernel, "silu", noises.ADD, operands, draw, keep, draw.scale)
    other = launched(kernel, operands, shape, draw, **options)
    for name, numbers in first.items():
        np.testing.assert_array_equal(numbers, other[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [*TALL, (300, 5), (2, 1100)], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_partial_sums_are_added_up_in_order(dtype, shape, offset):
    kernel = operations.adding(dtype)
    numbers = np.random.default_rng(3).normal(size=shape).astype(dtype)
    got = launched(kernel, {"x": numbers}, shape, Draw(), offset=offset)["sums"]
    rows = numbers.reshape(-1, shape[-1])
    want = np.zeros_like(got)
    for r, row in enumerate(rows):
        want[r // numba_cuda.ROWS] += row
    np.testing.assert_array_equal(got, want)


def test_sums_of_no_rows_are_not_written():
    kernel, empty = operations.adding("float32"), numba_cuda.put(np.zeros((0, 4), np.float32))
    sums = numba_cuda.put(np.full((1, 4), 7, np.float32))
    numba_cuda.launch(kernel, [empty], [sums], Draw())
    assert (get(sums, np.float32) == 7).all()
