"""Where randomness comes from: a Stream is the randomness of one call, a Generator hands them out."""

import operator
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias, overload

import numpy as np

from gpudrop import arrays, backends
from gpudrop.checks import check_keys, check_uint64
from gpudrop.hints import name_of

# Of all generators, so that a fork can wait for it: a child could never take a lock that another thread had then.
lock = threading.Lock()


@dataclass(frozen=True)
class Stream:
    """The randomness of one call: an immutable value, so that equal streams give equal masks.

    Parameters
    ----------
    seed, call : int
        From 0 to 2**64 - 1. Two streams that differ in either never share a Philox counter and key.

    Examples
    --------
    >>> import gpudrop
    >>> stream = gpudrop.Stream(7, 3)
    >>> bool((gpudrop.keep_mask(100, 0.5, stream) == gpudrop.keep_mask(100, 0.5, stream)).all())
    True
    """

    seed: int
    call: int
    stored = False  # whether the numbers are in a device's memory

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_uint64("seed", self.seed))
        object.__setattr__(self, "call", check_uint64("call", self.call))

    def numbers(self) -> dict[str, int]:
        """{"seed": int, "call": int}: what Stream takes."""
        return {"seed": self.seed, "call": self.call}


class StoredStream(Stream):
    """A stream that is read when a kernel runs: `seed` is a device array of both numbers, unsigned and of 64 bits.

    It equals every stream of the same numbers, for which the device is waited for, and is saved as a Stream of these.
    It has no hash: a replayed graph may write other numbers there.
    """

    stored = True
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: Any) -> None:
        object.__setattr__(self, "seed", array)
        object.__setattr__(self, "call", None)

    def numbers(self) -> dict[str, int]:
        return dict(zip(("seed", "call"), map(int, arrays.to_host(self.seed)), strict=True))

    def __eq__(self, other: object) -> bool:
        return self.numbers() == other.numbers() if isinstance(other, Stream) else NotImplemented

    def __reduce__(self) -> Any:
        return Stream, tuple(self.numbers().values())

    def __repr__(self) -> str:
        return "<Stream on the device>"


