"""convert: a converted model differs from the original only in masks and speed, and revert restores the original."""

import contextlib
import copy
import dataclasses
import itertools
import pickle
import warnings

import hypothesis
import pytest
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import gpudrop  # noqa: E402
import gpudrop.torch  # noqa: E402
from gpudrop.torch import accelerate, convert, functional, fused, modules, revert  # noqa: E402
from gpudrop.torch.activations import ACTIVATIONS  # noqa: E402
from tests.sampling import few  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SAVED = torch.autograd.graph.saved_tensors_hooks


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def forwards(function):
    """The activation of each gpudrop forward pass that a function runs."""
    found = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator in (torch.ops.gpudrop.forward.default, torch.ops.gpudrop.recorded.default):
                found.append(args[6])
            return operator(*args, **(kwargs or {}))

    with Seen():
        function()
    return found


# The modules of a converted model


def test_conversion_keeps_the_module_objects():
    shared, alone = nn.Dropout(0.2), nn.Dropout(0.1, inplace=True)
    model = nn.ModuleDict(
        {
            "fused": nn.Sequential(nn.Linear(4, 4), nn.GELU(approximate="tanh"), shared, nn.Linear(4, 4)),
            "twice": nn.ModuleList([shared, shared]),
            "plain": nn.Sequential(alone, nn.Linear(4, 4)),
            "list": nn.ModuleList([nn.ReLU(), nn.Dropout3d(0.4)]),
            "attention": nn.MultiheadAttention(8, 2, dropout=0.1),
            "encoder": nn.TransformerEncoderLayer(8, 2, 16),
        }
    )
    alone.eval()
    before, names, text = list(model.modules()), list(model.state_dict()), repr(model)
    assert convert(model) is model and list(model.state_dict()) == names and repr(model) == text
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))
    assert type(shared) is modules.Dropout and shared.p == 0.2 and type(model["fused"]) is fused.Sequential
    assert type(alone) is modules.Dropout and alone.inplace and not alone.training
    assert type(model["plain"]) is nn.Sequential and type(model["list"][0]) is nn.ReLU
    assert type(model["attention"]) is gpudrop.torch.MultiheadAttention
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), convert(model)):
        assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert revert(model) is model
    assert all(type(module).__module__.startswith("torch.nn.") for module in model.modules())
    alone = nn.AlphaDropout(0.3)
    assert convert(alone) is alone and type(alone) is modules.AlphaDropout


def test_revert_keeps_modules_that_torch_does_not_have():
    own = [modules.DropPath(0.1), modules.Dropout(0.1, activation="gelu")]
    own += [modules.Dropout(0.1, generator=torch.Generator()), modules.Dropout(gpudrop.schedules.linear(0, 1, 10))]
    model = revert(nn.Sequential(*own, modules.Dropout(0.2)))
    assert [type(module) for module in model] == [modules.DropPath, *(modules.Dropout,) * 3, nn.Dropout]
    assert model[4](torch.ones(4000)).mean().item() == pytest.approx(1, abs=0.1)


def test_subclasses_are_not_converted():
    class Own(nn.Dropout):
        pass

    class Skipping(nn.Sequential):
        def forward(self, x):
            return self[1](x)

    model = convert(nn.ModuleList([Own(0.5), Skipping(nn.ReLU(), nn.Dropout(0.5))]))
    assert type(model[0]) is Own and type(model[1]) is Skipping
    y = model[1](x := numbers(100))
    assert (y[y != 0] == 2 * x[y != 0]).all()


# Modules that are fused, and modules that are not


FUSED = [row[:3] for row in ACTIVATIONS]


@pytest.mark.parametrize(("cls", "arguments", "name"), few(FUSED, *(FUSED[k] for k in (0, 4, 5, 10))))
def test_an_activation_after_a_linear_layer_is_fused(cls, arguments, name):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), cls(**arguments), nn.Dropout(0.5)), numbers(4, 8)
    model[0].weight.data *= 3
    want = model[1](model[0](x))
    convert(model)
    assert forwards(lambda: model(x)) == [name]
    y = model(x)
    torch.testing.assert_close(y[y != 0], 2 * want[y != 0], rtol=1e-5, atol=1e-6)
    assert forwards(lambda: model.eval()(x)) == [] and torch.equal(model(x), want)
    other = convert(nn.Sequential(nn.Linear(8, 16), cls(), nn.Dropout(0.5)))
    assert forwards(lambda: other(x)) == [name] if name != "gelu_tanh" else ["gelu"]


