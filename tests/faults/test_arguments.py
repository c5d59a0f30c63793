"""An error names a wrong argument before anything is written or drawn."""

import re

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, generator, schedules
from tests.family.layer_calls import CLASSES, arrays_of, call, gradients_of
from tests.sampling import few

NOT_A_NUMBER = ["0.5", b"0.5", bytearray(b"0.5"), np.array("0.5"), None, [0.5], np.array([0.5]), 0.5 + 0j]
NOT_A_NUMBER += [np.complex64(0.5), np.array(None), float]
NOT_AN_ARRAY = [None, 1.0, [1.0], np.ma.masked_array(np.ones(3, np.float32)), np.ndarray]
OF_OTHER_DTYPES = [int, np.uint8, bool, complex, object, ">f4", ">f8", np.longdouble, "U3", "S4", "V4", "M8[s]"]
OF_OTHER_DTYPES += [[("a", "<f4")], [("a", "<f4"), ("b", "<i4")]]
# Other libraries' names for the arguments, with the end of the error message.
UNKNOWN = {"q": "", "keep_prob": "; p is the probability of dropping, so pass p=0.25", "rate": "; did you mean 'p'\\?"}
UNKNOWN |= {"seed": "; did you mean 'rng'\\?", "activatoin": "; did you mean 'activation'\\?"}
RNG = "rng must be a gpudrop.Generator, a gpudrop.Stream, an integer, .*, or None, got "


def wrong(cls):
    """Yield (changes of a valid call, the error, the beginning of its message)."""
    (x, *others), (first, *seconds) = arrays_of(cls), cls.variant.inputs
    strength, optional = cls.strength(), cls.variant.inputs[cls.variant.least :]
    for p in NOT_A_NUMBER:
        yield {"p": p}, TypeError, rf"{strength} must be a number.*, got {re.escape(repr(p))}"
    for p in (np.nan, -0.1, -np.inf, np.inf, *([] if strength == "std" else [1.5, 10**400, np.float16(1.5)])):
        yield {"p": p}, ValueError, f"{strength} must be (between 0 and 1|finite and not negative), got "
    for name in cls.variant.inputs:
        for array in NOT_AN_ARRAY[name in optional :]:
            yield {name: array}, TypeError, f"{name} must be a NumPy, CuPy or Numba array"
    for dtype in OF_OTHER_DTYPES:
        array = np.zeros(x.shape, dtype)
        yield {first: array}, TypeError, f"{first} must have one of the dtypes float16, bfloat16, float32, "
    yield {first: np.array(None)}, (TypeError, ValueError), f"({first}|x) must have "
    yield {"activation": "gelo"}, ValueError, "unknown activation 'gelo'; known: .*elu, "
    yield {"activation": ["relu"]}, ValueError, r"unknown activation \['relu'\]; known: .*elu, "
    for rng in ("7", Generator, {"seed": 0, "call": 0}):
        yield {"rng": rng}, TypeError, RNG + type(rng).__name__
    for bits in (12, 0, 16.0, "16", None, np.array([16])):
        yield {"bits": bits}, ValueError, "bits must be one of 8, 16, 32, got "
    yield {"backend": "gpu"}, ValueError, "unknown backend 'gpu'; known: cpu, "
    yield {"backend": ["cpu"]}, ValueError, r"unknown backend \['cpu'\]; known: cpu, "
    yield {"backend": "numba_cuda"}, ValueError, "backend 'numba_cuda' does not support a NumPy array"
    name = cls.function.__name__
    for unknown, hint in UNKNOWN.items():
        hint = "" if cls.strength() == "std" and "p" in hint else hint
        yield {unknown: 0.75}, TypeError, rf"{name}(_vjp)?\(\) got an unexpected keyword argument '{unknown}'{hint}$"
    for training in ("eval", "", None, 2, np.ones(2)):
        yield {"training": training}, ValueError, "training must be True or False, got "
    for array in NOT_AN_ARRAY[1:]:  # None means no out
        yield {"out": array}, TypeError, "out must be a NumPy, CuPy or Numba array"
    for array in (x.astype(np.float64), x[..., :-1].copy(), x.astype(">f4"), x.reshape(-1), np.float32(1)):
        yield {"out": array}, ValueError, "out must be a NumPy array of dtype float32 and shape "
    read_only = x.copy()
    read_only.flags.writeable = False
    yield {"out": read_only}, ValueError, "out must be writable, got a read-only array"
    for strides in ((0,) * x.ndim, (4,) * x.ndim):
        repeated = np.lib.stride_tricks.as_strided(np.zeros(sum(x.shape), np.float32), x.shape, strides)
        yield {"out": repeated}, ValueError, "out must not overlap itself, got an array whose elements share memory"
    line = np.ones(x.size + 1, np.float32)
    shifted = {first: line[1:].reshape(x.shape), "out": line[:-1].reshape(x.shape)}
    yield shifted, ValueError, f"out must be {first} itself or share no memory with it, got an overlapping view"
    yield {first: x, "out": x[::-1]}, ValueError, f"out must be {first} itself or share no memory with it"
    for second in seconds:
        shifted[second] = shifted.pop(first)
        yield shifted, ValueError, f"out must be {second} itself or share no memory with it"
        yield {second: others[0].astype(">f4")}, ValueError, f"{second} must be a NumPy array of dtype float3"
        yield {second: others[0][:-1]}, ValueError, f"{second} must be a NumPy array of dtype float32 and shape "


