"""Makes random calls of the public API, correct and incorrect ones, and checks what the docstrings promise.

    python -m tests.fuzz --seconds 600 --seed 1 --json FILE
    python -m tests.fuzz --seed 1 --only 1234        repeat call number 1234 alone
    python -m tests.fuzz --seed 1 --calls 1235       repeat all calls up to it, if it depends on earlier calls

The functions come from `gpudrop.__all__`, the names of arguments from the signatures, and their values from
`fuzz_arguments`.
"""

import argparse
import inspect
import json
import math
import platform
import re
import subprocess
import sys
import time
import traceback
import types
import warnings
from collections import Counter, defaultdict
from contextlib import nullcontext
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numba.core.event
import numpy as np

import gpudrop
from gpudrop import Generator, Stream, layers, schedules
from gpudrop.formulas.activations import ACTIVATIONS, Activation
from gpudrop.kernels import cpu
from gpudrop.testing import reference
from gpudrop.variants import FAMILY
from tests.fuzz_arguments import Case, Foreign, Mine, NumpyState

EXCLUDED = ("warmup", "layers.Layer")  # may take minutes; has no function

# Errors that are allowed besides TypeError and ValueError, by the last part of a call's name or by an argument.
RAISES = {
    "backend": RuntimeError,
    "device": RuntimeError,
    "backward": RuntimeError,
    "rng": OverflowError,
    "__call__": OverflowError,
    "next": OverflowError,
    "spawn": OverflowError,
    "register_activation": SyntaxError,
    "mc_samples": Mine,
    **dict.fromkeys(("shape", "samples", "arrays"), np._core._exceptions._ArrayMemoryError),
}

# Errors that are allowed although each argument is correct: arguments conflict, or the layer has not been called.
EXCUSES = ("must not overlap", "x must have", "x must be an array whose first axis", "backward needs a call")
EXCUSES += ("does not support shards", "shard must have as many axes", "start and shard can't", "shard must contain")
EXCUSES += ("must have an even number of elements", "keep and rng can't", "keep and shard can't", "keep must be a")

# The types of results, by the last part of a call's name. Classes return instances, and arrays have other checks.
RETURNS = {
    "next": Stream,
    "spawn": list,
    "state_dict": dict,
    "load_state_dict": type(None),
    "manual_seed": Generator,
    "quantize": gpudrop.Quantized,
    "mc_samples": gpudrop.MonteCarlo,
    "register_activation": Activation,
    "unregister_activation": type(None),
    "numbers": dict,
    "settings": dict,
    "drop_path_rates": list,
    "from_state_dict": schedules.Schedule,
    "train": layers.Layer,
    "eval": layers.Layer,
    **dict.fromkeys(("constant", "linear", "cosine", "curriculum", "early", "late"), schedules.Schedule),
}


class Call(NamedTuple):
    """A public function, class or method."""

    name: str
    function: Any
    owner: type | None = None

    @property
    def parameters(self):
        parameters = list(inspect.signature(self.function).parameters.values())
        return parameters[1:] if self.of_object else parameters

    @property
    def of_object(self):
        """Whether it is a method of an instance, and not of a class."""
        return self.owner is not None and isinstance(self.function, types.FunctionType)

    @property
    def last(self):
        return self.name.rpartition(".")[2]

    @property
    def variant(self):
        """The name of the variant that the call computes."""
        function = getattr(self.owner or self.function, "function", self.function)
        return function.__name__.removesuffix(".vjp").removesuffix("_vjp")


