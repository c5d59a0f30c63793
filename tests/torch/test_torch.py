"""gpudrop.torch: gpudrop's values and masks on tensors, with autograd, compilation, checkpoints and vmap."""

import contextlib
import copy
import itertools
import os
import re
import subprocess
import sys
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gpudrop  # noqa: E402
import gpudrop.torch  # noqa: E402
from gpudrop import Stream  # noqa: E402
from gpudrop.formulas.noises import PLAIN  # noqa: E402
from gpudrop.testing import reference  # noqa: E402
from gpudrop.torch import functional, modules, operators  # noqa: E402
from gpudrop.variants import FAMILY  # noqa: E402
from tests.family.shapes import SHAPES  # noqa: E402
from tests.sampling import few  # noqa: E402
from tests.torch.neighbours import CASES  # noqa: E402

STREAM = Stream(2**63 + 5, 2**40 + 3)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAMES = list(FAMILY)


def tensor(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(name, dtype=torch.float32, grad=False):
    return [tensor(SHAPES[name], dtype, seed).requires_grad_(grad) for seed, _ in enumerate(FAMILY[name].inputs)]


def on(name):
    """alpha dropout is off by default, as in torch."""
    return {"training": True} if name in functional.OFF_BY_DEFAULT else {}


def test_every_variant_is_here():
    for name, row in FAMILY.items():
        assert getattr(functional, name).__name__ == name
        assert getattr(gpudrop.torch, row.layer).variant == name and row.layer in gpudrop.torch.__all__


def test_replacements_match_torchs_functions():
    """Compares the replaced functions, and their defaults, with this version of torch."""
    for name, row in FAMILY.items():
        assert (row.torchs is not None) == hasattr(torch.nn.functional, name)
    assert functional.OFF_BY_DEFAULT == ("alpha_dropout", "feature_alpha_dropout")
    assert [cls.__name__ for cls in modules.STANDS_FOR] == [cls.__name__ for cls in modules.STANDS_FOR.values()]


LAYERS_OF_A_USER = """
import gpudrop
from gpudrop.variants import FAMILY

class Base(gpudrop.layers.Layer): ...
class Mine(Base): function = staticmethod(gpudrop.drop_path)
class Rows(gpudrop.layers.Layer): variant = FAMILY["dropout"]
class More(gpudrop.Dropout): size = 3
class Dropout(gpudrop.layers.Layer): function = staticmethod(lambda x, p=0.5, *, bits=16: x)

import gpudrop.torch
assert gpudrop.torch.Dropout(0.2)(gpudrop.torch.functional.torch.ones(3)).shape == (3,)
assert {cls.__module__ for cls in gpudrop.layers.VARIANTS.values()} == {"gpudrop.layers"}
"""


def test_a_users_own_layers_are_not_part_of_the_family():
    done = subprocess.run([sys.executable, "-c", LAYERS_OF_A_USER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def as_numpy(array):
    return operators.as_array(array.detach())


class OnDevice(torch.Tensor):
    """A tensor that reports that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_tensor_that_requires_grad_can_be_read(monkeypatch, dtype):
    """DLPack exports no tensor that requires a gradient, on any device, even below autograd. Runs without a GPU."""
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=np.from_dlpack))
    x = tensor((3, 5), dtype)
    array = operators.as_array(x.as_subclass(OnDevice).requires_grad_())
    np.testing.assert_array_equal(array, as_numpy(x))
    assert array.ctypes.data == x.data_ptr()


def test_cupy_allocates_torchs_memory_in_a_call(monkeypatch):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    monkeypatch.setattr(cupy.cuda, "ExternalStream", lambda stream, device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    made = []
    monkeypatch.setattr(
        torch, "empty", lambda *args, empty=torch.empty, **kw: made.append(empty(*args, **kw)) or made[-1]
    )
    with operators.on_stream_of(torch.zeros(1).as_subclass(OnDevice)):
        pointer, nothing = cupy.cuda.alloc(1000), cupy.cuda.alloc(0)
    memory = made.pop(0)
    assert (pointer.ptr, pointer.mem.size, nothing.ptr) == (
        memory.data_ptr(),
        memory.nbytes,
        0,
    ) and memory.nbytes == 1000
    memory = weakref.ref(memory)
    assert memory() is not None, "CuPy's memory must keep torch's"
    del pointer
    assert memory() is None


CALLS = list(itertools.product(NAMES, DTYPES, [None, "relu", "gelu"]))
SOME = [call for call in CALLS if call[0] == "dropout" or (call[1] is torch.float32 and call[2] != "relu")]
"""Dtypes and activations are converted in the same way for all variants."""


@pytest.mark.parametrize(("name", "dtype", "activation"), few(CALLS, *SOME))
def test_a_function_equals_gpudrops(name, dtype, activation):
    tensors = inputs(name, dtype, grad=True)
    y = getattr(functional, name)(*tensors, 0.4, activation=activation, rng=STREAM, **on(name))
    want, backprop = getattr(gpudrop, name).vjp(*map(as_numpy, tensors), 0.4, activation=activation, rng=STREAM)
    assert y.dtype == dtype
    np.testing.assert_array_equal(as_numpy(y), want)
    dy = tensor(y.shape, dtype, 9)
    y.backward(dy)
    gradients = backprop(as_numpy(dy))
    gradients = gradients if len(tensors) > 1 else (gradients,)
    for x, gradient in zip(tensors, gradients[: len(tensors)], strict=True):  # the others are those of absent rows
        np.testing.assert_array_equal(as_numpy(x.grad), gradient)


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "sliced": lambda x: torch.cat([x, x], 3)[..., ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}


@pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16], torch.float32))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dropout", "dropout2d", "dropblock2d"])
def test_layouts(name, layout, dtype):
    x = LAYOUTS[layout](tensor((2, 3, 4, 5), dtype)).requires_grad_()
    y = getattr(functional, name)(x, 0.4, rng=STREAM)
    np.testing.assert_array_equal(as_numpy(y), getattr(gpudrop, name)(as_numpy(x.contiguous()), 0.4, rng=STREAM))
    assert y.stride() == torch.empty_like(x).stride()
    y.sum().backward()
    want = getattr(gpudrop, name)(np.ones(x.shape, np.float32), 0.4, rng=STREAM)
    np.testing.assert_array_equal(as_numpy(x.grad.float()), want.astype(as_numpy(x).dtype).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_without_dropout_only_the_activation_is_applied_and_nothing_drawn(name):
    function, tensors = getattr(functional, name), inputs(name)
    state = torch.get_rng_state()
    if FAMILY[name].is_product:
        gate, value = tensors
        for y in (function(*tensors, 0.4, training=False), function(*tensors, 0)):
            torch.testing.assert_close(y, torch.nn.functional.silu(gate) * value)
    elif FAMILY[name].prediction is PLAIN:
        assert function(*tensors, 0.4, training=False) is tensors[0]  # as torch does
        assert function(*tensors, 0, **on(name)) is tensors[0]
        torch.testing.assert_close(function(*tensors, 0.4, False, activation="relu"), tensors[0].relu())
    else:
        x, other = map(as_numpy, tensors)
        want = reference.zoneout_expected(x, other, 0.4)[0] if name == "zoneout" else x + other
        np.testing.assert_allclose(as_numpy(function(*tensors, 0.4, False)), want, rtol=1e-6, atol=1e-6)
    with gpudrop.no_dropout():
        torch.testing.assert_close(function(*tensors, 0.4), function(*tensors, 0.4, training=False))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_in_place(name):
    function, tensors = getattr(functional, name), inputs(name)
    want = function(*tensors, 0.4, rng=STREAM, **on(name))
    assert function(*tensors, 0.4, inplace=True, rng=STREAM, **on(name)) is tensors[0]
    torch.testing.assert_close(tensors[0], want, rtol=0, atol=0)
    x = tensor((5, 7)).requires_grad_()
    y = functional.dropout(x * 2, 0.4, inplace=True, activation="relu", rng=STREAM)
    y.sum().backward()
    other = tensor((5, 7)).requires_grad_()
    functional.dropout(other * 2, 0.4, activation="relu", rng=STREAM).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=0, atol=0)


def test_axes_of_a_tensor_share_a_mask():
    x = tensor((3, 4, 5)).requires_grad_()
    for mask_shape in ((None, 1, None), [4, 1]):
        y = functional.dropout(x, 0.5, mask_shape=mask_shape, rng=STREAM)
        want, backprop = gpudrop.dropout_vjp(as_numpy(x), 0.5, mask_shape=mask_shape, rng=STREAM)
        np.testing.assert_array_equal(as_numpy(y), want)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        np.testing.assert_array_equal(as_numpy(dx), backprop(np.ones_like(want)))
    with pytest.raises(TypeError, match="mask_shape must be a tuple of integers and None"):
        functional.dropout(x, 0.5, mask_shape=3)
    with pytest.raises(TypeError, match=r"dropout\(\) got an unexpected keyword argument 'mask'"):
        functional.dropout(x, 0.5, mask=3)


# Neighbours


MIXED = {
    "one": (torch.float32, None, None),
    "rows": (torch.bfloat16, None, torch.float32),
    "residual": (torch.float16, torch.float32, None),
}
"""The dtypes of input, of a residual and of rows."""


@pytest.mark.parametrize("dtypes", few(MIXED, "one", "rows"))
@pytest.mark.parametrize("case", few(CASES, "bias", "residual", "gate", "packed, second"))
def test_neighbours_have_the_values_and_gradients_of_functions_of_arrays(case, dtypes):
    case = CASES[case]
    tensors = case.tensors(*MIXED[dtypes])
    y, (want, backprop) = case(*tensors, rng=STREAM), case.of_arrays(*tensors, rng=STREAM)
    np.testing.assert_array_equal(as_numpy(y), want)
    with torch.no_grad():
        assert torch.equal(case(*tensors, rng=STREAM), y)
    dy = tensor(y.shape, y.dtype, 9)
    gradients, wanted = torch.autograd.grad(y, tensors, dy), backprop(as_numpy(dy))
    for name, x, gradient in zip(case.names, tensors, gradients, strict=True):
        assert gradient.dtype == x.dtype
        np.testing.assert_array_equal(as_numpy(gradient), getattr(wanted, "dx" if name == "x" else f"d{name}"))


def test_a_residual_of_a_wider_dtype_is_not_rounded():
    branch, residual = tensor((5, 7), torch.bfloat16).requires_grad_(), tensor((5, 7), seed=1).requires_grad_()
    y = functional.dropout_add(branch, residual, 0.4, rng=STREAM)
    want, backprop = gpudrop.dropout_add.vjp(as_numpy(branch), as_numpy(residual), 0.4, rng=STREAM)
    np.testing.assert_array_equal(as_numpy(y), want)
    dy = tensor(y.shape, seed=9)
    dbranch, dresidual = torch.autograd.grad(y, (branch, residual), dy)
    np.testing.assert_array_equal(as_numpy(dbranch), backprop(as_numpy(dy)).dx)
    assert dbranch.dtype == torch.bfloat16 and torch.equal(dresidual, dy)


@pytest.mark.parametrize("case", few(CASES, "bias and bits", "residual", "gate", "packed"))
def test_derivatives_of_neighbours(case):
    def function(*tensors):
        return CASES[case](*tensors, rng=STREAM)

    tensors = CASES[case].tensors(torch.float64)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)
    torch.testing.assert_close(function(*tensors), CASES[case].reference(*tensors, rng=STREAM))


@pytest.mark.parametrize("case", few(CASES, "residual"))
def test_each_tensor_alone_may_need_a_gradient(case):
    case, every = CASES[case], CASES[case].tensors()
    wanted = torch.autograd.grad(case(*every, rng=STREAM).square().sum(), every)
    for k, want in enumerate(wanted):
        tensors = [x.detach().requires_grad_(k == i) for i, x in enumerate(every)]
        assert torch.equal(torch.autograd.grad(case(*tensors, rng=STREAM).square().sum(), tensors[k])[0], want)


@pytest.mark.parametrize("case", few(CASES, "bias", "residual", "packed, second"))
def test_neighbours_remain_where_nothing_is_dropped(case):
    case, state = CASES[case], torch.get_rng_state()
    tensors = case.tensors()
    want, backprop = case.of_arrays(*tensors, training=False)
    dy = np.ones_like(want)
    gradients = backprop(dy)
    with gpudrop.no_dropout():
        results = [case(*tensors)]
    results += [case(*tensors, training=False), case(*tensors, p=0.0)]
    for y in results:
        np.testing.assert_array_equal(as_numpy(y), want)
        for name, got in zip(case.names, torch.autograd.grad(y.sum(), tensors), strict=True):
            np.testing.assert_array_equal(as_numpy(got), getattr(gradients, "dx" if name == "x" else f"d{name}"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("cls", "name"), [(modules.Zoneout, "previous"), (modules.DropoutAdd, "residual")])
def test_a_module_needs_its_second_tensor(cls, name):
    with pytest.raises(TypeError, match=f"^{name} must be a torch.Tensor, got None$"):
        cls(0.5)(ONES, None)


def test_tensors_that_no_gradient_needs_may_be_changed():
    x, residual, bias = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True), torch.zeros(6)
    for options in ({"activation": "relu", "save": "bits"}, {"activation": None}, {"activation": "gelu"}):
        for function, others in ((functional.dropout_add, (residual,)), (functional.dropout, ())):
            y = function(x, *others, 0.5, bias=bias, rng=STREAM, **options)
            bias.add_(1)
            if options["activation"] == "gelu":  # its slope needs x + bias
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    y.sum().backward()
            else:
                y.sum().backward()
    for each in (None, bias):
        x = torch.randn(4, 6)
        y = functional.dropout_add(x, residual, 0.5, bias=each, activation="gelu", rng=STREAM)
        x.zero_()
        assert torch.equal(torch.autograd.grad(y.sum(), residual)[0], torch.ones(4, 6))


@pytest.mark.parametrize("size", [64, 2**20], ids=["y", "bits"])  # what is saved
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_slope_of_a_sum_that_is_too_small_for_the_dtype(size, create_graph):
    x = torch.zeros(1, size, dtype=torch.float16, requires_grad=True)
    y = functional.dropout(x, 0.0, bias=torch.full((size,), 1e-9), activation="relu")
    assert torch.equal(torch.autograd.grad(y.sum(), x, create_graph=create_graph)[0], torch.ones_like(x))


def test_neighbours_in_place():
    for name in ("bias", "bias and bits", "residual", "gate"):
        x, *others = (tensor.detach() for tensor in CASES[name].tensors())
        want = CASES[name](x, *others, rng=STREAM)
        assert CASES[name](x, *others, rng=STREAM, inplace=True) is x and torch.equal(x, want)


def test_bits_of_a_call_with_a_bias_may_outlive_its_arrays():
    for name in ("bias and bits", "residual and bits"):
        case, gradients = CASES[name], []
        for save in ("output", "bits"):
            x, *others = case.tensors()
            copy = x * 1
            kept, y = saved(
                lambda copy=copy, others=others, save=save, case=case: case(copy, *others, rng=STREAM, save=save)
            )
            assert any(map(operators.has_bits, kept)) == (save == "bits")
            dy = tensor(y.shape, seed=9)
            if save == "bits":
                for array in (y, copy):
                    array.data.fill_(float("nan"))
            gradients.append(torch.autograd.grad(y, (x, *others), dy))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("shape", [(0, 6), (3, 0), (6,), (2000, 3)])
def test_gradients_of_rows_for_every_shape(shape):
    for name in ("bias alone", "gain"):
        case = CASES[name]._replace(options={})
        tensors = case.tensors(shape=shape, of_rows=torch.float32, dtype=torch.bfloat16)
        y, (want, backprop) = case(*tensors, rng=STREAM), case.of_arrays(*tensors, rng=STREAM)
        gradients = torch.autograd.grad(y, tensors, torch.ones_like(y))
        wanted = backprop(np.ones_like(want))
        row = case.names[-1]
        np.testing.assert_array_equal(as_numpy(gradients[-1]), getattr(wanted, f"d{row}"))
        assert gradients[-1].shape == shape[-1:]


def test_modules_accept_neighbours():
    x, residual, bias, gain = CASES["residual"].tensors()
    drop, add, glu = modules.Dropout(0.4), modules.DropoutAdd(0.4, activation="silu"), modules.DropoutGLU(0.4)
    for module, args, rows in (
        (drop, (x,), {"bias": bias}),
        (drop, (x,), {"bias": None}),
        (add, (x, residual), {"bias": bias, "gain": gain}),
        (add, (x, residual), {"gain": gain}),
        (glu, (x, residual), {}),
        (glu, (x,), {}),
    ):
        torch.manual_seed(1)
        y = module(*args, **rows)
        torch.manual_seed(1)
        options = {} if module.activation is None else {"activation": module.activation}
        assert torch.equal(y, getattr(functional, module.variant)(*args, p=0.4, **rows, **options))
        module.eval()
        off = getattr(functional, module.variant)(*args, training=False, **rows, **options)
        assert torch.equal(module(*args, **rows), off)
        module.train()
    torch.manual_seed(1)
    y = add(x, residual=residual)
    torch.manual_seed(1)
    assert torch.equal(add(x, residual), y)
    assert repr(glu) == "DropoutGLU(p=0.4, inplace=False)" and glu.activation == "silu"
    assert repr(modules.DropoutGLU(activation=None)) == "DropoutGLU(p=0.5, inplace=False, activation=None)"
    for call, message in (
        (lambda: add(x), "DropoutAdd takes input and residual, and optionally bias and gain"),
        (lambda: add(x, residual, bias), "DropoutAdd takes input and residual, and optionally bias and gain"),
        (lambda: add(x, residual, residual=x), "DropoutAdd takes input and residual, and optionally bias and gain"),
        (lambda: glu(x, x, x), "DropoutGLU takes input, and optionally value"),
        (lambda: drop(x, bias), "takes 2 positional arguments but 3 were given"),
        (lambda: drop(x, gain=gain), "Dropout takes input, and optionally bias"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


# Randomness


def test_torchs_generator_determines_the_masks():
    x = torch.ones(100)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = functional.dropout(x, 0.5), functional.dropout(x, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(functional.dropout(x, 0.5), first)
    torch.set_rng_state(state)
    assert torch.equal(functional.dropout(x, 0.5), first)
    with torch.random.fork_rng():
        functional.dropout(x, 0.5)
    assert torch.equal(functional.dropout(x, 0.5), second)
    generator = torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(functional.dropout(x, 0.5, generator=generator), first)
    assert torch.equal(functional.dropout(x, 0.5, generator=generator), second)
    assert torch.equal(torch.get_rng_state(), before)


def test_gpudrops_streams_and_generators():
    x = torch.ones(100)
    np.testing.assert_array_equal(
        functional.dropout(x, 0.5, rng=STREAM).numpy(), gpudrop.dropout(x.numpy(), 0.5, rng=STREAM)
    )
    rng = gpudrop.Generator(5)
    functional.dropout(x, 0.5, rng=rng)
    np.testing.assert_array_equal(
        functional.dropout(x, 0.5, rng=rng).numpy(), gpudrop.dropout(x.numpy(), 0.5, rng=Stream(5, 1))
    )
    module = modules.Dropout(0.5)
    want = gpudrop.mc_samples(lambda x: gpudrop.dropout(x, 0.5), x.numpy(), 5, Stream(1, 2))
    got = gpudrop.mc_samples(module, x, 5, Stream(1, 2), batch_size=30)
    np.testing.assert_allclose(got.mean.numpy(), want.mean, rtol=1e-6)


# What makes an rng, and the seeds that it draws, one call after another.
RNGS = {
    "int": (lambda: 7, [7, 7]),
    "SeedSequence": (lambda: np.random.SeedSequence(7), [*np.random.SeedSequence(7).generate_state(1, np.uint64)] * 2),
    "numpy": (lambda: np.random.default_rng(7), np.random.default_rng(7).integers(0, 2**64, 2, np.uint64)),
}


@pytest.mark.parametrize("kind", RNGS)
def test_functions_of_tensors_and_arrays_draw_the_same_from_an_rng(kind):
    make, seeds = RNGS[kind]
    x, rng, state = torch.ones(100), make(), torch.get_rng_state()
    for seed in seeds:
        want = functional.dropout(x, 0.5, rng=Stream(seed, 0))
        assert torch.equal(functional.dropout(x, 0.5, rng=rng), want)
    assert torch.equal(torch.get_rng_state(), state)
    with gpudrop.no_dropout():
        functional.dropout(x, 0.5, rng=rng)
    kept = []
    gpudrop.mc_samples(lambda x: kept.append(functional.dropout(x, 0.5, rng=make())) or x, x, 2, Stream(1, 2))
    assert torch.equal(*kept) == (kind != "numpy")
    with pytest.raises(TypeError, match=r"rng must be a gpudrop.Generator, .*, or None, got True"):
        gpudrop.mc_samples(lambda x: functional.dropout(x, 0.5, rng=True), x, 2)


TENSORS = {
    "requires grad": lambda: torch.ones(3, requires_grad=True),
    "a parameter": lambda: torch.nn.Parameter(torch.ones(3)),
    "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
    "sparse": lambda: torch.ones(3).to_sparse(),
    "meta": lambda: torch.ones(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}
OF_OUR_FUNCTIONS = ("requires grad", "a parameter", "bfloat16", "negative", "meta")
REASONS = {
    "requires grad": "Can't export tensors that require gradient",
    "a parameter": "Can't export tensors that require gradient",
    "conjugate": "Can't export tensors with the conjugate bit set",
    "negative": "Can't export tensors with the negative bit set",
    "sparse": "Can't export tensors with layout other than torch.strided",
    "nested": "it is nested",
}

ONES = torch.ones(4)
WRONG_CALLS = {
    "x must have 4 dimensions": lambda **rng: functional.dropout2d(ONES, **rng),
    "input must be a strided tensor of dtype .* got torch.int32 .*input.float()": lambda **rng: functional.dropout(
        ONES.int(), **rng
    ),
    "input must be a strided tensor of dtype .* torch.sparse_coo$": lambda **rng: functional.dropout(
        ONES.to_sparse(), **rng
    ),
    "mask_shape must broadcast against x": lambda **rng: functional.dropout(ONES, mask_shape=(3,), **rng),
    "time_axis must be an axis of x": lambda **rng: functional.locked_dropout(torch.ones(4, 3, 2), time_axis=9, **rng),
    "previous must have the dtype and shape of input": lambda **rng: functional.zoneout(ONES, torch.ones(5), **rng),
    "previous must be a torch.Tensor, got None": lambda **rng: functional.zoneout(ONES, None, **rng),
    "residual must be a torch.Tensor, got float": lambda **rng: functional.dropout_add(ONES, 0.5, **rng),
    "value must be a torch.Tensor, got float": lambda **rng: functional.dropout_glu(ONES, 0.5, **rng),
    "value must have the dtype and shape of input, torch.float32 and .4,. on cpu, got torch.float64 and .4,. on cpu": (
        lambda **rng: functional.dropout_glu(ONES, ONES.double(), **rng)
    ),
    "residual must have the shape of input, and its dtype or a wider one, .* got torch.bfloat16": (
        lambda **rng: functional.dropout_add(ONES, ONES.bfloat16(), **rng)
    ),
    "bias must be a torch.Tensor, got int": lambda **rng: functional.dropout(ONES, bias=1, **rng),
    "bias must have a value for each element of the last axis of input: dtype torch.float32 and .* got .*3": (
        lambda **rng: functional.dropout(ONES, bias=torch.ones(3), **rng)
    ),
    "gain must have .* dtype torch.float16 or torch.float32 and shape .* got torch.float64": (
        lambda **rng: functional.dropout_add(ONES.half(), ONES.half(), gain=ONES.double(), **rng)
    ),
    "input without value must have an even number of elements along its last axis": (
        lambda **rng: functional.dropout_glu(torch.ones(2, 3), **rng)
    ),
    "input must have an axis for bias, got shape": lambda **rng: functional.dropout(
        torch.ones(()), bias=torch.ones(()), **rng
    ),
    r"dropout_add\(\) got multiple values for argument 'residual'": (
        lambda **rng: functional.dropout_add(ONES, ONES, residual=ONES, **rng)
    ),
    r"zoneout\(\) got an unexpected keyword argument 'other'": lambda **rng: functional.zoneout(
        ONES, other=ONES, **rng
    ),
    "save='bits' does not support gain": lambda **rng: functional.dropout_add(
        ONES, ONES, gain=ONES, activation="relu", save="bits", **rng
    ),
    "save='bits' does not support value": lambda **rng: functional.dropout_glu(
        ONES, activation="relu", save="bits", **rng
    ),
    "inplace=True needs an input with the shape of the result": (
        lambda **rng: functional.dropout_glu(ONES, inplace=True, **rng)
    ),
    "inplace=True needs an input with the dtype of the result": (
        lambda **rng: functional.dropout_add(ONES.half(), ONES, inplace=True, **rng)
    ),
    r"dropout1d\(\) got an unexpected keyword argument 'bias'": (
        lambda **rng: functional.dropout1d(torch.ones(2, 3, 4), bias=ONES, **rng)
    ),
    "input must be a torch.Tensor, got numpy.ndarray; gpudrop.dropout takes": lambda **rng: functional.dropout(
        ONES.numpy(), **rng
    ),
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_a_wrong_call_draws_nothing(message):
    numpys, own, state = np.random.default_rng(0), gpudrop.Generator(0), torch.get_rng_state()
    before = numpys.bit_generator.state
    for rng in ({}, {"rng": numpys}, {"rng": own}, {"generator": torch.Generator()}):
        with pytest.raises((TypeError, ValueError), match=message):
            WRONG_CALLS[message](**rng)
    assert numpys.bit_generator.state == before and own.state_dict()["call"] == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_p_that_is_rounded_to_0_draws_nothing():
    rng = gpudrop.Generator(0)
    assert functional.dropout(ONES, 1e-9, rng=rng) is ONES and rng.state_dict()["call"] == 0
    functional.dropout(ONES, 1e-9, rng=rng, bits=32)
    assert rng.state_dict()["call"] == 1


@pytest.mark.parametrize("call", [{"p": 0.0}, {"training": False}])
def test_rng_is_checked_where_nothing_is_dropped(call):
    for rng in (True, -1, np.random.RandomState(0), torch.tensor(True), torch.tensor([3])):
        with pytest.raises((TypeError, ValueError), match="rng must be"):
            functional.dropout(ONES, rng=rng, **call)
    with pytest.raises(ValueError, match="generator and rng can't both be set"):
        functional.dropout(ONES, rng=1, generator=torch.Generator(), **call)


@pytest.mark.parametrize("kind", TENSORS)
def test_functions_of_arrays_refuse_a_tensor_that_dlpack_does_not_support(kind):
    x, own = TENSORS[kind](), torch.ones(3)
    dtype, reason = re.escape(str(x.dtype)), REASONS.get(kind, "")
    backprop = gpudrop.dropout_vjp(own)[1]
    calls = {
        "x": [lambda: gpudrop.dropout(x), lambda: gpudrop.dropout_vjp(x), lambda: gpudrop.Dropout()(x)],
        "out": [lambda: gpudrop.dropout(own, out=x), lambda: backprop(own, out=x)],
        "dy": [lambda: backprop(x)],
        "previous": [lambda: gpudrop.zoneout(own, x)],
        "like": [lambda: gpudrop.keep_mask(3, 0.5, like=x)],
    }
    for name, functions in calls.items():
        for function in functions:
            advice = "; use gpudrop.torch.functional for tensors" if kind in OF_OUR_FUNCTIONS else ""
            message = rf"^{name} can't be read through DLPack: {reason}.* \({dtype}, torch\.\w+\){advice}$"
            with pytest.raises(TypeError, match=message):
                function()


def test_subclasses_of_tensors_are_tensors():
    class Own(torch.Tensor):
        pass

    with pytest.raises(TypeError, match=r"use gpudrop.torch.functional for tensors"):
        gpudrop.dropout(torch.ones(3, requires_grad=True).as_subclass(Own))
    x = torch.ones(3, 2).as_subclass(Own)  # of a module that has no from_dlpack
    assert isinstance(gpudrop.dropout(x, 0.5), torch.Tensor)
    assert gpudrop.mc_samples(lambda x: 2 * x, x, 2, batch_size=2).mean.tolist() == [[2.0, 2.0]] * 3
    y = gpudrop.dropout(torch.tensor([1 - 2j]).imag, 0)  # no negative view
    assert isinstance(y, torch.Tensor) and y.tolist() == [-2.0]


def test_streams_have_128_random_bits():
    drawn = torch.stack([torch.ops.gpudrop.stream(device="cpu") for _ in range(2000)])
    assert len(set(drawn.flatten().tolist())) == 4000
    bits = np.unpackbits(drawn.numpy().view(np.uint8), axis=1).mean(axis=0)
    assert (abs(bits - 0.5) < 5 * 0.5 / np.sqrt(2000)).all()


# Autograd


@pytest.mark.parametrize("name", few(NAMES, "dropout", "zoneout"))
@pytest.mark.parametrize("activation", few([None, "relu", "silu"], None, "silu"))
def test_gradcheck(name, activation):
    def function(*tensors):
        return getattr(functional, name)(*tensors, 0.4, activation=activation, rng=STREAM, **on(name))

    tensors = inputs(name, torch.float64, grad=True)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_read_y_if_the_family_says_that_it_suffices(name):
    arrays = [t.numpy() for t in inputs(name)]
    prepared = getattr(gpudrop, name).prepare(*arrays, 0.4, activation="relu", rng=STREAM)
    assert (prepared.plan.saves == "y") == FAMILY[name].by_sign


@pytest.mark.parametrize(("activation", "wanted"), [(None, 0), ("relu", 1), ("gelu", 1)])
def test_no_mask_is_saved(activation, wanted):
    """In float32: the identity saves nothing, relu saves its output, and gelu its input."""
    sizes = []
    x = tensor((100, 100)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        functional.dropout(x, 0.5, activation=activation)
    assert sum(sizes) == wanted * x.nbytes


SLOPES = ["relu", "leaky_relu"]


def saved(function):
    """The tensors that a function saves for its backward pass, and its result."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        result = function()
    return found, result


@pytest.mark.parametrize("activation", few(SLOPES, "relu"))
@pytest.mark.parametrize("name", [name for name in NAMES if not FAMILY[name].is_product])
def test_bits_give_the_same_gradients_as_arrays_and_may_outlive_them(name, activation):
    tensors, gradients = inputs(name, grad=True), []
    for save, training in itertools.product(("output", "bits"), (True, False)):
        copies = [x * 1 for x in tensors]
        options = {"training": training, "activation": activation, "rng": STREAM, "save": save}
        y = getattr(functional, name)(*copies, 0.4, **options)
        dy = tensor(y.shape, seed=9)
        if save == "bits":
            for array in (y, *copies):
                array.data.fill_(float("nan"))
        gradients.append(torch.autograd.grad(y, tensors, dy, allow_unused=True))
    half = len(gradients) // 2
    for got, want in zip(gradients[half:], gradients[:half], strict=True):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("call", [{}, {"inplace": True}, {"p": 0.0}, {"training": False}, {"inplace": True, "p": 0.0}])
@pytest.mark.parametrize("activation", SLOPES)
def test_a_result_with_saved_bits_may_be_changed_in_place(activation, call):
    x = tensor((5, 7)).requires_grad_()
    call = {"p": 0.5, "activation": activation, "rng": STREAM} | call
    y = functional.dropout(x * 1, **call | {"inplace": False}, save="output")
    (want,) = torch.autograd.grad(y.sum(), x)
    y = functional.dropout(x * 1, **call, save="bits")
    y += 1
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], want)


def test_auto_saves_bits_where_functions_of_arrays_do():
    for shape, save in (((1023, 256), "auto"), ((1024, 256), "auto"), ((1, 37), "bits"), ((1024, 256), "output")):
        for x in (tensor(shape), tensor(shape[::-1]).T):
            x.requires_grad_()
            for activation in SLOPES:
                call = {"activation": activation, "save": save}
                (kept,), _ = saved(lambda x=x, call=call: functional.dropout(x, 0.5, **call))
                prepared = gpudrop.dropout.prepare(as_numpy(x), 0.5, activation=activation)
                assert operators.has_bits(kept) == (prepared._saving(save).saves == "bits")
                assert kept.nbytes == (-(-x.numel() // 32) * 4 if operators.has_bits(kept) else x.nbytes)
    (kept,), _ = saved(lambda: functional.dropout(tensor((4096, 256)).requires_grad_(), 0.5, activation="relu"))
    assert kept.nbytes == 4096 * 256 // 8
    with torch.no_grad():  # nothing is recorded if no gradient is needed
        assert forwards_of(lambda: functional.dropout(kept.float().requires_grad_(), 0.5, activation="relu")) == []
    x = tensor((1024, 256)).requires_grad_()
    assert forwards_of(lambda: functional.dropout(x, 0.5, activation="relu")) == [operators.RECORDED]


def forwards_of(function):
    """The calls of `recorded`."""
    found = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            found.extend([operator] * (operator is operators.RECORDED))
            return operator(*args, **(kwargs or {}))

    with Seen():
        function()
    return found


WRONG_SAVES = {
    r"save='bits' needs an activation with two slopes \(leaky_relu, relu\), got 'gelu'": ("bits", "gelu"),
    r"save='bits' needs an activation with two slopes \(leaky_relu, relu\), got 'identity'": ("bits", None),
    "save must be one of auto, output, bits, got 'bit'": ("bit", "relu"),
    "save must be one of auto, output, bits, got None": (None, "relu"),
}


@pytest.mark.parametrize("message", WRONG_SAVES)
def test_a_wrong_save_draws_nothing(message):
    save, activation = WRONG_SAVES[message]
    rng, state = gpudrop.Generator(0), torch.get_rng_state()
    calls = ({}, {"rng": rng}, {"training": False}, {"p": 0.0}, {"generator": torch.Generator()})
    for call in calls:
        with pytest.raises(ValueError, match=message):
            functional.dropout(ONES, **call, activation=activation, save=save)
    with pytest.raises(ValueError, match=message):
        modules.Dropout(activation=activation, save=save)
    compiled = torch.compile(lambda x: functional.dropout(x, activation=activation, save=save), backend="eager")
    with pytest.raises(Exception, match=message):
        compiled(ONES)
    with pytest.raises(ValueError, match=message):
        gpudrop.dropout_vjp(ONES.numpy(), activation=activation, save=save)
    assert rng.state_dict()["call"] == 0 and torch.equal(torch.get_rng_state(), state)


def test_a_module_saves_what_its_attribute_says():
    x = tensor((5, 64)).requires_grad_()
    module = modules.Dropout(0.5, activation="relu", save="bits")
    assert repr(module) == "Dropout(p=0.5, inplace=False, activation='relu', save='bits')"
    (kept,), _ = saved(lambda: copy.deepcopy(module)(x))
    assert operators.has_bits(kept)
    module.save = "output"
    (kept,), y = saved(lambda: module(x))
    assert kept is y
    del vars(module)["save"]  # as in a module that an older version pickled
    assert module.save == "auto" and module(x).shape == x.shape


def test_a_backward_pass_uses_the_context_of_its_forward_pass():
    x = tensor((4, 50)).requires_grad_()
    y = functional.dropout(x, 0.5, rng=STREAM)
    (want,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    with gpudrop.no_dropout():
        assert torch.equal(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], want)
        off = functional.dropout(x, 0.5, activation="relu")
    assert torch.equal(torch.autograd.grad(off.sum(), x)[0], (x > 0).float())

    def inside(_):
        return torch.autograd.grad(y.sum(), x, retain_graph=True)[0]

    mean, variance = gpudrop.mc_samples(inside, x.detach(), 2, STREAM, first=3)
    assert torch.equal(mean, want) and not variance.any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_repeat_the_mask(reentrant):
    from torch.utils.checkpoint import checkpoint

    def trained(checkpointed):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Linear(8, 16), modules.Dropout(0.5, activation="gelu"), torch.nn.Linear(16, 1)
        )
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(10):
            x = torch.randn(4, 8, requires_grad=True)
            y = checkpoint(network, x, use_reentrant=reentrant) if checkpointed else network(x)
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()
        return [p.detach() for p in network.parameters()]

    for a, b in zip(trained(False), trained(True), strict=True):
        assert torch.equal(a, b)


def test_autocast_leaves_the_dtype_unchanged():
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert functional.dropout(tensor((3, 4), dtype), 0.5, activation="gelu").dtype == dtype


# Operators, compilation, vmap


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("name", few([name for name in NAMES if not FAMILY[name].is_product], "dropout"))
def test_opcheck(name, activation):
    x, *other = inputs(name, grad=True)
    stream = torch.ops.gpudrop.stream(device="cpu")
    call = (name, "{}", 0.4, activation, 32, 0)
    torch.library.opcheck(torch.ops.gpudrop.forward.default, (x, other[0] if other else None, stream, *call))
    if activation == "relu":
        recorded = torch.ops.gpudrop.recorded.default
        torch.library.opcheck(recorded, (x, other[0] if other else None, stream, *call))
        bits = recorded(x, other[0] if other else None, stream, *call)[1]
        torch.library.opcheck(torch.ops.gpudrop.backward.default, (x, bits, stream, *call, False))
    if activation != "gelu":
        saved = None if activation == "identity" else tensor(x.shape, seed=3)
        torch.library.opcheck(torch.ops.gpudrop.backward.default, (x, saved, stream, *call, False))


@pytest.mark.parametrize("case", few(CASES, "bias and bits", "residual", "packed"))
def test_opcheck_of_neighbours(case):
    case = CASES[case]
    tensors = dict(zip(case.names, case.tensors(torch.bfloat16, torch.float32), strict=True))
    x, residual, value = (tensors.get(name) for name in (case.names[0], "residual", "value"))
    bias, gain = tensors.get("bias"), tensors.get("gain")
    stream, records = torch.ops.gpudrop.stream(device="cpu"), case.options.get("save") == "bits"
    activation = case.options.get("activation") or "silu"
    call = (case.variant, "{}", 0.4, activation, 16, 0)
    operands = (x, residual if value is None else value, bias, gain, stream, *call, records)
    torch.library.opcheck(operators.FUSED, operands)
    y, *bits = operators.FUSED(*operands)
    names = ["dx", *(f"d{name}" for name in ("bias", "gain") if name in tensors)]
    kept = bits[0] if bits else x
    gradients = (torch.ones_like(y).detach(), kept.detach(), value, bias, gain, stream, *call, x.dtype, names)
    torch.library.opcheck(operators.GRADIENTS, [t.detach() if isinstance(t, torch.Tensor) else t for t in gradients])


def test_export():
    program = torch.export.export(modules.Dropout(0.5, activation="relu"), (tensor((4, 5)),))
    assert sum("gpudrop.forward" in str(node.target) for node in program.graph.nodes) == 1


# Modules


@pytest.mark.parametrize("row", [row for row in FAMILY.values() if row.torchs], ids=lambda row: row.name)
def test_a_module_replaces_torchs(row):
    own, torchs = getattr(modules, row.layer), getattr(torch.nn, row.torchs)
    assert isinstance(own(), torchs)
    for arguments in ((), (0.3,), (0.3, True)):
        assert repr(own(*arguments)) == repr(torchs(*arguments))
    assert own().state_dict() == torchs().state_dict() == {}
    for p in (-0.1, 1.5):
        for module in (own, torchs):
            with pytest.raises(ValueError, match=f"between 0 and 1.* got {p}"):
                module(p)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_equals_its_function(name):
    module = modules.MODULES[name](0.4, activation="gelu")
    tensors = inputs(name)
    torch.manual_seed(1)
    y = module(*tensors)
    torch.manual_seed(1)
    assert torch.equal(y, getattr(functional, name)(*tensors, 0.4, activation="gelu", **on(name)))
    torch.manual_seed(1)
    assert torch.equal(copy.deepcopy(module)(*tensors), y)
    off = getattr(functional, name)(*tensors, 0.4, training=False, activation="gelu")
    assert torch.equal(module.eval()(*tensors), off)


def test_repr_and_options():
    assert repr(modules.Dropout(0.1, activation="gelu")) == "Dropout(p=0.1, inplace=False, activation='gelu')"
    assert repr(modules.DropBlock2d(block_size=3)) == "DropBlock2d(p=0.1, inplace=False, block_size=3)"
    with pytest.raises(TypeError, match="DropPath has no option 'block_size'; it has p, activation"):
        modules.DropPath(block_size=3)
    with pytest.raises(TypeError, match=r"drop_path\(\) got an unexpected keyword argument 'block_size'"):
        functional.drop_path(torch.ones(3), block_size=3)
    for call in (modules.DropConnect, lambda **options: functional.drop_connect(torch.ones(3), **options)):
        with pytest.raises(TypeError, match="samples"):  # its result would have another shape
            call(samples=2)
    with pytest.raises(ValueError, match="unknown activation 'gelo'"):
        modules.Dropout(activation="gelo")
    with pytest.raises(ValueError, match="generator and rng can't both be set"):
        functional.dropout(torch.ones(3), 0.5, rng=STREAM, generator=torch.Generator())


def test_inputs_without_samples_are_interpreted_as_in_torch():
    for name, shape in (("dropout1d", (4, 5)), ("dropout3d", (4, 2, 3, 2))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            y = getattr(functional, name)(torch.ones(shape), 0.5)
        flat = y.reshape(shape[0], -1)
        assert torch.equal(flat, flat[:, :1].expand_as(flat))
    with pytest.warns(UserWarning, match="assuming that channel-wise 1D dropout behavior is desired"):
        y = functional.dropout2d(torch.ones(20, 30, 4), 0.5, rng=STREAM)
    assert torch.equal(y, functional.dropout1d(torch.ones(20, 30, 4), 0.5, rng=STREAM))


# Threads

ON_TORCHS_THREADS = """
import os, sys, threading, torch, numpy as np
import gpudrop, gpudrop.torch
from gpudrop.kernels import cpu
from gpudrop.kernels import threads as kernel_threads

x = torch.ones(3_000_003)
want = gpudrop.dropout(np.ones(3_000_003, np.float32), 0.5, rng=gpudrop.Stream(1, 2))
before, threads = torch.get_num_threads(), set()
team = kernel_threads.team
assert team is not None or sys.platform != "linux"

def seen(work, count):
    return team is not None and team(lambda: (threads.add(threading.get_ident()), work()), count)

kernel_threads.team = seen
def call():
    return gpudrop.torch.functional.dropout(x, 0.5, rng=gpudrop.Stream(1, 2)).numpy()

for _ in range(20):
    x.relu()  # torch's threads are awake
    assert (call() == want).all()
available = kernel_threads.available()
expected = min(available, before) if available > 1 else 0
assert len(threads) == expected or team is None, (threads, expected)
others = [threading.Thread(target=lambda: results.append((call() == want).all())) for _ in range(8)]
results = []
for thread in others:
    thread.start()
for thread in others:
    thread.join()
assert results == [True] * 8
assert torch.get_num_threads() == before
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        os._exit(0 if (call() == want).all() else 1)
    assert os.waitpid(child, 0)[1] == 0

def broken(*args):
    raise ValueError("broken")

cpu.entry = lambda kernel: broken
try:
    call()
except ValueError:
    print("done")
"""


@pytest.mark.parametrize("environment", few([{}, {"NUMBA_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"}], {}))
def test_kernels_run_on_torchs_threads(environment):
    run = subprocess.run(
        [sys.executable, "-c", ON_TORCHS_THREADS],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.strip() == "done", run.stderr


# Arguments and memory


def test_modules_check_a_mask_shape_at_construction():
    for shape in ("Invalid", (0.5, 1), (-1, 4)):
        with pytest.raises((TypeError, ValueError), match="mask_shape must"):
            modules.Dropout(0.5, mask_shape=shape)
    assert modules.Dropout(0.5, mask_shape=[None, np.int64(1)]).options["mask_shape"] == (None, 1)


def test_p_may_be_any_number_and_change():
    p, x = torch.tensor(0.0), torch.ones(20_000)
    for value in (0.1, 0.5, 0.9):
        p.fill_(value)
        for number in (p, np.float32(value), np.float64(value)):
            assert abs((functional.dropout(x, number) == 0).float().mean() - value) < 0.02
    module = modules.Dropout(0.5)
    module.p = p
    assert abs((module(x) == 0).float().mean() - 0.9) < 0.02
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        functional.dropout(x, torch.tensor(1.5))


def test_options_may_be_numpy_scalars_and_errors_are_the_same():
    x = torch.ones(2, 3, 8, 8)
    for call in (
        lambda: functional.dropblock2d(x, 0.1, block_size=np.int64(3)),
        lambda: functional.locked_dropout(x, 0.5, time_axis=np.int64(1)),
        lambda: functional.dropout2d(x, 0.5, channels_last=np.bool_(True)),
        lambda: functional.dropout(x, 0.5, mask_shape=[None, np.int64(1), 1, 1]),
        lambda: modules.DropBlock2d(0.1, block_size=np.int32(3))(x),
    ):
        assert call().shape == x.shape
    for name, option in (("dropblock2d", {"block_size": [3]}), ("locked_dropout", {"time_axis": [1]})):
        with pytest.raises(TypeError) as torchs:
            getattr(functional, name)(x, 0.1, **option)
        with pytest.raises(TypeError) as numpys:
            getattr(gpudrop, name)(x.numpy(), 0.1, **option)
        assert str(torchs.value) == str(numpys.value)


@pytest.mark.parametrize("dtype", few(DTYPES, torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", few(NAMES, "dropout", "zoneout", "dropblock2d"))
def test_memory_remains_torchs(name, dtype):
    """A tensor that a kernel has read or written can be resized, freed and used again as out=."""
    tensors = inputs(name, dtype, grad=True)
    y = getattr(functional, name)(*tensors, 0.4, activation="gelu", rng=STREAM, **on(name))
    dy = torch.ones_like(y)
    gradients = torch.autograd.grad(y, tensors, dy)
    for tensor_ in (*(x.detach() for x in tensors), y.detach(), dy, *gradients):
        size = tensor_.untyped_storage().size()
        torch.ones(2 * tensor_.numel(), dtype=dtype, out=tensor_.resize_(0))
        assert tensor_.untyped_storage().size() >= 2 * size
        tensor_.untyped_storage().resize_(0)


def test_streams_ignore_the_default_device():
    x = torch.ones(100)
    torch.manual_seed(1)
    want = functional.dropout(x, 0.5)
    with torch.device("meta"):
        torch.manual_seed(1)
        assert torch.equal(functional.dropout(x, 0.5), want)
        assert torch.equal(functional.dropout(x, 0.5, training=False, activation="relu"), x)
        assert functional.dropout(x, 0.5, rng=STREAM).sum() > 0
