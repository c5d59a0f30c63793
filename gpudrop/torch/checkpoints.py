"""torch.utils.checkpoint: recomputation runs in the context of the forward pass and draws the same streams.

For recomputation torch restores its own generators and autocast, but no other generators. It may call the function
again after a block of `no_dropout` or `mc_samples` has ended, or in another thread.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint

from gpudrop.context import Block, Changes, Context, current


class Tape:
    """The streams that a function draws, recorded in order, so that a second run can use them again."""

    def __init__(self, outer: "Tape | None" = None) -> None:
        self.streams: list[torch.Tensor] = []
        self.outer = outer  # the tape of the enclosing checkpoint

    def next(self, draw: Callable[[], torch.Tensor], in_step: bool) -> torch.Tensor:
        """Return the next stream.

        If in_step is true, draw is called even if the stream is known, because others use its generator too.
        """
        stream = draw() if self.outer is None else self.outer.next(draw, in_step)
        self.streams.append(stream)
        return stream


class Replay(Tape):
    """A Tape that returns the streams recorded by another one."""

    def __init__(self, recorded: Tape) -> None:
        super().__init__()
        self.left = iter(recorded.streams)

    def next(self, draw: Callable[[], torch.Tensor], in_step: bool) -> torch.Tensor:
        stream = next(self.left, None)
        drawn = draw() if in_step or stream is None else None
        return drawn if stream is None else stream  # type: ignore[return-value]  # at least one is a tensor


def _again(context: Context, tape: Tape) -> Block:
    """Return a block that restores the context of a forward pass for its recomputation."""
    return Changes(on=context.on, rng=context.rng, first=context.first, tape=Replay(tape))


def _recording(context: Context) -> tuple[Tape, Block]:
    tape = Tape(context.tape)
    return tape, Changes(tape=tape)


def _reentrant(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap CheckpointFunction.forward, which stores the function that its backward calls again."""

    @functools.wraps(forward)
    def wrapper(ctx: Any, function: Callable[..., Any], *args: Any) -> Any:
        context = current()
        tape, recording = _recording(context)
        blocks = iter((recording,))

        def run(*inputs: Any) -> Any:
            with next(blocks, None) or _again(context, tape):
                return function(*inputs)

        return forward(ctx, run, *args)

    return wrapper


def _not_reentrant(generator: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
    """Wrap the generator behind use_reentrant=False; the checkpointed function runs while the generator waits."""

    @functools.wraps(generator)
    def wrapper(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[None]:
        context = current()
        tape, recording = _recording(context)

        def again(*inputs: Any, **options: Any) -> Any:
            with _again(context, tape):
                return function(*inputs, **options)

        steps = generator(again, *args, **kwargs)
        next(steps)
        try:
            with recording:
                yield
        except BaseException as error:
            steps.throw(error)  # type: ignore[attr-defined]  # a generator
            raise
        yield from steps

    return wrapper


def join() -> None:
    """Install the wrappers for both kinds of checkpoint."""
    checkpoint: Any = torch.utils.checkpoint
    name = "_checkpoint_without_reentrant_generator"
    checkpoint.CheckpointFunction.forward = staticmethod(_reentrant(checkpoint.CheckpointFunction.forward))
    wrapper = _not_reentrant(getattr(checkpoint, name))
    for module in (checkpoint, sys.modules.get("torch.distributed._composable.checkpoint_activation")):
        if module is not None:  # a module imported later takes the wrapper from torch.utils.checkpoint
            setattr(module, name, wrapper)
