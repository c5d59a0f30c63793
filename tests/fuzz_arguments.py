"""The arguments of the random calls: pools of correct and of incorrect values for each name of an argument.

A name without a pool raises KeyError, so that each new option needs one.
"""

import copy
import itertools
import linecache
import math
import random
import types
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np

import gpudrop
from gpudrop import Generator, Stream, schedules
from gpudrop.formulas.activations import relu2, relu2_slope
from gpudrop.variants import FAMILY
from tests.family.placed import Placed, dimensions, place
from tests.foreign import Foreign

# (dtype, bits, activation). Each row compiles two dozen kernels, so a few rows cover all dtypes and bits.
SETTINGS = [
    (np.float32, 16, None),
    (np.float16, 8, "relu"),
    (ml_dtypes.bfloat16, 16, "gelu"),
    (np.float64, 32, None),
]
IN_32_BITS = [name for name, row in FAMILY.items() if row.noise.drawn == "normal"]  # they accept no other bits


def takes_1(row):
    with suppress(ValueError):
        return row.noise.check(1)


BELOW_1 = [name for name, row in FAMILY.items() if takes_1(row) is None]

# Values of a wrong type for most arguments. No integer makes an accepted call slow, and no array has a dtype that
# compiles more kernels.
JUNK = [None, True, False, -1, 2**64, -(2**70), 10**400, 0.5, -0.0, 1.5, np.nan, np.inf, 1j, np.complex64(0.5)]
JUNK += ["text", "0.5", "", b"0.5", bytearray(b"0.5"), object(), len, [], (), {}, {1: 2, "a": None}, set(), [1, None]]
JUNK += [np.array(half := np.longdouble(0.5)), np.array([half]), np.array([], int), np.array("0.5"), np.float16(0.5)]
JUNK += [
    np.array([1, 2], object),
    np.int8(1),
    np.datetime64(1, "s"),
    Decimal("0.5"),
    Decimal("nan"),
    Fraction(1, 3),
    range(3),
    slice(None),
]
JUNK += [Stream, Stream(1, 2), np.float32, np.dtype("f4"), Exception(), ...]


class Mine(Exception):
    """The exception of a user's own function."""


class Own(np.ndarray):
    """A user's own subclass of ndarray."""


class Elsewhere(Foreign):
    """An array on an unknown device."""

    def __dlpack_device__(self):
        return 99, 0


class Case:
    """All random choices of one call. The run's seed and the call's number determine them."""

    def __init__(self, seed, number):
        self.random = random.Random(f"{seed} {number}")
        self.choose = self.random.choice
        self.dtype, self.bits, self.activation = self.choose(SETTINGS)
        self.variant, self.shape, self.result = "", (), None  # result: the shape of y, if it is not x's
        self.inputs, self.placed, self.states, self.object = [], [], [], None  # object: the instance of a method
        self.has_factor = False  # whether the call has a gain or a gate
        self.wide = None  # the dtype of y, if it is not x's
        self.of_gradient = None  # the shape and dtype of the gradient, in a call of backprop

    def likely(self, percent):
        return self.choose(range(100)) < percent

    def uint64(self):
        return self.choose([0, 1, 7, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 2, *[self.random.getrandbits(64)] * 3])

    def suit(self, variant):
        """Choose a shape, in most cases one that the variant accepts."""
        self.variant = variant
        least, most = (0, 5) if self.likely(5) else dimensions(variant) if variant in FAMILY else (0, 5)
        self.shape = tuple(self.choose([1, 2, 3, 4, 5, 3, 2, 0]) for _ in range(self.choose(range(least, most + 1))))
        if self.shape and self.likely(5):
            self.shape = (*(min(n, 2) for n in self.shape[:-1]), self.choose([1023, 1025, 2049]))

    def array(self, shape=None, dtype=None, writable=False):
        shape = self.shape if shape is None else shape
        self.placed.append(place(shape, dtype or self.dtype, self.choose, writable, extremes=self.likely(50)))
        return self.placed[-1].array

    def stateful(self, thing):
        """Register an object whose state must be unchanged after an error."""
        self.states.append(thing)
        return thing

    def arguments(self, call, wrong=()):
        """args, which are empty without *arrays, and kwargs. wrong: the names of arguments with incorrect values."""
        args, kwargs = [], {}
        for parameter in call.parameters:
            name, kind, default = parameter.name, parameter.kind, parameter.default
            own = {"activation": self.activation, "bits": self.bits}  # the defaults would compile other kernels
            needed = (
                default is parameter.empty or name in wrong or name == "value" or (name in own and default != own[name])
            )
            if needed or (self.likely(50) and not (name == "keep_prob" and "p" in kwargs)):
                value = self.argument(call, name, name in wrong)
                if kind is parameter.VAR_POSITIONAL:
                    args = value
                elif kind is parameter.VAR_KEYWORD:
                    kwargs |= value
                else:
                    kwargs[name] = value
        return args, kwargs

    def argument(self, call, name, wrong):
        good, bad = POOLS.get(f"{call.name}.{name}") or POOLS[name]
        if wrong and (bad is None or (name not in ("arrays", "options", "named") and self.likely(50))):
            value = self.choose(JUNK)
            return value.copy() if isinstance(value, np.ndarray) else value
        return (bad if wrong else good)(self, call)


