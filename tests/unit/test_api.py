"""Behaviour that users see: error messages, states, and kinds of arrays. An error changes nothing."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, arrays
from tests.foreign import Foreign

X = np.arange(1, 9, dtype=np.float32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "p must be between 0 and 1, got 1.5", lambda: gpudrop.dropout(X, 1.5)),
        (ValueError, "p must be between 0 and 1, got 1000", lambda: gpudrop.dropout(X, 10**400)),
        (TypeError, "p must be a number between 0 and 1, got b'0.5'", lambda: gpudrop.dropout(X, b"0.5")),
        (ValueError, "bits must be one of 8, 16, 32, got 16.0", lambda: gpudrop.dropout(X, bits=16.0)),
        (TypeError, r"seed must be an integer, got array\(\[1, 2\]\)", lambda: Generator(np.array([1, 2]))),
        (ValueError, "p must be between 0 and 1, got nan", lambda: gpudrop.dropout(X, float("nan"))),
        (TypeError, "p must be a number between 0 and 1, got '0.5'", lambda: gpudrop.dropout(X, "0.5")),
        (ValueError, "bits must be one of 8, 16, 32, got 12", lambda: gpudrop.dropout(X, bits=12)),
        (
            ValueError,
            r"unknown activation 'gelo'; known: .*elu, gelu, ",
            lambda: gpudrop.dropout(X, activation="gelo"),
        ),
        (
            TypeError,
            "rng must be a gpudrop.Generator, a gpudrop.Stream, an integer, .*, or None, got 3.0",
            lambda: gpudrop.dropout(X, rng=3.0),
        ),
        (TypeError, "x must be a NumPy, CuPy or Numba array, .*, got list", lambda: gpudrop.dropout([1.0])),
        (
            TypeError,
            "x must be a NumPy, CuPy or Numba array, .*, got numpy.ma.MaskedArray",
            lambda: gpudrop.dropout(np.ma.masked_array(X)),
        ),
        (
            TypeError,
            "x must have one of the dtypes float16, bfloat16, float32, float64, got int64",
            lambda: gpudrop.dropout(np.arange(3)),
        ),
        (TypeError, "x must have one of the dtypes .*, got bool", lambda: gpudrop.dropout(X > 3)),
        (TypeError, "x must have one of the dtypes .*, got >f4", lambda: gpudrop.dropout(X.astype(">f4"))),
        (
            ValueError,
            r"out must be a NumPy array of dtype float32 and shape \(8,\), got a NumPy array of dtype float64 and",
            lambda: gpudrop.dropout(X, out=np.zeros(8)),
        ),
        (ValueError, r"out must be .* shape \(8,\), got .* shape \(7,\)", lambda: gpudrop.dropout(X, out=X[1:])),
        (
            ValueError,
            "out must be x itself or share no memory with it, got an overlapping view",
            lambda: gpudrop.dropout(X[1:], out=X[:-1]),
        ),
        (
            ValueError,
            "out must be writable, got a read-only array",
            lambda: gpudrop.dropout(X, out=np.broadcast_to(np.float32(0), 8)),
        ),
        (
            ValueError,
            "out must not overlap x, which the backward pass of 'gelu' needs",
            lambda: gpudrop.dropout_vjp(X, activation="gelu", out=X),
        ),
        (
            ValueError,
            r"dy must be a NumPy array of dtype float32 and shape \(8,\), got .* shape \(3,\)",
            lambda: gpudrop.dropout_vjp(X)[1](X[:3]),
        ),
        (
            ValueError,
            "unknown backend 'gpu'; known: cpu, cupy_elementwise, numba_cuda",
            lambda: gpudrop.dropout(X, backend="gpu"),
        ),
        (
            ValueError,
            "backend 'numba_cuda' does not support a NumPy array, which is in CPU memory",
            lambda: gpudrop.dropout(X, backend="numba_cuda"),
        ),
        (ValueError, r"seed must be between 0 and 2\*\*64 - 1, got -1", lambda: Stream(-1, 0)),
        (ValueError, r"call must be between 0 and 2\*\*64 - 1, got 1844", lambda: Stream(0, 2**64)),
        (TypeError, "seed must be an integer, got 1.5", lambda: Generator(1.5)),
        (
            ValueError,
            "start must be so small that the mask ends below",
            lambda: gpudrop.keep_mask(3, 0.5, Stream(0, 0), start=2**64 - 2),
        ),
        (ValueError, "p and keep_prob can't both be set", lambda: gpudrop.Dropout(0.5, keep_prob=0.5)),
        (ValueError, "keep_prob must be between 0 and 1, got 2", lambda: gpudrop.Dropout(keep_prob=2)),
        (RuntimeError, "backward needs a call of the layer before it", lambda: gpudrop.Dropout().backward(X)),
        (ValueError, "activation 'relu' exists already", lambda: gpudrop.register_activation("relu", abs, abs)),
        (ValueError, "name must be an identifier, got 'a b'", lambda: gpudrop.register_activation("a b", abs, abs)),
    ],
)
def test_errors_name_the_argument_and_change_nothing(error, message, call):
    before, state = X.copy(), gpudrop.manual_seed(0).state_dict()
    with pytest.raises(error, match=message):
        call()
    np.testing.assert_array_equal(X, before)
    if "dy must" not in message:  # that forward pass is valid, and draws a mask
        assert gpudrop.generator.check_rng(None).state_dict() == state


@pytest.mark.parametrize("bits", [np.uint8(16), np.array(16)])
def test_bits_may_be_any_integer(bits):
    np.testing.assert_array_equal(gpudrop.dropout(X, bits=bits, rng=Stream(0, 0)), gpudrop.dropout(X, rng=Stream(0, 0)))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_results_of_subclasses_have_the_type_that_numpy_returns(tmp_path):
    """np.matrix, which stays two-dimensional when it is reshaped, stays np.matrix. np.memmap becomes an array."""
    memory = np.full((64, 4), -1, np.float32)
    x = X.reshape(2, 4)
    want = gpudrop.dropout(x, rng=Stream(0, 0))
    out = np.asmatrix(memory)[:2]
    assert gpudrop.dropout(np.asmatrix(x), rng=Stream(0, 0), out=out) is out
    np.testing.assert_array_equal(memory[:2], want)
    assert (memory[2:] == -1).all()
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 4))
    mapped[...] = x
    assert type(gpudrop.dropout(mapped, rng=Stream(0, 0))) is np.ndarray
    assert gpudrop.dropout(mapped, rng=Stream(0, 0), out=mapped) is mapped
    np.testing.assert_array_equal(mapped, want)
    matrix = np.asmatrix(x)
    y, backprop = gpudrop.dropout_vjp(matrix, rng=Stream(0, 0))
    assert type(y) is type(backprop(matrix)) is type(gpudrop.gaussian_noise(matrix)) is np.matrix
    np.testing.assert_array_equal(y, want)
    assert [type(dx) for dx in gpudrop.zoneout.vjp(matrix, matrix)[1](matrix)] == [np.matrix] * 2
    assert type(gpudrop.Dropout(0.5)(matrix)) is np.matrix
    assert type(gpudrop.drop_connect(matrix, samples=2)) is np.ndarray  # a matrix can't have three axes
    assert type(gpudrop.keep_mask((2, 4), 0.5, like=matrix)) is np.matrix
    assert type(gpudrop.keep_mask(4, 0.5, like=matrix)) is np.ndarray


class Quantity(np.ndarray):
    """A user's subclass with an attribute."""

    def __array_finalize__(self, of):
        self.unit = getattr(of, "unit", None)


