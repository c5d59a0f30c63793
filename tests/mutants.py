"""Breaks the package on purpose, and checks that the tests fail: python -m tests.mutants [NAME ...].

The default selection of the tests first runs on the unchanged tree. Then each breakage is applied to a copy of the
tree, and tests run until one fails. The files nearest to the breakage run first, then all files, then the simulator's.
The printed table names the test that failed. The exit status is 1 if a breakage is missed.
"""

import argparse
import concurrent.futures
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests import ROOT


class Mutant(NamedTuple):
    """A breakage.

    Attributes
    ----------
    name : str
        A description of the breakage.
    file : str
        The file that is changed.
    text : str
        A text that occurs in the file exactly once.
    replacement : str
    near : str
        The tests that run first: one or more files relative to tests/, separated by spaces.
    simulated : bool
        Whether they run in the simulator.
    """

    name: str
    file: str
    text: str
    replacement: str
    near: str
    simulated: bool = False


PHILOX = "gpudrop/formulas/philox.py"
MASKS = "gpudrop/masks.py"
CPU, LOOP = "kernels/cpu/__init__.py", "kernels/cpu/map.py"
CUPY, MAP = "kernels/cupy_elementwise/launching.py", "kernels/cupy_elementwise/map.cuh"
OPERANDS = "kernels/cupy_elementwise/operands.cuh"
NUMBA, NUMBA_LAUNCH = "kernels/numba_cuda/map.py", "kernels/numba_cuda/launching.py"
NUMBA_OPERANDS, NUMBA_SUMS = "kernels/numba_cuda/operands.py", "kernels/numba_cuda/sums.py"

