"""The text of CuPy's kernels as compilers see it, without a GPU."""

import cupy
import numpy as np
from cupy._core import _kernel, _scalar


def elementwise_source(kernel, form=(1, True, True)):
    """What CuPy makes of an ElementwiseKernel; form: (ndim, contiguous, whether 32 bits index them) of all arrays."""
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


# Names of CuPy's header of complex numbers, which it includes before every ElementwiseKernel; it needs Thrust.
NAMES = ("conj", "real", "imag", "arg")
COMPLEX = "namespace of_cupy {\nstruct complex {};\n"
COMPLEX += "".join(f"__device__ complex {name}(complex);\n" for name in NAMES)
COMPLEX += "}\n"
USING = "".join(f"using of_cupy::{name};\n" for name in NAMES)


def program(sources):
    """One program out of several, [(source, kernel's name), ...]: each in a namespace; number i of them is kernel_i."""
    whole = "#include <cupy/carray.cuh>\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n" + COMPLEX
    for i, (source, name) in enumerate(sources):
        whole += f"#define {name} kernel_{i}\nnamespace n{i} {{\n{USING}{source}\n}}\n#undef {name}\n"
    return whole
