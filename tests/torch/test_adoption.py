"""accelerate and convert: existing models draw gpudrop's masks, and nothing else about them changes."""

import copy
import math
import sys
import threading
import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import gpudrop.torch  # noqa: E402
from gpudrop.torch import accelerate, functional, modules  # noqa: E402
from tests.processes import run  # noqa: E402
from tests.sampling import few  # noqa: E402

ATTENTION = "scaled_dot_product_attention"
TORCHS = {name: getattr(F, name) for name in (*functional.REPLACED, ATTENTION)}


def ran(function):
    """The operators that drew a mask while a function ran."""
    with torch.profiler.profile() as profile:
        function()
    names = {event.key for event in profile.key_averages()}
    return names & {"aten::bernoulli_", "aten::native_dropout", "aten::dropout", "gpudrop::forward"}


def is_torchs():
    return all(getattr(F, name) is function for name, function in TORCHS.items())


def encoder(p=0.3, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, p, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder(p=0.3):
    torch.manual_seed(0)
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, p, batch_first=True), 2)


def convolutional(p=0.3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Dropout2d(p),
        nn.Flatten(),
        nn.Linear(8 * 9, 16),
        nn.SELU(),
        nn.AlphaDropout(p),
    )


def language_model(kind, p=0.3):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = p
        return transformers.BertModel(config)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=p, embd_pdrop=p, attn_pdrop=p
    )
    return transformers.GPT2Model(config)


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


WORDS = torch.arange(20).reshape(2, 10)
MODELS = {
    "encoder": (encoder, (numbers(3, 5, 16),)),
    "decoder": (decoder, (numbers(3, 5, 16), numbers(3, 7, 16))),
    "convolutional": (convolutional, (numbers(4, 3, 5, 5),)),
    "bert": (lambda p=0.3: language_model("bert", p), (WORDS,)),
    "gpt2": (lambda p=0.3: language_model("gpt2", p), (WORDS,)),
}


def output(model, inputs):
    y = model(*inputs)
    return y if isinstance(y, torch.Tensor) else y.last_hidden_state


def trained(model, inputs, steps=3):
    """The weights after a few steps, from one seed."""
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        output(model, inputs).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", few(MODELS, "encoder", "convolutional"))
def test_an_accelerated_model_never_draws_from_torchs_dropout(name):
    build, inputs = MODELS[name]
    model = build().train()

    def step():
        output(model, inputs).sum().backward()

    assert "gpudrop::forward" not in ran(step) and ran(step)
    with accelerate():
        assert ran(step) == {"gpudrop::forward"}
    assert "gpudrop::forward" not in ran(step)


@pytest.mark.parametrize("name", few(MODELS, "encoder", "convolutional"))
def test_a_model_without_dropout_computes_the_same(name):
    build, inputs = MODELS[name]
    for model in (build().eval(), build(0.0).train()):
        want = output(model, inputs)
        with accelerate():
            assert torch.equal(output(model, inputs), want)


@pytest.mark.filterwarnings("ignore")
def test_compiled_inside_and_outside():
    layer, x = encoder().layers[0], numbers(3, 5, 16)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert "gpudrop::forward" not in ran(lambda: compiled(x))
    with accelerate():
        torch.manual_seed(0)
        want = layer(x)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(x), want)
        assert ran(lambda: compiled(x)) == {"gpudrop::forward"}
    assert "gpudrop::forward" not in ran(lambda: compiled(x))


def test_checkpointed_layers_repeat_their_masks():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder()

        def forward(self, x):
            for layer in self.encoder.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            return x

    x = (numbers(3, 5, 16),)
    with accelerate():
        assert all(map(torch.equal, trained(encoder(), x, 10), trained(Checkpointed(), x, 10)))


@pytest.mark.parametrize("name", functional.REPLACED)
def test_a_rerouted_function_equals_gpudrops(name):
    x = (
        numbers(3, 4, 5, 2, 2)
        if name == "dropout3d"
        else numbers(3, 4, 5, 2)
        if name == "dropout2d"
        else numbers(3, 4, 5)
    )
    with accelerate():
        for call in (lambda f: f(x, 0.4, True), lambda f: f(x.clone(), p=0.4, training=True, inplace=True)):
            torch.manual_seed(1)
            got = call(getattr(F, name))
            torch.manual_seed(1)
            assert torch.equal(got, call(getattr(functional, name)))
        assert getattr(F, name)(input=x, p=0.4, training=False) is x
        for p in (-0.1, 1.1):
            with pytest.raises(
                ValueError, match="dropout probability has to be between 0 and 1, but got"
            ):  # torch raises the same
                getattr(F, name)(x, p, True)


