"""Random streams: a Stream is the randomness of one call, and a Generator produces one Stream after another."""

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
from gpudrop.formulas.noises import quantize
from gpudrop.hints import name_of

# One lock for all generators, so that a fork can wait for it. A child process could never take a lock that another
# thread held at the fork.
lock = threading.Lock()


@dataclass(frozen=True)
class Stream:
    """The randomness of one call, an immutable value: equal streams produce equal masks.

    Parameters
    ----------
    seed, call : int
        From 0 to 2**64 - 1. Two different streams never use the same pair of Philox counter and key.

    Examples
    --------
    >>> import gpudrop
    >>> stream = gpudrop.Stream(7, 3)
    >>> bool((gpudrop.keep_mask(100, 0.5, stream) == gpudrop.keep_mask(100, 0.5, stream)).all())
    True
    """

    seed: int
    call: int
    stored = False  # whether seed and call are in GPU memory

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_uint64("seed", self.seed))
        object.__setattr__(self, "call", check_uint64("call", self.call))

    def numbers(self) -> dict[str, int]:
        """Return the arguments of Stream as {"seed": int, "call": int}."""
        return {"seed": self.seed, "call": self.call}

    def arguments(self, p: float = 0.5, bits: int = 16) -> tuple[Any, ...]:
        """Return the numbers that a kernel of your own needs: see `gpudrop.device`.

        Parameters
        ----------
        p : float
            The probability of dropping an element, from 0 to 1.
        bits : {8, 16, 32}
            Random bits per element.

        Returns
        -------
        tuple of three uint64 and a float
            The seed, the call, and the threshold and the scale of `gpudrop.quantize`. The integers are NumPy's, because
            Numba and CuPy pass a Python integer as a signed one. The stream of a generator on the device returns three
            elements: its array of two uint64 in place of the seed and the call.

        Raises
        ------
        TypeError, ValueError
            Those of `gpudrop.quantize`.

        Examples
        --------
        >>> import gpudrop
        >>> gpudrop.Stream(7, 3).arguments(p=0.5, bits=8)
        (np.uint64(7), np.uint64(3), np.uint64(128), 2.0)
        """
        rounded = quantize(p, bits)
        stream = (self.seed,) if self.stored else (np.uint64(self.seed), np.uint64(self.call))
        return *stream, np.uint64(rounded.threshold), rounded.scale


class StoredStream(Stream):
    """A stream in GPU memory, which a kernel reads when it runs.

    `seed` is a device array of two unsigned 64-bit integers: the seed and the call. Comparing and pickling wait for
    the device. The stream equals every stream with the same numbers, and is pickled as a Stream. It has no hash,
    because a replayed graph may write other numbers to the array.
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
    """Produce the streams of a seed with call = 0, 1, 2, ..., each exactly once; it is thread-safe.

    Parameters
    ----------
    seed : int, optional
        From 0 to 2**64 - 1. By default the operating system's random source chooses it.
    device : bool
        Whether the state is kept in GPU memory, on the current CUDA device of CuPy or else of Numba. A one-thread
        kernel updates the state, and other kernels read it, so no random number passes through the CPU. A CUDA graph
        captured from calls on CuPy arrays therefore draws new masks at each replay. The streams and their order are
        the same as without `device`. Such a generator works with device arrays only, and its call restarts at 0 after
        2**64 calls. `state_dict`, `spawn` and pickling wait for the device.

    Raises
    ------
    RuntimeError
        If device is true and no CUDA device can be used.

    Notes
    -----
    The argument `rng` of a function or a layer accepts a Generator, a `Stream`, and the types that SPEC 7 of
    Scientific Python lists:

    ==============================  =====================================  =====================================
    rng                             a function draws from                  a layer or `mc_samples` draws from
    ==============================  =====================================  =====================================
    None                            the default generator                  the default generator
    Generator                       its next stream                        the same Generator
    Stream                          this Stream                            this Stream
    int, from 0 to 2**64 - 1        ``Stream(rng, 0)``                     ``Generator(rng)``
    numpy.random.SeedSequence       ``Stream(seed, 0)``                    ``Generator(seed)``
    numpy.random.Generator          ``Stream(seed, 0)``, a seed each call  ``Generator(seed)``
    numpy.random.BitGenerator       as ``numpy.random.Generator(rng)``     the same
    ==============================  =====================================  =====================================

    The seed of a SeedSequence is its ``generate_state(1, numpy.uint64)[0]``. A seed is drawn from NumPy's Generator by
    ``integers(0, 2**64, dtype=numpy.uint64)``. A function draws it at each call, after all checks and only if a mask is
    needed. A layer draws it once, when its rng is set. `mc_samples` draws it once per call.

    A function with an int rng uses the same mask at each call. A layer with an int rng does not. Two layers with the
    same int draw the same masks. Layers that share a Generator draw different masks.

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
        self._chosen = seed is not None  # a chosen seed is kept after a fork, see _in_child
        self._seed = check_uint64("seed", seed) if self._chosen else secrets.randbits(64)
        self._call = 0
        self._array = backends.to_device(np.array([self._seed, 0], np.uint64)) if device else None
        self.stored = self._array is not None

    def next(self) -> Stream:
        """Return the next stream.

        Returns
        -------
        Stream
            It is in GPU memory if the generator's state is.

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
        """Return the next stream as a device array of the operand's kind, computed on the operand's CUDA stream."""
        stream = arrays.empty(2, np.uint64, operand)
        backends.advance(module, operand, backends.as_kind(self._array, operand), stream)
        return stream

    def spawn(self, n: int) -> "list[Generator]":
        """Derive n independent generators through NumPy's SeedSequence; this uses one call.

        Parameters
        ----------
        n : int
            The number of generators, at least 0.

        Returns
        -------
        list of Generator
            They depend on the state alone. The next spawn returns different ones.

        Examples
        --------
        >>> import gpudrop
        >>> a, b = gpudrop.Generator(42).spawn(2)
        >>> a.next() == b.next()
        False
        """
        return [Generator(seed, self.stored) for seed in spawned_seeds(self, n)]

    def state_dict(self) -> dict[str, int]:
        """Return the state, {"seed": int, "call": int}; call is that of the next stream."""
        if self.stored:
            return StoredStream(self._array).numbers()
        with lock:
            return {"seed": self._seed, "call": self._call}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state that `state_dict` returned.

        Parameters
        ----------
        state : dict
            {"seed": int, "call": int}. If it is not valid, an error is raised and nothing changes.
        """
        check_keys("generator", state, ("seed", "call"))
        seed = check_uint64("seed", state["seed"])
        used_up = isinstance(state["call"], int) and state["call"] == 2**64
        call = state["call"] if used_up else check_uint64("call", state["call"])
        with lock:
            self._seed, self._call, self._chosen = seed, call, True
        if self.stored:  # in place, because captured graphs hold the address
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
    """Reseed the default generator after a fork: else the parent and all children would draw the same masks."""
    if not _default._chosen:
        _default._seed, _default._call = secrets.randbits(64), 0
    lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_in_child)