def call_layer(cls, **options):
    given = [options.pop(name, default) for name, default in zip(cls.variant.inputs, arrays_of(cls), strict=True)]
    return cls(**options)(*given)


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_are_raised_before_anything_is_written_or_drawn(cls):
    """In the function, in its vjp and, if it has the argument, in the layer."""
    rng = Generator(8)
    for changes, error, message in wrong(cls):
        before = {name: np.array(array) for name, array in changes.items() if name in (*cls.variant.inputs, "out")}
        for function in (cls.function, cls.function.vjp):
            with pytest.raises(error, match=f"^{message}"):
                call(cls, function, **{"rng": rng} | changes)
        for name, array in before.items():
            np.testing.assert_array_equal(changes[name], array)
        if not changes.keys() & {"out", "backend", "training", *UNKNOWN} and all(
            value is not None for value in changes.values()
        ):
            options = {cls.strength() if name == "p" else name: value for name, value in changes.items()}
            with pytest.raises(error, match=message):
                call_layer(cls, **{"rng": rng} | options)
    assert rng.state_dict() == {"seed": 8, "call": 0}


@pytest.mark.parametrize("activation", few(["relu", "gelu"], "gelu"))
@pytest.mark.parametrize("cls", CLASSES)
def test_errors_of_backprop_are_raised_before_anything_is_written(cls, activation):
    y, backprop = call(cls, cls.function.vjp, activation=activation, rng=Stream(0, 0))
    dy, line = np.ones_like(y), np.ones(y.size + 1, np.float32)
    want = [np.array(gradient) for gradient in gradients_of(backprop(dy))]
    read_only = dy.copy()
    read_only.flags.writeable = False
    wrong = [
        ({"dy": [1.0]}, TypeError, "dy must be a NumPy, CuPy or Numba array"),
        ({"dy": dy.astype(np.float64)}, ValueError, "dy must be a NumPy array of dtype float32 and shape "),
        ({"dy": dy[:-1]}, ValueError, "dy must be a NumPy array of dtype float32 and shape "),
        ({"out": [1.0]}, TypeError, "out must be a NumPy, CuPy or Numba array"),
        ({"out": dy.astype(np.float64)}, ValueError, "out must be a NumPy array of dtype float32 and shape "),
        ({"out": read_only}, ValueError, "out must be writable, got a read-only array"),
        ({"dy": line[1:].reshape(y.shape), "out": line[:-1].reshape(y.shape)}, ValueError, "out must be dy itself or"),
    ]
    for changes, error, message in wrong:
        with pytest.raises(error, match=f"^{message}"):
            backprop(**{"dy": dy} | changes)
    assert (line == 1).all() and (dy == 1).all() and (read_only == 1).all()
    for got, gradient in zip(gradients_of(backprop(dy)), want, strict=True):
        np.testing.assert_array_equal(got, gradient)


