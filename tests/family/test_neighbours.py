"""Fused neighbours of dropout: bias, gain, wider residuals and gates equal their references on every backend."""

import math
import pickle

import ml_dtypes
import numba
import numpy as np
import pytest

import gpudrop
from gpudrop import Stream, arrays
from gpudrop.testing import reference, ulps
from tests.conftest import SIMULATED
from tests.sampling import few

STREAM = Stream(2**63 + 5, 2**40 + 3)
SEED = {"seed": STREAM.seed, "call": STREAM.call}
BFLOAT16 = ml_dtypes.bfloat16
# The dtypes of x, of the residual, of the bias and of the gain.
MIXES = {
    "float32": (np.float32,) * 4,
    "float64": (np.float64,) * 4,
    "float16": (np.float16,) * 4,
    "bfloat16": (BFLOAT16,) * 4,
    "wide residual": (BFLOAT16, np.float32, BFLOAT16, np.float32),
    "wide rows": (np.float16, np.float16, np.float32, np.float32),
    "float32 and float64": (np.float32, np.float64, np.float32, np.float64),
}
# One column, odd widths, widths of whole chunks; one row, several groups of rows.
SIZES = (1, 300) if SIMULATED else (1, 5000)
SHAPES = [(300, 1), (1, 37), (70, 33), (65, 64), (2, 40, 7), SIZES[1:], (2, 256)]


