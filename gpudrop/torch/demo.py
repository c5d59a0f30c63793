"""The PyTorch demo: a small transformer learns to predict the next byte of a text, with three kinds of dropout.

Without dropout the network overfits its few training bytes. Torch's dropout and gpudrop's reduce the overfitting
equally. They differ only in their masks and in the time that they take.
"""

import contextlib
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gpudrop.torch.adoption import accelerate

WIDTH, HEADS, HIDDEN, LAYERS = 128, 4, 512, 2
LENGTH = 32  # bytes of context for each prediction
DROP = 0.1

TRAIN_BYTES, TEST_BYTES = 6_000, 16_000  # so few training bytes that the network overfits
BATCH, RATE = 16, 2e-3

WAYS = ("without dropout", "torch's dropout", "gpudrop")


class LanguageModel(nn.Module):
    """A transformer that predicts each byte of a text from the bytes before it.

    Parameters
    ----------
    p : float
        The dropout probability. Dropout follows the embedding. In torch's layers it applies to the attention weights,
        the hidden units and the output of both residual branches.
    """

    def __init__(self, p):
        super().__init__()
        self.embedding, self.places = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        for table in (self.embedding, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(p)
        options = {"dropout": p, "activation": "gelu", "batch_first": True, "norm_first": True}
        layers = (nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, **options) for _ in range(LAYERS))
        self.layers = nn.ModuleList(layers)
        self.norm, self.scores = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
        later = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.register_buffer("later", later, persistent=False)

    def forward(self, x):
        """Return the logits of the 256 possible next bytes at each position of x, which has shape (batch, LENGTH)."""
        x = self.dropout(self.embedding(x) + self.places.weight)
        for layer in self.layers:
            x = layer(x, src_mask=self.later, is_causal=True)
        return self.scores(self.norm(x))


def loss(network, x, y):
    """Return the mean cross-entropy, in nats, of the network's predictions for x and the actual next bytes y."""
    return F.cross_entropy(network(x).flatten(0, 1), y.flatten())


def networks(seed):
    """Return one network for each of WAYS, all with the same initial weights, which depend on the seed."""
    made = []
    for p in (0, DROP, DROP):
        torch.manual_seed(seed)
        made.append(LanguageModel(p))
    return made


def batches(text, seed, steps):
    """Generate (x, y) for each step: random pieces of the text, and the same pieces shifted by one byte."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
        pieces = text[starts + torch.arange(LENGTH + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def texts():
    """Return the training bytes and the test bytes: different paragraphs of Python's own help."""
    from pydoc_data.topics import topics

    # Some topics share paragraphs. Duplicates are removed, so that no test paragraph is a training paragraph.
    # Neighbouring paragraphs have one subject. They are shuffled, so that both parts have the same distribution.
    paragraphs = np.array(list(dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))), object)
    order = np.random.default_rng(0).permutation(len(paragraphs))
    text = torch.frombuffer(bytearray("\n\n".join(paragraphs[order]).encode()), dtype=torch.uint8).long()
    return text[:TRAIN_BYTES], text[-TEST_BYTES:]


def drawing(way):
    """Return the context manager for a training step; accelerate() is the only line that gpudrop needs."""
    return accelerate() if way == "gpudrop" else contextlib.nullcontext()


@dataclass(frozen=True)
class Result:
    """The results of the demo.

    Attributes
    ----------
    times : array, shape (WAYS, seeds, steps)
        The time of each step in seconds.
    losses : array, shape (WAYS, seeds, 2)
        The final losses on the training text and on the validation text, in nats per byte, measured without dropout.
    seconds : float
        The duration of the whole demo.
    """

    times: np.ndarray
    losses: np.ndarray
    seconds: float

    @property
    def milliseconds(self):
        """The median time of a step, for each of WAYS."""
        return 1e3 * np.median(self.times, axis=(1, 2))

    @property
    def slowdowns(self):
        """The median time of a step relative to the step without dropout, for each of WAYS."""
        return self.milliseconds / self.milliseconds[0]

    @property
    def error(self):
        """The standard error of the difference between the mean validation losses of the two dropouts.

        It is nan with a single seed, because one value has no spread.
        """
        _, torchs, own = self.losses[:, :, 1]
        if len(own) < 2:
            return np.nan
        return float(np.sqrt((torchs.var(ddof=1) + own.var(ddof=1)) / len(own)))