def test_a_subclass_keeps_its_attributes():
    x = X.view(Quantity)
    x.unit = "m"
    y, backprop = gpudrop.dropout_vjp(x, activation="silu", rng=Stream(0, 0))
    dx = backprop(y)
    assert (type(y), type(dx), y.unit, dx.unit) == (Quantity, Quantity, "m", "m")
    np.testing.assert_array_equal(y, gpudrop.dropout(X, activation="silu", rng=Stream(0, 0)))


@pytest.mark.parametrize("arguments", ["array", "array, context", "array, context=None, return_scalar=False"])
def test_array_wrap_may_have_the_signature_of_any_numpy_version(arguments):
    namespace = {"np": np}
    text = f"class Own(np.ndarray):\n    def __array_wrap__(self, {arguments}):\n        return array.view(Own)\n"
    exec(text.replace("array, context)", "array, context, return_scalar)"), namespace)
    assert type(gpudrop.dropout(X.view(namespace["Own"]))) is namespace["Own"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_numpy_scalars_are_accepted_and_returned(dtype):
    """The type is the same as for np.float32(3) * 2."""
    x = dtype(3)
    y, backprop = gpudrop.dropout_vjp(x, 0.25, activation="gelu", rng=Stream(0, 0))
    want, want_backprop = gpudrop.dropout_vjp(np.array(x), 0.25, activation="gelu", rng=Stream(0, 0))
    assert type(y) is type(backprop(x)) is dtype and type(want) is np.ndarray
    assert (y, backprop(x)) == (want, want_backprop(np.array(x)))
    assert x == dtype(3)
    out = np.zeros((), dtype)
    assert gpudrop.dropout(x, 0.25, activation="gelu", rng=Stream(0, 0), out=out) is out and out == want
    assert type(gpudrop.keep_mask((), 0.5, like=x)) is np.bool_
    with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
        gpudrop.dropout(x, out=dtype(1))
    for wrong in (np.int64(3), np.bool_(1), np.complex64(1), np.str_("a"), np.longdouble(1), np.datetime64(1, "s")):
        with pytest.raises(TypeError, match="x must have one of the dtypes float16, bfloat16, float32, float64, got"):
            gpudrop.dropout(wrong)


HINTS = [
    (TypeError, "got int64; convert it with x.astype(np.float32)", lambda: gpudrop.dropout(np.arange(3))),
    (TypeError, "got bool; convert it with x.astype(np.float32)", lambda: gpudrop.dropout(np.ones(3, bool))),
    (TypeError, "got list; convert it with np.asarray(x, np.float32)", lambda: gpudrop.dropout([1.0])),
    (TypeError, "got float; convert it with np.asarray(x, np.float32)", lambda: gpudrop.dropout(3.0)),
    (TypeError, "got list; convert it with np.asarray(dy, np.float32)", lambda: gpudrop.dropout_vjp(X)[1]([1.0])),
    (TypeError, "__cuda_array_interface__, got list", lambda: gpudrop.dropout(X, out=[1.0])),
    (
        ValueError,
        "rng must be between 0 and 2**64 - 1, got 0x31e20801036510f3c5...",
        lambda: gpudrop.dropout(X, rng=10**5000),
    ),
    (ValueError, "n must be at least 1, got -1", lambda: gpudrop.mc_samples(abs, X, -1)),
    (TypeError, "activations must be a list of names, got 'relux'; pass ['relux']", lambda: gpudrop.warmup("relux")),
    (
        TypeError,
        "dtypes must be a list of names, got 'float32'; pass ['float32']",
        lambda: gpudrop.warmup(["relu"], dtypes="float32"),
    ),
    (ValueError, "; convert it with dy.astype('float32')", lambda: gpudrop.dropout_vjp(X)[1](X.astype(np.float64))),
    (ValueError, "; convert it with previous.astype('float32')", lambda: gpudrop.zoneout(X, X.astype(np.float64))),
    (TypeError, "; p is the probability of dropping, so pass p=0.2", lambda: gpudrop.dropout(X, keep_prob=0.8)),
    (TypeError, "; p is the probability of dropping, so pass p=0.2", lambda: gpudrop.dropout_vjp(X, keep_prop=0.8)),
    (TypeError, "so pass p=1 - keep_prob", lambda: gpudrop.keep_mask(3, 0.5, keep_prob=X)),
    (TypeError, "so pass p=1 - keep_prob", lambda: gpudrop.dropout(X, keep_prob=80)),
    (TypeError, "so pass p=0.2", lambda: gpudrop.dropout(X, keep_prob=np.float32(0.8))),
    (TypeError, "unexpected keyword argument 'dims'", lambda: gpudrop.dropout(X, dims=True)),
    (TypeError, "; np.random.default_rng(seed) makes a generator", lambda: gpudrop.dropout(X, rng=np.random)),
    (
        ValueError,
        "; use register_activation to register your own function under a name",
        lambda: gpudrop.dropout(X, activation=abs),
    ),
    (ValueError, "got 'eval'; eval() switches dropout off, train() on", lambda: gpudrop.Dropout().train("eval")),
    *(
        (ValueError, f"; did you mean {meant!r}?", partial(gpudrop.dropout, X, activation=name))
        for name, meant in {
            "linear": "identity",
            "none": "identity",
            "ReLU": "relu",
            "GELU": "gelu",
            "leakyrelu": "leaky_relu",
            "swish": "silu",
            " tanh": "tanh",
            "sigmiod": "sigmoid",
        }.items()
    ),
    (ValueError, "softplus, tanh", lambda: gpudrop.dropout(X, activation="xyz")),  # no name is similar
]


@pytest.mark.parametrize(("error", "end", "call"), HINTS)
def test_errors_end_with_a_suggestion(error, end, call):
    with pytest.raises(error) as told:
        call()
    assert str(told.value).endswith(end)


@pytest.mark.parametrize(
    ("activation", "kept"), [(None, (False, False)), ("relu", (False, True)), ("silu", (True, False))]
)
def test_backprop_keeps_no_more_than_it_needs(activation, kept):
    x = X.copy()
    y, backprop = gpudrop.dropout_vjp(x, activation=activation, rng=Stream(0, 0))
    want = backprop(X)
    references = weakref.ref(x), weakref.ref(y)
    del x, y
    gc.collect()
    assert tuple(reference() is not None for reference in references) == kept
    np.testing.assert_array_equal(backprop(X), want)


def test_read_only_input():
    x = X.copy()
    x.flags.writeable = False
    y, backprop = gpudrop.dropout_vjp(x, activation="silu", rng=Stream(0, 0))
    want, want_backprop = gpudrop.dropout_vjp(X, activation="silu", rng=Stream(0, 0))
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(backprop(x), want_backprop(X))


def test_a_failed_allocation_leaves_the_generator_unchanged(monkeypatch):
    rng = Generator(1)

    def out_of_memory(operand):
        raise MemoryError

    monkeypatch.setattr(arrays, "empty_like", out_of_memory)
    with pytest.raises(MemoryError):
        gpudrop.dropout(X, rng=rng)
    assert rng.next() == Stream(1, 0)


@pytest.mark.parametrize(
    "options", [{"training": False}, {"p": 0}, {"p": 2**-20}], ids=["eval", "p=0", "p that rounds to 0"]
)
def test_the_generator_advances_only_when_a_mask_is_drawn(options):
    rng = Generator(1)
    np.testing.assert_array_equal(gpudrop.dropout(X, rng=rng, **options), X)
    assert rng.state_dict() == {"seed": 1, "call": 0}
    gpudrop.dropout(X, rng=rng, p=1)
    assert rng.state_dict() == {"seed": 1, "call": 1}


def test_a_generator_hands_out_calls_and_a_stream_repeats():
    rng = Generator(9)
    first, second = gpudrop.dropout(X, rng=rng), gpudrop.dropout(X, rng=rng)
    np.testing.assert_array_equal(first, gpudrop.dropout(X, rng=Stream(9, 0)))
    np.testing.assert_array_equal(second, gpudrop.dropout(X, rng=Stream(9, 1)))
    assert not np.array_equal(first, second)


def test_a_subclass_of_generator_chooses_the_streams():
    class Sevens(gpudrop.Generator):
        def next(self):
            return Stream(7, 7)

    x = np.ones(100, np.float32)
    np.testing.assert_array_equal(gpudrop.dropout(x, 0.5, rng=Sevens(1)), gpudrop.dropout(x, 0.5, rng=Stream(7, 7)))


def test_manual_seed_restarts_the_default_generator():
    gpudrop.manual_seed(5)
    first = gpudrop.dropout(X), gpudrop.keep_mask(50, 0.5)
    gpudrop.manual_seed(5)
    np.testing.assert_array_equal(gpudrop.dropout(X), first[0])
    np.testing.assert_array_equal(gpudrop.keep_mask(50, 0.5), first[1])
    np.testing.assert_array_equal(first[1], gpudrop.keep_mask(50, 0.5, Stream(5, 1)))


def test_seeds_from_the_operating_system_differ():
    assert len({Generator().state_dict()["seed"] for _ in range(10)}) == 10


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda rng: pickle.loads(pickle.dumps(rng))])
def test_generators_can_be_copied_and_restored(clone):
    rng = Generator(3)
    rng.next()
    twin = clone(rng)
    assert twin.next() == rng.next() == Stream(3, 1)
    assert rng.next() == Stream(3, 2) and twin.state_dict()["call"] == 2