MUTANTS = [
    # The mapping
    Mutant(
        "the chunk's high word is dropped",
        PHILOX,
        "uint32(chunk >> uint64(32)),",
        "uint32(0),",
        "backends/test_masks.py",
    ),
    Mutant(
        "a mask repeats every 32 rows of 1024 elements",
        PHILOX,
        "uint32(chunk),",
        "uint32(chunk & uint64(4095)),",
        "unit/test_reference.py",
    ),
    Mutant("call c + 1 overlaps call c", PHILOX, "uint32(chunk),", "uint32(chunk + call),", "unit/test_reference.py"),
    Mutant("Philox has nine rounds", PHILOX, "for _ in range(10):", "for _ in range(9):", "unit/test_formulas.py"),
    Mutant(
        "the key stays the same in all rounds",
        PHILOX,
        "k1 = uint32(uint64(k1) + uint64(PHILOX_W1))",
        "k1 = uint32(uint64(k1) + uint64(0))",
        "unit/test_formulas.py",
    ),
    Mutant(
        "the lanes of a word are in reverse order",
        PHILOX,
        "<< uint32(rest - uint32(position & uint32(31))))",
        "<< uint32(position & uint32(31)))",
        "backends/test_masks.py",
    ),
    Mutant(
        "a field lacks its highest bit",
        PHILOX,
        "uint32(uint32(0xFFFFFFFF) >> uint32(uint32(32) - bits))",
        "uint32(uint32(0x7FFFFFFF) >> uint32(uint32(32) - bits))",
        "family/test_family.py",
    ),
    Mutant(
        "an element whose field equals the threshold is dropped",
        PHILOX,
        "return word > uint32(",
        "return word > uint32(1) + uint32(",
        "backends/test_masks.py",
    ),
    Mutant(
        "fields are compared by >=",
        PHILOX,
        "return word > uint32(",
        "return word >= uint32(",
        "backends/test_masks.py",
    ),
    Mutant(
        "a threshold is off by one at half a step",
        "gpudrop/formulas/noises.py",
        "threshold += p * steps - threshold >= 0.5",
        "threshold += p * steps - threshold > 0.5",
        "unit/test_reference.py",
    ),
    Mutant(
        "the scale comes from p before quantisation",
        "gpudrop/formulas/noises.py",
        "return Quantized(threshold, steps / kept if kept else 0.0, threshold / steps)",
        "return Quantized(threshold, 1 / (1 - p) if p < 1 else 0.0, threshold / steps)",
        "unit/test_reference.py",
    ),
    Mutant(
        "both deviates of a pair are cosines",
        PHILOX,
        "quarter = uint32(0) if lane & uint32(1) else QUARTER",
        "quarter = QUARTER",
        "family/test_family.py",
    ),
    Mutant("a sine lacks its sign", PHILOX, "return -y if turn >= HALF else y", "return y", "unit/test_formulas.py"),
    Mutant(
        "p above 1 is accepted",
        "gpudrop/checks.py",
        "if not 0 <= value <= 1:",
        "if not 0 <= value:",
        "unit/test_api.py",
    ),
    # Noises and activations
    Mutant(
        "x * mask instead of a select",
        "gpudrop/formulas/noises.py",
        "return z * scale if r else 0\n\n\ndef dropped",
        "return z * scale * (1 if r else 0)\n\n\ndef dropped",
        "backends/test_masks.py",
    ),
    Mutant(
        "alpha dropout's shift has the wrong sign",
        "gpudrop/formulas/noises.py",
        "scale, -scale * p * ALPHA_PRIME)",
        "scale, scale * p * ALPHA_PRIME)",
        "family/test_family.py",
    ),
    Mutant(
        "uniform noise is not centred",
        "gpudrop/formulas/noises.py",
        "shift=1 - h + h / 2**bits)",
        "shift=1 - h)",
        "family/test_family.py",
    ),
    Mutant(
        "zoneout's two gradients are the same",
        "gpudrop/formulas/noises.py",
        "return 0 if r else z * scale",
        "return z * scale if r else 0",
        "family/test_family.py",
    ),
    Mutant(
        "gelu's slope lacks a factor x",
        "gpudrop/formulas/activations.py",
        "return normal_cdf(x) + x * INV_SQRT_2PI * exp(-0.5 * x * x)",
        "return normal_cdf(x) + INV_SQRT_2PI * exp(-0.5 * x * x)",
        "backends/test_values.py",
    ),
    Mutant(
        "relu of nan is 0",
        "gpudrop/formulas/activations.py",
        "# Written so that nan stays nan.\n    return 0 if x <= 0 else x",
        "return x if x > 0 else 0",
        "backends/test_values.py",
    ),
    # Formulas
    Mutant(
        "min compiles to max",
        "gpudrop/formulas/__init__.py",
        'order = ast.Lt() if function.id == "min" else ast.Gt()',
        "order = ast.Gt()",
        "unit/test_formulas.py",
    ),
    Mutant(
        "a formula's digest ignores the functions that it calls",
        "gpudrop/formulas/__init__.py",
        'f"{n}={parse(f).digest}" for n, f in sorted(self.calls.items())',
        '"" for n in self.calls',
        "unit/test_formulas.py",
    ),
    Mutant(
        "C++ loops run once more",
        "gpudrop/formulas/cuda_cpp.py",
        "{i} < {n}; ++{i}",
        "{i} <= {n}; ++{i}",
        "unit/test_formulas.py",
    ),
    # The description of a fused operation
    Mutant(
        "a gradient lacks the scale",
        "gpudrop/operations.py",
        'return "slope(y) != 0", "dy * slope(y)", ()',
        'return "slope(y) != 0", "dy * slope(y) / scale", ()',
        "backends/test_masks.py",
    ),
    Mutant(
        "DropBlock is not normalised",
        "kernels/spec.py",
        "isinstance(self.source, Reads) and self.source.counted",
        "False",
        "family/test_family.py",
    ),
    Mutant(
        "DropBlock's backward pass uses the scale of p",
        "gpudrop/operations.py",
        'return "y" if noise.zeroes and not counted and not hidden else "x"',
        'return "y" if noise.zeroes and not hidden else "x"',
        "family/test_family.py",
    ),
    # Calls
    Mutant(
        "an out that overlaps x is accepted",
        "gpudrop/arrays.py",
        "    check_apart(name, target.array, operand.array, source)\n    return target.array",
        "    return target.array",
        "unit/test_api.py",
    ),
    Mutant(
        "a call that raises draws a stream",
        "gpudrop/plan.py",
        "        if out is not None:\n            _check_unneeded",
        "        if out is not None and self.rng.next():\n            _check_unneeded",
        "faults/test_arguments.py unit/test_api.py",
    ),
    Mutant(
        "keep_mask ignores start",
        "gpudrop/dropout.py",
        "rng, bits, start, operand, backend, shard, check_truth",
        "rng, bits, 0, operand, backend, shard, check_truth",
        "backends/test_masks.py",
    ),
    Mutant(
        "keep_mask ignores no_dropout",
        "gpudrop/plan.py",
        "scalars = DROPOUT.scalars(p, bits) if context.on else None",
        "scalars = DROPOUT.scalars(p, bits)",
        "family/test_monte_carlo.py",
    ),
    Mutant(
        "no_dropout never ends",
        "gpudrop/context.py",
        "        try:\n            _set(_without(current(), number))\n",
        "        try:\n            pass\n",
        "unit/test_context.py",
    ),
    Mutant(
        "the end of a context also ends other contexts",
        "gpudrop/context.py",
        "    if context.entry[0] == number:\n        return context.outer\n",
        "    if True:\n        return context.outer\n",
        "unit/test_context.py",
    ),
    Mutant(
        "an outer transform sees no derivative",
        "gpudrop/torch/operators.py",
        "    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):\n        return",
        "    if True:\n        return",
        "torch/test_transforms.py",
    ),
    Mutant(
        "the number of a batch's first sample is ignored",
        "gpudrop/plan.py",
        "start += first * (math.prod(shape) // shape[axis] if mask is None else mask.per_sample)",
        "start += 0",
        "family/test_monte_carlo.py",
    ),
    Mutant(
        "a shard may reach beyond the whole array",
        "gpudrop/masks.py",
        "if any(begin + own > n for begin, own, n in",
        "if any(begin + own > n + own for begin, own, n in",
        "backends/test_parts.py",
    ),
    Mutant(
        "all pieces of a shard's mask have the same start",
        "gpudrop/plan.py",
        "draw._replace(start=draw.start + start))",
        "draw._replace(start=draw.start + starts[0]))",
        "backends/test_parts.py",
    ),
    Mutant(
        "a shard's start is ignored",
        "gpudrop/plan.py",
        "row, pitch, (start,) = rows(tuple(x.shape), shard)",
        "row, pitch, _ = rows(tuple(x.shape), shard)",
        "backends/test_parts.py",
    ),
    # Geometry
    Mutant(
        "a broadcast mask's period is off by one",
        MASKS,
        "return tuple(spreads), period, repeat, run",
        "return tuple(spreads), max(1, period - 1), repeat, run",
        "family/test_family.py",
    ),
    Mutant(
        "a shard's offset ignores the strides",
        MASKS,
        "origin = sum(map(operator.mul, begin, steps))",
        "origin = sum(begin)",
        "backends/test_parts.py",
    ),
    Mutant(
        "DropBlock has no seeds in the last row and column",
        MASKS,
        "return tuple(n - b + 1 for n, b in zip(self.size, self.block, strict=True))",
        "return tuple(max(1, n - b) for n, b in zip(self.size, self.block, strict=True))",
        "family/test_family.py",
    ),
    # Generators and states
    Mutant(
        "a generator does not advance",
        "gpudrop/generator.py",
        "self._call = call + 1",
        "self._call = call",
        "unit/test_api.py",
    ),
    Mutant(
        "NumPy's generator advances although no mask is drawn",
        "gpudrop/generator.py",
        "return NumpySource(rng)",
        "return NumpySource(rng).next()",
        "family/test_rng.py",
    ),
    Mutant(
        "a bool is accepted as a seed",
        "gpudrop/generator.py",
        "other = isinstance(rng, bool) or getattr",
        "other = getattr",
        "family/test_rng.py",
    ),
    Mutant(
        "a wrong call of PyTorch's functions draws a stream before the error",
        "gpudrop/torch/functional.py",
        "        _check_call(name, call[1], likeness_of(x), likeness_of(other), likeness_of(bias), likeness_of(gain))",
        "        pass",
        "torch/test_torch.py",
    ),
    Mutant(
        "a p that is rounded to 0 draws a stream in PyTorch",
        "gpudrop/torch/functional.py",
        "training and noise.scalars(p, noise.check_bits(bits)) is not None",
        "training and p != 0",
        "torch/test_torch.py",
    ),
    Mutant(
        "a layer with an int as rng repeats its mask",
        "gpudrop/layers.py",
        'settings["rng"] = kept_rng',
        'settings["rng"] = lambda rng: rng if rng is None else check_rng(rng)',
        "family/test_rng.py",
    ),
    Mutant(
        "NumPy's generator advances for a layer whose arguments are wrong",
        "gpudrop/layers.py",
        '{**strength, **defaults, **options, **others, "rng": rng}',
        '{"rng": rng, **strength, **defaults, **options, **others}',
        "family/test_rng.py",
    ),
    Mutant(
        "NumPy's generator draws within mc_samples",
        "gpudrop/context.py",
        "return source if own is None or isinstance(source, Stream) else own",
        "return own if own is not None and isinstance(source, Generator) else source",
        "family/test_rng.py",
    ),
    Mutant(
        "a checkpoint draws from NumPy's generator again",
        "gpudrop/torch/functional.py",
        "if context.tape is not None and not (torchs and traced):",
        "if context.tape is not None and not (torchs and traced) and not isinstance(source, NumpySource):",
        "torch/test_compiled.py",
    ),
    Mutant(
        "a compiled function can't draw from NumPy's generator",
        "gpudrop/torch/functional.py",
        "@_disable_dynamo  #",
        "#",
        "torch/test_compiled.py",
    ),
    Mutant(
        "a tensor's negative view is read without its sign",
        "gpudrop/arrays.py",
        "if _is_tensor(x) and x.is_neg():",
        "if False:",
        "torch/test_torch.py",
    ),
    Mutant(
        "every spawn returns the same generators",
        "gpudrop/generator.py",
        "spawn_key=(call,)",
        "spawn_key=(0,)",
        "unit/test_api.py",
    ),
    Mutant(
        "a forked child draws its parent's masks",
        "gpudrop/generator.py",
        "    if not _default._chosen:\n",
        "    if False:\n",
        "faults/test_forks.py",
    ),
    Mutant(
        "a deep copy of a layer shares its generator's state",
        "gpudrop/generator.py",
        "        memo[id(rng)] = rng.spawn(1)[0]\n",
        "        memo[id(rng)] = rng\n",
        "family/test_layers.py",
    ),
    Mutant(
        "a decorated generator function runs outside of its context",
        "gpudrop/context.py",
        "                        with self:\n                            item = step(argument)\n",
        "                        item = step(argument)\n",
        "unit/test_context.py",
    ),
    Mutant(
        "a fork does not wait for the generators' lock",
        "gpudrop/generator.py",
        "os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_in_child)",
        "pass",
        "faults/test_forks.py",
    ),
    Mutant(
        "a state is loaded to another address",
        "gpudrop/generator.py",
        "arrays.overwrite(self._array, np.array([seed, call % 2**64], np.uint64))",
        "self._array = backends.to_device(np.array([seed, call % 2**64], np.uint64))",
        "backends/test_device_generator.py",
    ),
    Mutant(
        "the state of a newer version is accepted",
        "gpudrop/checks.py",
        "if unknown := set(state).difference(required, optional):",
        "if unknown := set():",
        "faults/test_states.py",
    ),
    # Arrays and backends
    Mutant(
        "a transposed x counts as x itself",
        "gpudrop/arrays.py",
        "return x.ctypes.data == y.ctypes.data and x.strides == y.strides and x.shape == y.shape",
        "return x.ctypes.data == y.ctypes.data and x.shape == y.shape",
        "faults/test_arguments.py",
    ),
    Mutant(
        "an out that overlaps itself is accepted",
        "gpudrop/arrays.py",
        "if stride < reach:",
        "if stride < 0:",
        "faults/test_arguments.py",
    ),
    Mutant(
        "a new array is always in C order",
        "gpudrop/arrays.py",
        "return np.empty_like(array, dtype, subok=False)",
        "return np.empty(array.shape, dtype or array.dtype)",
        "backends/test_masks.py",
    ),
    Mutant(
        "a backend accepts arrays in other memory",
        "gpudrop/backends.py",
        'elif (kind == "numpy") != (BACKENDS[backend] == "numpy"):',
        "elif False:",
        "unit/test_api.py",
    ),
    Mutant(
        "masked arrays are accepted",
        "gpudrop/arrays.py",
        "if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):",
        "if isinstance(x, np.ndarray):",
        "unit/test_api.py",
    ),
    # The family
    Mutant(
        "channels_last is ignored",
        "gpudrop/variants.py",
        "((*space, None) if channels_last else (None, *space))",
        "(None, *space)",
        "family/test_family.py",
    ),
    Mutant(
        "DropBlock's gamma counts positions where no block fits",
        "gpudrop/variants.py",
        "/ (math.prod(blocks) * math.prod(mask.fitting))",
        "/ (math.prod(blocks) * math.prod(sizes))",
        "family/test_family.py",
    ),
    Mutant(
        "locked_dropout's axis of samples ignores time_axis",
        "gpudrop/variants.py",
        "batch_axis=int(axis == 0))",
        "batch_axis=0)",
        "family/test_monte_carlo.py",
    ),
    Mutant(
        "a layer drops in eval mode",
        "gpudrop/layers.py",
        "training=training, rng=rng",
        "training=True, rng=rng",
        "family/test_layers.py",
    ),
    Mutant(
        "keep_prob is used as p",
        "gpudrop/layers.py",
        'check_strength(_other_probability(check_p(keep_prob, "keep_prob")))',
        'check_strength(check_p(keep_prob, "keep_prob"))',
        "unit/test_api.py",
    ),
    Mutant(
        "a wrong state is partly loaded",
        "gpudrop/layers.py",
        'check_keys("stream" if isinstance',
        'self.step = step\n        check_keys("stream" if isinstance',
        "family/test_layers.py",
    ),
    Mutant(
        "a schedule jumps a step late",
        "gpudrop/schedules.py",
        "float(progress >= 1)",
        "float(progress > 1)",
        "unit/test_schedules.py",
    ),
    Mutant(
        "the variance uses deviations from the old mean only",
        "gpudrop/monte_carlo.py",
        "(deviation * (y - mean) - variance) / count",
        "(deviation * deviation - variance) / count",
        "family/test_monte_carlo.py",
    ),
    Mutant(
        "an interrupt reaches Numba while it compiles",
        "gpudrop/uninterrupted.py",
        "if threading.current_thread() is not threading.main_thread():",
        "if True:",
        "faults/test_interrupts.py",
    ),
    # Verification and demos
    Mutant(
        "p-values are not adjusted",
        "gpudrop/testing/statistics.py",
        "np.maximum.accumulate((n - np.arange(n)) * p_values[order])",
        "np.maximum.accumulate(p_values[order])",
        "unit/test_statistics.py",
    ),
    Mutant(
        "correlations are ten times too likely",
        "gpudrop/testing/statistics.py",
        "return two_sided(covariance / (q * (1 - q) * sqrt(a.size)))",
        "return two_sided(covariance / (10 * q * (1 - q) * sqrt(a.size)))",
        "unit/test_statistics.py",
    ),
    Mutant(
        "the self-test compares nothing",
        "gpudrop/testing/selftest.py",
        "assert not wrong.size, f",
        "assert True, f",
        "unit/test_selftest.py",
    ),
    Mutant(
        "the self-test starts processes that have nothing to compile",
        "gpudrop/testing/selftest.py",
        "while compiled.buffer and numbers:",
        "while numbers:",
        "unit/test_selftest.py",
    ),
    Mutant(
        "processes of a killed self-test continue",
        "gpudrop/testing/selftest.py",
        "target=lambda: os.read(0, 1) or os._exit(0)",
        "target=lambda: os.read(0, 1)",
        "unit/test_selftest.py",
    ),
    Mutant(
        "the self-test forgets the dtype of kernels that it compiles in advance",
        "gpudrop/testing/selftest.py",
        '("dtype", "wide", "bits", "activation", "name", "rows")',
        '("wide", "bits", "activation", "name", "rows")',
        "unit/test_selftest.py",
    ),
    Mutant(
        "the reference has a wrong constant",
        "gpudrop/testing/reference.py",
        "(k1 + 0xBB67AE85) & LOW",
        "(k1 + 0xBB67AE86) & LOW",
        "unit/test_reference.py",
    ),
    Mutant(
        "every error is 0 ulps",
        "gpudrop/testing/ulps.py",
        "return np.where(rounded_same, 0.0, np.abs(got.astype(np.float64) - exact) / unit)",
        "return np.where(rounded_same, 0.0, 0.0 * unit)",
        "unit/test_ulps.py",
    ),
    Mutant(
        "a backward pass does not count the bytes of the saved array",
        "gpudrop/testing/benchmark/cases.py",
        "self.backward * (2 + self.reads_saved)",
        "self.backward * 2",
        "bench/test_bench.py",
    ),
    Mutant(
        "the benchmark accepts any values",
        "gpudrop/testing/benchmark/checks.py",
        "if far.any():",
        "if False:",
        "bench/test_bench.py",
    ),
    Mutant(
        "the copy reads only one array",
        "gpudrop/testing/benchmark/ceilings.py",
        "y[i] = x[i] * s + saved[i]",
        "y[i] = x[i] * s",
        "bench/test_comparison.py",
    ),
    Mutant(
        "NumPy's dropout does not scale",
        "gpudrop/testing/benchmark/contenders.py",
        "relu(x) / keep,)",
        "relu(x),)",
        "bench/test_comparison.py",
    ),
    Mutant(
        "the forward pass is timed with the backward pass",
        "gpudrop/testing/benchmark/contenders.py",
        "return backprop",
        "return lambda: vjp()[1]()",
        "bench/test_bench.py",
    ),
    Mutant(
        "the benchmark checks the mask of 16 bits whatever the case",
        "gpudrop/testing/benchmark/checks.py",
        "seed, 0, case.bits, start",
        "seed, 0, 16, start",
        "bench/test_bench.py",
    ),
    Mutant(
        "a contender with wrong results is timed",
        "gpudrop/testing/benchmark/runner.py",
        "contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])",
        "call()",
        "bench/test_comparison.py",
    ),
    Mutant(
        "seconds on a GPU are a sum over calls",
        "gpudrop/testing/benchmark/gpu.py",
        "/ (many * len(sets))",
        "/ many",
        "bench/test_bench_gpu.py",
    ),
    Mutant(
        "a copy on a GPU counts the bytes of dropout",
        "gpudrop/testing/benchmark/gpu_contenders.py",
        'return replace(case, activation="identity").bytes',
        "return case.bytes",
        "bench/test_bench_gpu.py",
    ),
    Mutant(
        "the ratio to a peer is inverted",
        "gpudrop/testing/benchmark/records.py",
        "return other / mine if",
        "return mine / other if",
        "bench/test_comparison.py",
    ),
    Mutant(
        "results with out= are compared with a copy in a new array",
        "gpudrop/testing/benchmark/comparison.py",
        "OURS_READY: PLAIN_READY, CUPY",
        "OURS_READY: PLAIN, CUPY",
        "bench/test_comparison.py",
    ),
    Mutant(
        "gpudrop bench succeeds although gpudrop is wrong",
        "gpudrop/testing/benchmark/comparison.py",
        "if not right(row)]:",
        "if False]:",
        "bench/test_comparison.py",
    ),
    Mutant(
        "gpudrop bench changes the state of PyTorch's generators",
        "gpudrop/testing/benchmark/runner.py",
        "stack.enter_context(torch.random.fork_rng(gpus if torch.cuda.is_available() else ()))",
        "pass",
        "bench/test_comparison.py",
    ),
    Mutant(
        "checking a file leaves an empty one",
        "gpudrop/checks.py",
        "path.resolve().unlink()",
        "pass",
        "unit/test_cli.py",
    ),
    Mutant(
        "gpudrop bits writes whole blocks",
        "gpudrop/cli.py",
        "block if count is None else block[: count - position]",
        "block",
        "unit/test_cli.py",
    ),
    Mutant(
        "block_size is declared as str",
        "gpudrop/signatures.py",
        "        block_size: int\n",
        "        block_size: str\n",
        "docs/test_types.py",
    ),
    Mutant(
        "the demo's gradient is that of the summed cost",
        "gpudrop/demo.py",
        "return cost, (exps / total - targets) / len(scores)",
        "return cost, exps / total - targets",
        "docs/test_demo.py",
    ),
    # PyTorch
    Mutant(
        "vmap uses one stream for all samples",
        "gpudrop/torch/operators.py",
        "    different = vmap.randomness() == functorch.RandomnessType.Different\n",
        "    different = False\n",
        "torch/test_transforms.py",
    ),
    Mutant(
        "vmap with randomness='error' draws",
        "gpudrop/torch/operators.py",
        "    if base is None and vmap.randomness() == functorch.RandomnessType.Error:\n",
        "    if False:\n",
        "torch/test_transforms.py",
    ),
    Mutant(
        "a generator advances before vmap raises",
        "gpudrop/torch/functional.py",
        "    if transformed and not isinstance(source, Stream):\n        torch.rand(0)",
        "    if False:\n        torch.rand(0)",
        "torch/test_transforms.py",
    ),
    Mutant(
        "nested vmaps share streams",
        "gpudrop/torch/operators.py",
        "batch = [vmap.batchSize(), *batch] if different else batch",
        "batch = [vmap.batchSize()] if different else batch",
        "torch/test_transforms.py",
    ),
    Mutant(
        "a sample gets another sample's stream",
        "gpudrop/torch/operators.py",
        "        tensors, dims = (first, second, stream), in_dims[:3]\n",
        "        tensors, dims = (first, second, stream.flip(0)), in_dims[:3]\n",
        "torch/test_transforms.py",
    ),
    Mutant(
        "a torch.Generator is ignored",
        "gpudrop/torch/operators.py",
        'device="cpu").random_(-(2**63), None, generator=generator)',
        'device="cpu").random_(-(2**63), None)',
        "torch/test_torch.py",
    ),
    Mutant(
        "a backward pass depends on the context in which it runs",
        "gpudrop/torch/operators.py",
        "context=Context(first=first), **keywords",
        "**keywords",
        "torch/test_torch.py",
    ),
    Mutant(
        "tensors can't be resized",
        "gpudrop/torch/operators.py",
        "        array = np.from_dlpack(_Memory(bits))\n",
        "        array = bits.numpy()\n",
        "torch/test_torch.py",
    ),
    Mutant(
        "second derivatives ignore the activation",
        "gpudrop/torch/operators.py",
        "or not (again and name in TORCHS and",
        "or not (again and name in () and",
        "torch/test_transforms.py",
    ),
    Mutant(
        "the second derivative of saved bits reads them as x",
        "gpudrop/torch/operators.py",
        "    if has_bits(saved) or not (again",
        "    if not (again",
        "torch/test_transforms.py",
    ),
    Mutant(
        "a compiled graph adds a guard for what it saves",
        "gpudrop/torch/operators.py",
        "            size = size.node.hint or 0\n",
        "            size = int(size)\n",
        "torch/test_compiled.py",
    ),
    Mutant(
        "PyTorch's own activation saves its result although bits are requested",
        "gpudrop/torch/functional.py",
        'if activation in TORCHS and save != "bits":',
        "if activation in TORCHS:",
        "torch/test_torch.py",
    ),
    Mutant(
        "a module ignores its attribute save",
        "gpudrop/torch/modules.py",
        "self.save if save is None else save,",
        '"auto" if save is None else save,',
        "torch/test_torch.py",
    ),
    Mutant(
        "forward mode ignores the second input",
        "gpudrop/torch/operators.py",
        "        dy = through if dy is None else dy + through\n",
        "        dy = through\n",
        "torch/test_transforms.py",
    ),
    Mutant(
        "a compiled model draws from torch within mc_samples",
        "gpudrop/torch/operators.py",
        "    return to_tensor(context.rng.next()) if block and context.rng else drawn(generator)\n",
        "    return drawn(generator)\n",
        "torch/test_compiled.py",
    ),
    Mutant(
        "a compiled model runs in any context",
        "gpudrop/torch/operators.py",
        "    if not again and (not context.on or (context.rng is not None) != block):\n",
        "    if False:\n",
        "torch/test_compiled.py",
    ),
    Mutant(
        "a stream is drawn again for a backward pass",
        "gpudrop/torch/tracing.py",
        "CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE",
        "None",
        "torch/test_compiled.py",
    ),
    Mutant(
        "a recomputation depends on the context in which it runs",
        "gpudrop/torch/checkpoints.py",
        "Changes(on=context.on, rng=context.rng, first=context.first, tape=Replay(tape))",
        "Changes(tape=Replay(tape))",
        "torch/test_compiled.py",
    ),
    Mutant(
        "a recomputation draws again",
        "gpudrop/torch/checkpoints.py",
        "        return drawn if stream is None else stream",
        "        return drawn or draw()",
        "torch/test_compiled.py",
    ),
    Mutant(
        "the slope of tanh is that of sigmoid",
        "gpudrop/torch/activations.py",
        "lambda dy, x: aten.tanh_backward(dy, x.tanh())",
        "lambda dy, x: aten.sigmoid_backward(dy, x.sigmoid())",
        "torch/test_conversion.py",
    ),
    Mutant(
        "torch's generator advances in eval mode",
        "gpudrop/torch/functional.py",
        "drawn = training and p != 0",
        "drawn = p != 0",
        "torch/test_torch.py",
    ),
    Mutant(
        "inplace is ignored",
        "gpudrop/torch/functional.py",
        "*call, context.first)\n    return x.copy_(y) if inplace else y",
        "*call, context.first)\n    return y",
        "torch/test_torch.py",
    ),
    Mutant(
        "a tensor p keeps its first value",
        "gpudrop/torch/functional.py",
        "    return float(p) if isinstance(p, (torch.Tensor, np.generic)) else p\n",
        "    return float(p) if isinstance(p, np.generic) else p\n",
        "torch/test_torch.py",
    ),
    Mutant(
        "dropout2d takes a 3-D tensor as an image without samples",
        "gpudrop/torch/functional.py",
        '    if name == "dropout2d" and x.dim() == 3:',
        "    if False:",
        "torch/test_torch.py",
    ),
    Mutant(
        "a module drops in eval mode",
        "gpudrop/torch/modules.py",
        "            self.probability(),\n            self.training,\n",
        "            self.probability(),\n            True,\n",
        "torch/test_torch.py",
    ),
    Mutant(
        "a copied module draws the same masks",
        "gpudrop/torch/modules.py",
        "        if generator is not None and id(generator) not in memo:",
        "        if False:",
        "torch/test_conversion.py",
    ),
    Mutant(
        "an activation is fused with a dropout that has a hook",
        "gpudrop/torch/fused.py",
        "        or not _is_plain(dropout)\n",
        "",
        "torch/test_conversion.py",
    ),
    Mutant(
        "relu's output is saved although it may be overwritten",
        "gpudrop/torch/fused.py",
        '    bits = name == "relu" and not (_makes_its_output(before) and _makes_its_output(after))\n',
        "    bits = False\n",
        "torch/test_conversion.py",
    ),
    Mutant(
        "an activation is fused although its input may be overwritten",
        "gpudrop/torch/fused.py",
        "        or (name in SAVES_ITS_OUTPUT and not _makes_its_output(before))\n",
        "",
        "torch/test_conversion.py",
    ),
    Mutant(
        "revert does not restore attention",
        "gpudrop/torch/adoption.py",
        "TORCHS = {cls: torchs for torchs, cls in CLASSES.items()} |",
        "TORCHS = {cls: torchs for cls, torchs in modules.STANDS_FOR.items()} |",
        "torch/test_conversion.py",
    ),
    Mutant(
        "accelerate(True) ends with the next block",
        "gpudrop/torch/adoption.py",
        "                if _held[k] is self:\n",
        "                if True:\n",
        "torch/test_adoption.py",
    ),
    Mutant(
        "attention on CUDA is rerouted by default",
        "gpudrop/torch/adoption.py",
        '    if not _everywhere and query.device.type != "cpu":\n',
        "    if False:\n",
        "torch/test_adoption.py",
    ),
    Mutant(
        "a mask of integers is accepted by attention",
        "gpudrop/torch/attention.py",
        "attn_mask.dtype in (torch.bool, torch.float32, query.dtype)",
        "True",
        "torch/test_adoption.py",
    ),
    Mutant(
        "alpha dropout's mask is read from the sign of y",
        "gpudrop/variants.py",
        "return self.noise.zeroes and not self.whole",
        "return not self.whole",
        "torch/test_torch.py",
    ),
    Mutant(
        "DropBlock's mask is read from the sign of y",
        "gpudrop/variants.py",
        "return self.noise.zeroes and not self.whole",
        "return self.noise.zeroes",
        "torch/test_torch.py",
    ),
    Mutant(
        "DropBlock's mask is drawn in shards",
        "gpudrop/torch/sharding.py",
        "type(given) is Shard and not FAMILY[variant].whole",
        "type(given) is Shard",
        "torch/test_sharding.py",
    ),
    Mutant(
        "a variant uses dropout's rule for prediction",
        "gpudrop/variants.py",
        "Call(given, noise, prediction, ",
        "Call(given, noise, PLAIN, ",
        "family/test_family.py",
    ),
    Mutant(
        "modules for torch accept options that change the shape",
        "gpudrop/torch/functional.py",
        "if not OPTIONS[option].reshapes}",
        "}",
        "torch/test_torch.py",
    ),
    Mutant(
        "torch's functions have the wrong default for training",
        "gpudrop/torch/functional.py",
        "training is None or training.default is not False",
        "training is None or training.default is not True",
        "torch/test_torch.py",
    ),
    Mutant(
        "a user's subclass is treated as its base class",
        "gpudrop/layers.py",
        "            if base is not None and (cls.function",
        "            if base is not None or (cls.function",
        "family/test_layers.py",
    ),
    Mutant(
        "causal attention masks its own position",
        "gpudrop/torch/attention.py",
        ".triu_(1)",
        ".triu_(0)",
        "torch/test_adoption.py",
    ),
    Mutant(
        "every rank's shard begins at 0",
        "gpudrop/torch/sharding.py",
        "            begin[placement.dim] += first\n",
        "",
        "torch/test_sharding.py",
    ),
    Mutant(
        "a forked child waits for torch's threads",
        "gpudrop/torch/threads.py",
        "if os.getpid() != process:",
        "if os.getpid() == process:",
        "torch/test_torch.py",
    ),
    Mutant(
        "the kernels do not use torch's threads",
        "gpudrop/torch/__init__.py",
        "threads.join()\n",
        "",
        "torch/test_torch.py",
    ),
    Mutant(
        "the demo for torch does not use gpudrop",
        "gpudrop/torch/demo.py",
        'return accelerate() if way == "gpudrop" else contextlib.nullcontext()',
        "return contextlib.nullcontext()",
        "torch/test_demo.py",
    ),
    # The CPU's kernels
    Mutant(
        "the tail of a block is not drawn",
        LOOP,
        "chunks, done = (skip + count + lanes - 1) // lanes, 0",
        "chunks, done = (skip + count) // lanes, 0",
        "backends/test_masks.py",
    ),
    Mutant(
        "words are stored with their halves exchanged",
        "kernels/cpu/vectors.py",
        "for i in (lane, count + lane)]",
        "for i in (count + lane, lane)]",
        "backends/test_masks.py",
    ),
    Mutant(
        "words in lanes of 32 bits are multiplied without their upper halves",
        "kernels/cpu/vectors.py",
        "(builder.zext if bits > value.bits else builder.trunc)",
        "(builder.sext if bits > value.bits else builder.trunc)",
        "backends/test_cpu.py",
    ),
    Mutant(
        "an unaligned result is written past the caches from a wrong element on",
        "kernels/cpu/memory.py",
        "head = begin + (-address(at(target, begin)) & (LINE - 1)) // itemsize(buffer)",
        "head = begin",
        "backends/test_cpu.py",
    ),
    Mutant(
        "a cache line that lies across two blocks loses its beginning",
        "kernels/cpu/memory.py",
        "_copy_line(at(buffer, count - line), at(buffer, -line))",
        "_copy_line(at(buffer, count - line), at(buffer, count - line))",
        "backends/test_cpu.py",
    ),
    Mutant(
        "new memory is written past the caches",
        "kernels/cpu/pages.py",
        "bool(state.value & 1)",
        "True",
        "backends/test_cpu.py",
    ),
    Mutant(
        "results in place are written past the caches",
        CPU,
        "not any(np.may_share_memory(x, y) for x in sources)",
        "True",
        "backends/test_cpu.py",
    ),
    Mutant(
        "Zen 4 and 5 use the loops for AVX2",
        "kernels/cpu/processors.py",
        '("zen4" if zen else "avx512") if wide',
        '("zen" if zen else "avx512") if wide',
        "backends/test_cpu.py",
    ),
    Mutant(
        "a window's pitch is ignored on the CPU",
        LOOP,
        "np.uint64(index) * pitch + np.uint64(first - index * row)",
        "np.uint64(index) * np.uint64(row) + np.uint64(first - index * row)",
        "backends/test_parts.py",
    ),
    Mutant(
        "tiles of a window continue in the wrong row of the mask",
        "kernels/cpu/tiles.py",
        "first // row * pitch + first % row if row else first",
        "first",
        "backends/test_cpu.py",
    ),
    Mutant(
        "rows of a window are merged with their parts",
        "kernels/cpu/tiles.py",
        "math.prod(shape[axis + 1 :]) != row:",
        "True:",
        "backends/test_cpu.py",
    ),
    Mutant(
        "a window of one column is computed as one row of the mask",
        "kernels/cpu/tiles.py",
        " + [1] * (row == 1)",
        "",
        "backends/test_cpu.py",
    ),
    Mutant(
        "narrow arrays are computed in rectangles",
        "kernels/cpu/tiles.py",
        "short >= SHORTEST and",
        "",
        "backends/test_cpu.py",
    ),
    Mutant(
        "small arrays are computed in rectangles",
        "kernels/cpu/tiles.py",
        "outputs[0].size < SMALL",
        "False",
        "backends/test_cpu.py",
    ),
    Mutant(
        "buffers are written past the caches",
        "kernels/cpu/__init__.py",
        "streamed and in_rows",
        "streamed",
        "backends/test_cpu.py",
    ),
    Mutant(
        "half of a block is transposed",
        "kernels/cpu/blocks.py",
        "for _ in range(count.bit_length() - 1):",
        "for _ in range(count.bit_length() - 2):",
        "backends/test_cpu.py",
    ),
    Mutant(
        "an element beyond the array is read with the last vector",
        "kernels/cpu/blocks.py",
        "while done + vector < columns:",
        "while done + vector <= columns:",
        "backends/test_cpu.py",
    ),
    Mutant(
        "every other element is the wrong one",
        "kernels/cpu/blocks.py",
        "[2 * k for k in range(count)]",
        "[2 * k + 1 for k in range(count)]",
        "backends/test_cpu.py",
    ),
    Mutant(
        "the mask of Fortran order begins anew in each block",
        LOOP,
        "np.uint64(c + j + k) * pitch",
        "np.uint64(j + k) * pitch",
        "backends/test_cpu.py",
    ),
    Mutant(
        "a broadcast mask repeats its first period",
        LOOP,
        "turn, base = lap % repeat, lap // repeat * period",
        "turn, base = lap % repeat, 0",
        "family/test_family.py",
    ),
    Mutant(
        "the CPU's pairs of deviates are both cosines",
        LOOP,
        "normals[2 * i + 1] = r * sine(turn)",
        "normals[2 * i + 1] = r * sine(np.uint32(turn + quarter))",
        "family/test_family.py",
    ),
    Mutant(
        "a stale cache entry is used",
        "kernels/cpu/compiling.py",
        "(formulas.parse(kernel.formula).digest + _DEPENDENCIES)",
        "_DEPENDENCIES",
        "backends/test_cpu.py",
    ),
    Mutant(
        "DropBlock's blocks lack a column on the CPU",
        CPU,
        "j : j + columns] = 0",
        "j : j + columns - 1] = 0",
        "family/test_family.py",
    ),
    Mutant(
        "a forked child uses its parent's threads",
        "kernels/threads.py",
        "return _pool_of(os.getpid())",
        "return _pool_of(0)",
        "faults/test_forks.py",
    ),
    Mutant(
        "slices continue after a failure",
        "kernels/threads.py",
        "lo = None if failures else next(starts, None)",
        "lo = next(starts, None)",
        "faults/test_interrupts.py",
    ),
    Mutant(
        "a call does not wait for its helpers",
        "kernels/threads.py",
        "for busy in helpers:",
        "for busy in ():",
        "faults/test_interrupts.py",
    ),
    Mutant(
        "exp's logarithm of 2 has eight digits",
        "kernels/host_math.py",
        "k * f32(-2.12194440e-4)\n    q =",
        "k * f32(-2.12e-4)\n    q =",
        "backends/test_values.py",
    ),
    Mutant(
        "tanh of -0 is 0",
        "kernels/host_math.py",
        "sign = u32(_bits(x) & u32(0x80000000))",
        "sign = u32(_bits(x) & u32(0))",
        "backends/test_values.py backends/test_cpu.py",
    ),
    Mutant(
        "bfloat16 is rounded half up",
        "kernels/half.py",
        "np.uint64(np.uint32(0x7FFF) + odd)",
        "np.uint64(np.uint32(0x8000) + np.uint32(0) * odd)",
        "backends/test_values.py",
    ),
    # CUDA kernels
    Mutant(
        "a window's last chunk is not counted",
        "kernels/chunks.py",
        "(start % chunk if pitch % chunk == 0 else chunk - 1)",
        "(start % chunk)",
        "backends/test_parts.py",
    ),
    Mutant(
        "a mask of later samples is read at the offset of the draw",
        "kernels/chunks.py",
        "start = seed = call = 0  # start refers to the mask, which was drawn before",
        "pass",
        "backends/test_parts.py",
    ),
    Mutant(
        "gelu of 16-bit results is inaccurate",
        "kernels/device_math.py",
        "u = u * a - 2.28685335",
        "u = u * a - 2.30685335",
        "backends/test_values.py",
    ),
    Mutant(
        "gelu_tanh's slope of 16-bit results is inaccurate",
        "kernels/device_math.py",
        "u = u * a - 2.05354698",
        "u = u * a - 2.07354698",
        "backends/test_values.py",
    ),
    Mutant(
        "quick_gelu's slope of 16-bit results overflows for large x",
        "kernels/device_math.py",
        "s + 1.702 * (s * (x - x * s))",
        "s + s * (1.702 * x - 1.702 * x * s)",
        "backends/test_values.py",
    ),
    Mutant(
        "CuPy reads the other half of a word",
        OPERANDS,
        "word >> 16 * (lane & 1)",
        "word >> 16 * (~lane & 1)",
        "backends/test_masks.py",
    ),
    Mutant(
        "Numba's kernels always load the first half of a word",
        NUMBA_OPERANDS,
        "np.uint32(16 * (i & 1))",
        "np.uint32(0)",
        "backends/test_values.py",
        simulated=True,
    ),
    Mutant(
        "threads of a warp exchange the wrong half",
        "gpudrop/formulas/indexing.py",
        "received = exchanged(low if odd else high, distance)",
        "received = exchanged(high if odd else low, distance)",
        "backends/test_masks.py",
    ),
    Mutant(
        "a mask is repeated once too often",
        "gpudrop/formulas/indexing.py",
        "    if turn >= repeat:\n",
        "    if turn > repeat:\n",
        "family/test_family.py",
    ),
    Mutant(
        "a boundary within a chunk of a mask is missed",
        "gpudrop/formulas/indexing.py",
        "repeat, run)) - ahead",
        "repeat, run))",
        "family/test_family.py",
    ),
    Mutant(
        "all parts of a chunk begin at one column of a row",
        OPERANDS,
        "      column = next_column(column, apart, n.columns);\n",
        "",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "a row's last element is followed by its last one",
        "gpudrop/formulas/indexing.py",
        "later - columns if later >= columns",
        "later - columns if later > columns",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "the columns at the end of a window's row are not skipped",
        MAP,
        "column = next_column(column, to_row, n.columns);",
        "column = next_column(column, 0 * to_row, n.columns);",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "CuPy's wide accesses to rows are not aligned",
        OPERANDS,
        "n.columns % step == 0 && column % step == 0",
        "true",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "a sum starts with the row before it",
        "kernels/cupy_elementwise/sums.cuh",
        "clear_sums(lanes);",
        "if (e == column) clear_sums(lanes);",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "the random values of a row that begins within a chunk are moved too little",
        "kernels/cupy_elementwise/sums.cuh",
        "skip & by ?",
        "skip & by && by > 1 ?",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "rows that are shorter than their distance in the mask are adjacent in it",
        "kernels/cupy_elementwise/sums.cuh",
        "in_window[0] * n.pitch + in_window[1]",
        "in_window[0] * n.row + in_window[1]",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "CuPy does not copy results back to arrays that are not contiguous",
        CUPY,
        "        array[...] = copy\n",
        "        pass\n",
        "backends/test_neighbours.py",
    ),
    Mutant(
        "CuPy ignores a window's pitch",
        MAP,
        "n.start + here[0] * n.pitch",
        "n.start + here[0] * n.row",
        "backends/test_parts.py",
    ),
    Mutant(
        "CuPy uses the same lanes for chunks that share words",
        "kernels/cupy_elementwise/chunk.cuh",
        "chunk.first_lane = static_cast<uint32>(number % shares) * size;",
        "",
        "backends/test_masks.py",
    ),
    Mutant(
        "CuPy's ElementwiseKernels ignore a window's pitch",
        "kernels/cupy_elementwise/elementwise.cuh",
        "start + here[0] * pitch",
        "start + here[0] * row",
        "backends/test_parts.py",
    ),
    Mutant(
        "a product loses its upper half in CUDA C++",
        "gpudrop/formulas/cuda_cpp.py",
        "return static_cast<uint64>(a) * b;",
        "return a * b;",
        "backends/test_masks.py",
    ),
    Mutant(
        "threads exchange words with the wrong neighbour in CUDA C++",
        "kernels/cupy_elementwise/device.cuh",
        "__shfl_xor_sync(0xFFFFFFFFu, value, distance)",
        "__shfl_xor_sync(0xFFFFFFFFu, value, 2 * distance)",
        "backends/test_masks.py",
    ),
    Mutant(
        "the selftest's own kernel has the opposite mask",
        "gpudrop/testing/own_kernels.py",
        "    for i in range(kept.size):\n        kept[i] = keep_at(",
        "    for i in range(kept.size):\n        kept[i] = not keep_at(",
        "unit/test_selftest.py",
    ),
    Mutant(
        "the bits of an incomplete byte are lost at the end of a block",
        "kernels/cpu/bits.py",
        "flags[j] = flags[done + j]",
        "flags[j] = 0",
        "backends/test_bits.py",
    ),
    Mutant(
        "the unused bits of the last byte are 1",
        "kernels/cpu/bits.py",
        "            flags[j] = 0\n",
        "            flags[j] = 1\n",
        "backends/test_bits.py",
    ),
    Mutant(
        "the bits of a block are read from the beginning of a byte on",
        LOOP,
        "given = at(flags[0], first & 7)",
        "given = flags[0]",
        "backends/test_bits.py",
    ),
    Mutant(
        "the last block's bits are not written",
        LOOP,
        "    _pack(kernel, flags, others, first - before, before, True)\n",
        "",
        "backends/test_bits.py",
    ),
    Mutant(
        "results of a kernel with bits are not copied to arrays with gaps",
        CPU,
        "        out[...] = result\n",
        "        pass\n",
        "backends/test_bits.py",
    ),
    Mutant(
        "save='auto' saves bits of arrays that are not contiguous",
        CPU,
        "return array.nbytes >= 1 << 20 and array.flags.c_contiguous",
        "return array.nbytes >= 1 << 20",
        "backends/test_bits.py",
    ),
    Mutant(
        "the saved bits ignore the mask",
        "gpudrop/operations.py",
        "{'r and ' * alone}",
        "",
        "backends/test_bits.py",
    ),
    Mutant(
        "the scale multiplies the residual too",
        "gpudrop/formulas/noises.py",
        "return other + z * scale if r else other",
        "return (other + z) * scale if r else other",
        "family/test_family.py",
    ),
    Mutant(
        "without a mask the residual is lost",
        "gpudrop/plan.py",
        "noise.off or PLAIN",
        "PLAIN",
        "family/test_family.py",
    ),
    Mutant(
        "the gradient of a residual is overwritten",
        "gpudrop/plan.py",
        "dy = operand.give_back(arrays.copied(operand.array))",
        "dy = operand.give_back(operand.array)",
        "family/test_family.py",
    ),
    Mutant(
        "the bias of a CPU kernel is off by one column",
        LOOP,
        "        column = first % columns\n",
        "        column = (first + 1) % columns\n",
        "family/test_neighbours.py",
    ),
    Mutant(
        "a CPU kernel repeats a row from the first block's column",
        LOOP,
        '["if column != before:", *lines]',
        '["if before < 0:", *lines]',
        "family/test_neighbours.py",
    ),
    Mutant(
        "the gain is left out of dx",
        "gpudrop/operations.py",
        "{f' * {factor}' if factor else ''}",
        "",
        "family/test_neighbours.py",
    ),
    Mutant(
        "the partial sums of the last group of rows are lost",
        "gpudrop/plan.py",
        "backends.launch(module, operand, operations.adding(real), (rows,), (sums,), Draw())",
        "backends.launch(module, operand, operations.adding(real), (rows[:-1],), (sums,), Draw())",
        "family/test_neighbours.py",
    ),
    Mutant(
        "partial sums depend on the slices of the threads",
        CPU,
        "lo, hi = -(-lo // unit) * unit, min(-(-hi // unit) * unit, size)",
        "pass",
        "family/test_neighbours.py",
    ),
    Mutant(
        "the terms of the last blocks are not added up",
        LOOP,
        "    _add_up(kernel, terms, others, columns, added, held)\n\n",
        "\n",
        "family/test_neighbours.py",
    ),
    Mutant(
        "blocks of other columns are added up element by element",
        LOOP,
        " and (first - added) % columns == 0",
        "",
        "family/test_neighbours.py",
    ),
    Mutant(
        "gate and value are exchanged",
        "gpudrop/arrays.py",
        "return both if first else both[::-1]",
        "return both[::-1] if first else both",
        "family/test_neighbours.py",
    ),
    Mutant(
        "the gradient of a gain ignores the mask",
        "gpudrop/operations.py",
        'f"apply(r, scale, shift, dy * {_activated(neighbours)}, dy)"',
        'f"scale * dy * {_activated(neighbours)}"',
        "family/test_neighbours.py",
    ),
    Mutant(
        "y has the dtype of x and not that of a wider residual",
        "gpudrop/plan.py",
        "            like, neighbours = second, ",
        "            neighbours = ",
        "family/test_neighbours.py",
    ),
    Mutant(
        "gradients of rows are not rounded to the dtype of the row",
        "gpudrop/plan.py",
        "    if out.size and (empty or out.dtype != sums.dtype):",
        "    if False:",
        "family/test_neighbours.py",
    ),
    Mutant(
        "sums of no rows are not set to zero",
        "gpudrop/plan.py",
        "(arrays.empty if operand.array.size else arrays.zeros)",
        "arrays.empty",
        "family/test_neighbours.py",
    ),
    Mutant(
        "PyTorch's operators exchange gate and value",
        "gpudrop/torch/operators.py",
        'return halves if options_of(call[1])[0].get("gate_first", True) else halves[::-1]',
        'return halves[::-1] if options_of(call[1])[0].get("gate_first", True) else halves',
        "torch/test_transforms.py torch/test_torch.py",
    ),
    Mutant(
        "the slope of relu is read from a y that is too small for its dtype",
        "gpudrop/operations.py",
        "hidden = bool(neighbours.bias) and WIDTHS[neighbours.bias] > WIDTHS[dtype]",
        "hidden = False",
        "family/test_neighbours.py",
    ),
    Mutant(
        "PyTorch's gradient of relu is read from a y that is too small for its dtype",
        "gpudrop/torch/operators.py",
        "hidden = bias is not None and bias.dtype.itemsize > dtype.itemsize",
        "hidden = False",
        "torch/test_torch.py",
    ),
    Mutant(
        "PyTorch's composed results multiply the gradients of dropped elements",
        "gpudrop/torch/operators.py",
        "    z = z.masked_fill(dropped, 0)\n",
        "",
        "torch/test_transforms.py",
    ),
    Mutant(
        "PyTorch's gradient of a dropped element depends on an infinite gain",
        "gpudrop/torch/operators.py",
        "        dx = dx.masked_fill(dropped, 0)  # the gain may be infinite\n",
        "",
        "torch/test_transforms.py",
    ),
    Mutant(
        "PyTorch's second derivatives multiply the slopes of dropped elements",
        "gpudrop/torch/operators.py",
        "    if (variant, options, p) != ALONE:\n",
        "    if False:\n",
        "torch/test_transforms.py",
    ),
    Mutant(
        "PyTorch saves a bias whose value no gradient needs",
        "gpudrop/torch/operators.py",
        "if bias is not None and kept is not x:",
        "if False:",
        "torch/test_torch.py",
    ),
    Mutant(
        "graphs accept a row of any shape",
        "gpudrop/torch/checks.py",
        "of_row[1:] != (layout, shape[-1:], device)",
        "of_row[0] is None",
        "torch/test_compiled.py torch/test_torch.py",
    ),
    Mutant(
        "a second tensor by name replaces one by position",
        "gpudrop/torch/functional.py",
        "            if _second is not None:\n",
        "            if False:\n",
        "torch/test_torch.py",
    ),
    Mutant(
        "PyTorch's second derivatives lose the gain",
        "gpudrop/torch/operators.py",
        "dx = _through(dz * factor, ",
        "dx = _through(dz, ",
        "torch/test_transforms.py torch/test_torch.py",
    ),
    Mutant(
        "PyTorch's gradient of a bias has the dtype of the arithmetic",
        "gpudrop/torch/operators.py",
        "return (gradient.sum(axes) if axes else gradient).to(row.dtype)",
        "return gradient.sum(axes) if axes else gradient",
        "torch/test_transforms.py torch/test_torch.py",
    ),
    Mutant(
        "PyTorch's gradient of a residual is masked",
        "gpudrop/torch/operators.py",
        "return dy if FAMILY[call[0]].noise.second is PLAIN else BACKWARD(dy, None",
        "return BACKWARD(dy, None",
        "torch/test_torch.py",
    ),
    Mutant(
        "a saved bit selects the wrong slope",
        "gpudrop/operations.py",
        '"dy * (one if bit else zero)"',
        '"dy * (zero if bit else one)"',
        "backends/test_bits.py",
    ),
    Mutant(
        "a call with a given mask uses a stream",
        "gpudrop/plan.py",
        "source is not None and not given",
        "source is not None",
        "backends/test_bits.py",
    ),
    Mutant(
        "a given mask is dropped where p is 0",
        "gpudrop/plan.py",
        "    if scalars is None and given:\n        scalars = Scalars()\n    elif",
        "    if",
        "backends/test_bits.py",
    ),
    Mutant(
        "the geometry of a given mask has a buffer too many",
        MASKS,
        "return self.geometry.shapes[not self.packed :]",
        "return self.geometry.shapes",
        "backends/test_bits.py",
    ),
    Mutant(
        "GPU kernels add bits to words that may not be 0",
        "kernels/chunks.py",
        " and size % (WARP * chunk) == 0",
        "",
        "backends/test_bits.py",
    ),
    Mutant(
        "a word has the bits of one thread alone",
        "gpudrop/formulas/indexing.py",
        "joined = uint32(joined | exchanged(",
        "joined = uint32(joined & exchanged(",
        "backends/test_bits.py",
    ),
    Mutant(
        "CuPy's kernels write all words of a chunk to one address",
        OPERANDS,
        "n.marked[(m + g * apart) / 32] = word",
        "n.marked[m / 32] = word",
        "backends/test_bits.py",
    ),
    Mutant(
        "Numba's kernels read all bits of a chunk at one address",
        NUMBA_OPERANDS,
        "bits_of({packed}, m + g * apart)",
        "bits_of({packed}, m)",
        "backends/test_bits.py",
        True,
    ),
    Mutant(
        "Numba's threads write words alone at the ends of an array",
        NUMBA,
        "                whole = together\n",
        "                pass\n",
        "backends/test_bits.py",
        True,
    ),
    Mutant(
        "CuPy's second output is the first one",
        "kernels/cupy_elementwise/source.py",
        'f"all.of[{k}]"',
        '"all.of[0]"',
        "family/test_family.py",
    ),
    Mutant(
        "ElementwiseKernels receive scale and shift in the wrong order",
        CUPY,
        "(scale, shift)),",
        "(shift, scale)),",
        "backends/test_elementwise.py",
    ),
    Mutant(
        "CuPy's blocks are a column too wide",
        "kernels/cupy_elementwise/grow.cuh",
        "max(column - columns + 1, 0LL)",
        "max(column - columns, 0LL)",
        "family/test_family.py",
    ),
    Mutant(
        "Numba ignores a window's pitch",
        NUMBA,
        "origin = start + np.uint64(here[0]) * pitch",
        "origin = start + np.uint64(here[0]) * np.uint64(row)",
        "backends/test_parts.py",
        simulated=True,
    ),
    Mutant(
        "Numba skips the first element of a chunk at an end",
        NUMBA,
        "if inner + j >= 0 and inner + j < row:",
        "if inner + j > 0 and inner + j < row:",
        "backends/test_masks.py",
        simulated=True,
    ),
    Mutant(
        "Numba's blocks are a column too wide",
        NUMBA_LAUNCH,
        "range(max(column - columns + 1, 0)",
        "range(max(column - columns, 0)",
        "family/test_family.py",
        simulated=True,
    ),
    Mutant(
        "a generator on a device does not advance",
        NUMBA_LAUNCH,
        "cuda.atomic.add(state, 1, np.uint64(1))",
        "cuda.atomic.add(state, 1, np.uint64(0))",
        "backends/test_device_generator.py",
        simulated=True,
    ),
    Mutant(
        "Numba reads half of a stream in memory",
        NUMBA_OPERANDS,
        "seed, call = stream[0], stream[1]",
        "seed = stream[0]",
        "backends/test_parts.py",
        simulated=True,
    ),
    Mutant(
        "Numba loads four bytes at a time",
        "kernels/numba_cuda/intrinsics.py",
        "loaded = builder.load(address, align=width)",
        "loaded = builder.load(address, align=4)",
        "backends/test_cuda_compile.py",
    ),
    Mutant(
        "Numba's kernels divide 64-bit integers in their loop",
        NUMBA,
        "in_mask = advance(in_mask, further_in_mask, period, repeat, run)",
        "in_mask = locate((i + threads) * size, period, repeat, run)",
        "backends/test_cuda_compile.py",
    ),
    Mutant(
        "CuPy stores single elements",
        OPERANDS,
        "*reinterpret_cast<Part<output_##k>*>(&n.y##k[m + s * apart]) = lanes.y##k[s];",
        "for (int j = 0; j < step; ++j) n.y##k[m + s * apart + j] = lanes.y##k[s].lane[j];",
        "backends/test_cuda_compile.py",
    ),
    Mutant(
        "Numba loads all parts of a row from the first one's columns",
        NUMBA_OPERANDS,
        'next_part = ["  column = next_column(column, apart, columns)"]',
        'next_part = ["  pass"]',
        "backends/test_neighbours.py",
        simulated=True,
    ),
    Mutant(
        "Numba ignores the columns at the end of a window's row",
        NUMBA,
        "column = next_column(column, to_row, columns)",
        "column = next_column(column, 0 * to_row, columns)",
        "backends/test_neighbours.py",
        simulated=True,
    ),
    Mutant(
        "Numba's wide accesses to rows begin anywhere",
        NUMBA_OPERANDS,
        'f"columns & {step - 1} == 0 and column & {step - 1} == 0"',
        '"True"',
        "backends/test_neighbours.py",
        simulated=True,
    ),
    Mutant(
        "Numba adds the sums of a group to those of the group before",
        NUMBA_SUMS,
        "            clear_sums(results)\n",
        "",
        "backends/test_neighbours.py",
        simulated=True,
    ),
    Mutant(
        "Numba's sums use whole chunks of the mask at any element",
        NUMBA_SUMS,
        "columns % size == 0 and start % chunk == 0",
        "columns % size == 0",
        "backends/test_neighbours.py",
        simulated=True,
    ),
    Mutant(
        "Numba's sums draw one chunk for elements of two",
        NUMBA_SUMS,
        "np.uint64(number + np.uint64(1))",
        "number",
        "backends/test_neighbours.py",
        simulated=True,
    ),
    Mutant(
        "a chunk's elements are in one column",
        "gpudrop/formulas/indexing.py",
        "c = next_column(c, c, columns)",
        "c = next_column(c, int64(0), columns)",
        "backends/test_neighbours.py",
        simulated=True,
    ),
    Mutant(
        "the simulator's threads receive their own words",
        "kernels/numba_cuda/simulator.py",
        "value = _words[me ^ distance]",
        "value = _words[me]",
        "backends/test_masks.py",
        simulated=True,
    ),
    # Formulas, layers, arrays and the command line
    Mutant(
        "a formula's source is found only by its name",
        "gpudrop/formulas/__init__.py",
        "if other == meaning",
        "if node.name == code.co_name",
        "unit/test_sources.py",
    ),
    Mutant(
        "a function that moved within its file is rejected",
        "gpudrop/formulas/__init__.py",
        "== code.co_firstlineno] or found",
        "== code.co_firstlineno]",
        "unit/test_sources.py",
    ),
    Mutant(
        "constants of another type are the same formula",
        "gpudrop/formulas/__init__.py",
        "else (type(c), repr(c)) for c",
        "else c for c",
        "unit/test_sources.py",
    ),
    Mutant(
        "a moved function gets the annotations of any similar function",
        "gpudrop/formulas/__init__.py",
        "if len({ast.unparse(node) for node in here}) != 1:",
        "if not here:",
        "unit/test_sources.py",
    ),
    Mutant(
        "a formula is not read again after its names change",
        "gpudrop/formulas/__init__.py",
        "if formula.digest != _formulas[function].digest:",
        "if False:",
        "unit/test_sources.py",
    ),
    Mutant(
        "a function that is called may have defaults",
        "gpudrop/formulas/__init__.py",
        "if ast.unparse(node.args) != ",
        "if False and ast.unparse(node.args) != ",
        "unit/test_sources.py",
    ),
    Mutant(
        "sources in a zip file are not found",
        "gpudrop/formulas/__init__.py",
        "linecache.getlines(file, namespace)",
        "linecache.getlines(file)",
        "docs/test_package.py",
    ),
    Mutant(
        "a decorated function is replaced by the original",
        "gpudrop/formulas/activations.py",
        "inspect.signature(formula, follow_wrapped=False)",
        "inspect.signature(formula := inspect.unwrap(formula))",
        "unit/test_sources.py",
    ),
    Mutant(
        "a built-in activation can be replaced",
        "gpudrop/formulas/activations.py",
        "if name in BUILT_IN or (name in ACTIVATIONS and not replace):",
        "if name in ACTIVATIONS and not replace:",
        "unit/test_sources.py",
    ),
    Mutant(
        "a built-in activation can be removed",
        "gpudrop/formulas/activations.py",
        "if known in BUILT_IN:",
        "if not known:",
        "unit/test_sources.py",
    ),
    Mutant(
        "a layer is loaded with any activation",
        "gpudrop/layers.py",
        'check_loaded(state.get("activation"))',
        'state.get("activation")',
        "unit/test_sources.py",
    ),
    Mutant(
        "a module of PyTorch is loaded with any activation",
        "gpudrop/torch/modules.py",
        'check_loaded(state.get("activation"))',
        'state.get("activation")',
        "unit/test_sources.py",
    ),
    Mutant(
        "a layer's backward does not remove the call from its list",
        "gpudrop/layers.py",
        "calls.backprops.pop()",
        "pass",
        "family/test_layers.py",
    ),
    Mutant(
        "a layer remembers calls within contexts",
        "gpudrop/layers.py",
        "training and current() is DEFAULT and",
        "True and",
        "family/test_layers.py",
    ),
    Mutant(
        "a layer repeats its warning about skipped calls",
        "gpudrop/layers.py",
        "calls.warned = True",
        "calls.warned = False",
        "family/test_layers.py",
    ),
    Mutant(
        "any attribute of a layer can be set",
        "gpudrop/layers.py",
        "if type(self).__module__ != __name__:  # a user's",
        "if True:  # a user's",
        "family/test_layers.py",
    ),
    Mutant(
        "a set attribute has no effect",
        "gpudrop/layers.py",
        "self._options | {name: value}",
        "{name: value} | self._options",
        "family/test_layers.py",
    ),
    Mutant(
        "a state with another kind of rng is loaded",
        "gpudrop/layers.py",
        "if source != _source(self.rng):",
        "if source not in SOURCES:",
        "faults/test_states.py",
    ),
    Mutant(
        "a state with other options is loaded",
        "gpudrop/layers.py",
        "if saved != value or type(saved) is not type(value):",
        "if False:",
        "faults/test_states.py",
    ),
    Mutant(
        "a state contains tuples",
        "gpudrop/layers.py",
        "list(v) if isinstance(v, tuple) else v",
        "v",
        "faults/test_states.py",
    ),
    Mutant(
        "a state's training is ignored",
        "gpudrop/layers.py",
        "self.step, self.training = step, training",
        "self.step = step",
        "faults/test_states.py",
    ),
    Mutant(
        "keep_at takes the lanes of 16 bits for all",
        "gpudrop/formulas/philox.py",
        "uint64(uint64(4) - uint64(bits >> uint32(4)))",
        "uint64(3)",
        "backends/test_device.py",
    ),
    Mutant(
        "a threshold of 2**32 is 0",
        "gpudrop/formulas/philox.py",
        "return uint64(field(words, lane, bits)) >= threshold",
        "return field(words, lane, bits) >= uint32(threshold)",
        "backends/test_device.py",
    ),
    Mutant(
        "uniform numbers are multiples of 2**-bits",
        "gpudrop/formulas/philox.py",
        "return (float(field(words, lane, bits)) + 0.5) * unit",
        "return float(field(words, lane, bits)) * unit",
        "backends/test_device.py",
    ),
    Mutant(
        "device functions convert a seed to 32 bits",
        "gpudrop/device/__init__.py",
        "return _draw(np.uint64(seed), np.uint64(call), np.uint64(chunk))",
        "return _draw(np.uint64(np.uint32(seed)), np.uint64(call), np.uint64(chunk))",
        "backends/test_device.py",
    ),
    Mutant(
        "device functions are called in kernels, not inlined",
        "gpudrop/device/functions.py",
        '{"inline": "always"}',
        '{"inline": "never"}',
        "backends/test_device.py",
    ),
    Mutant(
        "the header's uniform numbers have 16 bits",
        "gpudrop/device/cuda.py",
        "return uniform_<T>(words, lane, bits);",
        "return uniform_<T>(words, lane, 16);",
        "backends/test_device_cuda.py",
    ),
    Mutant(
        "the header's folder does not depend on the text",
        "gpudrop/device/cuda.py",
        "hashlib.sha256(text.encode())",
        "hashlib.sha256(b'')",
        "backends/test_device_cuda.py",
    ),
    Mutant(
        "a template of C++ is called without its argument",
        "gpudrop/formulas/cuda_cpp.py",
        'f"{name}<real>"\n            self.text',
        "name\n            self.text",
        "backends/test_device_cuda.py",
    ),
    Mutant(
        "words of a Triton chunk are in another order",
        "gpudrop/device/triton.py",
        "tl.join(tl.join(w0, w2), tl.join(w1, w3))",
        "tl.join(tl.join(w0, w1), tl.join(w2, w3))",
        "backends/test_device_triton.py",
    ),
    Mutant(
        "the upper half of a chunk's number is lost in Triton",
        "gpudrop/device/triton.py",
        "tl.cast(chunk >> 32, tl.uint32)",
        "tl.cast(chunk * 0, tl.uint32)",
        "backends/test_device_triton.py",
    ),
    Mutant(
        "a stream's arguments have the scale of p as given",
        "gpudrop/generator.py",
        "np.uint64(rounded.threshold), rounded.scale",
        "np.uint64(rounded.threshold), 1 / (1 - p)",
        "backends/test_device.py",
    ),
    Mutant(
        "streams in memory are equal only if identical",
        "gpudrop/generator.py",
        "return self.numbers() == other.numbers() if",
        "return self is other if",
        "backends/test_device_generator.py",
        simulated=True,
    ),
    Mutant(
        "a subclass of arrays is not restored",
        "gpudrop/arrays.py",
        "if result.ndim != x.ndim:",
        "if True:",
        "unit/test_api.py",
    ),
    Mutant(
        "a scalar is writable",
        "gpudrop/arrays.py",
        "array.flags.writeable = False",
        "array.flags.writeable = True",
        "unit/test_api.py",
    ),
    Mutant(
        "a scalar is returned as an array",
        "gpudrop/arrays.py",
        "return result[()]",
        "return result",
        "unit/test_api.py",
    ),
    Mutant(
        "any text is accepted as a bool",
        "gpudrop/checks.py",
        "value in (0, 1)):",
        "value not in (2,)):",
        "family/test_layers.py",
    ),
    Mutant(
        "an unknown argument is ignored",
        "gpudrop/variants.py",
        "for name in options:",
        "for name in ():",
        "faults/test_arguments.py",
    ),
    Mutant(
        "channels_last accepts any value",
        "gpudrop/variants.py",
        'Option(functools.partial(check_truth, "channels_last"))',
        "Option(bool)",
        "family/test_layers.py",
    ),
    Mutant(
        "a hint suggests a wrong activation",
        "gpudrop/hints.py",
        '"linear": "identity"',
        '"linear": "relu"',
        "unit/test_api.py",
    ),
    Mutant(
        "a hint suggests keep_prob as p",
        "gpudrop/hints.py",
        "{1 - float(value):.7g}",
        "{float(value):.7g}",
        "unit/test_api.py",
    ),
    Mutant("python -m gpudrop does nothing", "gpudrop/__main__.py", "main()", "main", "unit/test_cli.py"),
    Mutant(
        "a write error is detected only as Python exits",
        "gpudrop/cli.py",
        "sys.stdout.flush()  # here",
        "pass  # here",
        "unit/test_cli.py",
    ),
    Mutant(
        "a closed pipe causes no message",
        "gpudrop/cli.py",
        "if isinstance(end.__context__, BrokenPipeError):",
        "if False:",
        "unit/test_cli.py",
    ),
    Mutant(
        "prediction is not warmed up",
        "gpudrop/warming.py",
        "(0, True), (0.5, False))",
        "(0, True))",
        "unit/test_cli.py",
    ),
    Mutant(
        "every variant is warmed up with 16 bits",
        "gpudrop/warming.py",
        '({} if bits is None else {"bits": bits})',
        '{"bits": bits or 16}',
        "unit/test_cli.py",
    ),
]

