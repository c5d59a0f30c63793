"""accelerate and convert: models that exist get gpudrop's masks, and nothing else about them changes."""

import copy
import threading

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import gpudrop.torch  # noqa: E402
from gpudrop.torch import accelerate, convert, functional, modules  # noqa: E402
from tests.sampling import few  # noqa: E402

REROUTED = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
ATTENTION = "scaled_dot_product_attention"
ACTIVATIONS = gpudrop.torch.adoption.ACTIVATIONS
TORCHS = {name: getattr(F, name) for name in (*REROUTED, ATTENTION)}


def ran(function):
    """Which of the operators that draw a mask ran."""
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
    """The weights after a few steps from one seed."""
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
def test_a_model_that_drops_nothing_computes_what_it_did(name):
    build, inputs = MODELS[name]
    for model in (build().eval(), build(0.0).train()):
        want = output(model, inputs)
        with accelerate():
            assert torch.equal(output(model, inputs), want)


@pytest.mark.parametrize("name", few(["encoder", "decoder", "convolutional"], "convolutional"))
def test_converted_accelerated_and_compiled_models_have_one_mask(name):
    build, inputs = MODELS[name]
    with accelerate():
        want = trained(build(), inputs)
    plain = trained(build(), inputs)
    assert not all(map(torch.equal, want, plain))
    model = build()
    assert convert(model) is model
    assert ran(lambda: model(*inputs)) == {"gpudrop::forward"}
    for got in (trained(model, inputs), trained(torch.compile(convert(build()), backend="aot_eager"), inputs)):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("name", REROUTED)
def test_a_rerouted_function_is_gpudrops(name):
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
            with pytest.raises(ValueError, match="between 0 and 1"):
                getattr(F, name)(x, p, True)


def test_what_only_torch_serves_goes_to_torch():
    ragged = torch.nested.nested_tensor([torch.ones(3), torch.ones(5)], layout=torch.jagged)
    with accelerate():
        assert F.dropout(ragged, 0.5).is_nested
        with pytest.raises(NotImplementedError, match="not implemented for 'ComplexFloat'"):  # torch's own refusal
            F.dropout(torch.ones(3, dtype=torch.complex64), 0.5)


def test_how_long_it_holds():
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
    # With values that are the identity the result is the weights themselves, dropped.
    eye = torch.eye(7, dtype=dtype).expand(3, heads, 7, 7)
    weights = F.scaled_dot_product_attention(q, k, eye, **options)
    torch.manual_seed(2)
    got = attend(q, k, eye, dropout_p=0.4, **options)
    torch.manual_seed(2)
    want = functional.dropout(weights, 0.4)
    torch.testing.assert_close(got, want, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-6)
    assert torch.equal(got == 0, want == 0)


def test_attention_with_a_mask_that_learns():
    q, k, v, bias = numbers(3, 4, 5, 8), numbers(3, 4, 7, 8), numbers(3, 4, 7, 8), numbers(4, 5, 7).requires_grad_()
    torch.manual_seed(3)
    kept = functional.dropout(torch.ones(3, 4, 5, 7), 0.4)
    torch.manual_seed(3)
    y = gpudrop.torch.scaled_dot_product_attention(q, k, v, bias, dropout_p=0.4)
    want = (torch.softmax(q @ k.mT * 8**-0.5 + bias, -1) * kept) @ v
    torch.testing.assert_close(y, want)
    got, wanted = (torch.autograd.grad(of.square().sum(), bias)[0] for of in (y, want))
    torch.testing.assert_close(got, wanted)
    with pytest.raises(RuntimeError, match="attn_mask must be None where is_causal is True"):
        gpudrop.torch.scaled_dot_product_attention(q, k, v, bias, dropout_p=0.4, is_causal=True)
    with pytest.raises(ValueError, match="between 0 and 1"):
        gpudrop.torch.scaled_dot_product_attention(q, k, v, dropout_p=1.4)


def test_attention_under_autocast_has_torchs_dtype():
    q = numbers(3, 2, 5, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = gpudrop.torch.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert q.grad.dtype == torch.float32


def test_attention_keeps_no_mask():
    q = numbers(2, 4, 64, 8).requires_grad_()

    def saved(attend):
        """How many arrays of as many elements as there are weights."""
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.setdefault(t.data_ptr(), t), lambda t: t):
            attend(q, q, q, dropout_p=0.5)
        return sum(t.numel() == 2 * 4 * 64 * 64 for t in found.values())

    assert saved(gpudrop.torch.scaled_dot_product_attention) == 1  # before dropout
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


# Conversion


