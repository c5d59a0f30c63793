"""Dropout in Triton as its tutorials write it: only the seed is saved, and tl.rand draws the mask."""

import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def normal_cdf(x):
    return 0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    elif ACTIVATION == "gelu":
        x = x * normal_cdf(x)
    elif ACTIVATION == "silu":
        x = x / (1 + tl.exp(-x))
    return x


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        x = tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        x = normal_cdf(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "silu":
        s = 1 / (1 + tl.exp(-x))
        x = s * (1 + x * (1 - s))
    return x


@triton.jit
def widened(x):
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x


@triton.jit
def forward_kernel(x_ptr, y_ptr, n, p, seed, SCALE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = widened(tl.load(x_ptr + offsets, mask=inside))
    keep = tl.rand(seed, offsets) >= p
    tl.store(y_ptr + offsets, tl.where(keep, activate(x, ACTIVATION) * SCALE, 0.0), mask=inside)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, dx_ptr, n, p, seed, SCALE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    dx = widened(tl.load(dy_ptr + offsets, mask=inside)) * SCALE
    if ACTIVATION != "identity":
        dx = dx * slope(widened(tl.load(x_ptr + offsets, mask=inside)), ACTIVATION)
    keep = tl.rand(seed, offsets) >= p
    tl.store(dx_ptr + offsets, tl.where(keep, dx, 0.0), mask=inside)


def forward(x, y, p, seed, activation):
    grid = (triton.cdiv(x.numel(), BLOCK),)
    forward_kernel[grid](x, y, x.numel(), p, seed, 1 / (1 - p), activation, BLOCK)


def backward(dy, x, dx, p, seed, activation):
    grid = (triton.cdiv(x.numel(), BLOCK),)
    backward_kernel[grid](dy, x, dx, x.numel(), p, seed, 1 / (1 - p), activation, BLOCK)
