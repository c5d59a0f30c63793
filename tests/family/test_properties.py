"""Arrays of any strides at any address, compared with the reference. Hypothesis draws the same examples in each run."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpudrop
from gpudrop import Stream
from gpudrop.testing import reference, ulps
from gpudrop.variants import FAMILY
from tests.family.placed import dimensions, pair, place
from tests.family.test_family import close
from tests.sampling import few

# Each row compiles half a dozen kernels, so there are few rows. They cover every dtype, width and kind of slope.
FUSIONS = [
    (None, np.float32, 16),
    ("relu", np.float16, 16),
    ("relu", np.float32, 8),
    ("gelu", ml_dtypes.bfloat16, 16),
    ("leaky_relu", np.float64, 32),
    (None, ml_dtypes.bfloat16, 8),
]

sizes = st.sampled_from([3, 1, 2, 4, 5, 7, 2, 3, 4, 1, 0])
long = st.sampled_from([1023, 1025, 2049])
shapes = st.lists(sizes, max_size=5).map(tuple) | st.tuples(long) | st.tuples(sizes, long) | st.tuples(long, sizes)
uint64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**32 - 1, 2**32, 2**64 - 1])
streams = st.builds(Stream, uint64, uint64)


@st.composite
def probabilities(draw, bits):
    """From 0 to 1, at and next to the steps and half steps of a width, and numbers too small to have an effect."""
    half_step = draw(st.integers(0, 2 ** (bits + 1))) / 2 ** (bits + 1)
    near = st.sampled_from([half_step, math.nextafter(half_step, 0), math.nextafter(half_step, 1)])
    return draw(st.floats(0, 1) | near | st.sampled_from([0, 1, 5e-324, 1e-310, 1 - 2**-53]))


@st.composite
def arrays(draw, shape, dtype, writable=False, extremes=False):
    """Arrays as `placed.place` makes them."""
    return place(shape, dtype, lambda items: draw(st.sampled_from(items)), writable, extremes)


@st.composite
def targets(draw, of):
    """An operand and its target: None, a separate array, the elements between the operand's, or the operand itself."""
    array = of.array
    where = draw(st.sampled_from(["new", "own", "between", "in place"]))
    if where == "own":
        return of, draw(arrays(array.shape, array.dtype, writable=True))
    if where == "between":
        return pair(array.shape, array.dtype, lambda items: draw(st.sampled_from(items)))
    return of, of if where == "in place" and array.flags.writeable else None


def call(function, operand, target, others=(), copies=None):
    """Call function(operand, out=) with Placed arrays. Check the result, and that no bytes beside it have changed."""
    placed = [operand, *others, *([] if target is None else [target])]
    for one in placed:
        one.before = one.buffer.copy()
    result = function(operand.array, **({} if target is None else {"out": target.array}))
    y = result[0] if isinstance(result, tuple) else result
    alike = np.empty_like(operand.array) if copies is None else np.empty((copies, *operand.array.shape), y.dtype)
    assert y.shape == alike.shape and y.dtype == operand.array.dtype
    if target is None:
        assert y.strides == alike.strides and y.flags.writeable and y.flags.aligned
    else:
        assert y is target.array
    for one in placed:
        written = target is not None and one.buffer is target.buffer
        assert target.untouched_beside() if written else one.untouched()
    return result


def same(got, want, kept, name="identity", role="value", size=1.0):
    """Check that dropped elements are +0.0, and kept ones within the table's ulps. Its floor is in units of size."""
    limit, floor = ulps.allowed(name, role, got.dtype.name)
    zeros = got[~kept].astype(np.float64)
    assert (zeros == 0).all() and not np.signbit(zeros).any()
    with np.errstate(invalid="ignore", over="ignore"):
        error = ulps.error(got, want, floor * np.broadcast_to(np.abs(size), got.shape))
    error = error[kept & ~(np.isnan(want) & np.isnan(got.astype(np.float64)))]
    assert np.max(error, initial=0) <= limit, f"{np.max(error):.2f} ulps, {limit} are allowed"


@st.composite
def mask_shapes(draw, shape):
    """None, or a shape that broadcasts: each axis is None, 1 or its own size, and the first axes may be left out."""
    if draw(st.booleans()):
        return None
    of = shape[draw(st.integers(0, len(shape))) :]
    return tuple(draw(st.sampled_from([None, 1, n])) for n in of)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # the reference warns about infinite numbers
