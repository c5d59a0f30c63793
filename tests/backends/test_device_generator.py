"""Generators whose state is in GPU memory: on every CUDA backend they produce the streams of a CPU generator."""

import json
import pickle

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, backends, layers

X = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)


@pytest.fixture
def device(backend):
    if backend.name == "cpu":
        pytest.skip("the CPU kernels can't read a GPU's memory")
    return backend


def test_masks_and_gradients_equal_the_cpu_results(device):
    rngs = Generator(7, device=True), Generator(7)
    for variant, options in (
        (gpudrop.dropout, {"activation": "gelu"}),
        (gpudrop.dropout, {"mask_shape": (None, 1)}),
        (gpudrop.alpha_dropout, {}),
        (gpudrop.gaussian_dropout, {}),
    ):
        results = []
        for rng in rngs:
            y, backprop = variant.vjp(device.put(X), 0.3, rng=rng, **options)
            results.append([device.get(y), device.get(backprop(device.put(X)))])
        np.testing.assert_array_equal(*results)
    masks = [device.mask((5, 9), 0.4, rng) for rng in rngs]
    np.testing.assert_array_equal(*masks)
    assert rngs[0].state_dict() == rngs[1].state_dict() == {"seed": 7, "call": 5}


def test_p_of_0_consumes_no_call(device):
    rng = Generator(7, device=True)
    device.forward(X, 0, rng=rng)
    assert rng.state_dict() == {"seed": 7, "call": 0}


def test_a_stream_repeats_its_mask_whatever_the_generator_does(device):
    rng = Generator(1, device=True)
    stream = rng.next()
    first = device.mask(100, 0.5, stream)
    device.mask(100, 0.5, rng)
    np.testing.assert_array_equal(device.mask(100, 0.5, stream), first)
    np.testing.assert_array_equal(first, device.mask(100, 0.5, gpudrop.Stream(1, 0)))


def test_states_are_loaded_in_place_and_exchanged_with_a_cpu_generator(device, monkeypatch):
    rng, host = Generator(2**64 - 1, device=True), Generator(2**64 - 1)
    advance, states = backends.advance, []

    def seen(module, operand, state, stream):
        states.append(state)
        advance(module, operand, state, stream)

    monkeypatch.setattr(backends, "advance", seen)
    rng.next()
    rng.load_state_dict({"seed": 2**63 + 5, "call": 2**40})
    host.load_state_dict(rng.state_dict())
    np.testing.assert_array_equal(device.mask(300, 0.5, rng), device.mask(300, 0.5, host))
    assert states[1] is states[0]  # a captured graph holds this address
    again = pickle.loads(pickle.dumps(rng))
    assert again.stored and again.state_dict() == rng.state_dict() == host.state_dict()
    assert [g.state_dict() for g in rng.spawn(2)] == [g.state_dict() for g in host.spawn(2)]
    assert rng.spawn(1)[0].stored and rng.state_dict()["call"] == 2**40 + 3
    assert repr(rng) == f"<Generator seed={2**63 + 5} on the device>"


def test_the_call_wraps_around_after_the_last(device):
    rng = Generator(3, device=True)
    rng.load_state_dict({"seed": 3, "call": 2**64 - 1})
    np.testing.assert_array_equal(device.mask(50, 0.5, rng), device.mask(50, 0.5, gpudrop.Stream(3, 2**64 - 1)))
    assert rng.state_dict() == {"seed": 3, "call": 0}


def test_a_layer_continues_from_its_saved_state(device):
    layer = layers.Dropout(keep_prob=0.5, rng=Generator(4, device=True))
    state = layer.state_dict()
    first = device.get(layer(device.put(X)))
    layer.load_state_dict(state)
    np.testing.assert_array_equal(device.get(layer(device.put(X))), first)


def test_cpu_arrays_are_refused(device, monkeypatch):
    if device.name == "cupy_text":
        pytest.skip("its device is the CPU")
    rng = Generator(5, device=True)
    with pytest.raises(ValueError, match="rng must have its state on the host, where the arrays are"):
        gpudrop.dropout(X, 0.5, rng=rng)
    assert rng.state_dict() == {"seed": 5, "call": 0}


def test_without_a_gpu_the_error_says_why(monkeypatch):
    monkeypatch.setattr(backends, "load", lambda name: f"{name} is missing")
    with pytest.raises(
        RuntimeError, match=r"no CUDA device can be used: .*cupy_elementwise is missing; .*numba_cuda is missing"
    ):
        Generator(0, device=True)


def test_pytorch_refuses_device_generators():
    functional = pytest.importorskip(
        "gpudrop.torch", reason="PyTorch is not installed", exc_type=ImportError
    ).functional
    torch = pytest.importorskip("torch")
    rng = Generator(0)
    rng.stored = True
    with pytest.raises(ValueError, match="rng must keep its state on the CPU; for a captured graph"):
        functional.dropout(torch.ones(3), 0.5, rng=rng)


def test_stored_streams_are_compared_and_saved_by_seed_and_call(device):
    rng, twin = Generator(7, device=True), Generator(7, device=True)
    first, second, again = rng.next(), rng.next(), twin.next()
    assert first == again and first != second and first == gpudrop.Stream(7, 0) == again
    assert second != gpudrop.Stream(7, 0) and first != "a stream"
    loaded = pickle.loads(pickle.dumps(second))
    assert type(loaded) is gpudrop.Stream and loaded == gpudrop.Stream(7, 1) == second
    with pytest.raises(TypeError, match="unhashable"):
        hash(first)
    layer = layers.Dropout(0.5, rng=second)
    state = json.loads(json.dumps(layer.state_dict()))
    assert state["rng"] == {"from": "stream", "seed": 7, "call": 1}
    want = device.get(layer(device.put(X)))
    other = layers.Dropout(0.5, rng=first)
    other.load_state_dict(state)
    np.testing.assert_array_equal(device.get(other(device.put(X))), want)
