"""Training steps of PyTorch models, and single calls: what dropout costs as torch draws it, and as gpudrop does.

Every model trains each of the WAYS, from the same weights and on the same inputs. What a way claims is checked before
it is timed, and a run in which one does something else ends there.

    python -m bench.torch_steps CASE WAY

is the process that measures the memory of one way: it prints bytes.
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
WARM = 2  # rounds that aren't kept
PEAK_STEPS = 3  # the first one makes the optimizer's state, the others have it already
REPETITIONS = 2000  # calls of a measurement
OURS = "gpudrop::forward"
TORCHS = {"aten::bernoulli", "aten::bernoulli_", "aten::native_dropout"}
RESET = Path("/proc/self/clear_refs")  # Linux: 5, written there, sets the high-water mark to what is resident now


@dataclass(frozen=True)
class Case:
    """A model and what it is trained on.

    Attributes
    ----------
    model : str
        One of MODELS.
    width, layers, heads : int
        Of the model; its feed-forward layers are four times as wide.
    batch, length : int
        Of its input.
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
    """Random weights, random tokens, and the loss of the next token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": case.width, "n_layer": case.layers, "n_head": case.heads, "n_positions": 2 * case.length}
    drops = {"resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p}
    rest = {"use_cache": False, "bos_token_id": None, "eos_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **drops, **rest))
    tokens = torch.randint(VOCABULARY, (case.batch, case.length))
    targets = tokens[:, 1:].flatten()
    return model, lambda: model(tokens).logits, lambda y: F.cross_entropy(y[:, :-1].flatten(0, 1), targets)


MODELS = {"nn.TransformerEncoder": encoder, "GPT-2": gpt2}
"""Functions of a case and p: the model, what it gives for its input, and the loss of that."""


@dataclass(frozen=True)
class Way:
    """How a model gets its dropout.

    Attributes
    ----------
    change : callable
        What is done to the model before training.
    around : callable
        The context in which it trains.
    p : float
    draws : tuple of (bool or None)
        Whether masks are drawn by gpudrop and by torch; None: both are right.
    """

    change: Callable = lambda model: model
    around: Callable = nullcontext
    p: float = P
    draws: tuple = (True, False)


WAYS = {
    "no dropout": Way(p=0.0, draws=(False, False)),
    "torch": Way(draws=(False, True)),
    "accelerate": Way(around=gpudrop.torch.accelerate),
    # What a model drops by functions, as GPT-2 does in its attention, stays torch's.
    "convert": Way(change=gpudrop.torch.convert, draws=(True, None)),
}


class Side:
    """A model that trains one way."""

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
    """What one case gives: its row of the record, with the results by way, or with the reason why it is left out.

    Raises
    ------
    Wrong
        If a way does something else than it claims.
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
    """Without dropout all models are one: the same weights, the same input, the same output."""
    outputs = {way: side.prediction() for way, side in sides.items()}
    wanted = outputs["torch"]
    for way, output in outputs.items():
        if not torch.allclose(output, wanted, rtol=1e-5, atol=1e-5):
            raise Wrong(f"{way}: its output without training is another one than torch's")


def check_draws(way, side):
    """The operators that drew masks in a step, if they are those that should have."""
    with torch.profiler.profile() as profile:
        side.step()
    drawn = sorted({event.key for event in profile.key_averages()} & {OURS, *TORCHS})
    for wanted, found in zip(side.way.draws, (OURS in drawn, not TORCHS.isdisjoint(drawn)), strict=True):
        if wanted not in (None, found):
            raise Wrong(f"{way}: its masks were drawn by {', '.join(drawn) or 'nobody'}")
    return drawn


def saved_bytes(side):
    """What autograd keeps of a forward pass for the backward pass, parameters aside."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in side.model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # which keeps the address its own as well
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), side.way.around():
        side.loss()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


def peak_bytes(name, way):
    """The memory that a few steps take at most, beyond the model's and the optimizer's; None where nothing tells it."""
    if not RESET.exists():
        return None
    command = [sys.executable, "-m", "bench.torch_steps", name, way]
    root = Path(__file__).parent.parent
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root).stdout)


def _peak(name, way):
    case = (CASES | QUICK)[name]
    small = replace(case, width=2 * case.heads, layers=1, batch=1, length=4)
    for every in WAYS.values():  # kernels compile here; in each process alike, for that leaves free memory behind
        Side(small, every).step()
    side = Side(case, WAYS[way])
    RESET.write_text("5")
    before = _high_water()
    for _ in range(PEAK_STEPS):
        side.step()
    return _high_water() - before


def _high_water():
    # Not getrusage's ru_maxrss, which a process inherits from the one that has started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def calls(rounds):
    """Rows of the record: a dropout of 1,000 elements forward, where nearly all is what a call costs."""
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
    """Which model was left out, and why."""
    return [f"{row['name']}: absent ({row['absent']})" for row in record["cases"] if "absent" in row]


if __name__ == "__main__":
    print(_peak(*sys.argv[1:]))
