"""Compares the reference with published answers and mathematics, and gpudrop's masks with the reference, bit by bit."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gpudrop
from gpudrop.testing import reference
from tests.sampling import few

BITS = [8, 16, 32]
STREAMS = [  # (seed, call): together they set every word of the key, and of the call's half of the counter
    (0, 0),
    (0, 1),
    (1, 0),
    (42, 3),
    (2**32, 2**32),
    (2**63 + 5, 7),
    (7, 2**63 + 5),
    (2**64 - 1, 2**64 - 1),
]
PROBABILITIES = [0.0, 2**-18, 0.3, 0.5, 1 - 2**-18, 1.0]
SHAPES = [(), 0, 1, 7, (3, 5), (1, 1, 1), (5, 0, 3), (2, 3, 4, 5), (128, 100), (33, 1027)]
SIZE = 301

uint64 = st.integers(0, 2**64 - 1)
probability = st.floats(0, 1) | st.builds(lambda k, bits: k / 2**bits, st.integers(0, 256), st.sampled_from([8, 9, 33]))


def starts(bits):
    """First elements near which a 32-bit word of the element's index, or of the chunk's counter, carries."""
    lanes = 128 // bits
    return [0, 1, lanes - 1, 2**32 - 3, 2**32 * lanes - 5, 2**40 + 7, 2**64 - SIZE - 1, 2**64 - SIZE]


def stream_cases(bits):
    """A case is the arguments of keep_mask: (shape, p, seed, call, bits, start)."""
    return [(SIZE, p, *stream, bits, start) for start in starts(bits) for stream in STREAMS for p in PROBABILITIES]


def shape_cases(bits):
    return [(shape, 0.3, 42, 3, bits, start) for shape in SHAPES for start in (0, 5, 2**32 * (128 // bits) - 5)]


def probe_cases(bits):
    """Single elements with thresholds just below, at and above their own field. They show the field's last bit."""
    elements = [(m, *stream) for m in (0, 21, 2**40 + 7) for stream in STREAMS]
    fields = [(reference.field(seed, call, m, bits), m, seed, call) for m, seed, call in elements]
    return [
        (1, (field + step) / 2**bits, seed, call, bits, m) for field, m, seed, call in fields for step in (0, 0.5, 1)
    ]


def cases(bits):
    return stream_cases(bits) + shape_cases(bits) + probe_cases(bits)


def package_mask(shape, p, seed, call, bits=16, start=0):
    return gpudrop.keep_mask(shape, p, gpudrop.Stream(seed, call), bits=bits, start=start)


def disagreements(keep_mask, cases):
    return (case for case in cases if not np.array_equal(keep_mask(*case), reference.keep_mask(*case)))


# The reference itself


@pytest.mark.parametrize("rounds, counter, key, expected", reference.known_answers())
def test_philox_computes_the_published_answers(rounds, counter, key, expected):
    assert reference.philox4x32(counter, key, rounds) == expected


def test_the_answers_cover_ten_rounds():
    assert sum(rounds == 10 for rounds, *_ in reference.known_answers()) > 50


def test_first_words_become_fields_in_little_endian_order():
    # Computed by hand from the first known answer, 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    assert [reference.field(0, 0, m, 32) for m in range(3)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C]
    assert [reference.field(0, 0, m, 16) for m in range(3)] == [0xE8D5, 0x6627, 0xC58D]
    assert [reference.field(0, 0, m, 8) for m in range(3)] == [0xD5, 0xE8, 0x27]


@pytest.mark.parametrize("bits", BITS)
def test_vectorised_fields_equal_single_fields(bits):
    for start in starts(bits):
        for stream in STREAMS:
            expected = [reference.field(*stream, m, bits) for m in range(start, start + 37)]
            assert reference.fields(*stream, start, 37, bits).tolist() == expected


@pytest.mark.parametrize("bits", BITS)
def test_a_vectorised_mask_equals_single_elements(bits):
    for p in PROBABILITIES:
        expected = [reference.keep(42, 3, m, bits, p) for m in range(100, 160)]
        assert reference.keep_mask((6, 10), p, 42, 3, bits, start=100).ravel().tolist() == expected


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_slope_is_the_derivative(name):
    value, slope = reference.ACTIVATIONS[name]
    h = 2.0**-8
    x = np.linspace(-8, 8, 999)
    x = x[np.min(np.abs(x[:, None] - [-3, 0, 3]), axis=1) > 2 * h]  # no difference spans a kink
    difference = (8 * (value(x + h) - value(x - h)) - (value(x + 2 * h) - value(x - 2 * h))) / (12 * h)
    # The truncation error is h**4 / 30 = 8e-12 fifth derivatives, which are below 100 here.
    np.testing.assert_allclose(slope(x), difference, rtol=0, atol=1e-9)