X = np.arange(1, 25, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "shape must be an integer or a tuple of integers, got 2.5", lambda: gpudrop.keep_mask(2.5, 0.5)),
        (TypeError, "shape must be .*, got None", lambda: gpudrop.keep_mask(None, 0.5)),
        (TypeError, "shape must be .*, got '12'", lambda: gpudrop.keep_mask("12", 0.5)),
        (TypeError, r"shape must be .*, got \(2, 3.0\)", lambda: gpudrop.keep_mask((2, 3.0), 0.5)),
        (ValueError, r"shape must not be negative, got \(2, -1\)", lambda: gpudrop.keep_mask((2, -1), 0.5)),
        (ValueError, "p must be between 0 and 1, got nan", lambda: gpudrop.keep_mask(3, np.nan)),
        (TypeError, "p must be a number between 0 and 1, got None", lambda: gpudrop.keep_mask(3, None)),
        (ValueError, "bits must be one of 8, 16, 32, got 4", lambda: gpudrop.keep_mask(3, 0.5, bits=4)),
        (TypeError, "start must be an integer, got 1.5", lambda: gpudrop.keep_mask(3, 0.5, start=1.5)),
        (ValueError, r"start must be between 0 and 2\*\*64 - 1, got -1", lambda: gpudrop.keep_mask(3, 0.5, start=-1)),
        (TypeError, "like must be a NumPy, CuPy or Numba array", lambda: gpudrop.keep_mask(3, 0.5, like=[1.0])),
        (TypeError, f"{RNG}7.0", lambda: gpudrop.keep_mask(3, 0.5, 7.0)),
        (ValueError, "unknown backend 'gpu'", lambda: gpudrop.keep_mask(3, 0.5, backend="gpu")),
        (TypeError, "fn must be a function of x, got NoneType", lambda: gpudrop.mc_samples(None, X, 3)),
        (ValueError, "n must be at least 1, got 0", lambda: gpudrop.mc_samples(abs, X, 0)),
        (ValueError, "x must be an array whose first axis counts samples", lambda: gpudrop.mc_samples(abs, [1.0], 3)),
        (TypeError, "batch_size must be an integer", lambda: gpudrop.mc_samples(abs, X, 3, batch_size=1.5)),
        (TypeError, "first must be an integer", lambda: gpudrop.mc_samples(abs, X, 3, first=None)),
        (TypeError, f"{RNG}str", lambda: gpudrop.mc_samples(abs, X, 3, "seed")),
        (TypeError, "seed must be an integer, got '3'", lambda: gpudrop.manual_seed("3")),
        (TypeError, "seed must be an integer, got None", lambda: gpudrop.manual_seed(None)),
        (ValueError, r"seed must be between 0 and 2\*\*64 - 1, got 1844", lambda: gpudrop.manual_seed(2**64)),
        (TypeError, r"seed must be an integer, got np.float32\(3.0\)", lambda: Generator(np.float32(3))),
        (ValueError, r"seed must be between 0 and 2\*\*64 - 1, got -1", lambda: Generator(-1)),
        (TypeError, "call must be an integer, got None", lambda: Stream(0, None)),
        (ValueError, r"call must be between 0 and 2\*\*64 - 1, got -1", lambda: Stream(0, -1)),
        (TypeError, "n must be an integer, got 1.5", lambda: generator.check_rng(None).spawn(1.5)),
        (ValueError, r"n must be at most 2\*\*32, got 4294967297", lambda: generator.check_rng(None).spawn(2**32 + 1)),
        (TypeError, "p must be a number between 0 and 1, got '0.5'", lambda: gpudrop.quantize("0.5")),
        (ValueError, "bits must be one of 8, 16, 32, got 7", lambda: gpudrop.quantize(0.5, 7)),
        (TypeError, "depth must be an integer, got 1.5", lambda: gpudrop.drop_path_rates(0.5, 1.5)),
        (TypeError, "samples must be an integer, got 1.5", lambda: gpudrop.drop_connect(X, samples=1.5)),
        (ValueError, r"unknown curve \['linear'\]; known: ", lambda: schedules.Schedule(0, 1, 5, ["linear"])),
        (ValueError, "p must be between 0 and 1, got 3.0", lambda: gpudrop.Dropout(schedules.constant(3))(X)),
        (ValueError, "mask_shape must broadcast", lambda: gpudrop.Dropout(mask_shape=(None, 2))(X)),
        (TypeError, "mask_shape must be a tuple of", lambda: gpudrop.Dropout(mask_shape=("a",))(X)),
        (ValueError, "training must be True or False", lambda: gpudrop.dropout(X, training=np.array([True, False]))),
        (ValueError, "unknown variant 'dropout9'; known: ", lambda: gpudrop.warmup(variant="dropout9")),
        (ValueError, "unknown backend 'gpu'", lambda: gpudrop.warmup(["relu"], backend="gpu")),
    ],
)
def test_errors_of_the_other_functions_draw_nothing(error, message, call):
    before, state = X.copy(), gpudrop.manual_seed(0).state_dict()
    with pytest.raises(error, match=f"^({message})"):
        call()
    np.testing.assert_array_equal(X, before)
    assert generator.check_rng(None).state_dict() == state