def test_inputs_that_only_torch_supports_go_to_torch():
    ragged = torch.nested.nested_tensor([torch.ones(3), torch.ones(5)], layout=torch.jagged)
    with accelerate():
        assert F.dropout(ragged, 0.5).is_nested
        with pytest.raises(NotImplementedError, match="not implemented for 'ComplexFloat'"):  # raised by torch
            F.dropout(torch.ones(3, dtype=torch.complex64), 0.5)


def test_scopes_of_accelerate():
    assert is_torchs()
    with accelerate():
        with accelerate():
            assert not is_torchs()
        assert not is_torchs()
    assert is_torchs()
    with pytest.raises(KeyError), accelerate():
        raise KeyError
    assert is_torchs()
    assert accelerate()(is_torchs)() is False and is_torchs()
    try:
        accelerate(True)
        accelerate(True)
        with accelerate():
            pass
        assert not is_torchs()
        seen = []
        thread = threading.Thread(target=lambda: seen.append(is_torchs()))
        thread.start()
        thread.join()
        assert seen == [False]
    finally:
        accelerate(False)
    assert is_torchs()
    accelerate(False)
    with accelerate():
        accelerate(False)
        assert not is_torchs()
    assert is_torchs()


NUMBERS = [0, 0.0, 0.3, 0.5, 1, 1.0, -0.1, 1.5, float("nan"), None, "0.5", np.float64(0.5), torch.tensor(0.5)]
FLAGS = st.sampled_from([True, False, 1, 0, None, "yes"])
INPUTS = st.sampled_from(
    [
        *(torch.linspace(-1, 1, math.prod(shape)).reshape(shape) for shape in ((5,), (3, 4), (2, 3, 4), (2, 3, 4, 2))),
        torch.ones(2, 3, 2, 2, 2),
        torch.ones(()),
        torch.ones(0, 3),
        torch.ones(3, 4, dtype=torch.float64),
        torch.ones(3, 4).bfloat16(),
        torch.arange(6).reshape(2, 3),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3, device="meta"),
        torch.ones(2, 3).to_sparse(),
        torch.ones(1).expand(3, 4),
        torch.ones(3, 4).requires_grad_(),
        [1.0, 2.0],
        None,
    ]
)


def outcome(function, args, kwargs):
    """The result or the error of a call, its warnings, and its first argument after the call."""
    torch.manual_seed(0)
    args = [x.clone() if isinstance(x, torch.Tensor) and x.is_leaf and not x.requires_grad else x for x in args]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            y = function(*args, **kwargs)
        except Exception as error:
            y = type(error), str(error)
    return y, [(w.category, str(w.message)) for w in caught], args[:1]


def assert_same_outcome(name, args, kwargs, exact):
    """Check that both calls have the same outcome. exact: nothing is dropped, so the values must be equal too."""
    want, warned, overwritten = outcome(TORCHS[name], args, kwargs)
    with accelerate():
        got, said, mine = outcome(getattr(F, name), args, kwargs)
    assert said == warned
    assert type(got) is type(want), (got, want)
    if not isinstance(want, torch.Tensor):
        assert got == want
        return
    assert (got.shape, got.dtype, got.device, got.layout) == (want.shape, want.dtype, want.device, want.layout)
    assert got.requires_grad == want.requires_grad and (got is mine[0]) == (want is overwritten[0])
    if exact and want.device.type == "cpu":
        assert torch.equal(got.to_dense(), want.to_dense())


