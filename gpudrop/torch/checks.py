"""The dtypes, layouts, shapes and devices of the tensors of a call, and errors about them in PyTorch's terms."""

from __future__ import annotations

from typing import Any

import torch

from gpudrop.arrays import DTYPES as NAMES
from gpudrop.formulas import noises
from gpudrop.kernels.spec import REAL, WIDTHS
from gpudrop.variants import FAMILY

Likeness = tuple[Any, ...]
"""A tensor's dtype, layout, shape and device."""

DTYPES = tuple(getattr(torch, name) for name in NAMES)


def likeness_of(tensor: torch.Tensor | None) -> Any:
    """The Likeness of a tensor, or None."""
    return None if tensor is None else (tensor.dtype, tensor.layout, tensor.shape, tensor.device)


def name_of_dtype(dtype: torch.dtype) -> str:
    return NAMES[DTYPES.index(dtype)]


def described(likeness: Likeness) -> str:
    dtype, layout, shape, device = likeness
    return f"{dtype} and {tuple(shape)}" + f", {layout}" * (layout is not torch.strided) + f" on {device}"


def check_tensors(name: str, x: Likeness, other: Likeness | None, bias: Likeness | None, gain: Likeness | None) -> None:
    """Raise a TypeError or a ValueError if a variant's kernels do not support such tensors."""
    dtype, layout, shape, device = x
    if dtype not in DTYPES or layout is not torch.strided:
        advice = "; convert it with input.float()" if layout is torch.strided and not dtype.is_complex else ""
        raise TypeError(f"input must be a strided tensor of dtype {', '.join(NAMES)}, got {dtype} and {layout}{advice}")
    wide, row = dtype, FAMILY[name]
    if row.is_product and other is None and (not shape or shape[-1] % 2):
        what = f"input without {row.inputs[1]}"
        raise ValueError(f"{what} must have an even number of elements along its last axis, got {tuple(shape)}")
    if other is not None and other != x:
        second, adds = row.inputs[1], row.noise.second is noises.PLAIN
        wide, *rest = other
        wider = wide in DTYPES and WIDTHS[name_of_dtype(wide)] > WIDTHS[name_of_dtype(dtype)]
        if not (adds and rest == [layout, shape, device] and wider):
            what = "the shape of input, and its dtype or a wider one" if adds else "the dtype and shape of input"
            raise ValueError(f"{second} must have {what}, {described(x)}, got {described(other)}")
    real = getattr(torch, REAL[name_of_dtype(wide)])
    for each, of_row in (("bias", bias), ("gain", gain)):
        if of_row is not None and not shape:
            raise ValueError(f"input must have an axis for {each}, got shape ()")
        if of_row is not None and (of_row[0] not in (dtype, real) or of_row[1:] != (layout, shape[-1:], device)):
            dtypes = " or ".join(sorted({str(dtype), str(real)}))
            raise ValueError(
                f"{each} must have a value for each element of the last axis of input: dtype {dtypes} and shape "
                f"{tuple(shape[-1:])} for an input with {described(x)}, got {described(of_row)}"
            )
