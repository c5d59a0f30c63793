"""Training steps of PyTorch models, and single calls: the cost of torch's dropout, and of gpudrop's.

Every model is trained in each of the WAYS, from the same weights and on the same inputs. Each way's claims are checked
before it is timed. A false claim ends the run.

    python -m bench.torch_steps CASE WAY

measures the memory of one way in a process of its own, and prints bytes.
"""

import functools
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

import gpudrop.torch
from gpudrop.testing.benchmark import cases, checks
from gpudrop.testing.benchmark.checks import Wrong
from gpudrop.testing.benchmark.runner import in_turns, seconds

P = 0.1
VOCABULARY = 8192
WARM = 2  # rounds that are discarded
PEAK_STEPS = 3  # the first step allocates the optimizer's state
REPETITIONS = 2000  # calls per measurement
OURS = "gpudrop::forward"
TORCHS = {"aten::bernoulli", "aten::bernoulli_", "aten::native_dropout"}
RESET = Path("/proc/self/clear_refs")  # Linux: writing 5 sets the high-water mark to the memory that is resident now


@dataclass(frozen=True)
class Case:
    """A model and its training data.

    Attributes
    ----------
    model : str
        One of MODELS.
    width, layers, heads : int
        Sizes of the model. Its feed-forward layers are four times as wide.
    batch, length : int
        Sizes of its input.
    """

    model: str
    width: int
    layers: int
    batch: int
    length: int = 128
    heads: int = 8


CASES = {
    "encoder 256": Case("nn.TransformerEncoder", width=256, layers=4, batch=32),
    "encoder 512": Case("nn.TransformerEncoder", width=512, layers=4, batch=32),
    "gpt2": Case("GPT-2", width=256, layers=10, batch=8),
}
QUICK = {
    "small encoder": Case("nn.TransformerEncoder", width=32, layers=2, batch=4, length=32),
    "small gpt2": Case("GPT-2", width=32, layers=2, batch=2, length=32),
}


def encoder(case, p):
    layer = nn.TransformerEncoderLayer(case.width, case.heads, 4 * case.width, p, batch_first=True)
    model = nn.TransformerEncoder(layer, case.layers, enable_nested_tensor=False)
    x, target = torch.randn(2, case.batch, case.length, case.width)
    return model, lambda: model(x), lambda y: F.mse_loss(y, target)


def gpt2(case, p):
    """GPT-2 with random weights, random tokens, and the loss of the next token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": case.width, "n_layer": case.layers, "n_head": case.heads, "n_positions": 2 * case.length}
    drops = {"resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p}
    rest = {"use_cache": False, "bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **drops, **rest))
    tokens = torch.randint(VOCABULARY, (case.batch, case.length))
    targets = tokens[:, 1:].flatten()
    return model, lambda: model(tokens).logits, lambda y: F.cross_entropy(y[:, :-1].flatten(0, 1), targets)


MODELS = {"nn.TransformerEncoder": encoder, "GPT-2": gpt2}
"""Functions of a case and p, which return the model, a function for its output, and a function for the loss."""


@dataclass(frozen=True)
class Way:
    """A way to add dropout to a model.

    Attributes
    ----------
    change : callable
        Changes the model before training.
    around : callable
        Makes the context of training.
    p : float
    draws : tuple of (bool or None)
        Whether gpudrop draws masks, and whether torch does. None allows both.
    """

    change: Callable = lambda model: model
    around: Callable = nullcontext
    p: float = P
    draws: tuple = (True, False)


WAYS = {
    "no dropout": Way(p=0.0, draws=(False, False)),
    "torch": Way(draws=(False, True)),
    "accelerate": Way(around=gpudrop.torch.accelerate),
    # A model that calls functions for dropout, as GPT-2 does in its attention, keeps torch's dropout there.
    "convert": Way(change=gpudrop.torch.convert, draws=(True, None)),
}


class Side:
    """A model that is trained in one way."""

    def __init__(self, case, way):
        torch.manual_seed(0)
        self.model, self._output, self._loss = MODELS[case.model](case, way.p)
        way.change(self.model)
        self.way = way
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def prediction(self):
        self.model.eval()
        with self.way.around():
            output = self._output().detach()
        self.model.train()
        return output

    def loss(self):
        return self._loss(self._output())

    def step(self):
        with self.way.around():
            self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(name, rounds):
    """Measure one case. Returns its row of the record, with results by way, or with the reason why it is absent.

    Raises
    ------
    Wrong
        If a way does not do what it claims.
    """
    case = (CASES | QUICK)[name]
    row = {"section": "steps", "name": name} | asdict(case)
    try:
        sides = {way: Side(case, WAYS[way]) for way in WAYS}
    except ImportError as reason:
        return row | {"absent": str(reason)}
    check_predictions(sides)
    drawn = {way: check_draws(way, side) for way, side in sides.items()}
    saved = {way: saved_bytes(side) for way, side in sides.items()}
    steps = {way: functools.partial(seconds, side.step, 1) for way, side in sides.items()}
    in_turns(steps, WARM)
    results = in_turns(steps, rounds)
    for way, result in results.items():
        result |= {"saved_bytes": saved[way], "peak_bytes": peak_bytes(name, way), "drawn_by": drawn[way]}
    return row | {"parameters": sum(p.numel() for p in sides["torch"].model.parameters()), "results": results}


def check_predictions(sides):
    """Check that without dropout all models compute the same output from the same weights and input."""
    outputs = {way: side.prediction() for way, side in sides.items()}
    wanted = outputs["torch"]
    for way, output in outputs.items():
        if not torch.allclose(output, wanted, rtol=1e-5, atol=1e-5):
            raise Wrong(f"{way}: its output without training differs from torch's")


def check_draws(way, side):
    """The operators that drew masks in a step, after a check against the way's claim."""
    with torch.profiler.profile() as profile:
        side.step()
    drawn = sorted({event.key for event in profile.key_averages()} & {OURS, *TORCHS})
    for wanted, found in zip(side.way.draws, (OURS in drawn, not TORCHS.isdisjoint(drawn)), strict=True):
        if wanted not in (None, found):
            raise Wrong(f"{way}: its masks were drawn by {', '.join(drawn) or 'no operator'}")
    return drawn