LEFT_OUT = {
    "gpudrop/__init__.py": "it only imports names",
    "gpudrop/reference.py": "it only imports names",
    "gpudrop/testing/__init__.py": "it has no code",
    "gpudrop/testing/benchmark/__init__.py": "it has no code",
    "gpudrop/version.py": "it only sets the version",
    "kernels/__init__.py": "it has no code",
    "kernels/cupy_elementwise/__init__.py": "it only imports names",
    "kernels/numba_cuda/__init__.py": "it only imports names",
    "gpudrop/_pyinstaller/__init__.py": "only PyInstaller calls it",
    "gpudrop/_pyinstaller/hook-gpudrop.py": "the test that runs PyInstaller is slow",
}
"""Files without a breakage, with the reason."""

CACHES = (".git", ".venv", ".venv-oldest", ".mypy_cache", ".ruff_cache", ".hypothesis", "dist", "*.egg-info")


def copied(folder):
    """A copy of the tree with its compiled kernels. Programs in it import its own files."""
    tree = Path(folder) / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*CACHES))
    # An import of gpudrop.kernels finds this link before the installed package's path to the original tree.
    (tree / "gpudrop" / "kernels").symlink_to("../kernels")
    return tree


@contextmanager
def broken(tree, mutant):
    """The tree with a breakage. Afterwards the file and its time are restored, because caches compare the time."""
    path = tree / mutant.file
    text, times = path.read_text(), path.stat()
    if (count := text.count(mutant.text)) != 1:
        raise ValueError(f"{mutant.name}: the text must occur once in {mutant.file}, got {count} times")
    path.write_text(text.replace(mutant.text, mutant.replacement))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