def one_of(*good, bad=None):
    """A pool from two lists. Without bad, the incorrect values are those of JUNK."""
    return from_list(good), bad and from_list(bad)


def from_list(values):
    return lambda case, call: case.choose(values)


# Arrays


def flat(case, call, dtype=None):
    """An input: a plain array, a read-only one, a subclass, or an array of another library."""
    array = case.array(dtype=dtype)
    case.inputs.append(array)
    how = case.choose(range(20))
    if how == 0:
        array.flags.writeable = False
    if how == 1 and array.dtype != ml_dtypes.bfloat16:  # DLPack does not support it
        return Foreign(array)
    if how == 3 and not array.ndim:
        return array[()]
    return array.view(Own) if how == 2 else array


def unfit(case, call):
    """An invalid input, or one that does not match the other inputs."""
    kinds = [int, bool, np.longdouble, "M8[s]", "f4,f4", object, "U3", complex, ">f4", ">f8"]
    ways = [
        lambda: np.zeros(case.shape, case.choose(kinds)),
        lambda: np.ma.masked_array(case.array(), np.ones(case.shape, bool)),
        lambda: case.array().tolist(),
        lambda: case.choose([np.float32, np.int8])(1).item(),
        lambda: memoryview(b"1234"),
        lambda: Elsewhere(case.array()),
        lambda: case.array(shape=(*case.shape, 2)),
        lambda: case.array(shape=case.shape[1:]),
    ]
    if case.inputs:  # a first input may have any of these dtypes
        ways.append(lambda: case.array(dtype=case.choose([np.float32, np.float16, np.float64])))
    return case.choose(ways)()


def target(case, call):
    """A value for out: an array, or one of the inputs."""
    array, shape = case.choose(case.inputs or [None]), case.shape if case.result is None else case.result
    wanted = case.of_gradient or (shape, np.dtype(case.wide or case.dtype))
    if array is not None and array.flags.writeable and (array.shape, array.dtype) == wanted and case.likely(40):
        return array
    return case.array(*wanted, writable=True)


def bad_target(case, call):
    """A wrong value for out: read-only, overlapping with an input or itself, or with a wrong shape or dtype."""
    array = case.choose(case.inputs or [case.array(writable=True)])
    if case.likely(30):
        array = case.array(writable=True)
        array.flags.writeable = False
        return array
    if case.likely(30) and 0 not in case.shape and case.shape[:1] > (1,):
        row = case.array(case.shape[1:], writable=True)
        return np.lib.stride_tricks.as_strided(row, case.shape, (0, *row.strides))
    if case.likely(50) and array.size and array.ndim and len(array) > 1:
        whole = next(placed for placed in case.placed if placed.array is array)
        offset = whole.offset + (len(array) - 1) * array.strides[0]
        case.placed.append(Placed(array[::-1], offset, whole.buffer))
        return case.placed[-1].array
    return unfit(case, call)


def inputs(case, call):
    return [flat(case, call) for _ in range(FAMILY[case.variant].least)]


