"""gpudrop: dropout with one mask everywhere, drawn by Philox inside fused kernels."""

from gpudrop.activations import register_activation
from gpudrop.dropout import dropout, dropout_vjp, keep_mask, no_dropout
from gpudrop.generator import Generator, Stream, manual_seed
from gpudrop.layers import Dropout
from gpudrop.random_bits import Quantized, quantize

__all__ = [
    "Dropout",
    "Generator",
    "Quantized",
    "Stream",
    "dropout",
    "dropout_vjp",
    "keep_mask",
    "manual_seed",
    "no_dropout",
    "quantize",
    "register_activation",
]