def test_a_probability_is_checked_where_dropout_is_off():
    with gpudrop.no_dropout():
        with pytest.raises(ValueError, match="p must be between 0 and 1, got 2"):
            gpudrop.keep_mask(3, 2)
        with pytest.raises(ValueError, match="p must be between 0 and 1, got 2"):
            gpudrop.dropout(X, 2)


@pytest.mark.parametrize("p", [True, np.True_, 1, np.uint8(1), np.float16(1), np.array(1.0), np.array(1)])
def test_p_may_be_any_number_that_numpy_and_pytorch_accept(p):
    np.testing.assert_array_equal(gpudrop.dropout(X, p), np.zeros_like(X))
    assert gpudrop.Dropout(p).p == 1.0 and type(gpudrop.Dropout(p).p) is float


@pytest.mark.parametrize("turned", [lambda x: x.T, lambda x: x[::-1], lambda x: x.T[::-1]])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_out_must_not_be_a_reordered_view_of_x(turned, activation):
    """Even if both begin at the same address and have the same shape."""
    x = np.arange(1, 26, dtype=np.float32).reshape(5, 5)
    before = x.copy()
    for function in (gpudrop.dropout, gpudrop.dropout_vjp):
        with pytest.raises(ValueError, match=r"^out must be x itself or share no memory with it"):
            function(x, 0.5, activation=activation, out=turned(x))
    np.testing.assert_array_equal(x, before)
    _, backprop = gpudrop.dropout_vjp(x, 0.5, rng=Stream(0, 0))
    with pytest.raises(ValueError, match=r"^out must be dy itself or share no memory with it"):
        backprop(x, out=turned(x))
    np.testing.assert_array_equal(x, before)


INTERLEAVED = {
    "every other element": (lambda a: a.reshape(-1)[::2], lambda a: a.reshape(-1)[1::2]),
    "every other element, from the end": (lambda a: a.reshape(-1)[::2], lambda a: a.reshape(-1)[::-2]),
    "columns": (lambda a: a[:, :5], lambda a: a[:, 5:]),
    "every other column": (lambda a: a[:, ::2], lambda a: a[:, 1::2]),
    "transposed": (lambda a: a[:6, ::2].T, lambda a: a[:6, 1::2].T),
    "rows of a transposed array": (lambda a: a.T[:5], lambda a: a.T[5:]),
}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("views", INTERLEAVED)
def test_interleaved_arrays_do_not_overlap(views, activation):
    """These arrays lie within the bounds of x, but share no memory with it."""
    base = np.arange(1, 81, dtype=np.float32).reshape(8, 10)
    (take, target), keep = INTERLEAVED[views], {"activation": activation, "rng": Stream(2, 2)}
    x, out = take(base), target(base)
    before, dy = x.copy(), np.full_like(x, 3)
    want, want_backprop = gpudrop.dropout_vjp(before, **keep)
    y, backprop = gpudrop.dropout_vjp(x, out=out, **keep)
    assert y is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(x, before)
    both = np.zeros_like(base)
    dy, dx = take(both), target(both)
    dy[...] = 3
    assert backprop(dy, out=dx) is dx
    np.testing.assert_array_equal(dx, want_backprop(np.full_like(before, 3)))
    assert (dy == 3).all()
