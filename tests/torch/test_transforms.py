"""Transforms of torch.func, and derivatives of every order, compared with torch's activation times the mask."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

import gpudrop  # noqa: E402
import gpudrop.torch  # noqa: E402
from gpudrop import Stream  # noqa: E402
from gpudrop.formulas.activations import ACTIVATIONS  # noqa: E402
from gpudrop.torch import accelerate, convert, functional, modules  # noqa: E402
from gpudrop.torch.activations import TORCHS  # noqa: E402
from gpudrop.variants import FAMILY  # noqa: E402
from tests.family.shapes import SHAPES  # noqa: E402
from tests.sampling import few  # noqa: E402
from tests.torch.neighbours import CASES as CASES_WITH_NEIGHBOURS  # noqa: E402

STREAM = Stream(2**63 + 5, 2**40 + 3)
X = torch.linspace(-2, 2, 7, dtype=torch.float64)
SAVES = [("relu", "output"), ("gelu", "auto"), ("relu", "bits"), ("leaky_relu", "bits")]

func = torch.func
TRANSFORMS = {
    "grad": lambda f: func.grad(lambda x: f(x).sum())(X),
    "vjp": lambda f: func.vjp(f, X)[1](X)[0],
    "jvp": lambda f: func.jvp(f, (X,), (X.flip(0),))[1],
    "jacrev": lambda f: func.jacrev(f)(X),
    "jacfwd": lambda f: func.jacfwd(f)(X),
    "linearize": lambda f: func.linearize(f, X)[1](X),
    "hessian": lambda f: func.hessian(lambda x: f(x).sum())(X),
    "reverse over reverse": lambda f: func.jacrev(func.jacrev(lambda x: f(x).sum()))(X),
    "forward over forward": lambda f: func.jacfwd(func.jacfwd(lambda x: f(x).sum()))(X),
    "reverse over forward": lambda f: func.jacrev(func.jacfwd(lambda x: f(x).sum()))(X),
    "per sample": lambda f: func.vmap(func.grad(lambda x: f(x.expand(7)).sum()))(X),
    "third, per sample": lambda f: func.vmap(func.grad(func.grad(func.grad(lambda x: f(x.expand(7)).sum()))))(X),
}
MOST = ("grad", "jvp", "hessian", "forward over forward", "third, per sample")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("transform", few(TRANSFORMS, *MOST))
@pytest.mark.parametrize("activation", few(ACTIVATIONS, "identity", "relu", "leaky_relu", "gelu", "silu"))
def test_derivatives_equal_torchs_activation_times_the_mask(activation, transform):
    mask = functional.dropout(torch.ones_like(X), 0.4, rng=STREAM)

    def torchs(x):
        return (x if activation == "identity" else TORCHS[activation].value(x)) * mask

    got = TRANSFORMS[transform](lambda x: functional.dropout(x, 0.4, activation=activation, rng=STREAM))
    torch.testing.assert_close(got, TRANSFORMS[transform](torchs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_derivatives_use_saved_bits(activation, transform):
    def function(x, save):
        return functional.dropout(x, 0.4, activation=activation, rng=STREAM, save=save).square()

    got, want = (TRANSFORMS[transform](lambda x, save=save: function(x, save)) for save in ("bits", "output"))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("save", few(["output", "bits"], "bits"))
@pytest.mark.parametrize("activation", few([None, "relu", "leaky_relu", "tanh"], "leaky_relu"))
@pytest.mark.parametrize("name", few(FAMILY, "dropout", "alpha_dropout", "zoneout", "gaussian_noise"))
def test_both_modes_of_every_variant(name, activation, save):
    if save == "bits" and ACTIVATIONS[activation or "identity"].slopes is None:
        save = "auto"
    if FAMILY[name].is_product:
        save = "auto"
    inputs = tuple(torch.randn(SHAPES[name], dtype=torch.float64).requires_grad_() for _ in FAMILY[name].inputs)

    def function(*x):
        return getattr(functional, name)(*x, 0.4, training=True, activation=activation, rng=STREAM, save=save)

    both = {"check_forward_ad": True, "check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(function, inputs, **both)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


OF_ALL = {
    "grad": lambda f, all_, xs: func.grad(lambda *xs: f(*xs).square().sum(), all_)(*xs),
    "vjp": lambda f, all_, xs: func.vjp(f, *xs)[1](f(*xs)),
    "jvp": lambda f, all_, xs: func.jvp(f, xs, xs),
    "hessian": lambda f, all_, xs: func.hessian(lambda *xs: f(*xs).square().sum(), all_)(*xs),
    "forward over forward": lambda f, all_, xs: func.jacfwd(func.jacfwd(f, all_), all_)(*xs),
    "per sample": lambda f, all_, xs: func.vmap(func.grad(lambda *xs: f(*xs).square().sum(), all_))(
        *(torch.stack([x, 2 * x]) for x in xs)
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("transform", few(OF_ALL, "grad", "jvp", "per sample"))
@pytest.mark.parametrize("case", few(CASES_WITH_NEIGHBOURS, "bias and bits", "residual", "packed, second"))
def test_transforms_of_dropout_with_neighbours(case, transform):
    case = CASES_WITH_NEIGHBOURS[case]
    tensors = tuple(x.detach() for x in case.tensors(torch.float64, shape=(2, 3)))
    every = tuple(range(len(tensors)))
    got, want = (OF_ALL[transform](lambda *xs, f=f: f(*xs, rng=STREAM), every, tensors) for f in (case, case.reference))
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", few(CASES_WITH_NEIGHBOURS, "bias and y", "residual", "gate"))
def test_both_modes_with_neighbours(case):
    def function(*tensors):
        return CASES_WITH_NEIGHBOURS[case](*tensors, rng=STREAM)

    tensors = CASES_WITH_NEIGHBOURS[case].tensors(torch.float64)
    both = {"check_forward_ad": True, "check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(function, tensors, **both)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def gradients(y, xs, **options):
    return torch.autograd.grad(y.square().sum(), xs, **options)


def loss(f):
    return lambda *xs: f(*xs).square().sum()


WAYS = {
    "backward": lambda f, every, xs: gradients(f(*xs), xs),
    "create_graph": lambda f, every, xs: gradients(f(*xs), xs, create_graph=True),
    "second": lambda f, every, xs: gradients(torch.cat(
        [dx.reshape(-1) for dx in gradients(f(*xs), xs, create_graph=True)]), xs),
    "func.grad": lambda f, every, xs: func.grad(loss(f), every)(*xs),
    "vmap": lambda f, every, xs: func.vmap(func.grad(loss(f), every))(*(torch.stack([x, x]) for x in xs)),
    "jvp": lambda f, every, xs: func.jvp(f, xs, xs_of_ones(xs)),
    "forward over reverse": lambda f, every, xs: func.jvp(func.grad(loss(f), every), xs, xs_of_ones(xs)),
}  # fmt: skip


def xs_of_ones(xs):
    return tuple(map(torch.ones_like, xs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", few(WAYS, "backward", "create_graph", "func.grad"))
@pytest.mark.parametrize("case", [*few(CASES_WITH_NEIGHBOURS, "bias", "residual", "gate", "packed, second"), None])
def test_a_dropped_element_has_no_gradient_even_if_it_is_infinite(case, way):
    """A select, never a multiplication by 0. Rows are infinite where they only meet dropped elements."""
    case = CASES_WITH_NEIGHBOURS.get(case)
    function = case or (lambda x, **options: functional.dropout(x, 0.4, activation="gelu", **options))
    tensors = case.tensors(shape=(3, 64)) if case else (torch.randn(3, 64, requires_grad=True),)
    names = case.names if case else ("x",)
    shape = (case.options.get("mask_shape") or (3, 64)) if case else (3, 64)
    shape = tuple(n if m is None else m for m, n in zip(shape, (3, 64), strict=True))
    keep = torch.from_numpy(gpudrop.keep_mask(shape, 0.4, STREAM)).expand(3, 64)
    infinite = []
    for name, x in zip(names, tensors, strict=True):
        dropped = ~keep.any(0) if x.dim() == 1 else torch.cat([~keep] * (x.shape[-1] // 64), -1)
        infinite += [x.detach().masked_fill(dropped & (name != "residual"), torch.inf).requires_grad_()]
    assert not all(x.isfinite().all() for x in infinite)
    got, want = (
        WAYS[way](lambda *xs: function(*xs, rng=STREAM), tuple(range(len(xs))), tuple(xs)) for xs in (infinite, tensors)
    )
    flat, wanted = torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want)
    for one, two in zip(flat, wanted, strict=True):
        assert two.isfinite().all()
        torch.testing.assert_close(one, two)


def test_dual_numbers():
    """Forward mode without torch.func, also for one input of two, and over the backward pass."""
    x, t = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, t)
        y = functional.dropout(dual, 0.5, activation="gelu", rng=STREAM)
        got = forward_ad.unpack_dual(y)
        for pair in ((dual, x), (x, dual)):
            moved = forward_ad.unpack_dual(functional.zoneout(*pair, 0.5, rng=STREAM)).tangent
            want = functional.zoneout(*(t if one is dual else torch.zeros(6).double() for one in pair), 0.5, rng=STREAM)
            torch.testing.assert_close(moved, want)
        learns = forward_ad.make_dual(x.clone().requires_grad_(), t)
        slope = torch.autograd.grad(functional.dropout(learns, 0.5, activation="gelu", rng=STREAM).sum(), learns)[0]
        bent = forward_ad.unpack_dual(slope).tangent
    mask = functional.dropout(torch.ones(6), 0.5, rng=STREAM)
    torch.testing.assert_close(got.primal, F.gelu(x) * mask)
    torch.testing.assert_close(got.tangent, func.jvp(F.gelu, (x,), (t,))[1] * mask)
    torch.testing.assert_close(bent, func.jvp(func.grad(lambda x: (F.gelu(x) * mask).sum()), (x,), (t,))[1])


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_derivatives_include_the_operations_after_dropout(activation):
    """This holds at each level of the transforms.

    The second derivative of a square, for example, includes dropout's output.
    """
    torch.manual_seed(0)
    layer = nn.Linear(7, 7, dtype=torch.float64)
    torchs = TORCHS[activation].value if activation in TORCHS else nn.Identity()
    mask = functional.dropout(torch.ones_like(X), 0.4, rng=STREAM)

    def own(x):
        return functional.dropout(layer(x), 0.4, activation=activation, rng=STREAM).tanh().square().sum()

    def want(x):
        return (torchs(layer(x)) * mask).tanh().square().sum()

    for transform, inputs in (
        (func.hessian, X),
        (lambda f: func.jacrev(func.jacrev(f)), X),
        (lambda f: func.jacfwd(func.jacfwd(f)), X),
        (lambda f: func.jacrev(func.jacfwd(f)), X),
        (lambda f: func.vmap(func.hessian(f)), X.expand(2, 7)),
        (lambda f: func.grad(lambda x: func.grad(lambda x: func.grad(f)(x).sum())(x).sum()), X),
    ):
        torch.testing.assert_close(transform(own)(inputs), transform(want)(inputs))
    with torch.no_grad():
        inner = func.grad(own)(X)

    def constant(x):
        with torch.no_grad():
            return func.grad(own)(x).sum()

    assert inner.any() and not func.grad(constant)(X).any()  # as for torch's own operators


def test_second_derivatives_of_a_users_activation_are_refused():
    name = "cubic_of_a_test"
    if name not in ACTIVATIONS:

        def cubic(x):
            return x * x * x

        def cubic_slope(x):
            return 3 * x * x

        gpudrop.register_activation(name, cubic, cubic_slope)
    x = torch.randn(5).requires_grad_()
    y = functional.dropout(x, 0.5, activation=name, rng=STREAM)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{name!r} can't be differentiated again"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match="apply the activation separately"):
        func.hessian(lambda x: functional.dropout(x, 0.5, activation=name, rng=STREAM).sum())(x.detach())
    del ACTIVATIONS[name]


# vmap: its randomness mode applies where a stream is drawn


class Network(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        return self.drop(x)


X_OF_ALL = torch.ones(2, 30, 8)
CALLS = {
    "function": lambda x: functional.dropout(x, 0.5),
    "activation": lambda x: functional.dropout(x, 0.5, activation="gelu"),
    "bits": lambda x: recorded(x, None, drawn(device="cpu"), "dropout", "{}", 0.5, "relu", 16, 0)[0],
    "generator": lambda x: functional.dropout(x, 0.5, generator=GENERATOR),
    "own generator": lambda x: functional.dropout(x, 0.5, rng=OWN),
    "channels": lambda x: functional.dropout1d(x, 0.5),
    "bias": lambda x: functional.dropout(x, 0.5, bias=torch.ones(8)),
    "gate": lambda x: functional.dropout_glu(x, p=0.5),
    "two inputs": lambda x: functional.zoneout(x, torch.zeros_like(x), 0.5),
    "module": Network(modules.Dropout(0.5)),
    "converted": convert(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5))),
    "accelerated": lambda x: accelerated(lambda: F.dropout(x, 0.5)),
    "attention": lambda x: accelerated(lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
}
GENERATOR, OWN = torch.Generator(), gpudrop.Generator(1)
drawn, recorded = torch.ops.gpudrop.stream, torch.ops.gpudrop.recorded


def accelerated(call):
    with accelerate():
        return call()


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_vmaps_randomness_selects_a_mask_for_each_sample_or_one_for_all(name, batched):
    call, numbers = CALLS[name], X_OF_ALL.expand(4, *X_OF_ALL.shape)

    def sample(x):
        return call(x if batched else X_OF_ALL)

    with torch.no_grad():
        different = func.vmap(sample, randomness="different")(numbers)
        assert len(torch.unique(different.flatten(1), dim=0)) == 4
        same = func.vmap(sample, randomness="same")(numbers)
        assert len(torch.unique(same.flatten(1), dim=0)) == 1
        states = GENERATOR.get_state(), torch.get_rng_state(), OWN.state_dict()
        with pytest.raises(RuntimeError, match="called random operation while in randomness error mode"):
            func.vmap(sample)(numbers)
        assert torch.equal(states[0], GENERATOR.get_state()) and torch.equal(states[1], torch.get_rng_state())
        assert states[2] == OWN.state_dict()
        empty = func.vmap(sample, randomness="different")(numbers[:0])
        assert empty.shape == (0, *same.shape[1:])


def test_the_operator_itself_raises_in_vmaps_error_mode():
    """Compiled graphs call the operator directly."""
    with pytest.raises(RuntimeError, match="called random operation while in randomness error mode"):
        func.vmap(lambda _: torch.ops.gpudrop.stream(device="cpu"))(torch.arange(3))
    compiled = torch.compile(func.vmap(lambda x: functional.dropout(x, 0.5)), backend="aot_eager")
    with pytest.raises(Exception, match="called random operation while in randomness error mode"):
        compiled(torch.ones(3, 4))


def test_a_stream_is_not_random():
    """The caller has drawn the stream: each sample gets its own stream derived from it, or all share it."""
    want = functional.dropout(X_OF_ALL[0], 0.5, rng=STREAM)

    def call(x):
        return functional.dropout(x, 0.5, rng=STREAM)

    for randomness in ("error", "same"):
        assert all(torch.equal(y, want) for y in func.vmap(call, randomness=randomness)(X_OF_ALL))
    different = func.vmap(call, randomness="different")(torch.ones(6, 100))
    assert len(torch.unique(different, dim=0)) == 6
    spawned = gpudrop.Generator(STREAM.seed)
    spawned.load_state_dict({"seed": STREAM.seed, "call": STREAM.call})
    for y, rng in zip(different, spawned.spawn(6), strict=True):  # as in mc_samples
        assert torch.equal(y, functional.dropout(torch.ones(100), 0.5, rng=rng))
    off = func.vmap(lambda x: functional.dropout(x, 0.5, training=False, activation="relu"))(-X_OF_ALL)
    assert torch.equal(off, torch.zeros_like(X_OF_ALL))


@pytest.mark.parametrize("outer", ["same", "different"])
@pytest.mark.parametrize("inner", ["same", "different"])
def test_nested_vmaps(outer, inner):
    def row(_):
        return func.vmap(lambda _: functional.dropout(torch.ones(40), 0.5), randomness=inner)(torch.arange(3))

    y = func.vmap(row, randomness=outer)(torch.arange(2))
    masks = torch.unique(y.reshape(6, 40), dim=0)
    assert len(masks) == (3 if inner == "different" else 1) * (2 if outer == "different" else 1)


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize(
    ("activation", "save"), few([(None, "auto"), *SAVES], ("gelu", "auto"), ("relu", "bits"), ("leaky_relu", "bits"))
)
def test_gradients_per_sample_use_the_masks_of_the_outputs(activation, save, randomness):
    layer = nn.Linear(6, 8, dtype=torch.float64)
    parameters, x = dict(layer.named_parameters()), torch.randn(5, 6, dtype=torch.float64)

    def cost(parameters, x):
        hidden = func.functional_call(layer, parameters, x)
        y = functional.dropout(hidden, 0.5, activation=activation, save=save)
        return y.square().sum(), (y, hidden)

    gradients, (y, hidden) = func.vmap(func.grad(cost, has_aux=True), (None, 0), randomness=randomness)(parameters, x)
    slope = 1 if activation is None else func.vmap(func.vmap(func.grad(TORCHS[activation].value)))(hidden.detach())
    want = torch.where(y != 0, 2 * y * 2 * slope, 0)
    torch.testing.assert_close(gradients["bias"], want)
    assert (len(torch.unique((y == 0), dim=0)) == 1) == (randomness == "same" and activation != "relu")


def test_ensembles_by_functional_call():
    models = [nn.Sequential(nn.Linear(4, 16), nn.Tanh(), modules.Dropout(0.5), nn.Linear(16, 2)) for _ in range(3)]
    parameters, buffers = func.stack_module_state(models)

    def call(parameters, buffers, x):
        return func.functional_call(models[0], (parameters, buffers), (x,))

    y = func.vmap(call, (0, 0, None), randomness="different")(parameters, buffers, torch.ones(5, 4))
    assert y.shape == (3, 5, 2)
    y.sum().backward()
    assert all(p.grad is not None for p in parameters.values())


@pytest.mark.parametrize("randomness", ["error", "same"])
@pytest.mark.parametrize(("activation", "save"), [("identity", "auto"), *SAVES])
def test_vmap_over_the_gradient_uses_the_mask_of_the_forward_pass(activation, save, randomness):
    x = torch.randn(6, 5).requires_grad_()
    y = functional.dropout(x, 0.5, rng=STREAM, activation=activation, save=save)

    def gradient(dy):
        return torch.autograd.grad(y, x, dy, retain_graph=True)[0]

    batch = torch.randn(4, *x.shape)
    got = func.vmap(gradient, randomness=randomness)(batch)
    assert torch.equal(got, torch.stack([gradient(dy) for dy in batch]))
    assert torch.equal(got, torch.autograd.grad(y, x, batch, is_grads_batched=True)[0])


def test_attention_in_forward_mode():
    q = torch.randn(2, 3, 4, dtype=torch.float64)
    with gpudrop.no_dropout():
        want = func.jvp(lambda q: F.scaled_dot_product_attention(q, q, q), (q,), (q,))[1]

    def attend(q):
        torch.manual_seed(1)
        return gpudrop.torch.scaled_dot_product_attention(q, q, q, dropout_p=0.3)

    got = func.jvp(attend, (q,), (q,))[1]
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(attend(forward_ad.make_dual(q, q))).tangent
    torch.testing.assert_close(got, dual)
    step = (attend(q + 1e-6 * q) - attend(q - 1e-6 * q)) / 2e-6
    torch.testing.assert_close(got, step, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(got, want)