def hooked(module, kind):
    getattr(module, f"register_{kind}")(lambda *args: None)


UNFUSED = {
    "hook of the activation": lambda m: hooked(m[1], "forward_hook"),
    "pre-hook of the dropout": lambda m: hooked(m[2], "forward_pre_hook"),
    "hook of the dropout": lambda m: hooked(m[2], "forward_hook"),
    "backward hook": lambda m: hooked(m[2], "full_backward_hook"),
    "backward pre-hook": lambda m: hooked(m[1], "full_backward_pre_hook"),
    "a forward of its own": lambda m: setattr(m[2], "forward", m[2].forward),
    "in place": lambda m: setattr(m[1], "inplace", True),
    "no p": lambda m: setattr(m[2], "p", 0.0),
    "another slope": lambda m: m.__setitem__(1, nn.LeakyReLU(0.2)),
}


@pytest.mark.parametrize("case", UNFUSED)
def test_modules_are_not_fused_if_a_user_could_notice(case):
    model = convert(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)))
    x = numbers(4, 8).requires_grad_()
    assert forwards(lambda: model(x)) == ["relu"]
    UNFUSED[case](model)
    assert forwards(lambda: model(x)) == ([] if case == "no p" else ["identity"])


def test_hooks_of_all_modules_and_modes_see_every_module():
    model, x, seen = convert(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5))), numbers(4, 8), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *args: seen.append(type(module).__name__))
    try:
        assert forwards(lambda: model(x)) == ["identity"] and seen == ["Linear", "GELU", "Dropout", "Sequential"]
    finally:
        handle.remove()
    with torch.device("cpu"):  # a mode of torch that only selects the device of new tensors
        assert forwards(lambda: model(x)) == ["gelu"]

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Seen():
        model(x)
    assert F.gelu in seen


@pytest.mark.parametrize(("after", "kept"), [([], False), ([nn.Linear(16, 4)], True), ([nn.Identity()], False)])
def test_relu_saves_its_output_only_if_it_can_not_be_overwritten(after, kept):
    """Otherwise it saves one bit per element."""
    model, x = convert(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), *after)), numbers(4, 8)

    def saves_bits():
        found = []
        with SAVED(lambda t: found.append(t) or t, lambda t: t):
            model(x)
        assert any(t.shape == (4, 16) for t in found) == bool(after and type(after[0]) is nn.Linear)
        return any(t.dtype is torch.uint8 and t.nbytes == 4 * 16 // 8 for t in found)

    assert saves_bits() != kept
    if kept:
        after[0].register_forward_pre_hook(lambda *args: None)
        assert saves_bits()


def test_a_residual_may_be_added_in_place_to_a_relu_that_is_fused():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5)), numbers(5, 4)

    def gradient(in_place):
        torch.manual_seed(0)
        y = model(x)
        y = y.add_(x) if in_place else y + x
        return torch.autograd.grad(y.square().sum(), model[0].weight)[0]

    gradient(True)  # as torch allows
    convert(model)
    assert forwards(lambda: model(x)) == ["relu"]
    assert torch.equal(gradient(True), gradient(False))


def test_relu_is_fused_after_any_module():
    """Its saved bits outlive the input, as torch's saved output does."""
    model, x = convert(nn.Sequential(nn.Identity(), nn.ReLU(), nn.Dropout(0.5))), numbers(50).requires_grad_()
    assert forwards(lambda: model(x)) == ["relu"]
    assert forwards(lambda: convert(nn.Sequential(nn.Identity(), nn.Tanh(), nn.Dropout(0.5)))(x)) == ["identity"]


@pytest.mark.parametrize("drop", [nn.Dropout, nn.AlphaDropout])
def test_the_input_of_a_fused_relu_may_be_overwritten(drop):
    """The gradient of AlphaDropout's relu would otherwise read it."""
    model, x = convert(nn.Sequential(nn.ReLU(), drop(0.5), nn.Linear(50, 1))), numbers(50).requires_grad_()

    def gradient(overwritten):
        torch.manual_seed(0)
        z = x * 1
        y = model(z)
        if overwritten:
            z.zero_()
        return torch.autograd.grad(y, x)[0]

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.parametrize("operation", ["add", "mask", "item", "module"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Tanh()])
def test_the_output_may_be_overwritten(activation, operation):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), activation, nn.Dropout(0.5)), numbers(4, 8)
    model = convert(nn.Sequential(*model, nn.Hardtanh(inplace=True)) if operation == "module" else model)

    def gradient(out_of_place):
        model.zero_grad()
        torch.manual_seed(3)
        y = model[:3](x) if operation == "module" and out_of_place else model(x)
        if operation == "add":
            y = y + x if out_of_place else y.add_(x)
        elif operation == "mask":
            y = y.masked_fill(x > 0, 7) if out_of_place else y.masked_fill_(x > 0, 7)
        elif operation == "item":
            y = torch.cat([torch.zeros(1, 8), y[1:]]) if out_of_place else y.index_fill_(0, torch.tensor(0), 0)
        elif out_of_place:
            y = y.clamp(-1, 1)
        y.square().sum().backward()
        return model[0].weight.grad.clone()

    torch.testing.assert_close(gradient(False), gradient(True))