def manual_seed(seed: int) -> Generator:
    """Restart the default generator, which `rng=None` selects, from a seed.

    Processes that are forked afterwards continue from this seed, so they all draw the same masks. Without a call of
    `manual_seed`, each forked process has its own seed. To draw different masks in a worker, call `manual_seed` there
    with a different seed, such as `os.getpid()` or the worker's number.

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
    """Return the rng of a layer's deep copy: a Generator spawned from the layer's.

    Layers that share a Generator share the spawned one too; memo records it.
    """
    if isinstance(rng, Generator) and id(rng) not in memo:
        memo[id(rng)] = rng.spawn(1)[0]
    return memo.get(id(rng), rng)


class NumpySource:
    """A NumPy generator as the rng of a function: each call draws a seed from it and uses call 0 of that seed."""

    stored = False

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def next(self) -> Stream:
        return Stream(int(self._generator.integers(0, 2**64, dtype=np.uint64)), 0)


Source: TypeAlias = Generator | Stream | NumpySource
"""The checked rng of a call."""

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
"""The types that an argument rng accepts; the notes of `Generator` explain each."""


@overload
def check_rng(rng: Generator | Stream | None) -> Generator | Stream: ...
@overload
def check_rng(rng: RngLike) -> Source: ...
def check_rng(rng: RngLike) -> Source:
    """Return the source of streams for the rng of a function, or raise; the notes of `Generator` state the rule."""
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
    try:  # PyTorch converts tensors of bool and of one element too
        other = isinstance(rng, bool) or getattr(rng, "ndim", 0) > 0 or "bool" in str(getattr(rng, "dtype", ""))
        seed = None if other else operator.index(rng)
    except TypeError:
        seed = None
    if seed is None:
        raise _refusal(rng)
    return Stream(check_uint64("rng", seed), 0)


def _refusal(rng: Any) -> TypeError:
    """Return the error for an unsupported rng."""
    found = repr(rng) if isinstance(rng, (bool, float, np.generic)) else name_of(type(rng))
    found = f"the module {rng.__name__}" if isinstance(rng, ModuleType) else found
    numpys = rng is np.random or isinstance(rng, np.random.RandomState)
    return TypeError(
        "rng must be a gpudrop.Generator, a gpudrop.Stream, an integer, a numpy.random.Generator, BitGenerator or "
        f"SeedSequence, or None, got {found}{'; np.random.default_rng(seed) makes a generator' if numpys else ''}"
    )


def kept_rng(rng: RngLike) -> Generator | Stream | None:
    """Return the rng that a layer stores, or raise: a seed becomes a Generator.

    None stays None, so that copies of a layer share the default generator.
    """
    if rng is None or isinstance(rng, (Generator, Stream)):
        return rng
    source = check_rng(rng)
    return Generator((source if isinstance(source, Stream) else source.next()).seed)


def spawned_seeds(rng: Source, n: int) -> list[int]:
    """Return the seeds of n generators spawned from a Stream, or from the next Stream of a Generator."""
    if check_uint64("n", n) > 2**32:
        raise ValueError(f"n must be at most 2**32, got {n}")
    parent = rng if isinstance(rng, Stream) else rng.next()
    seed, call = parent.numbers().values()
    children = np.random.SeedSequence(seed, spawn_key=(call,)).spawn(n)
    return [int(child.generate_state(1, np.uint64)[0]) for child in children]


def take(rng: Source, module: Any, operand: arrays.Operand) -> tuple[Any, Any]:
    """Return (seed, call) of a Stream, or of the next Stream of a Generator.

    For a stream in GPU memory, return (array, None). The array holds both numbers and is of the operand's kind.
    """
    if rng.stored:
        if isinstance(rng, Stream):
            return backends.as_kind(rng.seed, operand), None
        if isinstance(rng, Generator):
            return rng._take_on_device(module, operand), None
    if type(rng) is Generator:
        return rng._take()  # the numbers of next(); creating a Stream takes longer
    stream = rng if isinstance(rng, Stream) else rng.next()
    return stream.seed, stream.call