class Generator:
    """Hands out the streams of a seed: call = 0, 1, 2, ..., each exactly once, from any thread.

    Parameters
    ----------
    seed : int, optional
        From 0 to 2**64 - 1; drawn from the operating system when none is given.
    device : bool
        Whether the state is in the memory of the current CUDA device, of CuPy or else of Numba. A kernel of one thread
        moves it on and others read it, so nothing of a stream passes through the host: a CUDA graph that is captured
        from calls on CuPy arrays draws fresh masks at each replay. It gives the same streams in the same order, serves
        device arrays alone, and its call starts from 0 again after 2**64. `state_dict`, `spawn` and pickling wait for
        the device.

    Raises
    ------
    RuntimeError
        If device is true and no CUDA device can be used.

    Notes
    -----
    An argument `rng` of a function or a layer is a Generator, a `Stream`, or one of what SPEC 7 of Scientific Python
    lists:

    ==============================  =====================================  =====================================
    rng                             a function draws from                  a layer or `mc_samples` draws from
    ==============================  =====================================  =====================================
    None                            the default generator                  the default generator
    Generator                       its next stream                        the same Generator
    Stream                          it                                     it
    int, from 0 to 2**64 - 1        ``Stream(rng, 0)``                     ``Generator(rng)``
    numpy.random.SeedSequence       ``Stream(seed, 0)``                    ``Generator(seed)``
    numpy.random.Generator          ``Stream(seed, 0)``, a seed each call  ``Generator(seed)``
    numpy.random.BitGenerator       as ``numpy.random.Generator(rng)``     the same
    ==============================  =====================================  =====================================

    The seed of a SeedSequence is its ``generate_state(1, numpy.uint64)[0]``. NumPy's Generator draws it by
    ``integers(0, 2**64, dtype=numpy.uint64)``: in a function at each call, after all checks and only if a mask is
    drawn; in a layer once, when its rng is set; in `mc_samples` once a call.

    A function with an int repeats its mask at each call. A layer with an int does not, but two layers with the same
    int draw the same masks: layers that share a Generator draw different ones.

    Examples
    --------
    >>> import gpudrop
    >>> rng = gpudrop.Generator(42)
    >>> rng.next(), rng.next()
    (Stream(seed=42, call=0), Stream(seed=42, call=1))
    >>> state = rng.state_dict()
    >>> rng.next()
    Stream(seed=42, call=2)
    >>> rng.load_state_dict(state)
    >>> rng.next()
    Stream(seed=42, call=2)
    """

    def __init__(self, seed: int | None = None, device: bool = False) -> None:
        self._chosen = seed is not None  # by somebody, who then wants these numbers
        self._seed = check_uint64("seed", seed) if self._chosen else secrets.randbits(64)
        self._call = 0
        self._array = backends.to_device(np.array([self._seed, 0], np.uint64)) if device else None
        self.stored = self._array is not None

    def next(self) -> Stream:
        """The next stream.

        Returns
        -------
        Stream
            One that is in the device's memory, if the generator is.

        Raises
        ------
        OverflowError
            After 2**64 calls.
        """
        if self.stored:
            operand = arrays.as_operand("rng", self._array)
            return StoredStream(self._take_on_device(backends.choose(operand.kind), operand))
        return Stream(*self._take())

    def _take(self) -> tuple[int, int]:
        with lock:
            call = self._call
            if call >= 2**64:
                raise OverflowError("all 2**64 calls of this seed are used up")
            self._call = call + 1
            return self._seed, call

    def _take_on_device(self, module: Any, operand: arrays.Operand) -> Any:
        """The next stream as an array of an operand's kind, by a kernel that runs where the operand's do."""
        stream = arrays.empty(2, np.uint64, operand)
        backends.advance(module, operand, backends.as_kind(self._array, operand), stream)
        return stream

    def spawn(self, n: int) -> "list[Generator]":
        """Derive n independent generators, through NumPy's SeedSequence, using up one call.

        Parameters
        ----------
        n : int
            How many; at least 0.

        Returns
        -------
        list of Generator
            The same ones whenever spawned from the same state; other ones at the next spawn.

        Examples
        --------
        >>> import gpudrop
        >>> a, b = gpudrop.Generator(42).spawn(2)
        >>> a.next() == b.next()
        False
        """
        return [Generator(seed, self.stored) for seed in spawned_seeds(self, n)]

    def state_dict(self) -> dict[str, int]:
        """The state: {"seed": int, "call": int}, where call is the next one to be handed out."""
        if self.stored:
            return StoredStream(self._array).numbers()
        with lock:
            return {"seed": self._seed, "call": self._call}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state that `state_dict` returned.

        Parameters
        ----------
        state : dict
            {"seed": int, "call": int}; nothing changes if it isn't a state.
        """
        check_keys("generator", state, ("seed", "call"))
        seed = check_uint64("seed", state["seed"])
        used_up = isinstance(state["call"], int) and state["call"] == 2**64
        call = state["call"] if used_up else check_uint64("call", state["call"])
        with lock:
            self._seed, self._call, self._chosen = seed, call, True
        if self.stored:  # in place, since graphs have its address
            arrays.overwrite(self._array, np.array([seed, call % 2**64], np.uint64))

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict() | ({"device": True} if self.stored else {})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        check_keys("generator", state, ("seed", "call"), optional=("device",))
        Generator.__init__(self, state["seed"], state.get("device", False))
        self.load_state_dict({"seed": state["seed"], "call": state["call"]})

    def __repr__(self) -> str:
        where = "on the device" if self.stored else f"call={self._call}"
        return f"<Generator seed={self._seed} {where}>"


_default = Generator()


def _in_child() -> None:
    """After a fork: with a copy of the default generator, the parent and all children would draw the same masks."""
    if not _default._chosen:
        _default._seed, _default._call = secrets.randbits(64), 0
    lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_in_child)


def manual_seed(seed: int) -> Generator:
    """Restart the default generator, the one behind `rng=None`, from a seed.

    Processes that are forked afterwards go on from this seed, all of them with the same masks; without it, each has a
    seed of its own. In a worker that must have other masks, call it with another seed (`os.getpid()`, the worker's
    number).

    Parameters
    ----------
    seed : int
        From 0 to 2**64 - 1.

    Returns
    -------
    Generator
        The default generator.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.manual_seed(1)
    <Generator seed=1 call=0>
    """
    _default.load_state_dict({"seed": seed, "call": 0})
    return _default


def spawned(rng: Generator | Stream | None, memo: dict[int, Any]) -> Any:
    """The rng of a layer's deep copy: a Generator spawned from the layer's, one for all that shared it, by memo."""
    if isinstance(rng, Generator) and id(rng) not in memo:
        memo[id(rng)] = rng.spawn(1)[0]
    return memo.get(id(rng), rng)


class NumpySource:
    """NumPy's generator as the rng of a function: each call draws a seed from it, and its stream is call 0 of that."""

    stored = False

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def next(self) -> Stream:
        return Stream(int(self._generator.integers(0, 2**64, dtype=np.uint64)), 0)