DEFINITIONS = {
    "identity": lambda mp, x: x,
    "relu": lambda mp, x: max(x, 0),
    "leaky_relu": lambda mp, x: x if x > 0 else x / 100,
    "relu2": lambda mp, x: max(x, 0) ** 2,
    "elu": lambda mp, x: x if x > 0 else mp.expm1(x),
    "selu": lambda mp, x: (
        mp.mpf("1.0507009873554804934193349852946")
        * (x if x > 0 else mp.mpf("1.6732632423543772848170429916717") * mp.expm1(x))
    ),
    "gelu": lambda mp, x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_tanh": lambda mp, x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
    "quick_gelu": lambda mp, x: x / (1 + mp.exp(-mp.mpf("1.702") * x)),
    "silu": lambda mp, x: x / (1 + mp.exp(-x)),
    "mish": lambda mp, x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "softplus": lambda mp, x: mp.log1p(mp.exp(x)),
    "sigmoid": lambda mp, x: 1 / (1 + mp.exp(-x)),
    "tanh": lambda mp, x: mp.tanh(x),
    "hardswish": lambda mp, x: x * min(max(x + 3, 0), 6) / 6,
}


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_values_and_slopes_are_accurate_in_the_tails(name):
    mpmath = pytest.importorskip("mpmath")
    value, slope = reference.ACTIVATIONS[name]
    x = np.array([-37.3, -20.1, -12.7, -8.2, -5.9, -1.1, -(2.0**-30), 2.0**-30, 0.3, 1.9, 5.9, 8.2, 20.1, 37.3])
    with mpmath.workdps(400):  # 1 + tanh(-305) is 1e-265, and the difference for its slope is 1e-60 of that
        exact = [DEFINITIONS[name](mpmath, mpmath.mpf(t)) for t in x.tolist()]
        exact_slope = [mpmath.diff(lambda t: DEFINITIONS[name](mpmath, t), mpmath.mpf(t), h=1e-60) for t in x.tolist()]
    # The rounding of t costs exp(-t) a relative error of t * 2**-53, and t < 745 in float64: 8e-14.
    np.testing.assert_allclose(value(x), np.array(exact, float), rtol=2e-13, atol=1e-300)
    np.testing.assert_allclose(slope(x), np.array(exact_slope, float), rtol=2e-13, atol=1e-300)


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_infinite_inputs_take_the_limits(name):
    left = {"identity": -np.inf, "leaky_relu": -np.inf, "elu": -1, "selu": -1.7580993408473766, "tanh": -1}
    left_slope = {"identity": 1, "leaky_relu": 0.01}
    right_slope = {"relu2": np.inf, "selu": 1.0507009873554805, "sigmoid": 0, "tanh": 0}
    value, slope = reference.ACTIVATIONS[name]
    x = np.array([-np.inf, np.inf])
    assert value(x).tolist() == [left.get(name, 0), {"sigmoid": 1, "tanh": 1}.get(name, np.inf)]
    assert slope(x).tolist() == [left_slope.get(name, 0), right_slope.get(name, 1)]


def test_dropout_selects_and_never_multiplies():
    x = np.full((4, 16), np.inf)
    x[1], x[2], x[3] = np.nan, -np.inf, -1.0
    for y in (reference.dropout(x, 0.5), reference.dropout_backward(np.ones_like(x), x, 0.5)):
        keep = reference.keep_mask(x.shape, 0.5, 0, 0)
        np.testing.assert_array_equal(y[keep], 2 * x[keep])
        np.testing.assert_array_equal(y[~keep], 0.0)
        assert not np.signbit(y[~keep]).any()


# The package against the reference


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [stream_cases, shape_cases, probe_cases])
def test_masks_equal_the_reference(kind, bits):
    assert list(disagreements(package_mask, kind(bits))) == []


