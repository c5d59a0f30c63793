"""What an rng may be: the rule in the notes of `gpudrop.Generator`, in every function and whatever keeps one."""

import copy
import json
import pickle
import re

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream
from tests.family.layer_calls import CLASSES, arrays, call, gradients_of

X = np.ones(200, np.float32)


def drawn(generator):
    return int(generator.integers(0, 2**64, dtype=np.uint64))


# What makes an rng, and the seed that it is, or draws first.
SEEDS = {
    "int": (lambda: 7, 7),
    "the largest int": (lambda: 2**64 - 1, 2**64 - 1),
    "np.int8": (lambda: np.int8(7), 7),
    "np.uint64": (lambda: np.uint64(2**63 + 1), 2**63 + 1),
    "an array of one integer": (lambda: np.array(7), 7),
    "SeedSequence": (
        lambda: np.random.SeedSequence(7),
        int(np.random.SeedSequence(7).generate_state(1, np.uint64)[0]),
    ),
    "numpy.random.Generator": (lambda: np.random.default_rng(7), drawn(np.random.default_rng(7))),
    "BitGenerator": (lambda: np.random.Philox(7), drawn(np.random.Generator(np.random.Philox(7)))),
}
NUMPYS = {"numpy.random.Generator": np.random.default_rng, "BitGenerator": np.random.PCG64}
RULE = (
    "rng must be a gpudrop.Generator, a gpudrop.Stream, an integer, a numpy.random.Generator, BitGenerator or "
    "SeedSequence, or None, got "
)
ADVICE = "; np.random.default_rng(seed) makes a generator"
REFUSED = [
    (True, TypeError, RULE + "True"),
    (np.False_, TypeError, RULE + repr(np.False_)),
    (1.0, TypeError, RULE + "1.0"),
    (np.float32(1), TypeError, RULE + repr(np.float32(1))),
    (np.array([1, 2]), TypeError, RULE + "numpy.ndarray"),
    ([1, 2], TypeError, RULE + "list"),
    ("7", TypeError, RULE + "str"),
    (Generator, TypeError, RULE + "type"),
    (np.random.RandomState(0), TypeError, RULE + "numpy.random.mtrand.RandomState" + ADVICE),
    (np.random, TypeError, RULE + "the module numpy.random" + ADVICE),
    (json, TypeError, RULE + "the module json"),
    (-1, ValueError, "rng must be between 0 and 2**64 - 1, got -1"),
    (np.int8(-1), ValueError, "rng must be between 0 and 2**64 - 1, got -1"),
    (2**64, ValueError, "rng must be between 0 and 2**64 - 1, got 18446744073709551616"),
]


def bit_generator(rng):
    return getattr(rng, "bit_generator", rng)


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_function_takes_a_seed_as_call_0_of_it(cls, kind):
    make, seed = SEEDS[kind]
    want = call(cls, rng=Stream(seed, 0))
    np.testing.assert_array_equal(call(cls, rng=make()), want)
    y, backprop = call(cls, cls.function.vjp, rng=make())
    np.testing.assert_array_equal(y, want)
    _, own_backprop = call(cls, cls.function.vjp, rng=Stream(seed, 0))
    for _ in range(2):  # the same mask whenever a gradient goes back
        both = (gradients_of(back(np.ones_like(y))) for back in (backprop, own_backprop))
        for gradient, own_gradient in zip(*both, strict=True):
            np.testing.assert_array_equal(gradient, own_gradient)


@pytest.mark.parametrize("kind", SEEDS)
def test_keep_mask_and_mc_samples_take_seeds_too(kind):
    make, seed = SEEDS[kind]
    np.testing.assert_array_equal(gpudrop.keep_mask(200, 0.5, make()), gpudrop.keep_mask(200, 0.5, Stream(seed, 0)))
    got, *want = (gpudrop.mc_samples(gpudrop.dropout, X, 3, rng) for rng in (make(), Stream(seed, 0), Generator(seed)))
    np.testing.assert_array_equal([got.variance] * 2, [moments.variance for moments in want])


@pytest.mark.parametrize("kind", NUMPYS)
def test_numpys_generator_gives_a_seed_to_each_call(kind):
    rng, twin = NUMPYS[kind](3), np.random.Generator(bit_generator(NUMPYS[kind](3)))
    functions = (
        lambda rng: gpudrop.dropout(X, 0.5, rng=rng),
        lambda rng: gpudrop.dropout_vjp(X, 0.5, rng=rng)[1](X),
        lambda rng: gpudrop.keep_mask(200, 0.5, rng),
        lambda rng: gpudrop.mc_samples(gpudrop.dropout, X, 2, rng).mean,
    )
    for function in functions * 2:
        np.testing.assert_array_equal(function(rng), function(Stream(drawn(twin), 0)))
    assert bit_generator(rng).state == twin.bit_generator.state