def bad_inputs(case, call):
    return case.choose([[], [unfit(case, call)], [flat(case, call), unfit(case, call)], inputs(case, call) * 3])


def row(case, call):
    """A bias or a gain: None, or a value for each element of the last axis."""
    dtype = case.choose([case.dtype, np.float64 if case.dtype == np.float64 else np.float32])
    return case.choose([None, case.array(case.shape[-1:], dtype)]) if case.shape else None


def unfit_row(case, call):
    return case.choose([case.array((*case.shape, 3)), case.array(case.shape[-1:], np.dtype(">f4")), [1.0], 0.5])


def residual(case, call):
    """A residual of x's dtype or of the next wider one, which y then has."""
    if case.dtype != np.float64 and case.likely(30):
        case.wide = np.float64 if case.dtype == np.float32 else np.float32
    return flat(case, call, case.wide)


def gain(case, call):
    found = row(case, call)
    case.has_factor = found is not None
    return found


def gate(case, call):
    case.has_factor = True
    return flat(case, call)


def value(case, call):
    """The value of a gate, or None: then it is half of the gate."""
    if case.shape and case.shape[-1] % 2 == 0 and case.likely(50):
        case.result = (*case.shape[:-1], case.shape[-1] // 2)
        return None
    return flat(case, call)


def rows(case, call):
    """The rows of a layer's call. Saved bits do not support a gain."""
    names = [name for name in FAMILY[case.variant].rows if name != "gain" or case.object.save != "bits"]
    return {name: POOLS[name][0](case, call) for name in names}


def batch(case, call):
    """The x of mc_samples, which passes slices of x to fn."""
    case.inputs.append(case.array())
    return case.inputs[-1]


# Numbers and choices


def probability(case, call):
    values = [0, 0.1, 0.5, 0.9, case.choose(range(10**6)) / 10**6, np.float32(0.3), np.array(0.25)]
    values += [Fraction(1, 3), Decimal("0.2")]
    if isinstance(call.function, type):  # a layer
        values += [schedules.linear(0, 0.5, 10), schedules.late(0.3, 1)]
    if case.variant not in BELOW_1:
        values += [1, True, 1 - 2**-53, 2**-18, 1 - 2**-18, 5e-324, 2**-17, 2**-9]
    return case.choose(values)


def mask_shape(case, call):
    shape = tuple(case.choose([None, 1, n]) for n in case.shape)
    return case.choose([None, shape, list(shape), shape[case.choose(range(len(shape) + 1)) :], (1,) * len(shape)])


def keep(case, call):
    """A mask that was drawn before, for calls without a mask_shape."""
    mask = np.array([case.choose([False, True]) for _ in range(math.prod(case.shape))], bool).reshape(case.shape)
    return case.choose([None, None, mask, np.asfortranarray(mask), np.packbits(mask, axis=None, bitorder="little")])


def save(case, call):
    return case.choose(["auto", "output", *["bits"] * (case.activation == "relu" and not case.has_factor)])


def bits(case, call):
    width = 32 if case.variant in IN_32_BITS else case.bits
    return case.choose([width, width, np.uint8(width), np.array(width)])


def shard(case, call):
    """The whole array, written in several ways. Other tests check real shards."""
    shape = np.shape(case.shape) and case.shape
    start = (0,) * len(shape)
    return case.choose([None, None, gpudrop.Shard(shape, start), gpudrop.Shard((None,) * len(shape), start)])


def samples(case, call):
    value = case.choose([None, 0, 1, 3, np.uint8(2)])
    case.result = None if value is None else (int(value), *case.shape)
    return value


# Objects with a state


class NumpyState:
    """The state of NumPy's generator, for comparisons, and the stream that the next call draws from it."""

    def __init__(self, bits):
        self.bits = bits

    def state_dict(self):
        return self.bits.state

    def next(self):
        generator = np.random.Generator(copy.deepcopy(self.bits))
        return Stream(int(generator.integers(0, 2**64, dtype=np.uint64)), 0)


def numpys(case):
    """NumPy's Generator, or its BitGenerator."""
    bits = case.stateful(NumpyState(np.random.PCG64(case.uint64()))).bits
    return case.choose([bits, np.random.Generator(bits)])


def rng(case, call):
    if case.likely(50):
        seeds = [case.uint64(), np.uint64(case.uint64()), np.random.SeedSequence(case.uint64()), numpys(case)]
        return case.choose([None, Stream(case.uint64(), case.uint64()), case.choose(seeds)])
    generator = Generator()
    generator.load_state_dict({"seed": case.uint64(), "call": case.uint64()})
    return case.stateful(generator)


def bad_rng(case, call):
    """An invalid rng, or a generator that has no calls left."""
    if case.likely(50):
        return case.choose([-1, 2**64, True, Generator, np.random.RandomState(0), np.random])
    generator = Generator()
    generator.load_state_dict({"seed": 0, "call": 2**64})
    return case.stateful(generator)


def options(case, call):
    """The options of a layer: those that only its function has, activation and bits."""
    facts = case.result, case.wide, case.has_factor
    _, kwargs = case.arguments(call._replace(function=call.function.function))
    case.result, case.wide, case.has_factor = facts  # those of arrays that are not passed
    return {name: value for name, value in kwargs.items() if name in call.function.defaults()}


def state(case, call):
    numbers = {"seed": case.uint64(), "call": case.uint64()}
    schedule = schedules.linear(0, 0.5, 10).state_dict()
    if issubclass(call.owner, Generator):
        return case.choose([numbers, numbers | {"call": 2**64}])
    if issubclass(call.owner, schedules.Schedule):
        return schedule
    own = case.object.state_dict()
    changes = {case.object.strength(): case.choose([0.5, schedule]), "step": case.choose(range(20))}
    return own | changes | {"rng": own["rng"] | numbers}


def bad_state(case, call):
    good, value = state(case, call), case.choose(JUNK)
    key = case.choose(list(good))
    bad = [good | {key: value}, good | {"more": value}, good | {key: {"seed": value, "call": 0}}, list(good)]
    bad += [good | {key: {"first": 0, "last": value}}, {k: v for k, v in good.items() if k != key}, "".join(good)]
    return case.choose(bad)


# Functions


def dropped(x):
    return gpudrop.dropout(x, 0.5)


def fails(x):
    raise Mine("mine")


NETWORKS = one_of(
    *(dropped, dropped, lambda x: x, lambda x: gpudrop.gaussian_noise(x, 3, training=False)),
    bad=[fails, lambda x: [1.0], lambda x: np.ones(()), lambda x: gpudrop.dropout(x, 2), lambda: 1, None, 3, "fn"],
)


def formula(number, text):
    """Compile a function from its text, which inspect finds as well."""
    file, namespace = f"<formula {number} of the fuzz target>", {"math": math, "np": np}
    linecache.cache[file] = len(text), None, text.splitlines(True), file
    exec(compile(text, file, "exec"), namespace)
    if isinstance(namespace["f"], types.FunctionType):
        namespace["f"].__qualname__ = repr(text)  # the name in reports
    return namespace["f"]


GOOD = [
    "def f(x):\n    return x * x if x > 0 else 0.1 * x\n",
    "def g(x):\n    return math.tanh(x)\n\n\ndef f(x):\n    y = g(x)\n    y += 1\n    return y\n",
    "def f(x):\n    s = x\n    for i in range(3):\n        s = s + i * x\n    return max(s, np.exp(-abs(x)), 0)\n",
]
BAD = [
    "async def f(x):\n    return x\n",
    "f = lambda x: x\n",
    "class f:\n    pass\n",
    "f = abs\n",
    "import functools\nf = functools.partial(max, 1)\n",
    "import functools\n\n\n@functools.cache\ndef f(x):\n    return x\n",
    "def f(x):\n    return x\n\n\nf.__code__ = (lambda x: x).__code__\n",
    "def g(x):\n    return f(x)\n\n\ndef f(x):\n    return g(x)\n",
    "def f(x):\n    if x > 0:\n        return x\n",
    *(f"def f({names}):\n    return 1.0\n" for names in ("", "x, y", "*x", "x, *y", "x, **y", "x, *, y", "x, y=1")),
    *(f"def f({names}):\n    return x * 2\n" for names in ("x, /", "x=1", "*, x", "x: int", "x: 'no such'")),
    *(f"def f(x):\n    {body}\n" for body in ("pass", "'words'", "return", "y = x", "return y", "del x", "yield x")),
    *(f"def f(x):\n    {body}\n    return x\n" for body in ("global z", "import math", "assert x", "x, y = x, x")),
    *(f"def f(x):\n    {body}\n    return x\n" for body in ("x: float = 1", "x += 'a'", "x.real = 1", "x = y = x")),
    *(f"def f(x):\n    {head}\n        x = 1\n    return x\n" for head in ("while x:", "for i in x:", "def g():")),
    *(f"def f(x):\n    for i in range({n}):\n        x = i\n    return x\n" for n in ("x", "-1", "1, 3", "2.5", "")),
    *(
        f"def f(x):\n    {head}\n        y = 1\n    return y\n"
        for head in ("if x > 0:", "with x:", "for i in range(0):")
    ),
]
VALUES = ["x.real", "x[0]", "f(x)", "g(x)", "[x]", "x, x", "'x'", "None", "x @ x", "x // 2", "x % 2", "x ** 2", "not x"]
VALUES += [
    "~x",
    "x if x else x",
    "x is x",
    "x > 0",
    "True",
    "math.gamma(x)",
    "math.pi",
    "np.sin",
    "np",
    "10**400",
    "1e400",
]
VALUES += [
    "1j * x",
    "abs()",
    "max()",
    "min(x)",
    "math.exp(x, x)",
    "math.exp(x=x)",
    "(y := x)",
    "x << 1",
    "x and x",
    "0 < x < 1",
]
VALUES += [
    "-" * 50 + "x",
    " + ".join(["x"] * 400),
    "f'{x}'",
    "...",
    "x if x > 0 else x > 1",
    "math.floor(x)",
    "np.uint32(x)",
]
BAD += [f"def f(x):\n    return {value}\n" for value in VALUES]
FORMULAS = one_of(*map(formula, itertools.count(), GOOD), bad=list(map(formula, itertools.count(len(GOOD)), BAD)))


def registered(case, call):
    """The name of an activation that was registered to be removed."""
    return gpudrop.register_activation("to_be_removed", relu2, relu2_slope, replace=True).name


# By the name of the argument, or of the call and the argument.
POOLS = {
    "x": (flat, unfit),
    "previous": (flat, unfit),
    "residual": (residual, unfit),
    "bias": (row, unfit_row),
    "gain": (gain, unfit_row),
    "gate": (gate, unfit),
    "dropout_glu.value": (value, unfit),
    "dropout_glu.vjp.value": (value, unfit),
    "named": (rows, from_list([{"weight": None}, {"p": 0.5}, {"bias": [1.0]}])),
    "like": (flat, unfit),
    "dy": (lambda case, call: case.array(case.result, case.wide), unfit),
    "out": (target, bad_target),
    "arrays": (inputs, bad_inputs),
    "p": (probability, from_list([1.5, -1e-9, 2, "0.5", math.nextafter(1, 2)])),
    "keep_prob": one_of(0.5, 0.9, 1, np.float32(0.3), np.array(0.25), bad=[1.5, -1e-9, 2, "0.5"]),
    "std": one_of(0, 0.1, 3, 1e30, np.float32(2), bad=[-1, 1e309, "1"]),
    "mask_shape": (mask_shape, from_list([(2, 3), (2**70,), (-1,), 3, (1.0,), ("a",), (None,) * 7, [[1]]])),
    "activation": (lambda case, call: case.activation, from_list(["gelo", 3, ["relu"], "", "RELU", np.array("relu")])),
    "training": one_of(True, True, True, False, 1, 0, np.True_, bad=[np.ones(2), "eval", 2, None]),
    "keep": (keep, unfit),
    "packed": one_of(False, True, 0, np.True_, bad=[np.ones(2), "yes", 2, None]),
    "save": (save, from_list(["all", 3, None, ["bits"], np.array(["bits", "auto"]), "BITS"])),
    "remember": one_of(1, 1, 2, None, np.int8(3), bad=[0, -1, 1.5, "2"]),
    "replace": one_of(False, True),
    "shard": (shard, from_list([((4,), (0,)), gpudrop.Shard((1,) * 7, (0,) * 7), 3, "shard"])),
    "Shard.shape": one_of((4, None), [3, np.int8(2)], bad=[(4,), 4, ("4", 1), (-1, 1), (1.5, 2)]),
    "Shard.start": one_of((0, 1), [np.int64(1), 0], bad=[(0,), 4, (None, 1), (-1, 1), (1.5, 2)]),
    "rng": (rng, bad_rng),
    "bits": (bits, from_list([12, 16.0, "16", 0, -8, 64, [16], np.array([8, 16])])),
    "backend": one_of(None, "cpu", bad=["cupy_elementwise", "numba_cuda", "gpu", "", ["cpu"], 3]),
    "options": (options, from_list([{"nonsense": 1}, {"p": 0.5, "std": 1}, {"bits": 12}, {"activation": "gelo"}])),
    "channels_last": one_of(False, True),
    "gate_first": one_of(False, True),
    "time_axis": one_of(0, -1, 1, np.int8(1), bad=[5, -6, 1.5, "0", 2**70]),
    "samples": (samples, from_list([-1, 2.0, 2**64, 2**63, 2**62, 2**50])),
    "block_size": one_of(1, 2, 3, 7, 2**70, np.int64(4), bad=[0, -3, 2.5, "3", [3]]),
    "shape": (
        lambda case, call: case.choose([case.shape, list(case.shape), np.array(case.shape, int), 50, np.int64(3)]),
        from_list([-1, (2, -1), 2**62, (2**32, 2**32), 1.5, (1,) * 65, "ab", (None,), [[2]]]),
    ),
    "start": one_of(0, 1, 5, 2**40 + 7, 2**64 - 2**20, np.uint64(9), bad=[2**64 - 1, -1, 0.5]),
    "depth": one_of(0, 1, 2, 7, np.int8(3), bad=[-1, 2.5, "3"]),
    "seed": (lambda case, call: case.uint64(), from_list([-1, 2**64, 1.5, "1", np.array([1, 2])])),
    "call": (lambda case, call: case.uint64(), from_list([-1, 2**64, 1.5, "1"])),
    "device": one_of(False, False, 0, bad=[True, "cuda"]),
    "n": one_of(1, 2, 3, np.uint8(4), bad=[0, -1, 1.5, 2**64, 2**33, "2"]),
    "state": (state, bad_state),
    "mode": one_of(True, False, 1, bad=[np.ones(2), "eval", 2, None]),
    "unregister_activation.name": (registered, from_list(["relu", "gelo", None, 3, ["a"]])),
    "name": one_of("of_mine", "größe", bad=["relu", "a b", "", "1a", 3, ["a"], "def"]),
    "value": FORMULAS,
    "slope": FORMULAS,
    "fn": NETWORKS,
    "mc_samples.x": (batch, unfit),
    "mc_samples.first": one_of(0, 3, 2**40, np.int64(5), bad=[-1, 2**64 - 1, 0.5]),
    "batch_size": one_of(None, 1, 2, 100, bad=[0, -1, 1.5]),
    "first": one_of(0, 0.5, 1, np.float32(0.1), 3.0, bad=[-0.1, np.inf, "0"]),
    "last": one_of(0, 0.5, 1, Fraction(1, 3), bad=[-0.1, np.nan, "1"]),
    "steps": one_of(1, 10, 1000, 2**64 - 1, np.int32(7), bad=[0, -1, 1.5, 2**64]),
    "curve": one_of("linear", "cosine", "exponential", "jump", bad=["cubic", "", ["linear"], 3]),
    "decay": one_of(False, True),
    "step": one_of(0, 1, 5, 10, 2**64 - 1, np.uint8(3), bad=[-1, 1.5, 2**64]),
    # Fields of records, which accept any value.
    **dict.fromkeys(("mean", "variance", "threshold", "scale", "effective_p"), one_of(*JUNK)),
}
