"""The contenders on a GPU: those of `gpudrop bench`, and those that only the repository has."""

from bench.contenders import compiled_dropout
from gpudrop import backends
from gpudrop.testing.benchmark.contenders import SEED, Absent
from gpudrop.testing.benchmark.gpu_contenders import CONTENDERS as SHARED
from gpudrop.testing.benchmark.gpu_contenders import (
    COPY,
    CUPY,
    EAGER,
    PLAIN,
    GpuContender,
    our_mask,
    ours,
    pytorch,
    to_tensors,
    to_variables,
    torch_on,
)


def ours_numba(case, xp):
    module = backends.load("numba_cuda")
    if isinstance(module, str):
        raise Absent(module)
    return ours(case, xp)


def to_numba(*arrays):
    """Numba arrays over the same memory, on CuPy's current stream."""
    from numba import cuda

    return [cuda.as_cuda_array(array.view(f"u{array.itemsize}"), sync=False).view(array.dtype) for array in arrays]


def triton(case, xp):
    torch_on(case, xp)
    try:
        from bench import triton_dropout
    except ImportError as error:
        raise Absent(f"Triton can't be imported ({error})") from None

    def vjp(x, dy, y, dx):
        def backprop():
            triton_dropout.backward(dy, x, dx, case.p, SEED, case.activation)
            return dx

        triton_dropout.forward(x, y, case.p, SEED, case.activation)
        return y, backprop

    return vjp


def torch_compiled(case, xp):
    torch_on(case, xp)
    from torch._functorch import config

    config.donated_buffer = False  # otherwise compiled functions reject retain_graph
    return pytorch(case, xp, compiled_dropout)


NUMBA = "gpudrop, Numba"
OURS = (CUPY, NUMBA)
CONTENDERS = (
    SHARED[COPY],
    SHARED[CUPY],
    GpuContender(NUMBA, ours_numba, our_mask, adapt=to_numba, graph="cupy", writes=True),
    SHARED[EAGER],
    GpuContender("torch.compile", torch_compiled, adapt=to_variables, graph="torch"),
    GpuContender("Triton", triton, adapt=to_tensors, graph="torch", writes=True),
    SHARED[PLAIN],
)
PEERS = tuple(contender.name for contender in CONTENDERS if contender.name not in (COPY, *OURS))