@pytest.mark.filterwarnings("ignore")
@hypothesis.given(st.data())
def test_accelerated_functions_accept_and_refuse_the_same_as_torchs(data):
    name, x = data.draw(st.sampled_from(functional.REPLACED)), data.draw(INPUTS)
    values = [data.draw(st.sampled_from(NUMBERS)), data.draw(FLAGS), data.draw(st.sampled_from([False, False, True]))]
    count = data.draw(st.integers(0, 3))
    names = ["p", "training", "inplace"]
    kwargs = {n: v for n, v in list(zip(names, values, strict=True))[count:] if data.draw(st.booleans())}
    if data.draw(st.integers(0, 9)) == 0:
        kwargs["activation"] = "relu"  # torch's functions have no such argument
    p, training = [*values[:count], *(None,) * 3][:2]
    training = kwargs.get("training", training if count > 1 else name not in functional.OFF_BY_DEFAULT)
    p = kwargs.get("p", p if count else 0.5)
    exact = not training or (isinstance(p, (int, float)) and p == 0)
    assert_same_outcome(name, [x, *values[:count]], kwargs, exact)


@st.composite
def attentions(draw):
    heads, length = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 3, 5]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.int64]))
    shapes = [(2, heads, length, 4), (2, heads, draw(st.sampled_from([length, 3])), 4)]
    q, k, v = (torch.ones(shapes[n]).to(dtype) for n in (0, 1, 1))
    if draw(st.integers(0, 5)) == 0:
        k = draw(st.sampled_from([k[0], k[..., :3], k.double(), None, torch.ones(4)]))
    masks = [None, None, "bool", "float", "same", "int", "double", "wrong"]
    mask, keys = draw(st.sampled_from(masks)), shapes[1][2]
    shape = (length, keys + 2) if mask == "wrong" else (length, keys)
    kinds = {"bool": torch.bool, "float": torch.float32, "same": dtype, "int": torch.int64, "double": torch.float64}
    attn_mask = None if mask is None else torch.ones(shape).to(kinds.get(mask, torch.float32))
    options = {"dropout_p": draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, -1.0, "0.5"])), "is_causal": draw(st.booleans())}
    if draw(st.booleans()):
        options["attn_mask"] = attn_mask
    options |= draw(st.sampled_from([{}, {"scale": 0.3}, {"enable_gqa": True}, {"unknown": 1}]))
    return [q, k, v], options


@pytest.mark.filterwarnings("ignore")
@hypothesis.given(attentions())
def test_accelerated_attention_accepts_and_refuses_the_same_as_torchs(drawn):
    args, kwargs = drawn
    assert_same_outcome(ATTENTION, args, kwargs, exact=kwargs["dropout_p"] == 0.0)


def test_functions_stay_visible_to_modes_and_subclasses():
    seen = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    class Logged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    class Plain(torch.Tensor):
        pass

    x, q = torch.ones(200), torch.ones(2, 3, 4)
    with accelerate():
        with Seen():
            assert ran(lambda: F.dropout(x, 0.5)) == {"gpudrop::forward"}
            F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        assert seen[:1] == ["dropout"] and seen[-1] == ATTENTION
        seen.clear()
        y = F.dropout(x.as_subclass(Logged), 0.5)
        assert type(y) is Logged and seen[0] is TORCHS["dropout"]  # a subclass may look this function up in a table
        assert type(F.dropout(x.as_subclass(Plain), 0.5)) is Plain
        assert ran(lambda: F.dropout(x.as_subclass(Plain), 0.5)) == {"gpudrop::forward"}
        with torch.device("cpu"):
            assert ran(lambda: F.dropout(x, 0.5)) == {"gpudrop::forward"}
    for function in (functional.dropout, functional.drop_path):
        assert type(function(x.as_subclass(Plain), 0.5, activation="gelu")) is Plain
    seen.clear()
    functional.zoneout(x.as_subclass(Logged), x, 0.5)
    assert seen[0] is functional.zoneout


@pytest.mark.filterwarnings("ignore")
def test_a_function_patched_by_others_is_restored(monkeypatch):
    def patched(*args, **kwargs):
        return "patched"

    monkeypatch.setattr(F, ATTENTION, patched)
    with accelerate(attention=False):
        assert F.scaled_dot_product_attention is patched
    with accelerate():
        assert F.scaled_dot_product_attention is not patched
    assert F.scaled_dot_product_attention is patched
    with accelerate():
        monkeypatch.setattr(F, "dropout", patched)
    assert F.dropout is patched


def test_modes_see_torchs_function_where_nothing_is_dropped():
    seen = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with accelerate(), Seen():
        F.dropout(torch.ones(3), 0.5, False)
        F.dropout(torch.ones(3), 0.0)
    assert seen.count(TORCHS["dropout"]) == 2