def public():
    """Every Call: functions, their vjp, classes and methods, of the package and of its public modules."""
    things = {}
    for name in gpudrop.__all__:
        thing = getattr(gpudrop, name)
        if isinstance(thing, types.ModuleType):
            own = {k: of for k, of in vars(thing).items() if isinstance(of, (types.FunctionType, type)) and k[0] != "_"}
            own = {k: of for k, of in own.items() if of.__module__ == thing.__name__ and of is not things.get(k)}
            things |= {f"{name}.{k}": of for k, of in own.items()}
        else:
            things[name] = thing
    for name, thing in things.items():
        if name in EXCLUDED:
            continue
        yield Call(name, thing)
        if name in FAMILY and f"{name}_vjp" not in things:
            yield Call(f"{name}.vjp", thing.vjp)
        for method in dir(thing) if isinstance(thing, type) else ():
            function = inspect.getattr_static(thing, method)
            of = getattr(getattr(function, "__func__", function), "__module__", None) or ""
            if of.startswith("gpudrop.") and (method == "__call__" or method[0] != "_"):
                if isinstance(function, classmethod):
                    yield Call(f"{name}.{method}", getattr(thing, method), thing)
                elif isinstance(function, types.FunctionType):
                    yield Call(f"{name}.{method}", function, thing)


CALLS = list(public())
OFTEN = [call for call in CALLS for _ in range(1 + len(call.parameters))]  # calls with many arguments are chosen often