Source: TypeAlias = Generator | Stream | NumpySource
"""What a checked call draws from."""

RngLike: TypeAlias = (
    Generator
    | Stream
    | int
    | np.integer[Any]
    | np.random.SeedSequence
    | np.random.Generator
    | np.random.BitGenerator
    | None
)
"""What an argument rng may be; the notes of `Generator` say what each does."""


@overload
def check_rng(rng: Generator | Stream | None) -> Generator | Stream: ...
@overload
def check_rng(rng: RngLike) -> Source: ...
def check_rng(rng: RngLike) -> Source:
    """What a function with this rng draws from, or an error: the rule that the notes of `Generator` state."""
    if rng is None:
        return _default
    if isinstance(rng, (Generator, Stream)):
        return rng
    if isinstance(rng, np.random.BitGenerator):
        rng = np.random.Generator(rng)
    if isinstance(rng, np.random.Generator):
        return NumpySource(rng)
    if isinstance(rng, np.random.SeedSequence):
        return Stream(int(rng.generate_state(1, np.uint64)[0]), 0)
    try:
        seed = None if isinstance(rng, bool) else operator.index(rng)
    except TypeError:
        seed = None
    if seed is None:
        raise _refusal(rng)
    return Stream(check_uint64("rng", seed), 0)


def _refusal(rng: Any) -> TypeError:
    """The error for what can't be an rng."""
    found = repr(rng) if isinstance(rng, (bool, float, np.generic)) else name_of(type(rng))
    found = f"the module {rng.__name__}" if isinstance(rng, ModuleType) else found
    numpys = rng is np.random or isinstance(rng, np.random.RandomState)
    return TypeError(
        "rng must be a gpudrop.Generator, a gpudrop.Stream, an integer, a numpy.random.Generator, BitGenerator or "
        f"SeedSequence, or None, got {found}{'; np.random.default_rng(seed) makes a generator' if numpys else ''}"
    )


def kept_rng(rng: RngLike) -> Generator | Stream | None:
    """The rng of what keeps it for many calls, or an error: a Generator for a seed.

    None stays None: copies of a layer share the default generator.
    """
    if rng is None or isinstance(rng, (Generator, Stream)):
        return rng
    source = check_rng(rng)
    return Generator((source if isinstance(source, Stream) else source.next()).seed)


def spawned_seeds(rng: Source, n: int) -> list[int]:
    """The seeds of the n generators that a Stream, or the next one of a Generator, spawns."""
    if check_uint64("n", n) > 2**32:
        raise ValueError(f"n must be at most 2**32, got {n}")
    parent = rng if isinstance(rng, Stream) else rng.next()
    seed, call = parent.numbers().values()
    children = np.random.SeedSequence(seed, spawn_key=(call,)).spawn(n)
    return [int(child.generate_state(1, np.uint64)[0]) for child in children]


def take(rng: Source, module: Any, operand: arrays.Operand) -> tuple[Any, Any]:
    """The (seed, call) of this call: those of a Stream, or of the next one that a Generator hands out.

    For one that is in a device's memory, an array of both, of the operand's kind, and None.
    """
    if rng.stored:
        if isinstance(rng, Stream):
            return backends.as_kind(rng.seed, operand), None
        if isinstance(rng, Generator):
            return rng._take_on_device(module, operand), None
    if type(rng) is Generator:
        return rng._take()  # what next() hands out, without the Stream around it
    stream = rng if isinstance(rng, Stream) else rng.next()
    return stream.seed, stream.call