def test_scripts_use_torchs_functions():
    class Attending(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.0) + F.alpha_dropout(x, 0.5, False)

    with accelerate():
        for model in (nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Dropout2d()).eval(), Attending(), nn.GRU(3, 3)):
            torch.jit.script(model)
        scripted = torch.jit.script(nn.Sequential(nn.Dropout(0.5)))
        assert (scripted(torch.ones(100)) == 0).any()


def on_cuda(x):
    """A tensor that reports that it is on a GPU."""

    class OnCuda(torch.Tensor):
        is_cuda, is_cpu, device = True, False, torch.device("cuda", 0)
        __torch_function__ = torch._C._disabled_torch_function_impl

    return x.as_subclass(OnCuda)


def test_attention_on_cuda_stays_torchs_unless_requested(monkeypatch):
    asked = []
    own = "gpudrop.torch.attention.scaled_dot_product_attention"
    monkeypatch.setattr(own, lambda q, *args, **kw: asked.append(q) or q)
    monkeypatch.setattr(gpudrop.torch.functional, "_have_cupy", lambda: True)
    host, gpu = torch.ones(2, 3, 4), on_cuda(torch.ones(2, 3, 4))

    def rerouted(x):
        asked.clear()
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        return bool(asked)

    for attention, want in ((None, (True, False)), (True, (True, True)), (False, (False, False))):
        with accelerate(attention=attention):
            assert (rerouted(host), rerouted(gpu)) == want
            with accelerate():
                assert (rerouted(host), rerouted(gpu)) == want
    try:
        accelerate(True, attention=True)
        assert rerouted(gpu)
        accelerate(True)
        assert rerouted(host) and not rerouted(gpu)
        with accelerate(attention=True):
            accelerate(False)  # ends the setting of the process, not of the block
            assert rerouted(gpu)
        assert is_torchs()
    finally:
        accelerate(False)
    assert is_torchs()


def test_without_cupy_torch_computes_cuda_tensors_with_one_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    functional._have_cupy.cache_clear()
    try:
        with pytest.warns(UserWarning, match="uses PyTorch's own dropout for CUDA tensors, as CuPy can't be imported"):
            assert not functional.serves(on_cuda(torch.ones(3)), "dropout")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not functional.serves(on_cuda(torch.ones(3)), "dropout") and functional.serves(
                torch.ones(3), "dropout"
            )
    finally:
        functional._have_cupy.cache_clear()


WITHOUT_DISTRIBUTED = """
import torch
torch.distributed.is_available = lambda: False
import sys
sys.modules["torch.distributed.tensor"] = None
del sys.modules["torch.distributed.tensor"]
import torch.nn.functional as F, gpudrop.torch
class Plain(torch.Tensor):
    pass
with gpudrop.torch.accelerate():
    y = F.dropout(torch.ones(100).as_subclass(Plain), 0.5)
assert type(y) is Plain and (y == 0).any()
assert "torch.distributed.tensor" not in sys.modules and "gpudrop.torch.sharding" not in sys.modules
"""


def test_subclasses_need_no_distributed_tensors():
    run(WITHOUT_DISTRIBUTED)


# Attention

CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.arange(5)[:, None] > torch.arange(7) - 3},
    "nothing to attend to": {"attn_mask": torch.arange(5)[:, None].expand(5, 7) > 1},
    "added": {"attn_mask": numbers(3, 1, 5, 7)},
    "scaled": {"scale": 0.3},
    "scaled by a negative number": {"scale": -0.3},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_attention_drops_torchs_weights(case, dtype):
    heads = 2 if case == "grouped" else 4
    q, k, v = (numbers(3, h, n, 8).to(dtype) for h, n in ((4, 5), (heads, 7), (heads, 7)))
    attend, options = gpudrop.torch.scaled_dot_product_attention, CASES[case]
    if dtype != torch.float32 and case == "added":
        options = {"attn_mask": options["attn_mask"].to(dtype)}
    assert torch.equal(attend(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options))
    # If the values are the identity, the result is the weights themselves after dropout.
    eye = torch.eye(7, dtype=dtype).expand(3, heads, 7, 7)
    weights = F.scaled_dot_product_attention(q, k, eye, **options)
    torch.manual_seed(2)
    got = attend(q, k, eye, dropout_p=0.4, **options)
    torch.manual_seed(2)
    want = functional.dropout(weights, 0.4)
    torch.testing.assert_close(got, want, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-6)
    assert torch.equal(got == 0, want == 0)