class Trial:
    """One call and its checks: the outcome in one word, and the problems in sentences."""

    def __init__(self, seed, number):
        self.case, self.problems = Case(seed, number), []
        case = self.case
        self.call = case.choose(OFTEN)
        case.suit(self.call.variant)
        case.stateful(gpudrop.manual_seed(case.uint64()))
        self.off = case.likely(5)
        names = [parameter.name for parameter in self.call.parameters]
        wrong = [case.choose(names) for _ in range(case.choose([1, 1, 2]))] if names and case.likely(60) else []
        function = self.method() if self.call.of_object else self.call.function
        args, kwargs = case.arguments(self.call, wrong)
        shown = [*map(short, args), *(f"{name}={short(value)}" for name, value in kwargs.items())]
        self.text = f"{self.call.name}({', '.join(shown)})"
        self.outcome, result = self.attempt(self.call, function, args, kwargs, wrong)
        if self.outcome == "returned":
            self.judge(kwargs, result)

    def method(self):
        """The method of a new object. In most trials of `backward`, the layer has been called."""
        case, call = self.case, self.call
        args, kwargs = case.arguments(Call(call.name.rpartition(".")[0], call.owner))
        thing = case.object = call.owner(*args, **kwargs)
        if hasattr(thing, "load_state_dict"):
            case.stateful(thing)
        if call.last == "backward" and case.likely(90):
            try:
                case.result = array_of(arrays_of(thing(*case.argument(call, "arrays", wrong=False)))[0]).shape
            except (TypeError, ValueError):  # a shape that the layer rejects
                case.result = None
        return getattr(thing, call.last)

    def attempt(self, call, function, args, kwargs, wrong):
        """Call the function, and check that it changes nothing else; returns the outcome and the result."""
        case, problems = self.case, self.problems
        before = [thing.state_dict() for thing in case.states]
        streams = [thing.next() if isinstance(thing, NumpyState) else None for thing in case.states]
        for placed in case.placed:
            placed.before = placed.buffer.copy()
        by_place = takewhile(lambda a: a.kind is a.POSITIONAL_OR_KEYWORD and a.name in kwargs, call.parameters)
        named, names = dict(kwargs), [parameter.name for parameter in call.parameters]
        first = [named.pop(parameter.name) for parameter in islice(by_place, case.choose([0, 1, 2]))]
        try:
            with gpudrop.no_dropout() if self.off else nullcontext():
                result = function(*first, *args, **named)
        except Exception as error:
            allowed = {TypeError, ValueError} | {of for name, of in RAISES.items() if name in (call.last, *names)}
            if type(error) not in allowed:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(frame.filename).name}, line {frame.lineno}"
                problems.append(f"{type(error).__name__} is not documented: {str(error)[:200]} ({where})")
            elif not wrong and not any(excuse in str(error) for excuse in EXCUSES):
                problems.append(f"correct arguments are rejected: {str(error)[:200]}")
            if not all(placed.untouched() for placed in case.placed):
                problems.append("an array was written to before an error")
            # The effects of fn can't be checked before the call.
            after_fn = call.name == "mc_samples" and callable(kwargs.get("fn"))
            if [thing.state_dict() for thing in case.states] != before and not after_fn:
                problems.append("a generator or a state changed before an error")
            return type(error).__name__, None
        out = kwargs.get("out")
        own = next((placed for placed in case.placed if placed.array is out), None)
        for placed in case.placed:
            if not (own.untouched_beside() if own and placed.buffer is own.buffer else placed.untouched()):
                problems.append("memory beside out was overwritten" if placed is own else "an input was overwritten")
        if out is not None and (result[0] if isinstance(result, tuple) else result) is not out:
            problems.append("the returned array is not out")
        drawn = [
            thing.state_dict()["call"] - state["call"]
            for thing, state in zip(case.states, before, strict=True)
            if isinstance(thing, Generator) and call.last not in ("load_state_dict", "manual_seed")
        ]
        moved = [
            stream
            for thing, state, stream in zip(case.states, before, streams, strict=True)
            if isinstance(thing, NumpyState) and thing.state_dict() != state
        ]
        if sum(drawn) + len(moved) > 1:
            problems.append(f"{sum(drawn) + len(moved)} streams were drawn")
        self.stream = Stream(before[drawn.index(1)]["seed"], before[drawn.index(1)]["call"]) if 1 in drawn else None
        self.stream = moved[0] if moved else self.stream
        return "returned", result

    def judge(self, kwargs, result):
        call = self.call
        expected = call.function if isinstance(call.function, type) else RETURNS.get(call.last, object)
        if not isinstance(result, expected):
            self.problems.append(f"returned {type(result).__name__}, not {expected.__name__}")
        if call.last == "register_activation":
            self.judge_activation(result)
        parameters = {parameter.name: parameter.default for parameter in call.parameters}
        if "rng" in parameters and not isinstance(call.function, type):
            stream = stream_of(kwargs.get("rng")) or self.stream or Stream(0, 0)
            self.judge_arrays(parameters | kwargs, kwargs, result, stream)

    def judge_activation(self, row):
        """Check that it compiles, and remove it from the table."""
        x = np.float32([-1, 0, 2])
        try:
            if not {row.value, row.slope} <= TRIED:
                TRIED.update((row.value, row.slope))
                gpudrop.dropout_vjp(x, 0.5, activation=row.name, rng=Stream(0, 0))[1](x)
        except Exception as error:
            self.problems.append(f"accepted, but compilation fails: {type(error).__name__}: {str(error)[:200]}")
        finally:
            del ACTIVATIONS[row.name]

    def judge_arrays(self, bound, kwargs, result, stream):
        """The same stream repeats the arrays, and both passes have the mask of the reference."""
        case, call, problems = self.case, self.call, self.problems
        values = [bits_of(array) for array in arrays_of(result)]
        after = [placed.buffer.copy() for placed in case.placed]
        for placed in case.placed:
            placed.buffer[...] = placed.before
        fresh = {name: value for name, value in kwargs.items() if name not in ("out", "rng")}
        fresh |= {"rng": stream} if kwargs.get("keep") is None else {}
        with gpudrop.no_dropout() if self.off else nullcontext():
            again = arrays_of(call.function(**fresh))
        if [bits_of(array) for array in again] != values:
            problems.append("the same stream returned different results")
        if any(np.may_share_memory(array_of(array), placed.buffer) for array in again for placed in case.placed):
            problems.append("a new array shares memory with an input")
        like = bound.get("x", bound.get("gate", bound.get("like")))
        foreign = isinstance(like, Foreign)
        if call.name != "mc_samples" and any(isinstance(array, Foreign) != foreign for array in again):
            problems.append(f"returned {type(again[0]).__name__} for {type(like).__name__}")
        for placed, bytes_after in zip(case.placed, after, strict=True):
            placed.buffer[...] = bytes_after
        if call.name == "keep_mask":
            options = {name: int(bound[name]) for name in ("bits", "start")}
            p, shape = 0 if self.off else float(bound["p"]), tuple(np.atleast_1d(np.array(bound["shape"], int)))
            mask = reference.keep_mask(shape, p, stream.seed, stream.call, **options)
            if values[0] != bits_of(np.packbits(mask, axis=None, bitorder="little") if bound["packed"] else mask):
                problems.append("the mask differs from the reference")
        if "training" not in bound:
            return
        name = FAMILY[call.variant].inputs[0] if call.variant in FAMILY else "x"
        x, (y, *_) = array_of(bound[name]), map(array_of, again)
        shape = x.shape if bound.get("samples") is None else (int(bound["samples"]), *x.shape)
        packed = name == "gate" and bound["value"] is None
        shape = (*shape[:-1], shape[-1] // 2) if packed else shape
        dtype = np.dtype(case.wide or x.dtype)
        if (y.shape, y.dtype) != (shape, dtype):
            problems.append(f"returned {y.shape} of {y.dtype} for {x.shape} of {x.dtype}")
        kept = self.kept(bound, shape, stream)
        self.judge_zeros("y", y, kept)
        alone = bound.get("bias") is None and name != "gate" and bound["activation"] is None
        if kept is not None and alone and not y[kept & (np.broadcast_to(x, shape) != 0)].all():
            problems.append("y is 0 at an element that the reference keeps")
        if isinstance(result, tuple):
            case.dtype, case.result = x.dtype, shape
            case.of_gradient = (x.shape if packed else shape), x.dtype
            self.judge_backprop(result[1], kept)

    def judge_backprop(self, backprop, kept):
        case, back = self.case, Call("backprop", backprop)
        wrong = [case.choose(["dy", "out"])] if case.likely(30) else []
        args, kwargs = case.arguments(back, wrong)
        self.text += f", backprop({', '.join(f'{name}={short(value)}' for name, value in kwargs.items())})"
        dy = kwargs["dy"].copy() if isinstance(kwargs["dy"], np.ndarray) else kwargs["dy"]
        outcome, result = self.attempt(back, backprop, args, kwargs, wrong)
        if outcome == "returned":
            dx = arrays_of(result)[0]
            if kept is None or array_of(dx).shape == kept.shape:  # otherwise it has two gradients
                self.judge_zeros("dx", array_of(dx), kept)
            if bits_of(arrays_of(backprop(dy))[0]) != bits_of(dx):
                self.problems.append("backprop returned different results the second time")

    def judge_zeros(self, what, array, kept):
        dropped = array[~kept].astype(np.float64) if kept is not None else np.zeros(0)
        if dropped.any() or np.signbit(dropped).any():
            self.problems.append(f"{what} is not +0.0 at an element that the reference drops")

    def kept(self, bound, shape, stream):
        """The mask of the reference, or None if the variant does not set elements to 0."""
        name = self.call.variant
        if name in FAMILY and not FAMILY[name].noise.zeroes:
            return None
        if not bound["training"] or self.off:
            return np.ones(shape, bool)
        if bound.get("keep") is not None:
            given = np.asarray(bound["keep"])
            if given.dtype != bool:
                given = np.unpackbits(given, count=math.prod(shape), bitorder="little").reshape(shape).astype(bool)
            return None if float(bound["p"]) > 0.999 else np.broadcast_to(given, shape)  # a scale of 0
        numbers = ("time_axis", "samples", "block_size")
        options = {number: int(bound[number]) for number in numbers if bound.get(number) is not None}
        options |= {"channels_last": True} if bound.get("channels_last") else {}
        seed = {"seed": stream.seed, "call": stream.call, "bits": int(bound["bits"])}
        p, ones = float(bound.get("p", 0)), np.ones(shape if options.get("samples") is None else shape[1:])
        if name in ("dropout", "dropout_glu"):
            mask = (None,) * ones.ndim if bound.get("mask_shape") is None else tuple(bound["mask_shape"])
            return reference.structured(ones, p, mask, **seed)[0] != 0
        if name == "embedding_dropout" and ones.ndim != 2:
            return None
        return reference.FAMILY[name](ones, p, **seed, **options)[0] != 0


TRIED = set()  # the formulas that have been compiled


def stream_of(rng):
    """The stream of an rng, or None if the rng has a state."""
    if rng is None or isinstance(rng, (Stream, Generator)):
        return rng if isinstance(rng, Stream) else None
    if isinstance(rng, np.random.SeedSequence):
        return Stream(rng.generate_state(1, np.uint64)[0], 0)
    return None if isinstance(rng, (np.random.Generator, np.random.BitGenerator)) else Stream(rng, 0)


def short(value):
    """A short text for an argument."""
    if isinstance(value, np.ndarray):
        return f"<{type(value).__name__} {value.dtype} {value.shape} strides {value.strides}>"
    text = re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))
    return text if len(text) < 90 else f"{text[:87]}..."