@pytest.mark.parametrize("kind", NUMPYS)
def test_numpys_generator_stays_where_it_is_unless_a_mask_is_drawn(kind):
    rng, wrong = NUMPYS[kind](3), np.float64(X)
    before = bit_generator(rng).state
    gpudrop.dropout(X, 0.5, rng=rng, training=False)
    gpudrop.dropout(X, 0, rng=rng)
    gpudrop.dropout_vjp(X, 0, rng=rng)[1](X)
    gpudrop.keep_mask(3, 0, rng)
    with gpudrop.no_dropout():
        gpudrop.dropout2d(X.reshape(2, 4, 25, 1), 0.5, rng=rng)
        gpudrop.keep_mask(3, 0.5, rng)
    refused = [
        lambda: gpudrop.dropout(X, 0.5, rng=rng, out=wrong),
        lambda: gpudrop.dropout_vjp(X, 0.5, rng=rng, activation="gelu", out=X[::-1]),
        lambda: gpudrop.zoneout(X, wrong, 0.5, rng=rng),
        lambda: gpudrop.keep_mask(3, 0.5, rng, backend="gpu"),
        lambda: gpudrop.keep_mask(3, 0.5, rng, start=2**64 - 1),
        lambda: gpudrop.mc_samples(gpudrop.dropout, X, 2, rng, batch_size=0),
        lambda: gpudrop.Dropout(0.5, rng=rng, remember=0),
        lambda: gpudrop.Dropout(0.5, rng=rng, bits=12),
    ]
    for function in refused:
        with pytest.raises(ValueError, match=r"must |unknown backend"):
            function()
    assert bit_generator(rng).state == before


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_layer_makes_a_generator_of_a_seed_once(cls, kind):
    make, seed = SEEDS[kind]
    rng = make()
    layer, other = cls(rng=rng), cls()
    after = copy.deepcopy(bit_generator(rng).state) if kind in NUMPYS else None
    other.rng = make()
    assert type(layer.rng) is Generator and layer.rng is not other.rng
    assert layer.rng.state_dict() == other.rng.state_dict() == {"seed": seed, "call": 0}
    twin, p = cls(rng=Generator(seed)), layer.strength()
    for one in (layer, other, twin):
        setattr(one, p, 0.5)
    for _ in range(2):  # each call has a mask of its own
        want = twin(*arrays(twin))
        np.testing.assert_array_equal(layer(*arrays(layer)), want)
        np.testing.assert_array_equal(other(*arrays(other)), want)
    assert kind not in NUMPYS or str(bit_generator(rng).state) == str(after)


def test_a_layer_keeps_generators_and_streams_as_they_are():
    for rng in (Generator(1), Stream(1, 2), None):
        layer = gpudrop.Dropout(0.5, rng=rng)
        assert layer.rng is rng
        layer.rng = 7
        layer.rng = rng
        assert layer.rng is rng


@pytest.mark.parametrize("kind", SEEDS)
def test_the_state_of_a_layer_with_a_seed_is_that_of_a_generator(kind):
    make, seed = SEEDS[kind]
    layer = gpudrop.Dropout(0.5, rng=make())
    layer(X)
    state = json.loads(json.dumps(layer.state_dict()))
    assert state["rng"] == {"from": "generator", "seed": seed, "call": 1}
    loaded, pickled = gpudrop.Dropout(0.5, rng=0), pickle.loads(pickle.dumps(layer))
    loaded.load_state_dict(state)
    copied = copy.deepcopy(layer)  # which uses up call 1, and draws other masks
    want = layer(X)
    for other in (loaded, pickled):
        other(X)
        np.testing.assert_array_equal(other(X), want)
    assert (copied(X) != gpudrop.dropout(X, 0.5, rng=Stream(seed, 0))).any()


@pytest.mark.parametrize("kind", SEEDS)
def test_within_mc_samples_seeds_stay_and_generators_are_replaced(kind):
    """An int and a SeedSequence are streams; NumPy's generator is one as gpudrop's are, which batches must not move."""
    make, seed = SEEDS[kind]
    rng, x = make(), np.ones((6, 50), np.float32)
    before = copy.deepcopy(bit_generator(rng).state) if kind in NUMPYS else None
    own = Generator(5) if kind in NUMPYS else Stream(seed, 0)
    got, parts, want = (
        gpudrop.mc_samples(lambda x, a=a: gpudrop.dropout(x, 0.5, rng=a), x, 4, Stream(1, 2), batch_size=size)
        for a, size in ((rng, None), (rng, 2), (own, None))
    )
    np.testing.assert_array_equal(got.variance, want.variance)
    np.testing.assert_array_equal(parts.variance, want.variance)
    assert (got.variance > 0).any() == (kind in NUMPYS)
    assert kind not in NUMPYS or str(bit_generator(rng).state) == str(before)
    layer = gpudrop.Dropout(0.5, rng=make())  # which has a Generator
    assert (gpudrop.mc_samples(layer, x, 4, 0).variance > 0).any()


@pytest.mark.parametrize("rng", range(len(REFUSED)), ids=lambda n: str(REFUSED[n][0])[:20])
@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_no_rng_is_refused_by_name(cls, rng):
    rng, error, message = REFUSED[rng]
    layer = cls(rng=Stream(1, 2))
    refusals = [
        lambda: call(cls, rng=rng),
        lambda: call(cls, cls.function.vjp, rng=rng),
        lambda: call(cls, rng=rng, training=False),
        lambda: cls(rng=rng),
        lambda: setattr(layer, "rng", rng),
        lambda: gpudrop.keep_mask(3, 0.5, rng),
        lambda: gpudrop.mc_samples(gpudrop.dropout, X, 2, rng),
        lambda: gpudrop.mc_samples(lambda x: gpudrop.dropout(x, rng=rng), X, 2),
    ]
    for refusal in refusals:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            refusal()
    assert layer.rng == Stream(1, 2)
