"""Tests that need a GPU: streams, forced backends, and arrays of more than 2**32 elements."""

import functools
import itertools

import ml_dtypes
import numpy as np
import pytest

import gpudrop
from gpudrop import Stream, arrays, backends

pytestmark = pytest.mark.gpu
STREAM = Stream(3, 4)
X = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)


@pytest.fixture
def cupy():
    reasons = [module for module in map(backends.load, ("cupy_elementwise", "numba_cuda")) if isinstance(module, str)]
    if reasons:
        pytest.skip(reasons[0])
    return pytest.importorskip("cupy")


def test_a_backend_can_be_forced(cupy):
    from numba import cuda

    for x in (cupy.asarray(X), cuda.to_device(X)):
        results = []
        for backend in ("cupy_elementwise", "numba_cuda"):
            y, backprop = gpudrop.dropout_vjp(x, 0.3, activation="relu", rng=STREAM, backend=backend)
            assert type(y) is type(x)
            results.append((cupy.asnumpy(cupy.asarray(y)), cupy.asnumpy(cupy.asarray(backprop(y)))))
        want, backprop = gpudrop.dropout_vjp(X, 0.3, activation="relu", rng=STREAM)
        for y, dx in results:
            np.testing.assert_array_equal(y, want)
            np.testing.assert_array_equal(dx, backprop(want))


@pytest.mark.parametrize("backend", ["cupy_elementwise", "numba_cuda"])
def test_kernels_are_launched_on_the_current_stream_without_waiting(cupy, backend):
    x = cupy.asarray(X)
    gpudrop.dropout(x, 0.3, rng=STREAM, backend=backend)  # compiled before the stream is busy
    busy = cupy.RawKernel(
        'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n); }', "spin"
    )
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        busy((1,), (1,), (np.int64(1_000_000_000),))
        y = gpudrop.dropout(x, 0.3, rng=STREAM, backend=backend)
        waiting = not stream.done
    assert waiting, "the call waited for the stream"
    stream.synchronize()
    np.testing.assert_array_equal(y.get(), gpudrop.dropout(X, 0.3, rng=STREAM))