@given(st.data(), st.sampled_from(FUSIONS), shapes, streams)
def test_dropout_and_its_gradient_of_any_array(data, fusion, shape, stream):
    activation, dtype, bits = fusion
    p, mask_shape = data.draw(probabilities(bits)), data.draw(mask_shapes(shape))
    extremes = activation != "gelu"  # gelu is nan at -inf
    x = data.draw(arrays(shape, dtype, data.draw(st.booleans()), extremes))
    x, target = data.draw(targets(x))
    if activation not in (None, "relu") and target is x:  # its gradient needs x
        target = None
    exact = x.array.astype(np.float64)
    name, seed = activation or "identity", {"seed": stream.seed, "call": stream.call, "bits": bits}
    mask = (None,) * len(shape) if mask_shape is None else mask_shape
    want, want_backprop = reference.structured(exact, p, mask, activation=name, **seed)
    ones = np.ones(shape)
    kept = reference.structured(ones, p, mask, **seed)[0] != 0
    options = {"activation": activation, "mask_shape": mask_shape, "rng": stream, "bits": bits}

    y, backprop = call(lambda x, **out: gpudrop.dropout_vjp(x, p, **options, **out), x, target)
    held = [array for array in (x, target) if array is not None]
    same(y, want, kept, name)
    # Not for relu. Its gradient is 0 where y is 0, but a product of nan and a slope of 0 would be nan.
    dy = data.draw(arrays(shape, dtype, data.draw(st.booleans()), extremes and activation != "relu"))
    dy, dx_target = data.draw(targets(dy))
    exact_dy = dy.array.astype(np.float64)
    dx = call(backprop, dy, dx_target, held)
    same(dx, want_backprop(exact_dy), kept, name, "slope", exact_dy * reference.quantize(p, bits)[1])


@given(st.data(), shapes, st.sampled_from([8, 16, 32]), streams, st.integers(0, 2**65))
def test_a_mask_of_any_shape_at_any_offset(data, shape, bits, stream, start):
    p, start = data.draw(probabilities(bits)), min(start, 2**64 - max(1, math.prod(shape)))
    mask = gpudrop.keep_mask(shape, p, stream, bits=bits, start=start)
    assert mask.dtype == bool and mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, reference.keep_mask(shape, p, stream.seed, stream.call, bits, start))


# Options of variants, as functions of the number of dimensions.
OPTIONS = {
    "channels_last": lambda n: st.booleans(),
    "time_axis": lambda n: st.integers(-n, n - 1),
    "samples": lambda n: st.none() | st.integers(0, 3),
    "block_size": lambda n: st.integers(1, 9),
}


@pytest.mark.parametrize("dtype", few([np.float32, np.float16], np.float32))
@pytest.mark.parametrize("name", reference.FAMILY)
@settings(max_examples=settings.default.max_examples // 5)
@given(data=st.data(), stream=streams)
def test_a_variant_of_any_array(name, dtype, data, stream):
    least, most = dimensions(name)
    shape = tuple(data.draw(st.lists(sizes, min_size=least, max_size=most)))
    options = {option: data.draw(OPTIONS[option](len(shape)), option) for option in FAMILY[name].options}
    noise = ulps.row_of(FAMILY[name].noise)
    p = data.draw(st.sampled_from([0, 0.1, 0.3, 0.5, 0.8]))
    x = data.draw(arrays(shape, dtype, data.draw(st.booleans())))
    copies = options.get("samples")
    x, target = data.draw(targets(x)) if copies is None else (x, None)
    exact = x.array.astype(np.float64)
    want, want_backprop = reference.FAMILY[name](exact, p, seed=stream.seed, call=stream.call, **options)

    variant = getattr(gpudrop, name)
    y, backprop = call(lambda x, **out: variant.vjp(x, p, rng=stream, **options, **out), x, target, copies=copies)
    close(y, want, np.broadcast_to(exact, want.shape), noise)
    dy = data.draw(arrays(want.shape, dtype, data.draw(st.booleans())))
    dy, dx_target = data.draw(targets(dy))
    exact_dy = dy.array.astype(np.float64)
    close(call(backprop, dy, dx_target, [x]), want_backprop(exact_dy), exact_dy, noise, "slope")


@pytest.mark.parametrize("dtype", few([np.float32, np.float16], np.float32))
@given(data=st.data(), shape=shapes, stream=streams)
def test_zoneout_of_any_two_arrays(data, shape, dtype, stream):
    """Nothing is scaled, so each element of a result has the bytes of one operand or the other."""
    p = data.draw(probabilities(16))
    x, previous, dy = (data.draw(arrays(shape, dtype, data.draw(st.booleans()), extremes=True)) for _ in range(3))
    x, target = data.draw(targets(x))
    kept = reference.keep_mask(shape, p, stream.seed, stream.call)
    want = np.where(kept, x.array, previous.array)
    y, backprop = call(
        lambda x, **out: gpudrop.zoneout.vjp(x, previous.array, p, rng=stream, **out), x, target, [previous]
    )
    assert bits_of(y) == bits_of(want)
    dy, dx_target = data.draw(targets(dy))
    zero = np.zeros(shape, dtype)
    want_dx, want_dprevious = np.where(kept, dy.array, zero), np.where(kept, zero, dy.array)
    dx, dprevious = call(backprop, dy, dx_target, [x, previous])
    assert bits_of(dx) == bits_of(want_dx) and bits_of(dprevious) == bits_of(want_dprevious)


def bits_of(array):
    """The bytes in logical order. All nans become the same nan."""
    return np.where(np.isnan(array), array.dtype.type(np.nan), array).tobytes()