SIMULATED = [
    "tests/backends",
    "tests/family",
    "tests/docs/test_snippets.py",
    "tests/docs/test_examples.py",
    "tests/unit/test_selftest.py",
]
"""The same list as in the Makefile."""

WHOLE = [([], False), (SIMULATED, True)]
"""The default selection: paths, and whether they run in the simulator."""


LIMIT = 900
"""The time in seconds after which a run counts as hanging. A breakage may make tests hang."""


def failure(tree, paths, simulated):
    """The first test that fails, or None."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": str(int(simulated)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *paths]
    command += ["--ignore", "tests/unit/test_mutants.py"]  # fails for every breakage
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"timed out after {LIMIT} seconds"
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return found[1] if found else f"status {done.returncode}: {(done.stdout + done.stderr)[-500:]}"


def caught_by(tree, mutant):
    """The test that detects a breakage, or None."""
    nearest = [f"tests/{path}" for path in mutant.near.split()], mutant.simulated
    with broken(tree, mutant):
        return next(filter(None, (failure(tree, *run) for run in (nearest, *WHOLE))), None)


def main():
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of breakages; by default all of the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of breakages that run at a time")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if unknown := set(options.names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    trees, began = queue.SimpleQueue(), time.monotonic()

    def in_a_tree(function, *args):
        tree, started = trees.get(), time.monotonic()
        try:
            return function(tree, *args), time.monotonic() - started
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for k in range(options.jobs):
            trees.put(copied(Path(folder) / str(k)))
        for test, _ in pool.map(lambda run: in_a_tree(failure, *run), WHOLE):
            if test is not None:
                sys.exit(f"a test fails on the unchanged tree: {test}")
        waiting, caught = {pool.submit(in_a_tree, caught_by, mutant): mutant for mutant in chosen}, {}
        for future in concurrent.futures.as_completed(waiting):
            mutant, (test, seconds) = waiting[future], future.result()
            caught[mutant] = test
            print(f"{len(caught)}/{len(chosen)} {mutant.name}: {test or 'MISSED'} ({seconds:.0f} s)", flush=True)
    table = Table("breakage", "file", "caught by")
    for mutant in chosen:
        table.add_row(mutant.name, mutant.file, caught[mutant] or "[red]MISSED")
    console, missed = Console(), [mutant for mutant in chosen if caught[mutant] is None]
    console.print(table)
    minutes = (time.monotonic() - began) / 60
    console.print(f"{len(chosen) - len(missed)} of {len(chosen)} breakages caught in {minutes:.0f} minutes")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