FAMILY = {
    "drop_path": {},
    "dropout2d": {"channels_last": True},
    "dropblock2d": {"block_size": 3},
    "gaussian_dropout": {},
    "drop_connect": {"samples": 3},
}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", FAMILY)
def test_variants_on_every_kind_of_array_by_every_backend(cupy, name, dtype):
    x = X[: 4 * 5 * 6 * 7].reshape(4, 5, 6, 7).astype(dtype)
    variant, options = getattr(gpudrop, name), {"rng": STREAM, **FAMILY[name]}
    want, want_backprop = variant.vjp(x, 0.3, **options)
    want_dx = want_backprop(want)
    for kind, backend in itertools.product(("cupy_elementwise", "numba_cuda"), repeat=2):
        y, backprop = variant.vjp(backends.of(kind, x), 0.3, backend=backend, **options)
        for got, exact in zip(map(arrays.to_host, (y, backprop(y))), (want, want_dx), strict=True):
            np.testing.assert_array_equal(got == 0, exact == 0)
            np.testing.assert_allclose(got.astype(np.float64), exact.astype(np.float64), rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("backend", ["cupy_elementwise", "numba_cuda"])
@pytest.mark.parametrize("name", FAMILY)
def test_variants_do_not_wait_for_the_stream(cupy, name, backend):
    x = cupy.asarray(X[: 4 * 5 * 6 * 7].reshape(4, 5, 6, 7))
    call = functools.partial(getattr(gpudrop, name), x, 0.3, rng=STREAM, backend=backend, **FAMILY[name])
    want = call()  # compiles, and fills CuPy's memory pool, before the stream is busy
    busy = cupy.RawKernel(
        'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n); }', "spin"
    )
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        call()
        stream.synchronize()
        busy((1,), (1,), (np.int64(1_000_000_000),))
        y = call()
        waiting = not stream.done
    assert waiting, "the call waited for the stream"
    stream.synchronize()
    cupy.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("backend", ["cupy_elementwise", "numba_cuda"])
def test_more_than_2_to_the_32_elements(cupy, backend):
    size = 2**32 + 1000
    if cupy.cuda.runtime.memGetInfo()[0] < 3 * size:
        pytest.skip("the GPU has too little free memory")
    mask = gpudrop.keep_mask(size, 0.3, STREAM, like=cupy.empty(0, np.float32), backend=backend)
    end = gpudrop.keep_mask(2000, 0.3, STREAM, start=size - 2000)
    np.testing.assert_array_equal(mask[-2000:].get(), end)


def test_results_of_foreign_device_arrays_are_of_their_kind(cupy):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    y, backprop = gpudrop.dropout_vjp(torch.from_numpy(X).cuda(), 0.3, activation="relu", rng=STREAM)
    assert y.is_cuda
    np.testing.assert_array_equal(y.cpu().numpy(), gpudrop.dropout(X, 0.3, activation="relu", rng=STREAM))
    assert backprop(y).is_cuda


@pytest.mark.parametrize("name", ["dropout", "dropout2d", "gaussian_dropout"])
def test_replays_of_a_captured_graph_differ(cupy, name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import gpudrop.torch

    function = getattr(gpudrop.torch.functional, name)
    x = torch.ones(64, 64, 8, 8, device="cuda", requires_grad=True)

    def step():
        y = function(x, 0.5)
        return y, torch.autograd.grad(y.sum(), x)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and warms up the allocators
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, dx = step()

    def replay():
        graph.replay()
        return y.clone(), dx.clone()

    torch.cuda.manual_seed(1)
    first, second = replay(), replay()
    assert torch.equal(*first) and torch.equal(*second)  # x is all ones, so the gradient is the scaled mask
    assert not torch.equal(first[0], second[0])
    assert abs(first[0].mean().item() - 1) < 0.1
    torch.cuda.manual_seed(1)
    assert torch.equal(replay()[0], first[0])
    with (
        pytest.raises(ValueError, match="a graph can't be captured with a CPU generator"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        function(x, 0.5, generator=torch.Generator())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_calls_differ_from_one_another(cupy, mode):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import gpudrop.torch

    x = torch.ones(4096, device="cuda", requires_grad=True)

    def function(x):
        return gpudrop.torch.functional.dropout(x, 0.5, activation="relu")

    compiled = torch.compile(function, mode=mode, fullgraph=True)
    seen = []
    for _ in range(6):
        y = compiled(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y, dx)
        seen.append(y.detach().clone())
    assert len(torch.unique(torch.stack(seen), dim=0)) == 6
    if mode == "default":  # equal to the uncompiled result and to the CPU result
        results = []
        for run in (compiled, function, lambda x: function(x.cpu()).cuda()):
            torch.manual_seed(5)
            results.append(run(x))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", ["cupy_elementwise", "numba_cuda"])
def test_the_kth_replay_draws_the_kth_stream(cupy, backend):
    x, rng = cupy.asarray(X), gpudrop.Generator(9, device=True)
    y, dx = cupy.empty_like(x), cupy.empty_like(x)

    def step(rng):
        _, backprop = gpudrop.dropout_vjp(x, 0.5, activation="gelu", rng=rng, out=y, backend=backend)
        backprop(x, out=dx)

    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    with stream, cupy.cuda.using_allocator(pool.malloc):
        step(STREAM)  # compiles the kernels that don't read a stored stream
        step(rng)
        stream.begin_capture()
        step(rng)
        graph = stream.end_capture()
        for call in range(1, 4):  # the call before the capture was call 0
            graph.launch(stream)
            stream.synchronize()
            replayed = y.get(), dx.get()
            step(gpudrop.Stream(9, call))
            stream.synchronize()
            np.testing.assert_array_equal(replayed, (y.get(), dx.get()))
    assert rng.state_dict() == {"seed": 9, "call": 4}