def test_a_bad_state_changes_nothing():
    rng = Generator(3)
    for state in (
        {"seed": 1},
        {"seed": -1, "call": 0},
        {"seed": 1, "call": 0, "more": 2},
        {"seed": 1, "call": 2.0**64},
    ):
        with pytest.raises((TypeError, ValueError)):
            rng.load_state_dict(state)
        assert rng.state_dict() == {"seed": 3, "call": 0}


def test_a_generator_raises_after_its_last_call():
    rng = Generator(0)
    rng.load_state_dict({"seed": 0, "call": 2**64 - 1})
    assert rng.next() == Stream(0, 2**64 - 1)
    with pytest.raises(OverflowError, match="used up"):
        rng.next()
    rng.load_state_dict(rng.state_dict())


def test_spawned_generators_are_new_each_time_and_reproducible():
    rng, twin = Generator(7), Generator(7)
    families = rng.spawn(3) + rng.spawn(2)
    seeds = [child.state_dict()["seed"] for child in families]
    assert len(set(seeds)) == 5 and 7 not in seeds
    assert [child.state_dict()["seed"] for child in twin.spawn(3) + twin.spawn(2)] == seeds
    # NumPy's own derivation, so that other programs can repeat it.
    sequence = np.random.SeedSequence(7, spawn_key=(0, 1))
    assert seeds[1] == int(sequence.generate_state(1, np.uint64)[0])


