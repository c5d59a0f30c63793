"""CuPy's two kinds of kernels, ElementwiseKernels and RawKernels, produce the same bits and values."""

import ml_dtypes
import numpy as np
import pytest

import gpudrop
from gpudrop import Shard, Stream
from gpudrop.kernels.spec import Draws

STREAM = Stream(2**63 + 7, 2**40 + 1)
SHAPE = (2, 3, 5, 40)

# One entry per kind of kernel: a function, its options, and how many arrays it takes.
CALLS = {
    "plain": (gpudrop.dropout, {"activation": "relu"}, 1),
    "smooth": (gpudrop.dropout, {"activation": "silu", "bits": 8}, 1),
    "wide fields": (gpudrop.dropout, {"bits": 32}, 1),
    "window": (gpudrop.dropout, {"shard": Shard((2, 3, 5, 100), (0, 0, 0, 50)), "activation": "gelu"}, 1),
    "mask": (gpudrop.dropout2d, {"activation": "silu"}, 1),
    "rows of a mask": (gpudrop.dropout, {"mask_shape": (None, 1, None, None)}, 1),
    "counted": (gpudrop.dropblock2d, {"block_size": 3, "activation": "relu"}, 1),
    "deviates": (gpudrop.gaussian_dropout, {}, 1),
    "two arrays": (gpudrop.zoneout, {"activation": "silu"}, 2),
}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("call", CALLS)
def test_both_kinds_of_kernels_produce_equal_results(backend, monkeypatch, call, dtype):
    if backend.name not in ("cupy_text", "cupy_elementwise"):
        pytest.skip("the backend has one kind of kernel")
    launching = pytest.importorskip("gpudrop.kernels.cupy_elementwise.launching")
    function, options, arrays = CALLS[call]
    x, dy, *others = (
        backend.put(np.random.default_rng(k).normal(size=SHAPE).astype(dtype)) for k in range(1 + arrays)
    )  # fmt: skip

    def results():
        y, backprop = function.vjp(x, *others, 0.3, rng=STREAM, **options)
        gradients = backprop(dy)
        return [y, *(gradients if arrays == 2 else [gradients])]

    raw = results()
    launches, run = [], launching.run
    monkeypatch.setattr(launching, "run", lambda *arguments: launches.append(arguments) or run(*arguments))
    monkeypatch.setattr(launching, "raw_kernels", False)
    for one, other in zip(raw, results(), strict=True):
        np.testing.assert_array_equal(backend.get(one), backend.get(other))
    assert launches == []


def test_arrays_not_in_c_order_use_elementwise_kernels(backend, monkeypatch):
    if backend.name not in ("cupy_text", "cupy_elementwise"):
        pytest.skip("the backend has one kind of kernel")
    launching = pytest.importorskip("gpudrop.kernels.cupy_elementwise.launching")
    used, elementwise = [], launching.elementwise
    monkeypatch.setattr(launching, "elementwise", lambda kernel: used.append(kernel) or elementwise(kernel))
    x = np.arange(600, dtype=np.float32).reshape(20, 30)
    want = backend.get(gpudrop.dropout(backend.put(x), 0.3, rng=STREAM))
    assert used == []
    transposed = gpudrop.dropout(backend.put(np.ascontiguousarray(x.T)).T, 0.3, rng=STREAM)
    np.testing.assert_array_equal(backend.get(transposed), want)
    assert [kernel.source for kernel in used] == [Draws(16)]
