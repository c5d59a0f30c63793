"""The description of one fused operation, from which every backend builds its kernel.

A new operand is a slot and a new result is a slot: what one element goes through is a formula, and no backend knows
activations, noises or directions.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

# The storage and the arithmetic of each dtype: kernels see 16-bit floats as their bits.
STORAGE = {"float16": "uint16", "bfloat16": "uint16", "float32": "float32", "float64": "float64", "bool": "uint8"}
REAL = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64", "bool": "float32"}


class Slot(NamedTuple):
    """An operand of a kernel.

    Attributes
    ----------
    name : str
        What it is to the operation: "x", "dy", "previous".
    layout : {"full", "mask"}
        full: an element for each element of the results. mask: what was drawn before, a `Mask`, which broadcasts.
    """

    name: str
    layout: str = "full"


class Draws(NamedTuple):
    """The random numbers come from Philox, in the kernel.

    Attributes
    ----------
    bits : {8, 16, 32}
        Random bits per element.
    window : bool
        Whether the elements are a window of the mask, in rows that lie apart in it.
    stored : bool
        Whether the stream's numbers are read from the device's memory, as a captured graph needs it.
    """

    bits: int
    window: bool = False
    stored: bool = False


class Reads(NamedTuple):
    """The random numbers were drawn before, and are read from the slot of layout "mask".

    Attributes
    ----------
    counted : bool
        Whether scale is how many elements there are for one of those kept: DropBlock's normalisation.
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


class Kernel(_Fields):  # of which a dataclass would take half a millisecond at each import
    """One fused operation: outputs = formula(drawn, scale, shift, *inputs) for every element.

    Attributes
    ----------
    name : str
        As a profiler shows it.
    inputs, outputs : tuple of Slot
        A slot of layout "mask" is the last input.
    formula : function
        Of `gpudrop.formulas`. It returns a number, or of several outputs a tuple of them.
    drawn : {"keep", "field", "normal", None}
        What formula's first argument is: see `gpudrop.formulas.noises`.
    source : Draws, Reads or None
        Where that comes from; None if nothing is drawn.
    dtype : {"float16", "bfloat16", "float32", "float64", "bool"}
        Of all full slots.
    """

    # Properties are cached, for every launch asks for some.

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    @cached_property
    def num_inputs(self) -> int:
        """How many inputs are full."""
        return sum(slot.layout == "full" for slot in self.inputs)

    @cached_property
    def bits(self) -> int:
        """Random bits that are drawn per element; 0 if none are."""
        return self.source.bits if isinstance(self.source, Draws) else 0

    @cached_property
    def window(self) -> bool:
        return isinstance(self.source, Draws) and self.source.window

    @cached_property
    def stored(self) -> bool:
        return isinstance(self.source, Draws) and self.source.stored

    @cached_property
    def masked(self) -> bool:
        """Whether what was drawn before is read."""
        return isinstance(self.source, Reads)

    @cached_property
    def counted(self) -> bool:
        return isinstance(self.source, Reads) and self.source.counted

    @cached_property
    def keeps(self) -> bool:
        """Whether what is drawn is a truth value; otherwise it is a real number."""
        return self.drawn in ("keep", None)

    @cached_property
    def storage(self) -> str:
        """The name of the NumPy dtype in which kernels see the elements."""
        return STORAGE[self.dtype]

    @cached_property
    def stored_dtype(self) -> Any:
        """The same as a NumPy dtype."""
        return np.dtype(self.storage)

    @cached_property
    def real(self) -> str:
        """The name of the NumPy dtype of the arithmetic."""
        return REAL[self.dtype]

    @cached_property
    def mask_dtype(self) -> str:
        """The dtype of an array of what is drawn."""
        return "bool" if self.keeps else self.real

    @cached_property
    def approximate(self) -> bool:
        """Whether results are rounded to 16 bits, which hides an error of some units in the last place of a float32."""
        return self.dtype in ("float16", "bfloat16")


class Draw(NamedTuple):
    """What varies from call to call without another kernel.

    Attributes
    ----------
    seed, call : int
        The stream. For a kernel with a stored one, seed is an array of both, unsigned 64-bit integers.
    start : int
        The index of the first element in the mask's own shape.
    limit : int
        The largest field that drops its element, threshold - 1: unlike the threshold it always fits a
        field. A threshold of 0 draws nothing and never gets here.
    scale, shift : float
        The noise's own numbers: what kept elements are multiplied by, say.
    row, pitch : int
        For a window: how many elements follow one another in the mask, and how far apart in it these rows begin.
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
    """What was drawn before, and where the elements find it.

    Element i reads array[i // (run * period * repeat) * period + i // run % period]: from the right, `run`
    elements share a number, `period` of these follow one another, and come `repeat` times before the next ones.

    Attributes
    ----------
    array : array
        One-dimensional, contiguous, of the kernel's `mask_dtype`.
    period, repeat, run : int
    kept : array, optional
        One unsigned 64-bit integer: how many elements of array are kept, for a kernel that has `counted`.
    """

    array: Any
    period: int = 1
    repeat: int = 1
    run: int = 1
    kept: Any = None
