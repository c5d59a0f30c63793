"""torch.compile, checkpoints, and both together: a recomputation draws the same masks as its forward pass."""

import contextlib
import copy
import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from functorch.compile import aot_function, nop  # noqa: E402
from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch._functorch import config  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import gpudrop  # noqa: E402
import gpudrop.torch  # noqa: E402
from gpudrop import Stream  # noqa: E402
from gpudrop.torch import accelerate, convert, functional, modules  # noqa: E402
from tests.sampling import few  # noqa: E402
from tests.torch.neighbours import CASES  # noqa: E402

BACKENDS = few(["aot_eager", "aot_eager_decomp_partition", "inductor"], "aot_eager_decomp_partition")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def forgotten():
    torch._dynamo.reset()


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU(), nn.Dropout1d(0.3))


def step(model, x, seed=0):
    """The output and the gradients, from one seed."""
    model.zero_grad()
    torch.manual_seed(seed)
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_alike(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert torch.equal(got[0] == 0, want[0] == 0)


class Checkpointed(nn.Module):
    def __init__(self, model, reentrant=False):
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x):
        return checkpoint(self.model, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_without_a_graph_break_and_with_the_same_masks(backend):
    own = [modules.Dropout(0.5, activation="relu"), modules.Dropout(0.5), modules.AlphaDropout(0.2)]
    model = nn.Sequential(nn.Linear(8, 16), *own)
    compiled, x = torch.compile(model, fullgraph=True, backend=backend), numbers(6, 8)
    for seed in range(3):
        assert_alike(step(compiled, x, seed), step(model, x, seed))
    torch.manual_seed(0)
    assert not torch.equal(compiled(x), compiled(x))
    compiled.eval()
    torch.testing.assert_close(compiled(x), model[0](x).relu())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_bits_are_saved_in_graphs_and_checkpoints(backend, activation, checkpointed):
    x, w, kept = numbers(3, 64), torch.ones(64, requires_grad=True), []

    def function(x, save="bits"):
        y = functional.dropout((x * w).sin(), 0.5, activation=activation, save=save)
        return (y + 1 if save == "output" else y.add_(1)).exp()

    def run(function):
        torch.manual_seed(0)
        y = function(x)
        return [y.detach(), *torch.autograd.grad(y.sum(), w)]

    want = run(functools.partial(function, save="output"))
    way = functools.partial(checkpoint, function, use_reentrant=False) if checkpointed else function
    way = way if backend is None else torch.compile(way, backend=backend, fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        assert_alike(run(way), want)
    assert checkpointed or any(t.dtype is torch.uint8 and t.nbytes == 3 * 64 // 8 for t in kept)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("case", few(CASES, "bias and bits", "residual", "packed"))
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_neighbours_in_graphs_and_checkpoints(backend, case, checkpointed):
    case = CASES[case]

    def run(function):
        torch.manual_seed(0)
        tensors = case.tensors(torch.bfloat16, torch.float32)
        y = function(*tensors)
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), tensors)]

    want = run(case)
    way = functools.partial(checkpoint, case, use_reentrant=False) if checkpointed else case
    way = way if backend is None else torch.compile(lambda *xs, way=way: way(*xs), backend=backend, fullgraph=True)
    for a, b in zip(run(way), want, strict=True):
        assert torch.equal(a, b)


def test_errors_about_tensors_come_before_anything_is_drawn():
    """As fake tensors, and below a transform."""

    def added(x, residual, bias=None):
        return functional.dropout_add(x, residual, bias=bias)

    def transformed(x, residual, bias=None):
        return torch.func.grad(lambda x: functional.dropout_add(x, residual, bias=bias).sum())(x)

    x, before = numbers(4, 6), torch.get_rng_state()
    for function in (added, transformed):
        for message, others in {
            "bias must have a value for each element of the last axis of input: dtype": (x, numbers(3)),
            "residual must have the shape of input, and its dtype or a wider one": (numbers(4, 5),),
            "must have the shape of input, and its dtype or a wider one": (x.half(),),
        }.items():
            with pytest.raises(Exception, match=message):
                torch.compile(function, fullgraph=True, backend="aot_eager")(x, *others)
    assert torch.equal(torch.get_rng_state(), before)


