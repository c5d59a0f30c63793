"""What is measured: cases, as data."""

from dataclasses import dataclass, replace

import numpy as np
from ml_dtypes import bfloat16

from gpudrop.formulas.activations import find_activation
from gpudrop.variants import FAMILY

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": bfloat16}
LARGE = 2**26  # elements: beyond the last-level cache of all but the largest processors
SIZES = tuple(10**k for k in range(2, 9))
SMOOTH = ("gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
GPU_SIZES = tuple(2**k for k in range(14, 31, 2))
GPU_LARGE = (LARGE, 4 * LARGE)  # elements
GPU_ACTIVATIONS = ("identity", "relu", "gelu", "silu")


@dataclass(frozen=True)
class Case:
    """One row of a table: what every contender computes.

    Attributes
    ----------
    section : str
        The table it belongs to, and with it who takes part: see `contenders.of`.
    activation, dtype : str
    size : int
        Elements of x.
    backward : bool
        Whether the gradient is taken back as well.
    threads : int
    p : float
        The probability of dropping.
    variant : str, optional
        The variant's name, for the cases of `bench.family`.
    forward : bool, optional
        Whether y is computed; False, with backward, is the backward pass alone.
    """

    section: str
    activation: str = "relu"
    dtype: str = "float32"
    size: int = LARGE
    backward: bool = False
    threads: int = 1
    p: float = 0.1
    variant: str | None = None
    forward: bool = True

    @property
    def two_inputs(self):
        """Whether the forward pass reads an array beside x, and the backward pass writes one beside dx."""
        return self.variant is not None and len(FAMILY[self.variant].inputs) > 1

    @property
    def reads_saved(self):
        """Whether the backward pass reads (or for two inputs writes) an array beside dy and dx."""
        return self.two_inputs or find_activation(self.activation).slope_of is not None

    @property
    def bytes(self):
        """Bytes that must move between the arrays and the processor: x, y; dy, what is saved, dx."""
        arrays = self.forward * (2 + self.two_inputs) + self.backward * (2 + self.reads_saved)
        return arrays * self.array_bytes

    @property
    def array_bytes(self):
        return self.size * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def passes(self):
        """The forward pass alone, and the backward pass alone."""
        return replace(self, forward=True, backward=False), replace(self, forward=False, backward=True)


def cpu_cases(threads, quick):
    """The cases of a run on the host with so many threads at most."""
    directions = (False, True)
    if quick:
        sizes = [Case("sizes", size=size, backward=b, threads=threads) for b in directions for size in (10**3, 10**5)]
        sizes += [Case("sizes", size=10**7, threads=threads)]
        kinds = [("relu", "float32"), ("relu", "bfloat16"), ("identity", "float32"), ("gelu", "float32")]
        alone = [Case("one thread", size=10**7)]
    else:
        sizes = [Case("sizes", size=size, backward=b, threads=threads) for b in directions for size in SIZES]
        kinds = [(name, dtype) for name in ("identity", "relu") for dtype in DTYPES]
        kinds += [(name, "float32") for name in SMOOTH]
        alone = [Case("one thread", size=size, backward=b) for b in directions for size in SIZES]
    kinds = [Case("kinds", name, dtype, backward=b, threads=threads) for name, dtype in kinds for b in directions]
    return sizes + kinds + alone


def gpu_cases(quick):
    """The cases of a run on a GPU, of which each pass is measured by itself."""
    sizes, large = ((2**14, 2**20, LARGE), (LARGE,)) if quick else (GPU_SIZES, GPU_LARGE)
    kinds = [(name, dtype) for dtype in DTYPES for name in GPU_ACTIVATIONS if (name, dtype) != ("relu", "float32")]
    if quick:
        kinds = [("identity", "float32"), ("relu", "bfloat16"), ("gelu", "float16"), ("silu", "bfloat16")]
    return [
        Case("launch", size=1000, backward=True),
        *(Case("sizes", size=size, backward=True) for size in sizes),
        *(Case("kinds", name, dtype, size, backward=True) for name, dtype in kinds for size in large),
    ]