def test_the_input_may_be_overwritten_if_torch_allows_it():
    """Torch saves the output of these activations, so their input may be overwritten."""
    for before, cls in itertools.product(([], [nn.Identity()]), (nn.ReLU, nn.Sigmoid, nn.Tanh)):
        model = convert(nn.Sequential(*before, cls(), nn.Dropout(0.5)))
        x = numbers(50).requires_grad_()
        z = x * 1
        y = model(z)
        z.zero_()
        y.sum().backward()
        assert torch.equal(x.grad != 0, y != 0)


def test_an_in_place_dropout_overwrites_only_the_activations_output():
    for training in (True, False):
        model, x = convert(nn.Sequential(nn.GELU(), nn.Dropout(0.5, inplace=True))).train(training), numbers(40)
        before = x.clone()
        model(x)
        assert torch.equal(x, before)
        model(x.requires_grad_()).sum().backward()  # a leaf, which must not be overwritten
        alone = convert(nn.Dropout(0.5, inplace=True)).train(training)
        z = before.clone()
        assert alone(z) is z
    alpha, x = convert(nn.AlphaDropout(0.5, inplace=True)), numbers(40)
    assert torch.equal(x, numbers(40)) and alpha(x) is not x  # torch's module ignores inplace too


# A property test


ACTIVATION_MODULES = [cls for cls, *_ in ACTIVATIONS] + [nn.Hardtanh, nn.PReLU, nn.ReLU6, nn.Identity]
IN_PLACE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.ReLU6)
DROPOUTS = [nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout]
HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@st.composite
def models(draw):
    """A function that always makes the same model, and the kind of transformer layer in it, or None."""
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["linear", "norm", "activation", "activation", "dropout", "dropout", "conv"]))
        if kind == "activation":
            cls = draw(st.sampled_from(ACTIVATION_MODULES))
            parts.append((cls, {"inplace": True} if cls in IN_PLACE and draw(st.booleans()) else {}))
        elif kind == "dropout":
            p = draw(st.sampled_from([0.0, 0.3, 0.5]))
            parts.append((draw(st.sampled_from(DROPOUTS)), {"p": p, "inplace": draw(st.booleans())}))
        elif kind == "linear":
            parts.append((nn.Linear, {"in_features": 6, "out_features": 6}))
        elif kind == "norm":
            parts.append((draw(st.sampled_from([nn.LayerNorm, nn.RMSNorm])), {"normalized_shape": 6}))
        else:
            parts.append((nn.Conv1d, {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1}))
    hooks = draw(st.lists(st.tuples(st.integers(0, len(parts) - 1), st.sampled_from(HOOKS)), max_size=2))
    residual, layer = draw(st.booleans()), draw(st.sampled_from([None, None, "encoder", "decoder"]))
    activation = draw(st.sampled_from(["relu", "gelu"]))

    def make(p=None):
        torch.manual_seed(0)
        made = [cls(**(options | ({"p": p} if p is not None and "p" in options else {}))) for cls, options in parts]
        records = []
        for k, kind in hooks:
            getattr(made[k], f"register_{kind}")(
                lambda module, *values, kind=kind, k=k: records.append(
                    (k, kind, [v.detach().clone() for group in values for v in group if isinstance(v, torch.Tensor)])
                )
            )
        model = nn.Sequential(*made)
        model = nn.Sequential(nn.Linear(6, 6), Residual(model)) if residual else model
        if layer:
            cls = nn.TransformerEncoderLayer if layer == "encoder" else nn.TransformerDecoderLayer
            drop = 0.3 if p is None else p
            model = nn.ModuleList([model, cls(6, 2, 8, drop, activation=activation, batch_first=True)])
        return model, records

    return make, layer