def test_compiled_modules_with_neighbours():
    x, residual, bias, gain = (tensor.detach() for tensor in CASES["residual"].tensors())
    for module, args, rows in (
        (modules.Dropout(0.4), (x,), {"bias": bias}),
        (modules.DropoutAdd(0.4), (x, residual), {"bias": bias, "gain": gain}),
        (modules.DropoutGLU(0.4), (x,), {}),
    ):
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            torch.manual_seed(1)
            want = module(*args, **rows)
            torch.manual_seed(1)
            assert torch.equal(compiled(*args, **rows), want)
            module.eval()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_a_graph_for_all_sizes_saves_what_its_first_size_does(activation):
    """No guard is added: a graph that is exported for training may have a dimension of any size."""
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer, modules.Dropout(0.5, activation=activation))
    sizes = ({0: torch.export.Dim("rows")},)
    program = torch.export.export(model, (numbers(8, 64),), dynamic_shapes=sizes, strict=True)
    assert program.module()(numbers(5000, 64)).shape == (5000, 64)
    for rows, bits in ((8, False), (5000, True)):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
        for again in (rows, 16, 6000):
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
                got = step(compiled, numbers(again, 64))
            assert_alike(got, step(model, numbers(again, 64)))
            assert any(t.dtype is torch.uint8 for t in kept) == bits


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", ["accelerate", "convert"])
@pytest.mark.parametrize("backend", few([None, "aot_eager", "inductor"], None, "aot_eager"))
def test_compiled_and_checkpointed(backend, way, reentrant):
    model = convert(network()) if way == "convert" else network()
    with accelerate() if way == "accelerate" else contextlib.nullcontext():
        x = numbers(4, 3, 8).requires_grad_()
        want = step(model, x)
        again = Checkpointed(model, reentrant)
        again = again if backend is None else torch.compile(again, backend=backend, fullgraph=not reentrant)
        assert_alike(step(again, x), want)
        assert not torch.equal(step(again, x, 1)[0], want[0])


