"""The settings of a block of code: whether dropout is on, which generator draws, and which sample is the first.

A context belongs to a thread, or to an asyncio task. Each call reads it once, in the public function.
"""

import functools
import inspect
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from gpudrop.generator import Generator, RngLike, Source, Stream, check_rng

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Context(NamedTuple):
    """The settings of every call within a block."""

    on: bool = True
    rng: Generator | None = None  # what draws where no Stream is given
    first: int = 0  # the index of an array's first sample in the whole batch
    tape: Any = None  # records the streams of a function that will run again, and then repeats them
    entry: "tuple[int, Mapping[str, Any]]" = (0, {})  # the number of the innermost block's entry, and its changes
    outer: "Context | None" = None  # the context around the block


DEFAULT = Context()
_context = ContextVar("gpudrop_context", default=DEFAULT)


class _Visible(threading.local):
    """A copy of the thread's context for the guards of torch.compile, which cannot read a context variable."""

    def __init__(self) -> None:
        self.on, self.draws, self.first = True, False, 0


visible = _Visible()


def current() -> Context:
    """The Context of the code that runs now."""
    return _context.get()


def _set(context: Context) -> None:
    _context.set(context)
    visible.on, visible.draws, visible.first = context.on, context.rng is not None, context.first


def rng_of(rng: RngLike, context: Context) -> Source:
    """What a call draws from: the rng it is given, checked, or the context's instead of any generator."""
    own = context.rng
    if own is None and type(rng) is Generator:  # as most calls have it
        return rng
    source = check_rng(rng)
    return source if own is None or isinstance(source, Stream) else own


class Block(ABC):
    """A context manager that may be entered again, also within itself. It can also decorate functions.

    A decorated generator function is in the block whenever its body runs, a coroutine function until it returns.
    """

    @abstractmethod
    def __enter__(self) -> None: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...

    def __call__(self, function: Decorated, /) -> Decorated:
        if inspect.isasyncgenfunction(function):
            raise TypeError(f"an asynchronous generator can't be decorated, got {function.__name__}")
        wrapper: Any
        if inspect.isgeneratorfunction(function):

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                generator = function(*args, **kwargs)
                step, argument = generator.send, None
                while True:
                    try:
                        with self:
                            item = step(argument)
                    except StopIteration as stop:
                        return stop.value
                    try:
                        step, argument = generator.send, (yield item)
                    except GeneratorExit:
                        with self:
                            generator.close()
                        raise
                    except BaseException as error:
                        step, argument = generator.throw, error

        elif inspect.iscoroutinefunction(function):

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        decorated: Any = functools.wraps(function)(wrapper)
        return decorated


_numbers = itertools.count(1)


def _without(context: Context, number: int) -> Context:
    """The context without one of its entries, which need not be the last."""
    if context.outer is None:
        return context
    if context.entry[0] == number:
        return context.outer
    outer = _without(context.outer, number)
    return context if outer is context.outer else outer._replace(**context.entry[1], entry=context.entry, outer=outer)


def _entry(number: int, changes: Mapping[str, Any]) -> Iterator[None]:
    """One entry of a block. The context is changed until this generator is closed or garbage-collected.

    So the entry also ends after an interrupt that comes before the block's __exit__ can do anything. A __del__ method
    would swallow interrupts.
    """
    before = current()
    try:
        _set(before._replace(**changes, entry=(number, changes), outer=before))
        yield
    finally:
        try:
            _set(_without(current(), number))
        except BaseException:
            _set(_without(current(), number))
            raise


class Changes(Block):
    """A block in which some fields of the context have other values."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        self.entries: dict[int, Any] = {}

    def __enter__(self) -> None:
        number = next(_numbers)
        entry = self.entries[number] = _entry(number, self.changes)
        try:
            next(entry)
        except BaseException:  # an interrupt, before the block has begun
            self.entries.pop(number).close()
            raise

    def __exit__(self, *error: object) -> None:
        """End this block's innermost entry of this thread or task, if there is one."""
        context: Context | None = current()
        while context is not None and context.entry[0] not in self.entries:
            context = context.outer
        if context is not None:
            self.entries.pop(context.entry[0]).close()


def no_dropout() -> Block:
    """Switch off all dropout within a block, as if training were False.

    Use it for gradient checks, and to compute the cost without dropout. It affects only the current thread (and its
    asyncio task). Blocks may be nested, and entered again.

    Returns
    -------
    context manager
        It can also decorate functions, generator functions and coroutine functions.

    Notes
    -----
    If PyTorch recomputes a forward pass in a checkpoint, it uses the setting of the original pass. torch.compile
    compiles a model twice: for calls inside a block and for calls outside. An asyncio task must not call such a model
    while another task of the same thread waits within a block.

    Examples
    --------
    >>> import numpy as np, gpudrop
    >>> with gpudrop.no_dropout():
    ...     gpudrop.dropout(np.float32([1, 2, 3]), 0.9)
    array([1., 2., 3.], dtype=float32)
    >>> @gpudrop.no_dropout()
    ... def cost(x):
    ...     return gpudrop.dropout(x, 0.9).sum()
    >>> float(cost(np.float32([1, 2, 3])))
    6.0
    """
    return Changes(on=False)
