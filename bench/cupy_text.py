"""The source of CuPy's kernels as compilers read it, without a GPU."""

import cupy
import numpy as np
from cupy._core import _kernel, _scalar


def elementwise_source(kernel, form=(1, True, True)):
    """The source that CuPy makes of an ElementwiseKernel. form: (ndim, contiguous, 32-bit indices) of all arrays."""
    array, indexer, scalar = 1, 2, 3  # CuPy's kinds of kernel arguments

    def argument(parameter):
        kind, of = (array, cupy.ndarray) if parameter.raw else (scalar, _scalar.CScalar)
        ndim, contiguous, narrow = form if parameter.raw else (0, True, True)
        return _kernel._ArgInfo(kind, of, np.dtype(parameter.dtype), ndim, contiguous, narrow)

    of_loop = _kernel._ArgInfo(indexer, object, None, 1, True, True)
    arguments = (*map(argument, kernel.params[:-1]), of_loop)
    text = _kernel._get_elementwise_kernel_code(
        arguments, _kernel._TypeMap(()), kernel.params, kernel.operation, kernel.name, kernel.preamble
    )
    return "#include <cupy/carray.cuh>\n" + text


# CuPy includes its header of complex numbers before every ElementwiseKernel, and that header needs Thrust. These are
# the names that it defines.
NAMES = ("conj", "real", "imag", "arg")
COMPLEX = "namespace of_cupy {\nstruct complex {};\n"
COMPLEX += "".join(f"__device__ complex {name}(complex);\n" for name in NAMES)
COMPLEX += "}\n"
USING = "".join(f"using of_cupy::{name};\n" for name in NAMES)


def program(sources):
    """Join sources, [(source, kernel's name), ...], into one program.

    Each has a namespace, and kernel i is kernel_i.
    """
    whole = "#include <cupy/carray.cuh>\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n" + COMPLEX
    for i, (source, name) in enumerate(sources):
        whole += f"#define {name} kernel_{i}\nnamespace n{i} {{\n{USING}{source}\n}}\n#undef {name}\n"
    return whole