def numbers(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(dtype)


def close(got, want, dtype, scale=None, of=16):
    """Check a result against float64: within some ulps of its dtype, relative to the largest of the terms."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == dtype and got.shape == want.shape
    bound = of * 2.0 ** -(ulps.FINFO[got.dtype.name].nmant + 1)
    limit = bound * np.maximum(1, np.abs(want) if scale is None else scale)
    assert (np.abs(got.astype(np.float64) - want) <= limit).all(), np.abs(got.astype(np.float64) - want).max()


def call_of(mix, shape, dtypes=None):
    x, residual, bias, gain = dtypes or MIXES[mix]
    columns = shape[-1:]
    return (
        *(numbers(shape, dtype, k) for k, dtype in enumerate((x, residual, residual))),
        numbers(columns, bias, 3),
        numbers(columns, gain, 4),
    )


PRODUCT = [(mix, activation, shape) for mix in MIXES for activation in (None, "relu", "gelu") for shape in SHAPES]
SOME = [
    ("float32", "gelu", (70, 33)),
    ("float32", "relu", (65, 64)),
    ("wide residual", "relu", (300, 1)),
    ("wide residual", "gelu", (2, 256)),
    ("wide rows", None, (2, 40, 7)),
    ("bfloat16", "gelu", SIZES[1:]),
    ("float64", "gelu", (1, 37)),
    ("float32 and float64", "relu", (70, 33)),
]


@pytest.mark.parametrize(("mix", "activation", "shape"), few(PRODUCT, *SOME))
def test_dropout_add_with_bias_and_gain(backend, poisoned, mix, activation, shape):
    x, residual, dy, bias, gain = call_of(mix, shape)
    for p, training in ((0.3, True), (0.3, False), (0, True), (1, True)):
        want, want_backprop = reference.dropout_add(
            x, residual, p if training else 0, None, bias, gain, **SEED, activation=activation or "identity"
        )
        options = {"activation": activation, "rng": STREAM, "training": training}
        rows = {"bias": backend.put(bias), "gain": backend.put(gain)}
        y, backprop = gpudrop.dropout_add.vjp(backend.put(x), backend.put(residual), p, **rows, **options)
        close(backend.get(y), want, residual.dtype, 30)
        dx, dresidual, dbias, dgain = backprop(device_dy := backend.put(dy))
        assert dresidual is device_dy
        want_dx, _, want_dbias, want_dgain = want_backprop(dy)
        close(backend.get(dx), want_dx, x.dtype, 30)
        terms = math.prod(shape[:-1]) ** 0.5
        close(backend.get(dbias), want_dbias, bias.dtype, 30 + 30 * terms)
        close(backend.get(dgain), want_dgain, gain.dtype, 30 + 30 * terms)
        np.testing.assert_array_equal(backend.get(dx) != 0, np.asarray(backend.get(dx)).astype(np.float64) != 0)


@pytest.mark.parametrize("save", ["output", "bits"])
@pytest.mark.parametrize("mix", ["float32", "wide residual"])
def test_a_bias_alone(backend, poisoned, mix, save):
    """Adding it first has the same result, mask and gradients, apart from the sums."""
    x, residual, dy, bias, _ = call_of(mix, (70, 33))
    options = {"activation": "relu", "rng": STREAM, "save": save}
    shifted = (x.astype(np.float32) + bias.astype(np.float32)).astype(np.float32)
    other = residual.astype(np.float32)
    y, backprop = gpudrop.dropout_add.vjp(backend.put(x), backend.put(residual), 0.3, bias=backend.put(bias), **options)
    want, want_backprop = gpudrop.dropout_add.vjp(backend.put(shifted), backend.put(other), 0.3, **options)
    np.testing.assert_array_equal(backend.get(y), backend.get(want))
    dx, _, dbias, dgain = backprop(backend.put(dy))
    want_dx = backend.get(want_backprop(backend.put(dy.astype(np.float32))).dx)
    np.testing.assert_array_equal(backend.get(dx), want_dx.astype(x.dtype))
    close(backend.get(dbias), want_dx.astype(np.float64).sum(0), bias.dtype, 60)
    assert dgain is None


@pytest.mark.parametrize("activation", few([None, "relu", "gelu"], "relu"))
@pytest.mark.parametrize("dtype", few([np.float16, BFLOAT16, np.float32, np.float64], np.float32))
def test_dropout_with_a_bias(backend, poisoned, dtype, activation):
    x, dy, bias = numbers((70, 33), dtype), numbers((70, 33), dtype, 1), numbers(33, dtype, 2)
    for p in (0.3, 0):
        options = {"activation": activation, "rng": STREAM}
        z = x.astype(np.float64) + bias.astype(np.float64)
        want = reference.dropout(z, p, activation or "identity", **SEED)
        want_dx = reference.dropout_backward(z, dy, p, activation or "identity", **SEED)
        y, backprop = gpudrop.dropout_vjp(backend.put(x), p, bias=backend.put(bias), **options)
        close(backend.get(y), want, x.dtype, 30)
        gradients = backprop(backend.put(dy))
        assert gradients._fields == ("dx", "dbias")
        close(backend.get(gradients.dx), want_dx, x.dtype, 30)
        close(backend.get(gradients.dbias), want_dx.sum(0), bias.dtype, 200)


GATED = [(dtype, activation) for dtype in (np.float16, BFLOAT16, np.float32, np.float64) for activation in
         (None, "relu", "silu", "gelu", "sigmoid")]  # fmt: skip


@pytest.mark.parametrize("shape", [(70, 33), pytest.param((2, 3, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "activation"), few(GATED, (np.float32, "silu"), (BFLOAT16, "relu")))
def test_dropout_glu(backend, poisoned, dtype, activation, shape):
    gate, value, dy = (numbers(shape, dtype, k) for k in range(3))
    for p, training in ((0.3, True), (0.3, False), (0, True), (1, True)):
        want, want_backprop = reference.dropout_glu(
            gate, value, p if training else 0, **SEED, activation=activation or "identity"
        )
        options = {"activation": activation, "rng": STREAM, "training": training}
        y, backprop = gpudrop.dropout_glu.vjp(backend.put(gate), backend.put(value), p, **options)
        close(backend.get(y), want, dtype, 60)
        gradients = backprop(backend.put(dy))
        assert gradients._fields == ("dgate", "dvalue")
        for got, gradient in zip(gradients, want_backprop(dy), strict=True):
            close(backend.get(got), gradient, dtype, 60)


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("shape", [(70, 66), (300, 512)] if not SIMULATED else [(70, 66)])
def test_a_packed_gate(backend, poisoned, shape, gate_first):
    packed, n = numbers(shape, np.float32), shape[-1] // 2
    gate, value = packed[:, :n].copy(), packed[:, n:].copy()
    gate, value = (gate, value) if gate_first else (value, gate)
    dy = numbers((shape[0], n), np.float32, 1)
    want, want_backprop = gpudrop.dropout_glu.vjp(backend.put(gate), backend.put(value), 0.3, rng=STREAM)
    y, backprop = gpudrop.dropout_glu.vjp(backend.put(packed), None, 0.3, gate_first=gate_first, rng=STREAM)
    np.testing.assert_array_equal(backend.get(y), backend.get(want))
    wanted = [backend.get(each) for each in want_backprop(backend.put(dy))]
    wanted = np.concatenate(wanted if gate_first else wanted[::-1], -1)
    dgate, dvalue = backprop(backend.put(dy))
    assert dvalue is None
    np.testing.assert_array_equal(backend.get(dgate), wanted)
    out = backend.put(np.full(shape, np.nan, np.float32))
    assert backprop(backend.put(dy), out=out).dgate is out
    np.testing.assert_array_equal(backend.get(out), wanted)


def test_what_is_dropped_has_no_effect(backend, poisoned):
    """An infinite gain, branch or gate; and a residual keeps the sign of its zero."""
    x = np.tile(np.float32([np.inf, np.nan, -np.inf, 3]), (50, 1))
    residual = np.tile(np.float32([-0.0, 0.0, np.inf, np.nan]), (50, 1))
    rows = np.float32([np.inf, -np.inf, np.nan, np.inf])
    dropped = ~reference.keep_mask(x.shape, 0.5, STREAM.seed, STREAM.call)
    put, dy = backend.put, np.full_like(x, np.inf)
    for activation in (None, "relu"):
        y, backprop = gpudrop.dropout_add.vjp(
            put(x), put(residual), 0.5, bias=put(rows), gain=put(rows), activation=activation, rng=STREAM
        )
        y = backend.get(y)
        np.testing.assert_array_equal(y[dropped], residual[dropped])
        np.testing.assert_array_equal(np.signbit(y[dropped]), np.signbit(residual[dropped]))
        assert (backend.get(backprop(put(dy)).dx)[dropped] == 0).all()
        y, backprop = gpudrop.dropout_glu.vjp(put(x), put(x), 0.5, activation=activation, rng=STREAM)
        assert (backend.get(y)[dropped] == 0).all() and not np.signbit(backend.get(y)[dropped]).any()
        for gradient in backprop(put(dy)):
            assert (backend.get(gradient)[dropped] == 0).all()
    _, backprop = gpudrop.dropout_add.vjp(put(np.ones_like(x)), put(x), 1, bias=put(rows), gain=put(rows), rng=STREAM)
    for sums in backprop(put(dy))[2:]:
        assert (backend.get(sums) == 0).all()


@pytest.mark.parametrize("mask_shape", [(None, 1), (33,), (None, 1, 1)])
def test_shared_masks(backend, poisoned, mask_shape):
    shape = (40, 3, 33) if len(mask_shape) == 3 else (40, 33)
    x, residual, dy, bias, gain = call_of("float32", shape)
    rows = {"bias": backend.put(bias), "gain": backend.put(gain)}
    want, want_backprop = reference.dropout_add(x, residual, 0.4, mask_shape, bias, gain, **SEED)
    y, backprop = gpudrop.dropout_add.vjp(
        backend.put(x), backend.put(residual), 0.4, **rows, mask_shape=mask_shape, rng=STREAM
    )
    close(backend.get(y), want, np.float32, 30)
    for got, gradient in zip(backprop(backend.put(dy)), want_backprop(dy), strict=True):
        close(backend.get(got), gradient, np.float32, 400)


def test_shards(backend, poisoned):
    """A shard has its part of the mask and of the rows, and partial sums of its own."""
    x, residual, dy, bias, gain = call_of("float32", (48, 64))
    whole, of_whole = gpudrop.dropout_add.vjp(*map(backend.put, (x, residual)), 0.4, bias=backend.put(bias),
                                              gain=backend.put(gain), activation="gelu", rng=STREAM)  # fmt: skip
    whole, dx = backend.get(whole), backend.get(of_whole(backend.put(dy)).dx)
    for rows, columns in ((slice(5, 40), slice(0, 64)), (slice(0, 48), slice(19, 51)), (slice(8, 24), slice(16, 32))):
        part = rows, columns
        shard = gpudrop.Shard((48, 64), (rows.start, columns.start))
        y, backprop = gpudrop.dropout_add.vjp(
            backend.put(x[part].copy()), backend.put(residual[part].copy()), 0.4, activation="gelu", rng=STREAM,
            bias=backend.put(bias[columns].copy()), gain=backend.put(gain[columns].copy()), shard=shard,
        )  # fmt: skip
        np.testing.assert_array_equal(backend.get(y), whole[part])
        gradients = backprop(backend.put(dy[part].copy()))
        np.testing.assert_array_equal(backend.get(gradients.dx), dx[part])
        close(backend.get(gradients.dbias), dx[part].astype(np.float64).sum(0), np.float32, 60)


def test_strides():
    """Any layout of each array has the same results as C order."""
    x, residual, dy, bias, gain = call_of("float32", (130, 66))
    options = {"activation": "gelu", "rng": STREAM}
    want, want_backprop = gpudrop.dropout_add.vjp(x, residual, 0.3, bias=bias, gain=gain, **options)
    wanted = want_backprop(dy)
    for order in (
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, -1)[..., ::2],
        lambda a: a[::-1].copy()[::-1],
    ):
        rows = {"bias": np.repeat(bias, 3)[::3], "gain": gain[::-1].copy()[::-1]}
        y, backprop = gpudrop.dropout_add.vjp(order(x), order(residual), 0.3, **rows, **options)
        np.testing.assert_array_equal(y, want)
        for got, gradient in zip(backprop(order(dy)), wanted, strict=True):
            np.testing.assert_array_equal(got, gradient)
    glu, of_glu = gpudrop.dropout_glu.vjp(x, residual, 0.3, rng=STREAM)
    y, backprop = gpudrop.dropout_glu.vjp(np.asfortranarray(x), residual[::-1].copy()[::-1], 0.3, rng=STREAM)
    np.testing.assert_array_equal(y, glu)
    for got, gradient in zip(backprop(np.asfortranarray(dy)), of_glu(dy), strict=True):
        np.testing.assert_array_equal(got, gradient)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4)])
def test_empty_arrays_have_sums_of_zero(backend, shape):
    empty, row = backend.put(np.empty(shape, np.float32)), backend.put(np.ones(shape[-1], np.float32))
    for of_row in (row, backend.put(np.ones(shape[-1], BFLOAT16))):
        x = empty if of_row is row else backend.put(np.empty(shape, BFLOAT16))
        y, backprop = gpudrop.dropout_add.vjp(x, empty, 0.5, bias=of_row, gain=of_row, rng=STREAM)
        dx, _, dbias, dgain = backprop(y)
        assert dx.shape == shape
        for sums in (dbias, dgain):
            np.testing.assert_array_equal(backend.get(sums), np.zeros(shape[-1]))
            assert sums.dtype == of_row.dtype
    y, backprop = gpudrop.dropout_glu.vjp(empty, empty, 0.5, rng=STREAM)
    assert all(gradient.shape == shape for gradient in backprop(y))


@pytest.mark.parametrize(("rows", "columns"), [(1 << 16, 33), (1 << 20, 1), (3, 1 << 18), (40_000, 64)])
def test_sums_repeat_to_the_bit_for_any_number_of_threads(rows, columns):
    x, residual, dy, bias, gain = call_of("float32", (rows, columns))
    _, backprop = gpudrop.dropout_add.vjp(x, residual, 0.3, bias=bias, gain=gain, activation="silu", rng=STREAM)
    before, results = numba.get_num_threads(), []
    try:
        for threads in range(1, before + 1):
            numba.set_num_threads(threads)
            results += [backprop(dy) for _ in range(3)]
    finally:
        numba.set_num_threads(before)
    for gradients in results[1:]:
        for got, want in zip(gradients, results[0], strict=True):
            np.testing.assert_array_equal(got, want)
    dx = results[0].dx.astype(np.float64)
    assert (np.abs(results[0].dbias - dx.sum(0)) <= 2.0**-20 * np.abs(dx).sum(0)).all()


def test_gradients_are_derivatives():
    """Against differences in float64."""
    x, residual, dy, bias, gain = call_of("float64", (6, 5), (np.float64,) * 4)
    arrays, step = {"x": x, "residual": residual, "bias": bias, "gain": gain}, 1e-6

    def cost(**changed):
        return (gpudrop.dropout_add(**arrays | changed, p=0.4, activation="gelu", rng=STREAM) * dy).sum()

    _, backprop = gpudrop.dropout_add.vjp(**arrays, p=0.4, activation="gelu", rng=STREAM)
    for (name, array), gradient in zip(arrays.items(), backprop(dy), strict=True):
        for index in np.ndindex(array.shape):
            change = np.zeros_like(array)
            change[index] = step
            slope = (cost(**{name: array + change}) - cost(**{name: array - change})) / (2 * step)
            assert abs(slope - gradient[index]) < 1e-6

    def cost_of_gate(packed):
        return (gpudrop.dropout_glu(packed, None, 0.4, rng=STREAM) * dy).sum()

    packed = np.concatenate([x, residual], -1)
    gradient = gpudrop.dropout_glu.vjp(packed, None, 0.4, rng=STREAM)[1](dy).dgate
    for index in np.ndindex(packed.shape):
        change = np.zeros_like(packed)
        change[index] = step
        slope = (cost_of_gate(packed + change) - cost_of_gate(packed - change)) / (2 * step)
        assert abs(slope - gradient[index]) < 1e-6


def test_in_place():
    x, residual, dy, bias, gain = call_of("float32", (700, 33))
    rows = {"bias": bias, "gain": gain}
    want = gpudrop.dropout_add(x, residual, 0.3, **rows, rng=STREAM)
    for target, pair in ((a := x.copy(), (a, residual)), (b := residual.copy(), (x, b))):
        assert gpudrop.dropout_add(*pair, 0.3, **rows, rng=STREAM, out=target) is target
        np.testing.assert_array_equal(target, want)
    want = gpudrop.dropout_glu(x, residual, 0.3, rng=STREAM)
    for target, pair in ((a := x.copy(), (a, residual)), (b := residual.copy(), (x, b))):
        assert gpudrop.dropout_glu(*pair, 0.3, rng=STREAM, out=target) is target
        np.testing.assert_array_equal(target, want)
    _, backprop = gpudrop.dropout_add.vjp(x, residual, 0.3, **rows, rng=STREAM)
    wanted, dy_before = backprop(dy), dy.copy()
    got = backprop(dy, out=dy)
    assert got.dx is dy
    for each, gradient in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(each, dy_before if gradient is dy else gradient)


@pytest.mark.parametrize("function", [gpudrop.dropout_glu, gpudrop.zoneout])
def test_both_gradients_can_be_written_to_given_arrays(monkeypatch, function):
    x, other, dy = (numbers((40, 33), np.float32, k) for k in range(3))
    _, backprop = function.vjp(x, other, 0.3, activation="silu", rng=STREAM)
    want, (first, second) = backprop(dy), (np.full_like(x, np.nan) for _ in range(2))
    for out in ((first, second), (None, second), (first, None), (first,), first):
        first[:], second[:] = np.nan, np.nan
        gradients, outs = backprop(dy, out=out), out if isinstance(out, tuple) else (out,)
        for got, gradient, given in zip(gradients, want, (*outs, None), strict=False):
            np.testing.assert_array_equal(got, gradient)
            assert given is None or got is given
    monkeypatch.setattr(arrays, "copied", None)  # no gradient is dy itself, so dy is not copied
    backprop(before := dy.copy(), out=(before, second))  # the first may be dy
    np.testing.assert_array_equal(second, want[1])
    for out in ((first, first), (first, second, first), (), (first, dy)):
        with pytest.raises(ValueError, match=r"^out must be "):
            backprop(dy, out=out)
    with pytest.raises(ValueError, match=r"^out must be an array or a tuple of one array, got a tuple of 2"):
        gpudrop.dropout_vjp(x)[1](dy, out=(first, second))
    with pytest.raises(ValueError, match=r"^out must be .* of dtype float32"):
        backprop(dy, out=(first, second.astype(np.float64)))


X, ROW = np.ones((4, 6), np.float32), np.ones(6, np.float32)
DOUBLE, SHORT = ROW.astype(np.float64), ROW[:5]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"bias must have a value for each element .* shape \(6,\), .* shape \(4, 6\), got .* shape \(5,\)",
         lambda **o: gpudrop.dropout(X, bias=SHORT, **o)),
        (r"bias must have .* dtype float32 .* for x of dtype float32 .*, got .* dtype float64",
         lambda **o: gpudrop.dropout(X, bias=DOUBLE, **o)),
        ("gain must have .* bfloat16 or float32 .* for x of dtype bfloat16 .*, got .* float16",
         lambda **o: gpudrop.dropout_add(*[X.astype(BFLOAT16)] * 2, gain=ROW.astype(np.float16), **o)),
        ("x must have an axis for gain", lambda **o: gpudrop.dropout_add(X[0, 0], X[0, 0], gain=ROW, **o)),
        ("residual must be .* dtype float64 .*, as x, or of a wider dtype, got .* dtype float32",
         lambda **o: gpudrop.dropout_add(X.astype(np.float64), X, **o)),
        ("residual must be .* dtype float16 .*, as x, or of a wider dtype, got .* dtype bfloat16",
         lambda **o: gpudrop.dropout_add(X.astype(np.float16), X.astype(BFLOAT16), **o)),
        ("value must be .* got .* dtype float64", lambda **o: gpudrop.dropout_glu(X, X.astype(np.float64), **o)),
        (r"gate without value must have an even number .* got \(4, 5\)",
         lambda **o: gpudrop.dropout_glu(X[:, :5], **o)),
        (r"gate without value must have .* got \(\)", lambda **o: gpudrop.dropout_glu(X[0, 0], **o)),
        ("save='bits' does not support gain",
         lambda **o: gpudrop.dropout_add.vjp(X, X, gain=ROW, activation="relu", save="bits", **o)),
        ("save='bits' does not support value",
         lambda **o: gpudrop.dropout_glu.vjp(X, X, activation="relu", save="bits", **o)),
        ("out must not overlap gate, which the backward",
         lambda **o: gpudrop.dropout_glu.vjp(x := X.copy(), X, out=x, **o)),
        ("out must not overlap value, which the backward",
         lambda **o: gpudrop.dropout_glu.vjp(X, x := X.copy(), out=x, **o)),
        ("out must share no memory with bias",
         lambda **o: gpudrop.dropout(X[0], bias=(row := ROW.copy()), out=row, **o)),
        ("gate_first must be True or False", lambda **o: gpudrop.dropout_glu(X, gate_first="value", **o)),
    ],
)  # fmt: skip
def test_errors_come_before_anything_is_drawn(message, call):
    rng = gpudrop.Generator(3)
    with pytest.raises(ValueError, match=f"^{message}"):
        call(rng=rng)
    assert rng.state_dict()["call"] == 0


def test_the_slope_does_not_depend_on_what_is_saved(backend):
    """x + bias is positive, but too small for the dtype of y."""
    x, bias = np.zeros((3, 64), np.float16), np.full(64, 1e-9, np.float32)
    keep = reference.keep_mask((3, 64), 0.5, **SEED)
    for save in ("auto", "output", "bits"):
        options = {"bias": backend.put(bias), "activation": "relu", "rng": STREAM, "save": save}
        _, backprop = gpudrop.dropout.vjp(backend.put(x), 0.5, **options)
        dx, _ = backprop(backend.put(np.ones_like(x)))
        np.testing.assert_array_equal(backend.get(dx).astype(np.float64), 2.0 * keep)


def test_gradients_can_be_pickled():
    x, _, dy, bias, _ = call_of("float32", (4, 33))
    gradients = gpudrop.dropout.vjp(x, 0.3, bias=bias, rng=STREAM)[1](dy)
    again = pickle.loads(pickle.dumps(gradients))
    assert type(again) is type(gradients)
    for got, want in zip(again, gradients, strict=True):
        np.testing.assert_array_equal(got, want)


def test_layers():
    x, residual, dy, bias, gain = call_of("float32", (40, 33))
    layer = gpudrop.layers.DropoutAdd(0.3, activation="gelu", rng=STREAM)
    want, backprop = gpudrop.dropout_add.vjp(x, residual, 0.3, bias=bias, gain=gain, activation="gelu", rng=STREAM)
    np.testing.assert_array_equal(layer(x, residual, bias=bias, gain=gain), want)
    for got, gradient in zip(layer.backward(dy), backprop(dy), strict=True):
        np.testing.assert_array_equal(got, gradient)
    plain = gpudrop.Dropout(0.3, rng=STREAM)
    np.testing.assert_array_equal(plain(x, bias=bias), gpudrop.dropout(x, 0.3, bias=bias, rng=STREAM))
    assert plain.backward(dy)._fields == ("dx", "dbias")
    gated = gpudrop.layers.DropoutGLU(0.3, rng=STREAM)
    assert gated.activation == "silu"
    np.testing.assert_array_equal(gated(x, residual), gpudrop.dropout_glu(x, residual, 0.3, rng=STREAM))
    packed = np.concatenate([x, residual], -1)
    np.testing.assert_array_equal(gated(packed), gated(x, residual))
    for message, call in {
        "DropoutAdd takes x and residual, and optionally bias and gain by name, but 1 was given": lambda: layer(x),
        "DropoutAdd .* but 'weight' was given": lambda: layer(x, x, weight=bias),
        "DropoutGLU takes gate, and optionally value, but 3 were given": lambda: gated(x, x, x),
        "Dropout takes x, and optionally bias by name, but 'gain' was given": lambda: plain(x, gain=bias),
    }.items():
        with pytest.raises(TypeError, match=f"^{message}"):
            call()