def test_threads_never_share_a_call():
    rng, seen, lock = Generator(0), [], threading.Lock()

    def work():
        mine = [rng.next().call for _ in range(200)]
        with lock:
            seen.extend(mine)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(seen) == list(range(1600))


def test_no_dropout_affects_only_its_own_thread():
    outside = []
    with gpudrop.no_dropout():
        worker = threading.Thread(target=lambda: outside.append(gpudrop.dropout(X, 1)))
        worker.start()
        worker.join()
        np.testing.assert_array_equal(gpudrop.dropout(X, 1), X)
        with gpudrop.no_dropout():
            pass
        np.testing.assert_array_equal(gpudrop.dropout(X, 1), X)
    np.testing.assert_array_equal(outside[0], 0)
    np.testing.assert_array_equal(gpudrop.dropout(X, 1), 0)


def test_layer_trains_and_evaluates():
    layer = gpudrop.Dropout(keep_prob=0.5, activation="relu", rng=Generator(4))
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    y = layer(x)
    np.testing.assert_array_equal(y, gpudrop.dropout(x, 0.5, activation="relu", rng=Stream(4, 0)))
    np.testing.assert_array_equal(layer.backward(np.ones_like(x)), np.where(y > 0, np.float32(2), 0))
    assert layer.eval() is layer and not layer.training
    np.testing.assert_array_equal(layer(x), np.maximum(x, 0))
    np.testing.assert_array_equal(layer.backward(np.ones_like(x)), x > 0)
    assert layer.train().training
    np.testing.assert_array_equal(layer(x), gpudrop.dropout(x, 0.5, activation="relu", rng=Stream(4, 1)))
    assert repr(gpudrop.Dropout(keep_prob=0.8)) == "Dropout(p=0.2, keep_prob=0.8, activation=None, bits=16)"