def test_attention_with_a_mask_that_requires_a_gradient():
    q, k, v, bias = numbers(3, 4, 5, 8), numbers(3, 4, 7, 8), numbers(3, 4, 7, 8), numbers(4, 5, 7).requires_grad_()
    torch.manual_seed(3)
    kept = functional.dropout(torch.ones(3, 4, 5, 7), 0.4)
    torch.manual_seed(3)
    y = gpudrop.torch.scaled_dot_product_attention(q, k, v, bias, dropout_p=0.4)
    want = (torch.softmax(q @ k.mT * 8**-0.5 + bias, -1) * kept) @ v
    torch.testing.assert_close(y, want)
    got, wanted = (torch.autograd.grad(of.square().sum(), bias)[0] for of in (y, want))
    torch.testing.assert_close(got, wanted)
    with pytest.raises(RuntimeError, match="attn_mask should not be set when is_causal=True"):
        gpudrop.torch.scaled_dot_product_attention(q, k, v, bias, dropout_p=0.4, is_causal=True)
    with pytest.raises(ValueError, match="between 0 and 1"):
        gpudrop.torch.scaled_dot_product_attention(q, k, v, dropout_p=1.4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.complex64])
def test_attention_refuses_the_masks_that_torch_refuses(dtype):
    q, mask = numbers(1, 1, 2, 4), torch.tensor([[1, 0], [1, 1]]).to(dtype)
    with pytest.raises(
        RuntimeError, match="Expected attn_mask dtype to be bool or float or to match query dtype"
    ) as torchs:
        F.scaled_dot_product_attention(q, q, q, attn_mask=mask, dropout_p=0.5)
    with accelerate():
        for attend in (F.scaled_dot_product_attention, gpudrop.torch.scaled_dot_product_attention):
            with pytest.raises(RuntimeError) as own:
                attend(q, q, q, attn_mask=mask, dropout_p=0.5)
            assert str(own.value) == str(torchs.value)
    half, wide = numbers(1, 1, 2, 4).bfloat16(), torch.zeros(2, 2)  # a mask of float32 is allowed with any query
    assert gpudrop.torch.scaled_dot_product_attention(half, half, half, wide, dropout_p=0.5).dtype == torch.bfloat16


def test_attention_under_autocast_has_torchs_dtype():
    q = numbers(3, 2, 5, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = gpudrop.torch.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert q.grad.dtype == torch.float32


def test_attention_saves_no_mask():
    q = numbers(2, 4, 64, 8).requires_grad_()

    def saved(attend):
        """The number of saved arrays with as many elements as there are weights."""
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t):
            attend(q, q, q, dropout_p=0.5)
        return sum(t.numel() == 2 * 4 * 64 * 64 for t in found.values())

    assert saved(gpudrop.torch.scaled_dot_product_attention) == 1  # the weights before dropout
    assert saved(F.scaled_dot_product_attention) == 3


def test_attention_has_the_gradients_of_its_formula():
    q, k, v = (numbers(1, 2, n, 4).double().requires_grad_() for n in (3, 4, 4))

    def attend(q, k, v):
        torch.manual_seed(1)
        return gpudrop.torch.scaled_dot_product_attention(q, k, v, dropout_p=0.3)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, (q, k, v), fast_mode=True)
    torch.manual_seed(1)
    want = functional.dropout(torch.softmax(q / 2 @ k.mT, -1), 0.3) @ v
    torch.testing.assert_close(attend(q, k, v), want)
    got = torch.func.vmap(attend, randomness="same")(q, k, v)
    assert got.shape == want.shape
    with gpudrop.no_dropout():
        torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_module_is_torchs_with_another_dropout(need_weights):
    torch.manual_seed(0)
    own = gpudrop.torch.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
    torchs = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
    torchs.load_state_dict(own.state_dict())
    x = numbers(3, 5, 8)
    assert ran(lambda: own(x, x, x, need_weights=need_weights)) == {"gpudrop::forward"}
    with accelerate():
        torch.manual_seed(4)
        want = torchs(x, x, x, need_weights=need_weights)[0]
    torch.manual_seed(4)
    assert torch.equal(own(x, x, x, need_weights=need_weights)[0], want)
    want = torchs.eval()(x, x, x, need_weights=need_weights)[0]
    assert torch.equal(own.eval()(x, x, x, need_weights=need_weights)[0], want)


