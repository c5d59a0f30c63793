"""GPT-2 and BERT of transformers train alike whether compiled, checkpointed or both, accelerated or converted."""

import contextlib

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gpudrop.torch import accelerate, convert  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIZES = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))


def build(kind, attention_p):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(**SIZES, hidden_size=16, intermediate_size=32, hidden_dropout_prob=0.2)
        config.attention_probs_dropout_prob = attention_p
        return transformers.BertForMaskedLM(config)
    options = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.2, "embd_pdrop": 0.2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, **options, attn_pdrop=attention_p))


def trained(kind, way, compiled, checkpointed):
    """The losses of 5 steps, and the weights after them."""
    # The attention of these models is a function, which convert does not replace. Its masks depend on the compiler.
    model = build(kind, 0.2 if way == "accelerate" else 0.0).train()
    model = convert(model) if way == "convert" else model
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointed == "reentrant"})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = torch.compile(model, backend="aot_eager") if compiled else model
    torch.manual_seed(5)
    costs = []
    with accelerate() if way == "accelerate" else contextlib.nullcontext():
        for _ in range(5):
            optimizer.zero_grad()
            cost = step(WORDS, labels=WORDS).loss
            cost.backward()
            optimizer.step()
            costs.append(cost.detach())
    return [torch.stack(costs), *(p.detach().clone() for p in model.parameters())]


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize("way", ["accelerate", "convert"])
def test_compiled_and_checkpointed_models_train_alike(kind, way):
    torch._dynamo.reset()
    want = trained(kind, way, compiled=False, checkpointed=None)
    assert want[0][0] != want[0][1]
    for compiled in (False, True):
        for checkpointed in (None, "not reentrant", "reentrant"):
            if compiled or checkpointed:
                torch._dynamo.reset()
                got = trained(kind, way, compiled, checkpointed)
                for a, b in zip(got, want, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=f"compiled {compiled}, {checkpointed}")