def test_results_of_foreign_arrays_are_of_their_kind():
    y, backprop = gpudrop.dropout_vjp(Foreign(X), rng=Stream(0, 1))
    assert isinstance(y, Foreign)
    np.testing.assert_array_equal(y.array, gpudrop.dropout(X, rng=Stream(0, 1)))
    dx = backprop(y)
    assert isinstance(dx, Foreign)
    np.testing.assert_array_equal(dx.array, 2 * y.array)
    assert isinstance(gpudrop.keep_mask(3, 0.5, like=y), Foreign)


def test_devices_of_dlpack(monkeypatch):
    monkeypatch.setattr(Foreign, "__dlpack_device__", lambda self: (3, 0))  # pinned CPU memory
    assert isinstance(gpudrop.dropout(Foreign(X)), Foreign)
    monkeypatch.setattr(Foreign, "__dlpack_device__", lambda self: (8, 0))
    with pytest.raises(TypeError, match="x must be on the CPU or on a CUDA device, got DLPack's device type 8"):
        gpudrop.dropout(Foreign(X))


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    y, backprop = gpudrop.dropout_vjp(torch.from_numpy(X), activation="relu", rng=Stream(0, 1))
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), gpudrop.dropout(X, rng=Stream(0, 1)))
    assert isinstance(backprop(torch.ones(8)), torch.Tensor)
    for unreadable in (torch.ones(8, dtype=torch.bfloat16), torch.ones(8, requires_grad=True)):
        with pytest.raises(TypeError, match="x can't be read through DLPack"):
            gpudrop.dropout(unreadable)


WITHOUT_CUPY = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cupy", "torch", "rich"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Refuse())
import numpy as np, gpudrop
assert gpudrop.dropout(np.ones(8, np.float32), 1).sum() == 0
from gpudrop import backends
assert "cupy is blocked" in backends.load("cupy_elementwise"), backends.load("cupy_elementwise")
class Device:
    __cuda_array_interface__ = {}
try:
    gpudrop.dropout(Device())
except TypeError as error:
    assert "needs CuPy, and CuPy is not installed" in str(error), error
else:
    raise AssertionError
print("ok")
"""


def test_everything_on_the_cpu_works_without_cupy_and_without_a_gpu():
    done = subprocess.run([sys.executable, "-c", WITHOUT_CUPY], capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr


@pytest.mark.parametrize("use", ["", "gpudrop.dropout(numpy.ones(8)); "])
def test_importing_and_using_it_on_the_cpu_loads_no_optional_package(use):
    names = ("cupy", "torch", "rich", "typer", "numba.cuda")
    code = f"import gpudrop, numpy, sys; {use}print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