def ran(make, layer, p, mode, convert=lambda m: m, seed=7):
    """The output, the gradients and the records of the hooks. After an error, None and the records."""
    model, records = make(p)
    model = convert(model.double().train(mode))
    x = numbers(2, 4, 6).double().requires_grad_()
    torch.manual_seed(seed)
    try:
        z = x * 1
        y = model(z) if layer is None else model[0](z)
        if layer is not None:
            y = model[1](y) if layer == "encoder" else model[1](y, y)
        y.square().sum().backward()
    except RuntimeError:
        return None, records
    return [y.detach(), x.grad, z.detach(), *(q.grad for q in model.parameters())], records


def assert_alike(got, want):
    (values, records), (wanted, wanted_records) = got, want
    if wanted is not None:  # otherwise torch itself raises: a tensor that a gradient needs is overwritten
        assert values is not None
        for a, b in zip(values, wanted, strict=True):
            torch.testing.assert_close(a, b)
        assert [r[:2] for r in records] == [r[:2] for r in wanted_records]
        for (*_, a), (*_, b) in zip(records, wanted_records, strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y)


@hypothesis.given(models())
def test_a_converted_model_computes_the_same_as_the_original(drawn):
    make, layer = drawn
    for p, mode in ((0.0, True), (None, False), (0.5, False)):
        want = ran(make, layer, p, mode)
        assert_alike(ran(make, layer, p, mode, convert), want)
        assert_alike(ran(make, layer, p, mode, lambda model: revert(convert(model))), want)
    with accelerate():  # torch's own modules with the same masks
        want = ran(make, layer, None, True)
    assert_alike(ran(make, layer, None, True, convert), want)


# Beyond eager tensors on the CPU


def test_slices_and_indices_return_the_original_modules():
    model, x = convert(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2))), numbers(3, 4)
    torch.testing.assert_close(model[:2](x), F.gelu(model[0](x)))
    assert type(model[1]) is nn.GELU and (model[2](torch.ones(100)) == 0).any()
    assert type(model[1:]) is fused.Sequential


ROWS = [torch.ones(2, 4), torch.ones(3, 4)]
OTHERS = {
    "matrices": (nn.Dropout2d, lambda: torch.ones(3, 4)),
    "volumes": (nn.Dropout2d, lambda: torch.ones(2, 3, 4, 4, 4)),
    "sequences": (nn.Dropout3d, lambda: torch.ones(2, 3, 4)),
    "images without samples": (nn.Dropout2d, lambda: torch.ones(3, 4, 4)),
    "nested": (nn.Dropout, lambda: torch.nested.nested_tensor(ROWS)),
    "jagged": (nn.Dropout, lambda: torch.nested.nested_tensor(ROWS, layout=torch.jagged)),
    "meta": (nn.Dropout, lambda: torch.ones(3, device="meta")),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("case", OTHERS)
def test_torch_computes_what_gpudrop_does_not_support(case, mode):
    cls, make = OTHERS[case]

    def told(module):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = module.train(mode)(make())
        return y, [str(w.message) for w in caught if "nested" not in str(w.message)]

    (want, warned), (got, said) = told(cls(0.5)), told(convert(cls(0.5)))
    assert said == warned and got.is_nested == want.is_nested and got.device == want.device
    if not want.is_nested:
        assert got.shape == want.shape
    chain = convert(nn.Sequential(nn.GELU(), cls(0.5))).train(mode)
    assert chain(make()).is_nested == want.is_nested


@pytest.mark.parametrize("mode", [True, False])
def test_second_and_forward_derivatives(mode):
    for activation in (nn.Tanh(), nn.LeakyReLU(), nn.Softplus()):
        model = (
            convert(nn.Sequential(nn.Linear(1, 8), activation, nn.Dropout(0.1), nn.Linear(8, 1))).train(mode).double()
        )

        def output(x, model=model):
            torch.manual_seed(1)
            return model(x)

        x = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(output, (x,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(output, (x,), check_fwd_over_rev=True)


def test_symbolic_traces():
    model = convert(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Dropout(0.5)))
    trace = torch.fx.symbolic_trace(model)
    assert [node.op for node in trace.graph.nodes] == ["placeholder", *("call_module",) * 3, "output"]
    x = torch.ones(50, 2)
    torch.manual_seed(1)
    want = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(trace(x), want)
    torch.testing.assert_close(trace.eval()(x), model.eval()(x))
    whole = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), modules.Dropout(0.5, activation="relu")))
    assert whole(x).shape == (50, 2)

    def function(x):
        return functional.drop_path(x, 0.5, activation="gelu") + 1

    assert (torch.fx.symbolic_trace(function)(x) == 1).any()