def saved_bytes(side):
    """The bytes that autograd saves in a forward pass for the backward pass, without parameters."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in side.model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # the address is not reused while the storage is kept
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), side.way.around():
        side.loss()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


def peak_bytes(name, way):
    """The peak memory of a few steps, beyond the model and the optimizer, or None if it can't be measured."""
    if not RESET.exists():
        return None
    command = [sys.executable, "-m", "bench.torch_steps", name, way]
    root = Path(__file__).parent.parent
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root).stdout)


def _peak(name, way):
    case = (CASES | QUICK)[name]
    small = replace(case, width=2 * case.heads, layers=1, batch=1, length=4)
    for every in WAYS.values():  # compiles all kernels; every process does, because compiling leaves free memory behind
        Side(small, every).step()
    side = Side(case, WAYS[way])
    RESET.write_text("5")
    before = _high_water()
    for _ in range(PEAK_STEPS):
        side.step()
    return _high_water() - before


def _high_water():
    # getrusage's ru_maxrss can't be used: a process inherits it from its parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def calls(rounds):
    """Rows of the record: forward dropout of 1,000 elements, where nearly all time is the overhead of the call."""
    case = cases.Case("calls", "identity", size=1000, p=0.5)
    functions = {"torch": F.dropout, "gpudrop": gpudrop.torch.functional.dropout}
    for gradient in (False, True):
        torch.manual_seed(0)
        x = torch.randn(case.size, requires_grad=gradient)
        timed = {name: functools.partial(function, x, case.p) for name, function in functions.items()}
        for name, call in timed.items():
            try:
                checks.dropout(case, x.detach().numpy(), None, [call().detach().numpy()])
            except Wrong as reason:
                raise Wrong(f"{name}: {reason}") from reason
        turns = {name: functools.partial(seconds, call, REPETITIONS) for name, call in timed.items()}
        in_turns(turns, 1)
        results = in_turns(turns, rounds)
        yield {"section": "calls", "elements": case.size, "p": case.p, "gradient": gradient, "results": results}


def tables(record):
    """A table for each model, and one of the calls."""
    for row in record["cases"]:
        if row["section"] == "steps" and "results" in row:
            yield _table_of_steps(row)
    alone = Table("tensor", "torch, us", "gpudrop, us", "times torch's", title="a call of dropout, 1,000 elements")
    for row in record["cases"]:
        if row["section"] == "calls":
            torchs, own = (row["results"][name]["seconds"] for name in ("torch", "gpudrop"))
            tensor = "needs a gradient" if row["gradient"] else "needs no gradient"
            alone.add_row(tensor, f"{torchs * 1e6:.2f}", f"{own * 1e6:.2f}", f"{own / torchs:.2f}")
    yield _to_the_right(alone)


def _table_of_steps(row):
    sizes = f"{row['layers']} layers of {row['width']}, {row['parameters']:,} parameters"
    title = f"{row['model']}, {sizes}, batch {row['batch']} x {row['length']}"
    table = Table("way", "ms per step", "times no dropout's", "saved for backward, MB", "peak, MB", title=title)
    least = row["results"]["no dropout"]["seconds"]
    for way, result in row["results"].items():
        seconds, peak = result["seconds"], result["peak_bytes"]
        memory = f"{result['saved_bytes'] / 1e6:.1f}", "-" if peak is None else f"{peak / 1e6:.1f}"
        table.add_row(way, f"{seconds * 1e3:.1f}", f"{seconds / least:.2f}", *memory)
    return _to_the_right(table)


def _to_the_right(table):
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def notes(record):
    """The models that are absent, with the reason."""
    return [f"{row['name']}: absent ({row['absent']})" for row in record["cases"] if "absent" in row]


if __name__ == "__main__":
    print(_peak(*sys.argv[1:]))