@pytest.mark.parametrize("bits", BITS)
def test_a_large_mask_equals_the_reference(bits):
    # Covers many blocks and every thread, begins within a chunk, and has a carry of the chunk's low word in the middle.
    assert list(disagreements(package_mask, [((1031, 1025), 0.3, 42, 3, bits, 2**32 * (128 // bits) - 500_003)])) == []


@given(uint64, uint64, uint64, st.integers(0, 300), probability, st.sampled_from(BITS))
def test_any_mask_equals_the_reference(seed, call, start, size, p, bits):
    case = (size, p, seed, call, bits, min(start, 2**64 - size))
    np.testing.assert_array_equal(package_mask(*case), reference.keep_mask(*case))


@given(st.lists(st.integers(0, 50), max_size=4), uint64, st.sampled_from(BITS), st.integers(0, 2**64 - 300))
def test_shards_are_slices_of_the_global_mask(cuts, call, bits, start):
    edges = [0, *sorted(5 * cut for cut in cuts), 300]
    whole = package_mask(300, 0.3, 42, call, bits, start)
    parts = [package_mask(b - a, 0.3, 42, call, bits, start + a) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(probability, st.sampled_from(BITS))
@example(0.49999999999999994 * 2**-32, 32)  # p * 2**bits + 0.5 rounds up to 1 in float64
@example(0.5 * 2**-32, 32)
@example(1 - 2**-53, 32)
@example(5e-324, 8)
@example(1, 16)
def test_quantize_is_exact(p, bits):
    quantized = gpudrop.quantize(p, bits)
    assert (quantized.threshold, quantized.scale, quantized.effective_p) == reference.quantize(p, bits)
    assert abs(Fraction(quantized.effective_p) - Fraction(p)) <= Fraction(1, 2 ** (bits + 1))


@pytest.mark.parametrize("bits", few(BITS, 16))
def test_forward_and_backward_use_the_mask(bits):
    x, dy = np.random.default_rng(0).normal(size=(2, 33, 1027))
    y, backprop = gpudrop.dropout_vjp(x, 0.3, rng=gpudrop.Stream(2**40, 2**50), bits=bits)
    np.testing.assert_array_equal(y, reference.dropout(x, 0.3, seed=2**40, call=2**50, bits=bits))
    np.testing.assert_array_equal(
        backprop(dy), reference.dropout_backward(x, dy, 0.3, seed=2**40, call=2**50, bits=bits)
    )


# The cases above must detect each of these mistakes, at every width


def with_words(words):
    def keep_mask(*case):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "words", words)
            return reference.keep_mask(*case)

    return keep_mask


def with_threshold(threshold):
    def keep_mask(shape, p, seed, call, bits, start):
        drawn = reference.fields(seed, call, start, int(np.prod(shape)), bits)
        return drawn.reshape(shape) >= threshold(Fraction(p) * 2**bits)

    return keep_mask


def repeated_rows(*case):
    mask = reference.keep_mask(*case)
    return np.resize(mask[:32], mask.shape) if mask.ndim > 1 else mask


philox, words, low = reference.philox4x32, reference.words, reference.LOW
MISTAKES = {
    "chunk's high word dropped": with_words(lambda seed, call, chunk: words(seed, call, chunk & low)),
    "call's high word dropped": with_words(lambda seed, call, chunk: words(seed, call & low, chunk)),
    "seed's high word dropped": with_words(lambda seed, call, chunk: words(seed & low, call, chunk)),
    "seed and call swapped": with_words(lambda seed, call, chunk: words(call, seed, chunk)),
    "call before chunk": with_words(
        lambda seed, call, chunk: philox((call & low, call >> 32, chunk & low, chunk >> 32), (seed & low, seed >> 32))
    ),
    "nine rounds": with_words(
        lambda seed, call, chunk: philox(
            (chunk & low, chunk >> 32, call & low, call >> 32), (seed & low, seed >> 32), rounds=9
        )
    ),
    "odd calls begin halfway through even ones": with_words(
        lambda seed, call, chunk: words(seed, call & ~1, chunk + SIZE // 16 * (call & 1))
    ),
    "words in reverse": with_words(lambda seed, call, chunk: words(seed, call, chunk)[::-1]),
    "rows repeated every 32": repeated_rows,
    "threshold one too high": with_threshold(lambda t: int(t + Fraction(1, 2)) + 1),
    "threshold one too low": with_threshold(lambda t: int(t + Fraction(1, 2)) - 1),
    "threshold truncated": with_threshold(int),
    "threshold rounded half to even": with_threshold(round),
}


@pytest.mark.parametrize("bits", few(BITS, 16))
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_detected(mistake, bits):
    assert any(disagreements(MISTAKES[mistake], cases(bits)))
