"""The description of one fused operation, from which every backend builds its kernel.

A new operand is a new slot, and so is a new result. A formula defines the computation of one element. No backend
depends on a particular activation, noise or direction.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

# The dtypes in which elements are stored and computed. Kernels see 16-bit floats as their bits.
STORAGE = {"float16": "uint16", "bfloat16": "uint16", "float32": "float32", "float64": "float64", "bool": "uint8"}
WIDTHS = {dtype: np.dtype(storage).itemsize for dtype, storage in STORAGE.items()}
REAL = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64", "bool": "float32"}


class Slot(NamedTuple):
    """An operand of a kernel.

    Attributes
    ----------
    name : str
        The operand's role in the operation: "x", "dy" or "previous", for example.
    layout : {"full", "row", "bits", "mask", "sums"}
        full: one element for each element of the others.

        row: one element for each element of their last axis, in a contiguous array. It is an input.

        bits: one bit for each element, in a contiguous array of bytes. Bit e % 8 of byte e // 8 belongs to element e
        in C order, and unused bits of that byte are 0. This is the order of numpy.packbits(..., bitorder="little"). An
        output of bits has whole words of 32 bits.

        mask: a `Mask`, which was drawn before and is broadcast.

        sums: an output of partial sums, in the dtype of the arithmetic. It is contiguous, of shape (groups, columns),
        where columns is the size of the others' last axis. Group g has the rows from g * ROWS on, and fewer than ROWS
        if it is the last one. ROWS is a constant of the backend. The sum of a group and a column is the sum of the
        formula's results for its elements, before they are rounded. Equal calls have equal sums.
    dtype : str
        The dtype, if it is not that of the kernel. Empty for bits, masks and sums.
    """

    name: str
    layout: str = "full"
    dtype: str = ""


class Draws(NamedTuple):
    """Random values that the kernel draws with Philox.

    Attributes
    ----------
    bits : {8, 16, 32}
        Random bits per element.
    window : bool
        Whether the elements are a window of the mask, so that their rows are not contiguous in it.
    stored : bool
        Whether the kernel reads the stream's seed and call from GPU memory, as a captured CUDA graph requires.
    """

    bits: int
    window: bool = False
    stored: bool = False


class Reads(NamedTuple):
    """Random values that were drawn before. The kernel reads them from the slot of layout "mask".

    Attributes
    ----------
    counted : bool
        Whether scale is the number of elements divided by the number of kept ones: DropBlock's normalisation.
    """

    counted: bool = False


class _Fields(NamedTuple):
    name: str
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    formula: Callable[..., Any]
    drawn: str | None
    source: Draws | Reads | None
    dtype: str


class Kernel(_Fields):  # not a dataclass, which would add half a millisecond to each import
    """One fused operation: outputs = formula(drawn, scale, shift, *inputs) for every element.

    Attributes
    ----------
    name : str
        The name that a profiler shows.
    inputs, outputs : tuple of Slot
        Full slots come first, then rows, then at most one slot of layout "bits". A slot of layout "mask" is always the
        last input. Outputs are full first, then either one slot of layout "bits" or slots of layout "sums".
    formula : function
        See `gpudrop.formulas`. It returns a number, or a tuple of numbers if there are several outputs. It takes a bit
        as a boolean. An output bit is 1 if its number is not 0.
    drawn : {"keep", "field", "normal", None}
        The kind of the random value, which is formula's first argument: see `gpudrop.formulas.noises`.
    source : Draws, Reads or None
        Where the random values come from; None if nothing is random.
    dtype : {"float16", "bfloat16", "float32", "float64", "bool"}
        The dtype of all slots without a dtype of their own: the widest dtype of all full slots. It also selects the
        dtype of the arithmetic.
    """

    # Properties are cached, because every launch reads some.

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    @cached_property
    def num_inputs(self) -> int:
        """The number of inputs of layout "full"."""
        return sum(slot.layout == "full" for slot in self.inputs)

    @cached_property
    def num_outputs(self) -> int:
        """The number of outputs of layout "full"."""
        return sum(slot.layout == "full" for slot in self.outputs)

    @cached_property
    def num_rows(self) -> int:
        """The number of inputs of layout "row"."""
        return sum(slot.layout == "row" for slot in self.inputs)

    @cached_property
    def num_sums(self) -> int:
        """The number of outputs of layout "sums"."""
        return sum(slot.layout == "sums" for slot in self.outputs)

    @cached_property
    def by_columns(self) -> bool:
        """Whether operands have an element or a sum for each column."""
        return self.num_rows + self.num_sums > 0

    @cached_property
    def mixed(self) -> bool:
        """Whether full slots have several dtypes."""
        return any(slot.dtype and slot.layout == "full" for slot in (*self.inputs, *self.outputs))

    @cached_property
    def dtypes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The dtypes of the full and row inputs, and of the full outputs."""
        inputs, outputs = self.inputs[: self.num_inputs + self.num_rows], self.outputs[: self.num_outputs]
        return tuple(slot.dtype or self.dtype for slot in inputs), tuple(slot.dtype or self.dtype for slot in outputs)

    @cached_property
    def storages(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The NumPy dtypes in which kernels see the operands of `dtypes`."""
        inputs, outputs = self.dtypes
        return tuple(STORAGE[dtype] for dtype in inputs), tuple(STORAGE[dtype] for dtype in outputs)

    @cached_property
    def reads_bits(self) -> bool:
        """Whether an input has one bit per element."""
        return any(slot.layout == "bits" for slot in self.inputs)

    @cached_property
    def writes_bits(self) -> bool:
        """Whether an output has one bit per element."""
        return any(slot.layout == "bits" for slot in self.outputs)

    @cached_property
    def bits(self) -> int:
        """Random bits that are drawn per element; 0 if nothing is drawn."""
        return self.source.bits if isinstance(self.source, Draws) else 0

    @cached_property
    def window(self) -> bool:
        return isinstance(self.source, Draws) and self.source.window

    @cached_property
    def stored(self) -> bool:
        return isinstance(self.source, Draws) and self.source.stored

    @cached_property
    def masked(self) -> bool:
        """Whether the kernel reads a mask that was drawn before."""
        return isinstance(self.source, Reads)

    @cached_property
    def counted(self) -> bool:
        return isinstance(self.source, Reads) and self.source.counted

    @cached_property
    def keeps(self) -> bool:
        """Whether the random value is a boolean; otherwise it is a real number."""
        return self.drawn in ("keep", None)

    @cached_property
    def storage(self) -> str:
        """The name of the NumPy dtype in which kernels see the elements."""
        return STORAGE[self.dtype]

    @cached_property
    def stored_dtypes(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """`storages` as NumPy dtypes."""
        inputs, outputs = self.storages
        return tuple(map(np.dtype, inputs)), tuple(map(np.dtype, outputs))

    @cached_property
    def real(self) -> str:
        """The name of the NumPy dtype of the arithmetic."""
        return REAL[self.dtype]

    @cached_property
    def mask_dtype(self) -> str:
        """The dtype of an array of random values."""
        return "bool" if self.keeps else self.real

    @cached_property
    def approximate(self) -> bool:
        """Whether all results are rounded to 16 bits, which hides a small error of a float32. Sums are not rounded."""
        return self.dtype in ("float16", "bfloat16") and not self.num_sums


class Draw(NamedTuple):
    """The arguments that vary between calls of one kernel.

    Attributes
    ----------
    seed, call : int
        The stream. If the kernel reads a stored stream, seed is an array of both, as unsigned 64-bit integers.
    start : int
        The index of the first element in the mask's own shape.
    limit : int
        The largest field that drops its element: threshold - 1. Unlike the threshold, it always fits in a
        field. With a threshold of 0 nothing is drawn, and limit is not used.
    scale, shift : float
        The scalars of the noise. For dropout, scale is the factor of kept elements.
    row, pitch : int
        For a window: the number of elements per row, and the distance in the mask between the starts of two rows. A row
        of the window consists of whole rows of the arrays.
    """

    seed: Any = 0
    call: int = 0
    start: int = 0
    limit: int = 0
    scale: float = 1.0
    shift: float = 0.0
    row: int = 0
    pitch: int = 0


class Mask(NamedTuple):
    """Random values that were drawn before, and the rule that assigns them to elements.

    Element i reads array[i // (run * period * repeat) * period + i // run % period]. `run` consecutive elements share
    one value. `period` consecutive values are used `repeat` times before the next ones.

    Attributes
    ----------
    array : array
        One-dimensional, contiguous, of the kernel's `mask_dtype`.
    period, repeat, run : int
    kept : array, optional
        One unsigned 64-bit integer: the number of kept elements of array. Only kernels with `counted` read it.
    """

    array: Any
    period: int = 1
    repeat: int = 1
    run: int = 1
    kept: Any = None
