"""The contract in plain integers and float64: independent of the package, written to be read and not to be fast."""

from fractions import Fraction
from math import floor, pi, sqrt
from pathlib import Path

import numpy as np
from scipy.special import expit, ndtr

LOW = 0xFFFFFFFF
SELU, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def philox4x32(counter, key, rounds=10):
    """The four output words. Salmon et al., SC11. A word is a Python integer or an array of uint64 below 2**32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & LOW, (a >> 32) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def words(seed, call, chunk):
    return philox4x32((chunk & LOW, chunk >> 32, call & LOW, call >> 32), (seed & LOW, seed >> 32))


def field(seed, call, m, bits):
    """Element m's random integer: field m % lanes of a 128-bit little-endian integer."""
    chunk, lane = divmod(m, 128 // bits)
    block = sum(word << (32 * i) for i, word in enumerate(words(seed, call, chunk)))
    return block >> (bits * lane) & (2**bits - 1)


def fields(seed, call, start, size, bits):
    """field() for the elements start, ..., start + size - 1, vectorised."""
    lanes = 128 // bits
    first, stop = start // lanes, -(-(start + size) // lanes)
    block = words(seed, call, np.arange(stop - first, dtype=np.uint64) + np.uint64(first))
    return np.stack(block, axis=-1).astype("<u4").view(f"<u{bits // 8}").ravel()[start % lanes :][:size]


def quantize(p, bits):
    """(threshold, scale, effective p), exact but for the last rounding to float."""
    threshold = floor(Fraction(p) * 2**bits + Fraction(1, 2))
    kept = 2**bits - threshold
    return threshold, float(Fraction(2**bits, kept)) if kept else 0.0, float(Fraction(threshold, 2**bits))


def keep(seed, call, m, bits, p):
    return field(seed, call, m, bits) >= quantize(p, bits)[0]


def keep_mask(shape, p, seed, call, bits=16, start=0):
    return fields(seed, call, start, int(np.prod(shape)), bits).reshape(shape) >= quantize(p, bits)[0]


def dropout(x, p, activation="identity", seed=0, call=0, bits=16):
    y = ACTIVATIONS[activation][0](np.asarray(x, np.float64)) * quantize(p, bits)[1]
    return np.where(keep_mask(y.shape, p, seed, call, bits), y, 0.0)


def dropout_backward(x, dy, p, activation="identity", seed=0, call=0, bits=16):
    slope = ACTIVATIONS[activation][1](np.asarray(x, np.float64))
    dx = np.asarray(dy, np.float64) * quantize(p, bits)[1] * slope
    return np.where(keep_mask(dx.shape, p, seed, call, bits), dx, 0.0)


def known_answers():  # [(rounds, counter, key, expected), ...]
    lines = Path(__file__).with_name("philox4x32.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.startswith("philox4x32 ")]
    words = [(int(row[1]), tuple(int(word, 16) for word in row[2:])) for row in rows]
    return [(rounds, w[:4], w[4:6], w[6:]) for rounds, w in words]


def gated(gate, slope):
    """The pair of x * gate(x), for gates from 0 to 1. The clips give infinite x the limits, where inf * 0 is nan."""
    near = [-1e4, 1e4]
    return lambda x: np.maximum(x, -1e4) * gate(x), lambda x: gate(x) + np.clip(x, *near) * slope(np.clip(x, *near))


def sigmoid_gated(t, dt):
    """The pair of x * sigmoid(t(x)); 1 - sigmoid(t) is sigmoid(-t), which cancels nothing."""
    return gated(lambda x: expit(t(x)), lambda x: dt(x) * expit(t(x)) * expit(-t(x)))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def tanh_slope(x):
    return 4 * expit(2 * x) * expit(-2 * x)


# At a kink a slope is that of the left side, but 1 at hardswish's 3; the slope at nan is nobody's promise.
ACTIVATIONS = {
    "identity": (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1.0, 0.01)),
    "relu2": (lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda x: np.exp(np.minimum(x, 0))),
    "selu": (
        lambda x: SELU * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
        lambda x: SELU * np.where(x > 0, 1, ALPHA * np.exp(np.minimum(x, 0))),
    ),
    "gelu": gated(ndtr, lambda x: np.exp(-x * x / 2) / sqrt(2 * pi)),
    "gelu_tanh": sigmoid_gated(  # (1 + tanh(t)) / 2 = sigmoid(2 * t)
        lambda x: sqrt(8 / pi) * x * (1 + 0.044715 * np.minimum(abs(x), 1e4) ** 2),
        lambda x: sqrt(8 / pi) * (1 + 3 * 0.044715 * x * x),
    ),
    "quick_gelu": sigmoid_gated(lambda x: 1.702 * x, lambda x: 1.702),
    "silu": sigmoid_gated(lambda x: x, lambda x: 1.0),
    "mish": gated(lambda x: np.tanh(softplus(x)), lambda x: tanh_slope(softplus(x)) * expit(x)),
    "softplus": (softplus, expit),
    "sigmoid": (expit, lambda x: expit(x) * expit(-x)),
    "tanh": (np.tanh, tanh_slope),
    "hardswish": gated(lambda x: np.clip(x + 3, 0, 6) / 6, lambda x: np.where(abs(x) < 3, 1 / 6, 0.0)),
}