def arrays_of(result):
    """The arrays in the result of a call."""
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if isinstance(part, (np.ndarray, np.generic, Foreign))]


def array_of(array):
    return np.asarray(array.array if isinstance(array, Foreign) else array)


def bits_of(array):
    """Shape, dtype and bytes in logical order, for comparisons. All NaNs get the same bytes."""
    array = array_of(array)
    if array.dtype.char in "Og":  # objects are addresses, and long doubles have padding
        return array.shape, array.dtype, repr(array.tolist())
    if array.dtype.kind in "bu":
        return array.shape, array.dtype, array.tobytes()
    return array.shape, array.dtype, np.where(array != array, array.dtype.type("nan"), array).tobytes()


def run(seed, numbers, seconds=math.inf, report=print):
    """Run trials until the numbers or the seconds are used up; returns the record."""
    outcomes, findings, slowest = defaultdict(Counter), [], {"seconds": 0.0}
    begun = time.monotonic()
    with warnings.catch_warnings(), numba.core.event.install_recorder("numba:compile") as compiling:
        warnings.simplefilter("error")
        for number in numbers:
            started, compiled = time.monotonic(), len(compiling.buffer)
            if started - begun > seconds:
                break
            try:
                trial = Trial(seed, number)
                name, outcome, problems, text = trial.call.name, trial.outcome, trial.problems, trial.text
            except Exception:
                name, outcome, problems, text = "the fuzz target itself", "broken", [traceback.format_exc(-3)], ""
            outcomes[name][outcome] += 1
            took = round(time.monotonic() - started, 3)
            if len(compiling.buffer) == compiled and took > slowest["seconds"]:
                slowest = {"number": number, "call": text, "seconds": took}
            for problem in problems:
                findings.append({"number": number, "call": text, "problem": problem})
                report(f"seed {seed}, number {number}: {text}\n    {problem}")
    return {
        "calls": sum(map(Counter.total, outcomes.values())),
        "seconds": round(time.monotonic() - begun, 1),
        "of them compiling": round(seconds_within(compiling.buffer), 1),
        "kernels": cpu.entry.cache_info().currsize,
        "slowest that compiles nothing": slowest,
        "findings": findings,
        "outcomes": {name: dict(sorted(outcomes[name].items())) for name in sorted(outcomes)},
    }


def seconds_within(events):
    """The total time of the events that are not within other events."""
    depth = total = 0
    for moment, event in events:
        total += moment * (event.is_end and depth == 1) - moment * (event.is_start and depth == 0)
        depth += 1 if event.is_start else -1
    return total


def described():
    """The first entries of a record: command, date, commit and versions."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "command": " ".join(["python -m tests.fuzz", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "numba", "ml_dtypes")},
    }


def main():
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--calls", type=int, help="stop after this number of calls")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="make only this call, and print it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the record")
    options = parser.parse_args()
    if options.only is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trial = Trial(options.seed, options.only)
        print(trial.text, trial.outcome, *trial.problems, sep="\n")
        return bool(trial.problems)
    record = described() | {"seed": options.seed}
    record |= run(options.seed, range(options.calls) if options.calls is not None else count(), options.seconds)
    for name, outcomes in record["outcomes"].items():
        print(f"{name:32}", *(f"{outcome} {times}" for outcome, times in outcomes.items()), sep="  ")
    print(f"{record['calls']} calls in {record['seconds']} s, {len(record['findings'])} findings")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return bool(record["findings"])


if __name__ == "__main__":
    sys.exit(main())