def test_convert_replaces_and_fuses():
    shared, alone = nn.Dropout(0.2), nn.Dropout(0.1, inplace=True)
    model = nn.ModuleDict(
        {
            "fused": nn.Sequential(nn.Linear(4, 4), nn.GELU(approximate="tanh"), shared, nn.Linear(4, 4)),
            "twice": nn.ModuleList([shared, shared]),
            "first": nn.Sequential(alone, nn.LeakyReLU(0.2), nn.Dropout1d(0.3), nn.Mish(), nn.Linear(4, 4)),
            "list": nn.ModuleList([nn.ReLU(), nn.Dropout3d(0.4)]),
        }
    )
    alone.eval()
    names = list(model.state_dict())
    assert convert(model) is model and list(model.state_dict()) == names
    assert type(model["fused"][1]) is nn.Identity
    assert repr(model["fused"][2]) == repr(modules.Dropout(0.2, activation="gelu_tanh"))
    assert model["twice"][0] is model["twice"][1] and model["twice"][0].activation is None
    first = model["first"]
    assert type(first[0]) is modules.Dropout and first[0].inplace and not first[0].training
    assert isinstance(first[1], nn.LeakyReLU) and first[2].activation is None  # of another slope
    assert isinstance(model["list"][0], nn.ReLU) and model["list"][1].activation is None
    again = copy.deepcopy(model)
    assert repr(convert(again)) == repr(model)
    assert type(convert(nn.AlphaDropout(0.3))) is modules.AlphaDropout


def test_convert_leaves_alone_what_it_can_not_see_through():
    class Own(nn.Dropout):
        pass

    class Skipping(nn.Sequential):
        def forward(self, x):
            return self[1](x)

    seen, activation = [], nn.ReLU()
    activation.register_forward_hook(lambda module, inputs, y: seen.append(y))
    model = nn.ModuleList([nn.Sequential(activation, nn.Dropout(0.5)), Own(0.5), Skipping(nn.ReLU(), nn.Dropout(0.5))])
    hooked = model[0][1]
    hooked.register_forward_hook(lambda module, inputs, y: seen.append(y))
    convert(model)
    assert model[0][0] is activation and type(model[1]) is Own and isinstance(model[2][0], nn.ReLU)
    model[0](numbers(3))
    assert len(seen) == 2
    torch.manual_seed(0)
    y = model[2](x := numbers(100))
    assert (y[y != 0] == 2 * x[y != 0]).all()


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.SiLU(), nn.Hardtanh(), torch.tanh])
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
@pytest.mark.filterwarnings("ignore")
def test_convert_fuses_the_activation_of_torchs_transformer_layers(kind, activation):
    def build():
        torch.manual_seed(0)
        return kind(16, 2, 32, 0.3, activation=activation, batch_first=True)

    layer = build()
    inputs = (numbers(3, 5, 16),) * (1 + (kind is nn.TransformerDecoderLayer))
    want = layer.eval()(*inputs)
    with accelerate():
        trains = trained(build(), inputs)
    convert(layer)
    fused = activation is not torch.tanh and not isinstance(activation, nn.Hardtanh)
    assert (layer.dropout.activation is not None) == fused
    layer = copy.deepcopy(layer) if fused else layer
    torch.testing.assert_close(layer(*inputs), want, rtol=1e-5, atol=1e-6)
    for a, b in zip(trained(layer.train(), inputs), trains, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("cls", "arguments", "name"), few(ACTIVATIONS, *ACTIVATIONS[4:7]))
def test_a_fused_activation_is_torchs(cls, arguments, name):
    module = cls(**arguments)
    model = convert(nn.Sequential(module, nn.Dropout(0.5))).eval()
    assert model[1].activation == name and type(model[0]) is nn.Identity
    x = numbers(1000) * 4
    torch.testing.assert_close(model(x), module(x), rtol=1e-5, atol=1e-6)
    default = convert(nn.Sequential(cls(), nn.Dropout(0.5)))[1].activation
    assert (default == name) == (name != "gelu_tanh")


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


# What a review found


def test_calls_by_keywords_in_any_order():
    q = numbers(2, 3, 4)
    with accelerate():
        assert F.dropout(p=0.5, input=q, training=True).shape == q.shape
        assert F.scaled_dot_product_attention(attn_mask=None, query=q, key=q, value=q, dropout_p=0.1).shape == q.shape
        with pytest.warns(UserWarning, match="2-D input"):
            F.dropout2d(torch.ones(3, 4), 0.5)  # which torch takes with a warning, and does itself


def test_convert_keeps_what_is_seen_from_outside():
    shared = nn.Dropout(0.0)
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(4, 1, 8, 0.0, activation="gelu", batch_first=True) for _ in range(2)]
    for layer in layers:
        layer.dropout = layer.dropout1 = layer.dropout2 = shared
    model, x = nn.Sequential(*layers), numbers(2, 3, 4)
    want = model(x)
    torch.testing.assert_close(convert(model)(x), want)
    in_place, x = convert(nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5))).eval(), torch.tensor([-1.0, 2.0])
    assert torch.equal(in_place(x) + x, torch.tensor([0.0, 4.0]))
    seen, hooked = [], nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    hooked[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    convert(hooked)(torch.tensor([-1.0, 2.0]))
    assert torch.equal(seen[0], torch.tensor([0.0, 2.0]))
    assert type(convert(nn.MultiheadAttention(8, 2, dropout=0.1))) is gpudrop.torch.MultiheadAttention


def test_attention_notices_a_mask_that_was_changed_and_has_finite_second_derivatives():
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


def test_attention_in_unusual_surroundings():
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