@pytest.mark.parametrize("budget", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("activation", "save"),
    few([(None, "auto"), ("relu", "auto"), ("gelu", "auto"), ("relu", "bits")], ("gelu", "auto"), ("relu", "bits")),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_use_the_mask_of_the_output_with_any_memory_budget(backend, activation, save, budget):
    w = torch.linspace(0.1, 2, 64, requires_grad=True)

    def function(x):
        y = functional.dropout((x * w).sin(), 0.5, activation=activation, save=save)
        return y.cos().sum(), y

    with config.patch(activation_memory_budget=budget):
        cost, y = torch.compile(function, backend=backend, fullgraph=True)(torch.ones(64))
        cost.backward()
    assert 0 < (y != 0).sum() < 64 and torch.equal(y != 0, w.grad != 0)


def test_selective_checkpoints():
    """Selective checkpoints call a policy for each operator."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def keep(context, operator, *args, **kwargs):
        products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if operator in products else CheckpointPolicy.PREFER_RECOMPUTE

    model, x = convert(network()), numbers(4, 3, 8)
    want = step(model, x)

    class Selective(nn.Module):
        def forward(self, x):
            contexts = functools.partial(create_selective_checkpoint_contexts, keep)
            return checkpoint(self.model, x, use_reentrant=False, context_fn=contexts)

    again = Selective()
    again.model = model
    assert_alike(step(again, x), want)
    assert_alike(step(torch.compile(again, backend="aot_eager", fullgraph=True), x), want)


# A changing p, and blocks that change the context


@pytest.mark.parametrize("make", [modules.Dropout, lambda p: modules.DropPath(p, activation="gelu"), nn.Dropout])
def test_a_compiled_module_follows_its_p(make):
    module, x = make(0.1), torch.ones(4000, 2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for p in (0.1, 0.2, 0.3, 0.4, 0.5):
        module.p = p
        torch.manual_seed(1)
        y = compiled(x)
        torch.manual_seed(1)
        assert torch.equal(y, module(x)) and abs((y == 0).float().mean() - p) < 0.04
    assert counter.frame_count <= 6  # the same limit holds for torch's own module
    module.p = 0.0
    torch.testing.assert_close(compiled(x), module(x))
    module.p = 1.5
    with pytest.raises(Exception, match="between 0 and 1"):
        compiled(x)


def test_numpy_options_of_a_compiled_module():
    module, x = modules.DropBlock2d(0.2, block_size=np.int64(3)), torch.ones(2, 3, 9, 9)
    torch.manual_seed(1)
    want = module(x)
    torch.manual_seed(1)
    assert torch.equal(torch.compile(module, backend="aot_eager", fullgraph=True)(x), want)


def test_a_compiled_model_follows_the_context():
    module, x = modules.Dropout(0.5), torch.ones(8, 40)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert (compiled(x) == 0).any()
        with gpudrop.no_dropout():
            assert (compiled(x) == 1).all()
    with torch.no_grad():
        for batch_size in (None, 3):
            want = gpudrop.mc_samples(module, x, 5, Stream(1, 2), batch_size=batch_size)
            got = gpudrop.mc_samples(compiled, x, 5, Stream(1, 2), batch_size=batch_size)
            assert torch.equal(got.mean, want.mean) and torch.equal(got.variance, want.variance)
            assert got.variance.any()


def test_a_compiled_model_refuses_a_context_that_it_was_not_compiled_for():
    """One asyncio task can cause this for another."""
    from gpudrop import context

    compiled, x = torch.compile(modules.Dropout(0.5), backend="aot_eager"), torch.ones(8)
    compiled(x)
    with gpudrop.no_dropout():
        context.visible.on = True
        with pytest.raises(RuntimeError, match="runs in another context than it was compiled for"):
            compiled(x)
    w = torch.ones(8, requires_grad=True)
    with config.patch(activation_memory_budget=0.0):
        again = torch.compile(lambda x: functional.dropout(x * w, 0.5).sin(), backend="aot_eager_decomp_partition")
        with context.Changes(rng=gpudrop.Generator(1)):
            y = again(x)
        with pytest.raises(RuntimeError, match="can't draw its masks again for a backward pass"):
            y.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("activation", few([None, "relu", "gelu"], None, "gelu"))
def test_a_recomputation_uses_the_context_of_its_forward_pass(activation, reentrant):
    x = torch.linspace(0.5, 2, 8, requires_grad=True)

    def function(x):
        return functional.dropout(x, 0.5, activation=activation) * x

    def gradient(y):
        return torch.autograd.grad(y.sum(), x)[0]

    with gpudrop.no_dropout():
        want = gradient(function(x))
        y = checkpoint(function, x, use_reentrant=reentrant)
    y.sum().backward()
    torch.testing.assert_close(x.grad, want)
    x.grad = None
    y = checkpoint(function, x, use_reentrant=reentrant)
    dropped = y == 0
    with gpudrop.no_dropout():
        y.sum().backward()
    assert torch.equal(x.grad == 0, dropped) and dropped.any()


GENERATORS = {
    "gpudrop's": {"rng": gpudrop.Generator(5)},
    "numpy's": {"rng": np.random.default_rng(5)},
    "torch's": {"generator": torch.Generator().manual_seed(5)},
    "the default": {},
}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_recomputation_draws_the_streams_of_its_forward_pass(name, preserve, reentrant):
    """This holds for any generator, and for nested checkpoints. No generator advances in a recomputation."""
    options, x = GENERATORS[name], torch.ones(50, requires_grad=True)

    def inner(x):
        return functional.dropout(x, 0.3, **options) * x

    def function(x):
        x = functional.dropout(x, 0.2, **options) * x
        x = checkpoint(inner, x, use_reentrant=reentrant, preserve_rng_state=preserve)
        return functional.dropout(x, 0.2, **options) * x

    y = checkpoint(function, x, use_reentrant=reentrant, preserve_rng_state=preserve)
    before = copy.deepcopy([state(value) for value in options.values()])
    y.sum().backward()
    assert [state(value) for value in options.values()] == before
    torch.testing.assert_close(x.grad, 8 * y.detach())  # y is x to the eighth, or 0


@pytest.mark.parametrize("name", ["gpudrop's", "numpy's"])
def test_a_graph_breaks_where_a_generator_draws(name):
    """Each call of the compiled function draws anew, and the graphs are compiled for all calls."""
    graphs = []
    rng, x = GENERATORS[name]["rng"], torch.ones(50)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: functional.dropout(x, 0.5, rng=rng) * x, backend=backend)
    twin = copy.deepcopy(rng)
    got = [compiled(x) for _ in range(6)]
    for y in got:
        assert torch.equal(y, functional.dropout(x, 0.5, rng=twin))
    assert state(rng) == state(twin) and len(graphs) < 6


@pytest.mark.parametrize("rng", [7, 2**64 - 1])
def test_a_seed_is_in_the_graph(rng):
    x = torch.ones(50)
    compiled = torch.compile(lambda x: functional.dropout(x, 0.5, rng=rng), backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(x), functional.dropout(x, 0.5, rng=rng))


def state(generator):
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state().tolist() if isinstance(generator, torch.Generator) else generator.state_dict()


def test_a_checkpoint_within_mc_samples():
    x = torch.ones(3, 40, requires_grad=True)

    def function(x):
        return functional.dropout(x, 0.5) * x

    def gradient(x, again):
        y = checkpoint(function, x, use_reentrant=False) if again else function(x)
        return torch.autograd.grad(y.sum(), x)[0]

    want, got = (gpudrop.mc_samples(lambda x, a=again: gradient(x, a), x, 3, Stream(1, 2)) for again in (False, True))
    assert torch.equal(got.mean, want.mean) and want.variance.any()


def test_a_failed_checkpoint_restores_the_context():
    def function(x):
        functional.dropout(x, 0.5)
        raise KeyError("mine")

    for reentrant in (True, False):
        with pytest.raises(KeyError, match="mine"):
            checkpoint(function, torch.ones(3, requires_grad=True), use_reentrant=reentrant)
        assert gpudrop.context.current() is gpudrop.context.DEFAULT


# Traces


TRACED = {
    "function": lambda x: functional.dropout(x, 0.5),
    "activation": lambda x: functional.dropout(x, 0.5, activation="gelu"),
    "bias": lambda x: functional.dropout(x, 0.5, bias=torch.ones(3)),
    "gate": lambda x: functional.dropout_glu(x, x, 0.5),
    "structured": lambda x: functional.drop_path(x, 0.5),
    "accelerated": lambda x: rerouted(x),
    "converted": convert(nn.Sequential(nn.SiLU(), nn.Dropout(0.5))),
}


def rerouted(x):
    with accelerate():
        return F.dropout(x, 0.5)


@pytest.mark.parametrize("name", TRACED)
def test_traces_draw_when_they_run(name):
    function, x = TRACED[name], torch.ones(100, 3)
    for trace in (make_fx(function)(x), aot_function(function, nop)):
        torch.manual_seed(1)
        want = function(x)
        torch.manual_seed(1)
        got = trace(x)
        assert torch.equal(got == 0, want == 0) and not torch.equal(trace(x), trace(x))
    learns = x.clone().requires_grad_()
    y = aot_function(function, nop)(learns)
    y.sum().backward()
    assert learns.grad.abs().sum() > 0


def test_fake_tensors_outside_of_their_mode():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        x = torch.ones(3, 4)
    y = functional.dropout(x, 0.5, activation="gelu")
    assert y.shape == (3, 4) and y.fake_mode is mode


def test_export():
    program = torch.export.export(modules.Dropout(0.5, activation="relu"), (numbers(4, 5),))
    assert sum("gpudrop.forward" in str(node.target) for node in program.graph.nodes) == 1


@pytest.mark.parametrize("way", ["convert", "own"])
def test_an_exported_prediction_has_no_operator_of_gpudrop(way):
    model = convert(network()) if way == "convert" else modules.Dropout(0.5, activation="gelu")
    program = torch.export.export(model.eval(), (numbers(4, 3, 8),)).run_decompositions()
    assert not any("gpudrop" in str(node.target) for node in program.graph.nodes)
    np.testing.assert_allclose(program.module()(numbers(4, 3, 8)).detach(), model(numbers(4, 3, 8)).detach(), rtol=1e-6)


def test_a_compiled_function_with_a_transform_in_it():
    def cost(w, x):
        return functional.dropout(x * w, 0.5).square().sum()

    x = torch.ones(5, 30)
    compiled = torch.compile(
        torch.func.vmap(torch.func.grad(cost), (None, 0), randomness="different"), backend="aot_eager", fullgraph=True
    )
    torch.manual_seed(1)
    got = compiled(torch.ones(30), x)
    torch.manual_seed(1)
    want = torch.func.vmap(torch.func.grad(cost), (None, 0), randomness="different")(torch.ones(30), x)
    assert torch.equal(got, want) and len(torch.unique(got, dim=0)) == 5
