"""The reference: the contract in plain integers and float64, independent of the package, readable but slow."""

from fractions import Fraction
from importlib import resources
from math import cos, expm1, floor, pi, prod, sqrt

import numpy as np
from scipy.special import expit, ndtr

LOW = 0xFFFFFFFF
SELU, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def philox4x32(counter, key, rounds=10):
    """Return the four output words. Salmon et al., SC11. A word is a Python integer or a uint64 array below 2**32."""
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
    """Return the random integer of element m: field m % lanes of a 128-bit little-endian integer."""
    chunk, lane = divmod(m, 128 // bits)
    block = sum(word << (32 * i) for i, word in enumerate(words(seed, call, chunk)))
    return block >> (bits * lane) & (2**bits - 1)


def fields(seed, call, start, size, bits):
    """Return field() for the elements start, ..., start + size - 1, vectorised."""
    lanes = 128 // bits
    first, stop = start // lanes, -(-(start + size) // lanes)
    block = words(seed, call, np.arange(stop - first, dtype=np.uint64) + np.uint64(first))
    return np.stack(block, axis=-1).astype("<u4").view(f"<u{bits // 8}").ravel()[start % lanes :][:size]


def quantize(p, bits):
    """Return (threshold, scale, effective p), exact except for the final rounding to float."""
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
    lines = resources.files("gpudrop.testing").joinpath("philox4x32.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.startswith("philox4x32 ")]
    words = [(int(row[1]), tuple(int(word, 16) for word in row[2:])) for row in rows]
    return [(rounds, w[:4], w[4:6], w[6:]) for rounds, w in words]


def gated(gate, slope):
    """Return value and slope of x * gate(x), for gates from 0 to 1. Clipping avoids inf * 0 = nan for infinite x."""
    near = -1e4, 1e4
    return lambda x: np.maximum(x, -1e4) * gate(x), lambda x: gate(x) + np.clip(x, *near) * slope(np.clip(x, *near))


def sigmoid_gated(t, dt):
    """Return value and slope of x * sigmoid(t(x)); 1 - sigmoid(t) is computed as sigmoid(-t), without cancellation."""
    return gated(lambda x: expit(t(x)), lambda x: dt(x) * expit(t(x)) * expit(-t(x)))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def tanh_slope(x):
    return 4 * expit(2 * x) * expit(-2 * x)


# At a kink the slope is the left derivative, except hardswish at 3, where it is 1. The slope at nan is undefined.
ACTIVATIONS = {
    "identity": (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda x: np.where(x <= 0, 0.0, 1.0)),
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


# The dropout variants. Each returns (y, backprop), and backprop(dy) is the gradient with respect to x.


def activated(x, activation):
    """Return (z, slope): the value and the derivative of the activation, in float64."""
    value, slope = ACTIVATIONS[activation]
    x = np.asarray(x, np.float64)
    return value(x), slope(x)


def masked(x, kept, scale, activation):
    """Return scale * z where kept, and 0 elsewhere. Select first, because inf * 0 would be nan."""
    z, slope = activated(x, activation)

    def backprop(dy):
        return scale * np.where(kept, np.asarray(dy, np.float64) * slope, 0.0)

    return scale * np.where(kept, z, 0.0), backprop


def kept_of(shape, p, mask_shape, seed, call, bits):
    """Return the mask of an array of this shape. mask_shape is broadcast against it from the right.

    None in mask_shape means the size of the array along that axis."""
    ends = shape[len(shape) - len(mask_shape) :]
    mask_shape = [own if size is None else size for size, own in zip(mask_shape, ends, strict=True)]
    return np.broadcast_to(keep_mask(mask_shape, p, seed, call, bits), shape)


def structured(x, p, mask_shape, seed=0, call=0, bits=16, activation="identity"):
    """Inverted dropout (Srivastava et al., JMLR 2014, section 10) with one decision per element of the mask."""
    return masked(x, kept_of(np.shape(x), p, mask_shape, seed, call, bits), quantize(p, bits)[1], activation)


def dropout_channels(spatial, x, p, channels_last, **options):
    """SpatialDropout: one decision per feature map. Any axes before the channels count samples.

    Tompson et al., Efficient object localization using convolutional networks, CVPR 2015, section 3.2."""
    samples = np.ndim(x) - spatial - 1
    own, shared = (None,), (1,)
    channels = shared * spatial + own if channels_last else own + shared * spatial
    return structured(x, p, own * samples + channels, **options)


def dropout1d(x, p, seed=0, call=0, bits=16, activation="identity", channels_last=False):
    """Whole channels of (N, C, L) or (C, L). Tompson et al., CVPR 2015."""
    return dropout_channels(1, x, p, channels_last, seed=seed, call=call, bits=bits, activation=activation)


def dropout2d(x, p, seed=0, call=0, bits=16, activation="identity", channels_last=False):
    """Whole channels of (N, C, H, W) or (C, H, W). Tompson et al., CVPR 2015."""
    return dropout_channels(2, x, p, channels_last, seed=seed, call=call, bits=bits, activation=activation)


def dropout3d(x, p, seed=0, call=0, bits=16, activation="identity", channels_last=False):
    """Whole channels of (N, C, D, H, W) or (C, D, H, W). Tompson et al., CVPR 2015."""
    return dropout_channels(3, x, p, channels_last, seed=seed, call=call, bits=bits, activation=activation)


def drop_path(x, p, seed=0, call=0, bits=16, activation="identity"):
    """One decision per sample. Huang et al., Deep networks with stochastic depth, ECCV 2016.

    The paper multiplies by the survival probability at prediction. This divides by it in training, as timm does."""
    return structured(x, p, (None,) + (1,) * (np.ndim(x) - 1), seed, call, bits, activation)


def locked_dropout(x, p, seed=0, call=0, bits=16, activation="identity", time_axis=0):
    """One mask for all time steps: "variational" dropout.

    Gal and Ghahramani, A theoretically grounded application of dropout in recurrent neural networks, NIPS 2016;
    Merity et al., Regularizing and optimizing LSTM language models, ICLR 2018 (AWD-LSTM)."""
    mask_shape: list[int | None] = [None] * np.ndim(x)
    mask_shape[time_axis] = 1
    return structured(x, p, tuple(mask_shape), seed, call, bits, activation)


def embedding_dropout(x, p, seed=0, call=0, bits=16, activation="identity"):
    """Whole rows of a 2-D table, so that a word is dropped at every occurrence. Gal and Ghahramani, NIPS 2016."""
    return structured(x, p, (None, 1), seed, call, bits, activation)


def token_dropout(x, p, seed=0, call=0, bits=16, activation="identity"):
    """Word dropout: whole tokens of (..., T, F), with one decision per occurrence.

    Iyyer et al., Deep unordered composition rivals syntactic methods for text classification, ACL 2015. The paper
    averages the remaining tokens. This uses the scale of inverted dropout instead."""
    return structured(x, p, (None,) * (np.ndim(x) - 1) + (1,), seed, call, bits, activation)


def consistent_dropout(x, p, seed=0, call=0, bits=16, activation="identity"):
    """One mask for all samples, which are on axis 0."""
    return structured(x, p, (1,) + (None,) * (np.ndim(x) - 1), seed, call, bits, activation)


def drop_connect(w, p, seed=0, call=0, bits=16, activation="identity", samples=None):
    """One mask on weights, or one mask per sample; then y and the result of backprop have an axis of samples.

    Wan et al., Regularization of neural networks using DropConnect, ICML 2013. The paper doesn't scale in training.
    This uses the scale of inverted dropout."""
    shape = np.shape(w) if samples is None else (samples, *np.shape(w))
    return masked(w, keep_mask(shape, p, seed, call, bits), quantize(p, bits)[1], activation)


def dropblock_sizes(size, p, block_size):
    """Return (block, seeds, gamma): block size and number of positions per axis, and gamma of equation 1, exact."""
    block = [min(block_size, n) for n in size]
    seeds = [n - b + 1 for n, b in zip(size, block, strict=True)]
    gamma = Fraction(p) / prod(block) * prod(size) / prod(seeds) if all(size) else Fraction(0)
    return block, seeds, gamma


def dropblock(spatial, x, p, block_size, seed, call, bits, activation):
    """Algorithm 1 of Ghiasi, Lin and Le, DropBlock: a regularization method for convolutional networks, NeurIPS 2018.

    The paper identifies a block by its centre, and this by its first corner, because an even block_size has no centre.
    The blocks are the same. The scale is computed from the mask that was drawn, over the whole array."""
    shape = np.shape(x)
    block, seeds, gamma = dropblock_sizes(shape[-spatial:], p, block_size)
    seed_here = ~keep_mask((*shape[:-spatial], *seeds), gamma, seed, call, bits)
    kept = np.ones(shape, bool)
    for offset in np.ndindex(*block):  # the element at this offset in the block of every seed
        window = tuple(slice(first, first + n) for first, n in zip(offset, seeds, strict=True))
        kept[(Ellipsis,) + window] &= ~seed_here  # noqa: RUF005  (type checkers take (..., *window) for newer syntax)
    left = int(kept.sum())
    return masked(x, kept, kept.size / left if left else 0.0, activation)


def dropblock1d(x, p, seed=0, call=0, bits=32, activation="identity", block_size=7):
    """Runs of elements of (..., W). Ghiasi, Lin and Le, NeurIPS 2018."""
    return dropblock(1, x, p, block_size, seed, call, bits, activation)


def dropblock2d(x, p, seed=0, call=0, bits=32, activation="identity", block_size=7):
    """Squares of (..., H, W). Ghiasi, Lin and Le, NeurIPS 2018."""
    return dropblock(2, x, p, block_size, seed, call, bits, activation)


def dropblock_keep_probability(size, p, block_size=7, bits=32):
    """Return the probability that a position of a feature map, (W,) or (H, W), is kept, that is, no block covers it.

    Fewer blocks cover positions near the border. On average p blocks cover a position. Blocks overlap, so more than
    1 - p of the positions are kept."""
    block, seeds, gamma = dropblock_sizes(size, p, block_size)
    covering = np.ones((), int)
    for n, b, places in zip(size, block, seeds, strict=True):
        i = np.arange(n)
        covering = np.multiply.outer(covering, np.minimum(i, places - 1) - np.maximum(i - b + 1, 0) + 1)
    return (1 - quantize(gamma, bits)[2]) ** covering


def alpha_masked(x, mask_shape, p, seed, call, bits, activation):
    """Alpha dropout. Klambauer et al., Self-normalizing neural networks, NIPS 2017, the paragraph on alpha dropout.

    Dropped elements are alpha' = -lambda * alpha, the limit of SELU at -inf. a and b restore mean 0 and variance 1."""
    z, slope = activated(x, activation)
    kept = np.broadcast_to(keep_mask(mask_shape, p, seed, call, bits), z.shape)
    dropped, p = -SELU * ALPHA, quantize(p, bits)[2]
    a = 1 / sqrt((1 - p) * (1 + p * dropped**2)) if p < 1 else 0.0  # the paper's q + alpha'**2 * q * (1 - q), q = 1 - p
    b = -a * p * dropped

    def backprop(dy):
        return a * np.where(kept, np.asarray(dy, np.float64) * slope, 0.0)

    return a * np.where(kept, z, dropped) + b, backprop


def alpha_dropout(x, p, seed=0, call=0, bits=16, activation="identity"):
    """Dropout that keeps mean 0 and variance 1. Klambauer et al., NIPS 2017."""
    return alpha_masked(x, np.shape(x), p, seed, call, bits, activation)


def feature_alpha_dropout(x, p, seed=0, call=0, bits=16, activation="identity"):
    """Alpha dropout of whole channels of (N, C, ...). Klambauer et al., NIPS 2017, and Tompson et al., CVPR 2015."""
    return alpha_masked(x, np.shape(x)[:2] + (1,) * (np.ndim(x) - 2), p, seed, call, bits, activation)


def normals(seed, call, size, start=0):
    """Return standard normal numbers for the elements start, ..., start + size - 1, accurate to about 1e-15.

    Box and Muller, A note on the generation of random normal deviates, Annals of Mathematical Statistics, 1958.
    Elements 2 * k and 2 * k + 1 share the 32-bit words 2 * k and 2 * k + 1 of the stream."""
    first, stop = start - start % 2, start + size + (start + size) % 2
    w = fields(seed, call, first, stop - first, 32).astype(np.int64).reshape(-1, 2)
    # 1 - u1 is exact in float64, so the logarithm loses nothing where u1 is near 1.
    radius = np.sqrt(-2 * np.log1p(-((2**32 - 0.5 - w[:, 0]) / 2**32)))
    # The nearest quarter turn, in integers, leaves an angle of at most pi / 4: its one rounding is below 1e-16.
    turns = (w[:, 1] + 2**29) >> 30
    angle = 2 * pi * ((w[:, 1] - (turns << 30)) / 2**32)
    c, s = np.cos(angle), np.sin(angle)
    cosine = np.choose(turns % 4, [c, -s, -c, s])
    sine = np.choose(turns % 4, [s, c, -s, -c])
    return np.stack([radius * cosine, radius * sine], axis=-1).ravel()[start - first :][:size]


def multiplied(x, factor, activation):
    """Return factor * z, for multiplicative noise."""
    z, slope = activated(x, activation)
    return z * factor, lambda dy: np.asarray(dy, np.float64) * factor * slope


def gaussian_dropout(x, p, seed=0, call=0, bits=16, activation="identity"):
    """Multiply by normal noise of mean 1 and variance p / (1 - p), as in dropout. p is not quantised; bits is unused.

    Srivastava et al., JMLR 2014, section 10; Keras's GaussianDropout."""
    noise = normals(seed, call, np.size(x)).reshape(np.shape(x))
    return multiplied(x, 1 + sqrt(p / (1 - p)) * noise, activation)


def gaussian_noise(x, p, seed=0, call=0, bits=16, activation="identity"):
    """Add normal noise of mean 0 and standard deviation p. bits is unused. Keras's GaussianNoise."""
    z, slope = activated(x, activation)
    noise = normals(seed, call, z.size).reshape(z.shape)
    return z + p * noise, lambda dy: np.asarray(dy, np.float64) * slope


def uniform_dropout(x, p, seed=0, call=0, bits=16, activation="identity"):
    """Multiply by uniform noise of mean 1 and variance p / (1 - p), as in dropout. p is not quantised.

    The variance is half_width**2 / 3. After Shen et al., Continuous dropout, IEEE TNNLS 2017, which uses uniform masks
    too."""
    half_width = sqrt(3 * p / (1 - p))
    u = (fields(seed, call, 0, np.size(x), bits).reshape(np.shape(x)) + 0.5) / 2**bits
    return multiplied(x, 1 + half_width * (2 * u - 1), activation)


def zoneout(x, previous, p, seed=0, call=0, bits=16, activation="identity"):
    """Keep z or the previous state, without a scale; backprop returns both gradients, (dx, dprevious).

    Krueger et al., Zoneout: regularizing RNNs by randomly preserving hidden activations, ICLR 2017."""
    z, slope = activated(x, activation)
    kept = keep_mask(z.shape, p, seed, call, bits)

    def backprop(dy):
        dy = np.asarray(dy, np.float64)
        return np.where(kept, dy * slope, 0.0), np.where(kept, 0.0, dy)

    return np.where(kept, z, np.asarray(previous, np.float64)), backprop


def zoneout_expected(x, previous, p, bits=16, activation="identity"):
    """Zoneout at prediction: the expected value in training, with the quantised p. Krueger et al., ICLR 2017."""
    z, slope = activated(x, activation)
    p = quantize(p, bits)[2]

    def backprop(dy):
        dy = np.asarray(dy, np.float64)
        return (1 - p) * dy * slope, p * dy

    return (1 - p) * z + p * np.asarray(previous, np.float64), backprop


def dropout_add(x, residual, p, mask_shape=None, bias=None, gain=None, seed=0, call=0, bits=16, activation="identity"):
    """A residual and the result of dropout, with a bias and a gain for each element of the last axis.

    backprop returns (dx, dresidual, dbias, dgain), with None for an absent argument. Vaswani et al., Attention is all
    you need, NeurIPS 2017, section 5.4; Touvron et al., Going deeper with image transformers, ICCV 2021, equation 4."""
    x, residual = np.asarray(x, np.float64), np.asarray(residual, np.float64)
    others, scale = tuple(range(x.ndim - 1)), quantize(p, bits)[1]
    kept = kept_of(x.shape, p, (None,) * x.ndim if mask_shape is None else mask_shape, seed, call, bits)
    z, slope = activated(x if bias is None else x + np.asarray(bias, np.float64), activation)
    factor = np.float64(1) if gain is None else np.asarray(gain, np.float64)

    def backprop(dy):
        dy = np.asarray(dy, np.float64)
        dx, dfactor = (scale * np.where(kept, dy * by, 0.0) for by in (factor * slope, z))
        dbias, dgain = None if bias is None else dx.sum(others), None if gain is None else dfactor.sum(others)
        return dx, dy, dbias, dgain

    return np.where(kept, residual + factor * scale * z, residual), backprop


def dropout_glu(gate, value=None, p=0.5, gate_first=True, seed=0, call=0, bits=16, activation="silu"):
    """A gated linear unit and dropout; backprop returns (dgate, dvalue), or (dgate, None) if gate contains the value.

    Shazeer, GLU variants improve transformer, 2020, equation 5."""
    packed = value is None
    if packed:
        halves = np.split(np.asarray(gate), 2, -1)
        gate, value = halves if gate_first else halves[::-1]
    (z, slope), value = activated(gate, activation), np.asarray(value, np.float64)
    kept, scale = keep_mask(z.shape, p, seed, call, bits), quantize(p, bits)[1]

    def backprop(dy):
        dy = np.asarray(dy, np.float64)
        both = scale * np.where(kept, dy * value * slope, 0.0), scale * np.where(kept, dy * z, 0.0)
        return (np.concatenate(both if gate_first else both[::-1], -1), None) if packed else both

    return scale * np.where(kept, z * value, 0.0), backprop


VARIANTS = (  # the variants with one input array
    dropout1d,
    dropout2d,
    dropout3d,
    drop_path,
    locked_dropout,
    embedding_dropout,
    token_dropout,
    consistent_dropout,
    drop_connect,
    dropblock1d,
    dropblock2d,
    alpha_dropout,
    feature_alpha_dropout,
    gaussian_dropout,
    gaussian_noise,
    uniform_dropout,
)
FAMILY = {variant.__name__: variant for variant in VARIANTS}


# Schedules: p as a function of the training step


def progress(step, steps):
    """Return a number that rises from 0 to 1 over the steps, and is 1 afterwards."""
    return max(step, 0) / steps if step < steps else 1.0


def linear(step, first, last, steps):
    t = progress(step, steps)
    return (1 - t) * first + t * last


def cosine(step, first, last, steps):
    """Half a cosine period. From the learning rates of Loshchilov and Hutter, SGDR, ICLR 2017, equation 5."""
    weight = (1 + cos(pi * progress(step, steps))) / 2
    return weight * first + (1 - weight) * last


def curriculum(step, p, steps):
    """Morerio et al., Curriculum dropout, ICCV 2017: the retain probability is (1 - theta) * exp(-gamma * t) + theta.

    theta = 1 - p and gamma = 10 / steps. After the steps the result is within exp(-10) * p of p. It never reaches p."""
    return -p * expm1(-10 * step / steps)


def early(step, p, steps, decay=False):
    """Dropout only before `steps`, against underfitting. Liu et al., Dropout reduces underfitting, ICML 2023."""
    return linear(step, p, 0.0, steps) if decay else p if step < steps else 0.0


def late(step, p, steps):
    """Dropout only from `steps` on, against overfitting. Liu et al., ICML 2023."""
    return 0.0 if step < steps else p