def run(seeds=4, console=None, *, steps=500):
    """Train without dropout, with torch's and with gpudrop's, and print the time and the losses of each.

    The networks of a seed take their steps in turn, so that other load on the machine affects all of them equally.

    Parameters
    ----------
    seeds : int
        The number of trainings per kind of dropout. A seed determines initial weights, batches and masks.
    console : rich.console.Console, optional
        The console to print to.
    steps : int
        The number of steps per training.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If seeds or steps is less than 1.
    """
    if seeds < 1 or steps < 1:
        raise ValueError(f"seeds and steps must be at least 1, got {seeds} and {steps}")
    from rich.console import Console
    from rich.progress import Progress

    console, (text, test_text), started = console or Console(), texts(), time.perf_counter()
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with torch.random.fork_rng(devices=()), bar as progress:
        task = progress.add_task("training", total=seeds * steps)
        _warm_up(text)
        fits = [fit(text, test_text, seed, steps, lambda: progress.advance(task)) for seed in range(seeds)]
    times, losses = (np.stack(part, axis=1) for part in zip(*fits, strict=True))
    result = Result(times, losses, time.perf_counter() - started)
    _print(result, console)
    return result


def _warm_up(text):
    """Take one step with each network, so that no measured step includes one-time work such as compiling kernels."""
    for way, network in zip(WAYS, networks(0), strict=True):
        take_step(way, network, torch.optim.AdamW(network.parameters(), lr=RATE), next(batches(text, 0, 1)))


def fit(text, test_text, seed, steps, advance):
    """Train the networks of a seed in turn, and return their times, of shape (WAYS, steps), and their final losses."""
    trained = networks(seed)
    optimizers = [torch.optim.AdamW(network.parameters(), lr=RATE) for network in trained]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(of, RATE, total_steps=steps + 1) for of in optimizers]
    times = []
    for batch in batches(text, seed, steps):
        turns = zip(WAYS, trained, optimizers, strict=True)
        times.append([take_step(way, network, optimizer, batch) for way, network, optimizer in turns])
        for schedule in schedules:
            schedule.step()
        advance()
    return np.transpose(times), np.array(
        [[_measure(network, part) for part in (text, test_text)] for network in trained]
    )


def take_step(way, network, optimizer, batch):
    """Take one training step and return its time in seconds."""
    started = time.perf_counter()
    with drawing(way):
        cost = loss(network, *batch)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    return time.perf_counter() - started


@torch.no_grad()
def _measure(network, text):
    """Return the loss on a whole text, split into pieces, without dropout."""
    network.eval()
    whole = (len(text) - 1) // LENGTH * LENGTH
    pieces = (part.view(-1, LENGTH) for part in (text[:whole], text[1 : whole + 1]))
    return float(loss(network, *pieces))


def conclusion(result):
    """Return the conclusion in words; it depends on the results."""
    without, torchs, own = result.losses[:, :, 1].mean(axis=1)
    difference, error = abs(own - torchs), result.error
    if result.losses.shape[1] == 1:
        finding = f"Whether {WAYS[1]} and gpudrop's are equally good, a single seed can't tell"
        margin = "two seeds and more have a standard error"
    else:
        # The usual two standard errors: with a few seeds, about one run in ten calls equal dropouts unequal.
        agree = difference <= 2 * error
        finding = f"{WAYS[1].capitalize()} and gpudrop's {'are equally good' if agree else 'are not equally good'}"
        margin = f"{'within' if agree else 'beyond'} two standard errors of {error:.3f}"
    lowered = {0: "neither is", 1: "only one is", 2: "both are"}[int(torchs < without) + int(own < without)]
    return (
        f"{finding}: their validation losses are {torchs:.3f} and {own:.3f}, {difference:.3f} apart, {margin}; "
        f"{lowered} below the {without:.3f} without dropout, at {result.slowdowns[1]:.2f} and "
        f"{result.slowdowns[2]:.2f} times its time per step."
    )


def _setting(result):
    _, seeds, steps = result.times.shape
    threads = torch.get_num_threads()
    return (
        f"Transformer of {LAYERS} layers, width {WIDTH}, p = {DROP}, predicting the next byte of Python's help; "
        f"{TRAIN_BYTES} training bytes, {TEST_BYTES} for validation; {seeds} seeds of {steps} steps, each of {BATCH} x "
        f"{LENGTH} bytes; PyTorch on the CPU with {threads} thread{'s' * (threads > 1)}, {result.seconds:.0f} s"
    )


def _print(result, console):
    from rich import box
    from rich.table import Table

    console.print(_setting(result))
    caption = "losses in nats per byte, dropout off while measuring: mean ± standard deviation over the seeds"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption)
    for column in ("", "ms per step", "times without", "training loss", "validation loss"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, time_, times, losses in zip(WAYS, result.milliseconds, result.slowdowns, result.losses, strict=True):
        spread = {"ddof": min(1, len(losses) - 1)}
        figures = (f"{column.mean():.3f} ± {column.std(**spread):.3f}" for column in losses.T)
        table.add_row(name, f"{time_:.1f}", f"{times:.2f}", *figures)
    console.print(table)
    console.print(conclusion(result))
