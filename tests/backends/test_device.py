"""The functions for users' own kernels: in plain Python, on the CPU, in the CUDA simulator and compiled for GPUs."""

import importlib.util
import pickle
import re

import numpy as np
import pytest
from numba import cuda, njit

import gpudrop
from gpudrop import Generator, Stream, device
from gpudrop.device import draw, keep  # names in a module, besides attributes of `device`
from gpudrop.testing import reference
from tests.conftest import SIMULATED

pytestmark = pytest.mark.simulator

STREAMS = [(0, 0), (1, 1), (2**63, 2**63), (2**64 - 1, 2**64 - 1), (2**32 + 5, 7)]
FIRST = [0, 1, 2**32 - 2, 2**33 + 5, 2**60 - 3]  # chunks; those of 2**32 begin a new word of the counter
MODES = {
    "python": lambda kernel, *arguments: kernel(*arguments),
    "njit": lambda kernel, *arguments: njit(kernel)(*arguments),
    "cuda": lambda kernel, *arguments: cuda.jit(kernel)[1, 1](*arguments),
}


@pytest.fixture(params=["cuda"] if SIMULATED else ["python", "njit"])
def run(request):
    """A function that runs a kernel with its arguments."""
    return MODES[request.param]


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_words_are_those_of_the_stream(run, stream):
    def kernel(words, seed, call, first):
        for i in range(words.shape[0]):
            drawn = draw(seed, call, first + np.uint64(i))
            for k in range(4):
                words[i, k] = drawn[k]

    for first in FIRST:
        words = np.zeros((3, 4), np.uint32)
        run(kernel, words, *map(np.uint64, (*stream, first)))
        want = reference.words(*stream, np.arange(3, dtype=np.uint64) + np.uint64(first))
        np.testing.assert_array_equal(words, np.stack(want, axis=-1))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("threshold", ["none", "some", "half", "all but one", "all"])
def test_masks_are_those_of_the_stream(run, bits, threshold):
    """Both forms: a draw for each chunk, and one for each element. The largest index is 2**64 - 1."""
    threshold = {"none": 0, "some": 5, "half": 2 ** (bits - 1), "all but one": 2**bits - 1, "all": 2**bits}[threshold]
    lanes = 128 // bits

    def kernel(chunks, elements, seed, call, first, threshold):
        for i in range(chunks.shape[0]):
            words = device.draw(seed, call, first + np.uint64(i))
            for lane in range(lanes):
                chunks[i, lane] = keep(words, lane, threshold, bits)
                element = (first + np.uint64(i)) * np.uint64(lanes) + np.uint64(lane)
                elements[i, lane] = device.keep_at(seed, call, element, threshold, bits)

    for stream, first in zip(STREAMS, FIRST, strict=True):
        chunks, elements = np.zeros((2, 2, lanes), np.bool_)
        run(kernel, chunks, elements, *map(np.uint64, (*stream, first, threshold)))
        want = reference.fields(*stream, first * lanes, 2 * lanes, bits).reshape(2, lanes) >= threshold
        np.testing.assert_array_equal(chunks, want)
        np.testing.assert_array_equal(elements, want)


def test_plain_integers_are_unsigned_numbers(run):
    def kernel(kept):
        for i in range(kept.size):
            kept[i] = device.keep_at(7, 3, i, 6554, 16)

    kept = np.zeros(50, np.bool_)
    run(kernel, kept)
    np.testing.assert_array_equal(kept, reference.keep_mask((50,), 6554 / 2**16, 7, 3))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_uniform_numbers(run, bits):
    """The least and the largest field, and those of a stream."""
    lanes = 128 // bits

    def kernel(singles, doubles, words):
        for lane in range(lanes):
            chunk = words[0], words[1], words[2], words[3]
            singles[lane], doubles[lane] = device.uniform(chunk, lane, bits), device.uniform64(chunk, lane, bits)

    for words in ([0] * 4, [2**32 - 1] * 4, reference.words(7, 3, np.uint64(5))):
        singles, doubles = np.zeros(lanes, np.float32), np.zeros(lanes)
        run(kernel, singles, doubles, np.array(words, np.uint32))
        fields = np.array(words, "<u4").view(f"<u{bits // 8}")
        want = (fields + 0.5) / 2.0**bits
        np.testing.assert_array_equal(doubles, want)
        np.testing.assert_array_max_ulp(singles, want.astype(np.float32), 1)
        assert (doubles > 0).all() and (doubles < 1).all()
        assert singles.dtype == np.float32 and (singles > 0).all() and (singles <= 1).all()