# Parameters of modules and schedules


def test_weight_drop():
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 8)
    dropped, x = gpudrop.torch.WeightDrop(lstm, "weight_hh_l0", 0.4), numbers(5, 3, 4)
    torch.manual_seed(1)
    y = dropped(x)[0]
    y.square().sum().backward()
    torch.manual_seed(1)
    kept = functional.drop_connect(torch.ones(32, 8), 0.4)
    reference = copy.deepcopy(lstm)
    reference.weight_hh_l0.data *= kept
    torch.testing.assert_close(y, reference(x)[0])
    reference.zero_grad()
    reference(x)[0].square().sum().backward()
    torch.testing.assert_close(lstm.weight_hh_l0.grad, reference.weight_hh_l0.grad * kept)
    torch.testing.assert_close(lstm.weight_ih_l0.grad, reference.weight_ih_l0.grad)
    assert torch.equal(dropped.eval()(x)[0], lstm(x)[0])
    assert list(dropped.state_dict()) == [f"module.{name}" for name in lstm.state_dict()]
    with pytest.raises(ValueError, match="the module has no parameter 'weight'; it has weight_ih_l0"):
        gpudrop.torch.WeightDrop(lstm, ["weight"])
    linear = gpudrop.torch.WeightDrop(nn.Linear(3, 2), ("weight", "bias"), 1.0)
    assert torch.equal(linear(numbers(4, 3)), torch.zeros(4, 2)) and "names=('weight', 'bias')" in repr(linear)


def test_modules_follow_a_schedule():
    from gpudrop import schedules

    model = nn.Sequential(
        modules.Dropout(schedules.linear(0.0, 0.8, 10)), modules.DropPath(schedules.linear(0.5, 0.1, 4))
    )
    x = numbers(20, 6)
    assert torch.equal(model[0](x), x)
    for module in model.modules():
        module.step = 5
    torch.manual_seed(0)
    y = model(x)
    torch.manual_seed(0)
    assert torch.equal(y, functional.drop_path(functional.dropout(x, 0.4), 0.1))
    assert model.state_dict() == {} and f"p={schedules.linear(0.0, 0.8, 10)!r}" in repr(model)
    assert repr(copy.deepcopy(model)) == repr(model)


# Findings of a review


def test_calls_by_keywords_in_any_order():
    q = numbers(2, 3, 4)
    with accelerate():
        assert F.dropout(p=0.5, input=q, training=True).shape == q.shape
        assert F.scaled_dot_product_attention(attn_mask=None, query=q, key=q, value=q, dropout_p=0.1).shape == q.shape
        with pytest.warns(UserWarning, match="2-D input"):
            F.dropout2d(torch.ones(3, 4), 0.5)  # torch accepts this with a warning, and computes it itself


def test_attention_detects_a_changed_mask_and_has_finite_second_derivatives():
    q, k, v = (numbers(2, 3, 4).double().requires_grad_() for _ in range(3))
    mask = torch.zeros(3, 3, dtype=torch.float64)
    y = gpudrop.torch.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1)
    mask.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    y = gpudrop.torch.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1)
    (gradient,) = torch.autograd.grad(y.sum(), q, create_graph=True)
    assert all(of.isfinite().all() for of in torch.autograd.grad(gradient.square().sum() + y.sum(), (q, k, v)))


def test_attention_in_unusual_contexts():
    q = numbers(2, 3, 4).requires_grad_()
    attend = gpudrop.torch.scaled_dot_product_attention
    y = attend(q, q, q, dropout_p=0.5)
    dy = numbers(5, *y.shape)
    got = torch.autograd.grad(y, q, dy, is_grads_batched=True, retain_graph=True)[0]
    want = torch.stack([torch.autograd.grad(y, q, one, retain_graph=True)[0] for one in dy])
    torch.testing.assert_close(got, want)
    with torch.autocast("cpu", torch.bfloat16):
        y.sum().backward()
        assert attend(q.double(), q.double(), q.double(), dropout_p=0.5).dtype == torch.float64
    for shape in ((2, 0, 4), (2, 3, 0)):
        empty = torch.ones(shape)
        assert attend(torch.ones(2, 3, shape[2]), empty, empty, dropout_p=0.5).shape == (2, 3, shape[2])