def test_calls_by_name_and_modules_in_larger_traces():
    model, x = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5))), numbers(3, 4)
    assert model(input=x).shape == x.shape and convert(nn.Dropout(0.5))(input=x).shape == x.shape
    for wrong in ((), (x, x)):
        with pytest.raises(TypeError, match="positional argument"):
            convert(nn.Dropout(0.5))(*wrong)
    batch = {"input": {0: torch.export.Dim("batch")}}
    torch.export.export(model.eval(), (x,), dynamic_shapes=batch)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.attention = nn.TransformerEncoderLayer(8, 2, 16), nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(self.layer(x), x, value=x, need_weights=False)[0]

    x = numbers(3, 2, 8)
    assert convert(nn.TransformerEncoderLayer(8, 2, 16))(src=x).shape == x.shape
    assert convert(nn.TransformerDecoderLayer(8, 2, 16))(tgt=x, memory=x).shape == x.shape
    assert convert(nn.MultiheadAttention(8, 2))(query=x, key=x, value=x)[0].shape == x.shape
    trace = torch.fx.symbolic_trace(convert(Outer()))
    assert [node.op for node in trace.graph.nodes].count("call_module") == 2
    assert trace(x).shape == x.shape


def test_an_activation_without_a_hash():
    @dataclasses.dataclass
    class Shifted:
        by: float

        def __call__(self, x):
            return x + self.by

    layer = convert(nn.TransformerEncoderLayer(8, 2, 16, activation=Shifted(0.5)))
    assert layer(numbers(3, 2, 8)).shape == (3, 2, 8)


def test_a_gradient_of_relu_shows_nan():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(1e-9), nn.Linear(4, 1))
    x = torch.tensor([[float("nan"), 1, 1, 1]], requires_grad=True)
    (want,) = torch.autograd.grad(model(x).sum(), x)
    (got,) = torch.autograd.grad(convert(model)(x).sum(), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", ["nested", "attention", "device"])
def test_no_dropout_applies_to_calls_that_torch_computes(kind):
    x = numbers(5, 3, 8)
    if kind == "nested":
        module, call = nn.Dropout(0.5), lambda m: m(torch.nested.nested_tensor(ROWS)).to_padded_tensor(1)
        function = lambda: F.dropout(torch.nested.nested_tensor(ROWS), 0.5).to_padded_tensor(1)  # noqa: E731
    else:
        module, call = nn.MultiheadAttention(8, 2, dropout=0.5), lambda m: m(x, x, x)[0]
        function = lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)  # noqa: E731
    convert(module)
    with torch.device("cpu") if kind == "device" else contextlib.nullcontext():
        torch.manual_seed(1)
        masked = call(module)
        with gpudrop.no_dropout(), accelerate():
            assert torch.equal(call(module), call(module)) and torch.equal(function(), function())
            assert not torch.equal(call(module), masked)
    torch.manual_seed(1)
    assert torch.equal(call(module), masked)  # modes do not change the mask


def test_scripting_raises_an_error_that_names_revert():
    sequential = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    for model in (sequential, nn.TransformerEncoderLayer(4, 1), nn.MultiheadAttention(4, 1)):
        convert(model)
        with pytest.raises(RuntimeError, match=r"apply gpudrop\.torch\.revert to the model first"):
            torch.jit.script(model)
        torch.jit.script(revert(model))


def test_state_dicts_are_interchangeable():
    def build():
        return nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.1), nn.MultiheadAttention(4, 2))

    plain, converted = build(), convert(build())
    converted.load_state_dict(plain.state_dict())
    plain.load_state_dict(converted.state_dict())
    assert all(map(torch.equal, plain.state_dict().values(), converted.state_dict().values()))


def test_copies_of_a_module_with_a_generator_draw_other_masks():
    module = modules.Dropout(0.5, generator=torch.Generator().manual_seed(0))
    copies = [copy.deepcopy(module) for _ in range(4)]
    assert len({tuple(twin(torch.ones(64)).tolist()) for twin in copies}) == 4
    again = pickle.loads(pickle.dumps(module))  # draws the same masks
    assert torch.equal(again(torch.ones(64)), module(torch.ones(64)))
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    model.layers[0].dropout = model.layers[0].dropout1 = module
    twin = copy.deepcopy(model)
    assert twin.layers[0].dropout is twin.layers[0].dropout1 is not module
    pair = copy.deepcopy(nn.ModuleList([module, modules.DropPath(generator=module.generator)]))
    assert pair[0].generator is pair[1].generator is not module.generator