def test_normal_deviates(run):
    def kernel(singles, doubles, seed, call):
        for i in range(singles.size):
            words = draw(seed, call, i // 4)
            singles[i], doubles[i] = device.normal(words, i % 4), device.normal64(words, i % 4)

    size = 40 if SIMULATED else 4000
    singles, doubles = np.zeros(size, np.float32), np.zeros(size)
    run(kernel, singles, doubles, np.uint64(7), np.uint64(3))
    want = reference.normals(7, 3, size)
    np.testing.assert_allclose(doubles, want, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(singles, want, rtol=3e-6, atol=3e-7)


def test_a_compiled_kernel_takes_every_stream():
    """Numba would compile a kernel for signed integers first, and then reject those from 2**63 on."""

    @njit
    def kernel(seed, call, threshold, scale):
        return device.keep_at(seed, call, 5, threshold, 16)

    for seed, call in ((5, 0), (2**63 + 5, 2**64 - 1), (6, 0)):
        kept = kernel(*Stream(seed, call).arguments(0.5))
        assert kept == reference.keep_mask((6,), 0.5, seed, call)[5]
    assert len(kernel.signatures) == 1


def test_device_functions_are_pickled_by_name():
    for name in device.__all__:
        assert pickle.loads(pickle.dumps(getattr(device, name))) is getattr(device, name)


def test_arguments_of_a_stream():
    rounded = gpudrop.quantize(0.1, 8)
    assert Stream(7, 3).arguments(0.1, bits=8) == (7, 3, rounded.threshold, rounded.scale)
    assert Stream(7, 3).arguments() == (7, 3, 2**15, 2.0)
    assert Stream(7, 3).arguments(1) == (7, 3, 2**16, 0.0)
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        Stream(7, 3).arguments(1.5)
    with pytest.raises(ValueError, match="bits must be"):
        Stream(7, 3).arguments(0.5, bits=4)


def test_a_generator_on_the_device_returns_its_array(backend):
    if backend.name == "cpu":
        pytest.skip("the CPU kernels take streams as numbers")
    array, threshold, scale = Generator(5, device=True).next().arguments(0.25)
    assert [*map(int, gpudrop.arrays.to_host(array))] == [5, 0] and (threshold, scale) == (2**14, 4 / 3)


@pytest.mark.skipif(SIMULATED or not importlib.util.find_spec("numba_cuda"), reason="compiles for GPUs")
def test_numbers_compile_for_gpus():
    def kernel(out, seed, call):
        i = cuda.grid(1)
        words = draw(seed, call, i)
        out[i] = device.uniform64(words, i % 4, 32) + device.normal64(words, i % 4)
        out[i] += device.uniform(words, i % 4, 32) + device.normal(words, i % 4)

    from numba.cuda import types

    assert "mul.wide.u32" in ptx_of(kernel, (9, 0), types.float64, types.uint64, types.uint64)


def ptx_of(kernel, capability, dtype, *numbers):
    """The PTX of a kernel of an array and numbers."""
    from numba.cuda import types
    from numba.cuda.compiler import _compile_pyfunc_with_fixup

    signature = types.void(types.Array(dtype, 1, "C"), *numbers)
    library, _ = _compile_pyfunc_with_fixup(kernel, signature, device=False, abi="numba", cc=(7, 5))
    return library.get_asm_str(capability)


@pytest.mark.skipif(SIMULATED or not importlib.util.find_spec("numba_cuda"), reason="compiles for GPUs")
@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (12, 0)])
def test_a_kernel_draws_once_for_a_chunk(capability):
    """Philox has 20 products. Each is one instruction, and there is no memory of a thread's own."""
    from numba.cuda import types

    def kernel(x, seed, call, threshold, scale):
        chunk = cuda.grid(1)
        words = device.draw(seed, call, chunk)
        for lane in range(8):
            i = 8 * chunk + lane
            if i < x.size:
                x[i] = x[i] * scale if device.keep(words, lane, threshold, 16) else np.float32(0)

    ptx = ptx_of(kernel, capability, types.float32, *(types.uint64,) * 3, types.float32)
    assert len(re.findall(r"// begin inline asm\s+mul\.wide\.u32", ptx)) == 20 and ".local" not in ptx
