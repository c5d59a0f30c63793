"""The cases of a run of `python -m bench cpu` or `gpu`."""

from dataclasses import replace

from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.testing.benchmark.cases import DTYPES, LARGE, LAYOUTS, Case

SIZES = tuple(10**k for k in range(2, 9))
FORWARD_SIZES = tuple(sorted({*SIZES, 2**25}))
MEMORY_SIZES = (2**24, LARGE)
CACHE_SIZES = tuple(2**k for k in range(17, 21))
SAVED_SIZES = tuple(2**k for k in range(14, 27, 2))
SMOOTH = ("gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
GPU_SIZES = tuple(2**k for k in range(14, 31, 2))
GPU_LARGE = (LARGE, 4 * LARGE)  # elements
GPU_ACTIVATIONS = ("identity", "relu", "gelu", "silu")


def cpu_cases(threads, quick):
    """The cases of a run on the CPU with at most `threads` threads."""
    directions = (False, True)
    more = [*memory_cases(threads, quick), *cache_cases(threads, quick), *layout_cases(threads, quick)]
    more += saved_cases(threads, quick)
    if quick:
        sizes = [Case("sizes", size=size, backward=b, threads=threads) for b in directions for size in (10**3, 10**5)]
        sizes += [Case("sizes", size=10**7, threads=threads)]
        kinds = [("relu", "float32"), ("relu", "bfloat16"), ("identity", "float32"), ("gelu", "float32")]
        alone = [Case("one thread", size=10**7)]
    else:
        sizes = [Case("sizes", size=size, threads=threads) for size in FORWARD_SIZES]
        sizes += [Case("sizes", size=size, backward=True, threads=threads) for size in SIZES]
        kinds = [(name, dtype) for name in ("identity", "relu") for dtype in DTYPES]
        kinds += [(name, "float32") for name in SMOOTH]
        alone = [Case("one thread", size=size, backward=b) for b in directions for size in SIZES]
    kinds = [Case("kinds", name, dtype, backward=b, threads=threads) for name, dtype in kinds for b in directions]
    return sizes + kinds + alone + more


def memory_cases(threads, quick):
    """Large arrays, forward and backward pass separately: the speed of memory should limit them."""
    both = Case("memory", size=MEMORY_SIZES[0], backward=True, threads=threads)
    if quick:
        return list(both.passes)
    cases = [
        one
        for dtype in DTYPES
        for size in MEMORY_SIZES
        for name in ("identity", "relu")
        for one in replace(both, activation=name, dtype=dtype, size=size).passes
    ]
    return cases + [Case("memory", name, threads=threads) for name in ("gelu", "silu")]


def cache_cases(threads, quick):
    """Arrays that fit in a cache, so that drawing limits the speed."""
    sizes, names = (CACHE_SIZES[:1], ("relu",)) if quick else (CACHE_SIZES, ("identity", "relu", "gelu"))
    return [
        Case("in the cache", name, size=size, threads=threads, bits=bits)
        for name in names
        for bits in (16, 8)
        for size in sizes
    ]


def layout_cases(threads, quick):
    """A matrix in each layout."""
    size = 2**20 if quick else 2**24
    return [Case("layouts", size=size, threads=threads, layout=layout) for layout in LAYOUTS]


def saved_cases(threads, quick):
    """Forward and backward passes of activations whose backward pass can read one bit per element."""
    sizes, dtypes = ((2**20,), ("float32",)) if quick else (SAVED_SIZES, ("float32", "bfloat16"))
    names = [name for name, row in ACTIVATIONS.items() if row.slopes is not None]
    return [
        Case("saved for backward", name, dtype, size, backward=True, threads=threads)
        for dtype in dtypes
        for name in names
        for size in sizes
    ]


def gpu_cases(quick):
    """The cases of a run on a GPU, where each pass is measured separately."""
    sizes, large = ((2**14, 2**20, LARGE), (LARGE,)) if quick else (GPU_SIZES, GPU_LARGE)
    kinds = [(name, dtype) for dtype in DTYPES for name in GPU_ACTIVATIONS if (name, dtype) != ("relu", "float32")]
    if quick:
        kinds = [("identity", "float32"), ("relu", "bfloat16"), ("gelu", "float16"), ("silu", "bfloat16")]
    return [
        Case("launch", size=1000, backward=True),
        *(Case("sizes", size=size, backward=True) for size in sizes),
        *(Case("kinds", name, dtype, size, backward=True) for name, dtype in kinds for size in large),
    ]
