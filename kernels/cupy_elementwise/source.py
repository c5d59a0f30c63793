"""The source text of CuPy's kernels. Fixed parts are .cuh files; variable parts are printed in front of them.

The files are inserted as text rather than included. CuPy caches compiled kernels under a hash of their text and
options, which does not cover the content of included files.
"""

import functools
import importlib.resources

from gpudrop.formulas import philox
from gpudrop.formulas.cuda_cpp import CudaSource, prelude
from gpudrop.kernels import device_math
from gpudrop.kernels.chunks import ROWS, WARP, chunks, formulas_of
from gpudrop.kernels.spec import STORAGE

CONVERSIONS = {
    "float16": ("__half2float(__ushort_as_half(x))", "__half_as_ushort(__float2half_rn(x))"),
    "bfloat16": ("__uint_as_float(static_cast<uint32>(x) << 16)", "__bfloat16_as_ushort(__float2bfloat16_rn(x))"),
    "float32": ("x", "static_cast<float>(x)"),
    "float64": ("static_cast<real>(x)", "x"),
    "bool": ("x", "static_cast<unsigned char>(x)"),
}
"""The C++ expressions that convert a stored element to a real number, and back."""
HEADERS = {"float16": "#include <cuda_fp16.h>", "bfloat16": "#include <cuda_bf16.h>"}
C_TYPES = {"uint8": "unsigned char", "uint16": "unsigned short", "float32": "float", "float64": "double"}


@functools.cache
def file(name):
    """The text of a file of this folder, also if the package is in a zip file."""
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")


def raw(kernel):
    """The program of a kernel for contiguous arrays."""
    loop = file("sums.cuh" if kernel.num_sums else "map.cuh")
    text = f"{preamble(kernel)}namespace gpudrop {{\n{file('operands.cuh')}}}\n"
    return f"{text}#define KERNEL {kernel.name}\n{loop}#undef KERNEL\n{END}"


def operation(kernel):
    """The body of an ElementwiseKernel, and the names of its input arrays, its rows and its output arrays."""
    inputs, rows, outputs, _ = operands(kernel)
    names = [f"a{k}" for k in inputs], [f"a{k}" for k in rows], [f"y{k}" for k in outputs]
    return f"\n{file('elementwise.cuh')}{END}", *names


def operands(kernel):
    """The numbers of the full inputs, of the rows, of the full outputs and of the sums."""
    inputs, rows = kernel.num_inputs, kernel.num_rows
    return range(inputs), range(inputs, inputs + rows), range(kernel.num_outputs), range(kernel.num_sums)


def preamble(kernel):
    """The text in front of both kinds of kernels: types, constants, formulas and `compute`."""
    source = CudaSource({philox.product: "product", device_math.exp2: "power_of_two"})
    formulas = formulas_of(kernel)
    if kernel.approximate:
        for replaced, by in device_math.FORMULAS.items():
            source.names[replaced] = source.add(by)
    for name, formula in formulas.items():
        source.add(formula, name)
    mask = "unsigned char" if kernel.keeps else C_TYPES[kernel.real]
    dtypes = sorted({kernel.dtype, *kernel.dtypes[0], *kernel.dtypes[1]})
    headers = "\n".join(HEADERS[dtype] for dtype in dtypes if dtype in HEADERS)
    return f"""
{headers}
namespace gpudrop {{
{prelude(C_TYPES[kernel.real], "bool" if kernel.keeps else "real")}
typedef {mask} mask_t;
{constants(kernel)}
{types(kernel)}
{"".join(map(conversions, dtypes))}
{file("device.cuh")}
{source.text}
{file("chunk.cuh")}
{compute(kernel)}
}}
"""


LISTS = ("INPUTS", "ROWS", "OUTPUTS", "SUMS")
END = "".join(f"#undef {name}\n" for name in LISTS)


def types(kernel):
    """The type of each operand's elements, and the lists of operands as macros: see chunk.cuh."""
    lists = "".join(
        f"#define {name}(of) {' '.join(f'of({k})' for k in numbers)}\n"
        for name, numbers in zip(LISTS, operands(kernel), strict=True)
    )
    kinds = zip(("input", "output"), kernel.storages, strict=True)
    return lists + "".join(
        f"typedef {C_TYPES[storage]} {kind}_{k};\n" for kind, storages in kinds for k, storage in enumerate(storages)
    )


def conversions(dtype):
    """The C++ functions that convert stored elements of a dtype."""
    (widen, narrow), storage = CONVERSIONS[dtype], C_TYPES[STORAGE[dtype]]
    text = f"__device__ inline real widen_{dtype}({storage} x) {{ return {widen}; }}\n"
    return f"{text}__device__ inline {storage} narrow_{dtype}(real x) {{ return {narrow}; }}\n"


def constants(kernel):
    """The constants of a kernel, with the names of numba_cuda/map.py."""
    size, shares, _, parts, exchanges, cooperating, group = chunks(kernel)
    numbers = {"size": size, "group": group, "parts": parts, "step": size // parts}
    numbers |= {"shares": shares, "warp": WARP, "group_rows": ROWS}
    whole_warps = kernel.writes_bits or (exchanges and kernel.num_rows > 0)
    flags = {"draws": kernel.bits > 0, "stored": kernel.stored, "masked": kernel.masked, "counted": kernel.counted}
    flags |= {"windowed": kernel.window, "bits_of_mask": kernel.masked and kernel.keeps, "exchanges": exchanges}
    flags |= {"reads_bits": kernel.reads_bits, "writes_bits": kernel.writes_bits, "cooperating": cooperating}
    flags |= {"has_rows": kernel.num_rows > 0, "whole_warps": whole_warps, "approximate": kernel.approximate}
    text = "".join(f"constexpr int {name} = {number};\n" for name, number in numbers.items())
    return text + "".join(f"constexpr bool {name} = {str(flag).lower()};\n" for name, flag in flags.items())


def compute(kernel):
    """The C++ function that applies the formula to stored elements. It takes the element's bit and returns another."""
    inputs, outputs = kernel.dtypes
    values = "".join(f", widen_{dtype}(x.a{k})" for k, dtype in enumerate(inputs)) + ", bit" * kernel.reads_bits
    lines, results = [], [f"element(r, scale, shift{values})"]
    if len(kernel.outputs) > 1:
        lines = [f"const {'Pair' if len(kernel.outputs) == 2 else 'Triple'} all = {results[0]};"]
        results = [f"all.of[{k}]" for k in range(len(kernel.outputs))]
    lines += [f"y.y{k} = narrow_{dtype}({results[k]});" for k, dtype in enumerate(outputs)]
    lines += [f"y.s{k} = {result};" for k, result in enumerate(results[len(outputs) :]) if kernel.num_sums]
    lines += [f"return {results[-1]} != 0;" if kernel.writes_bits else "return false;"]
    header = "__device__ inline bool compute(drawn_t r, real scale, real shift, const Inputs& x, bool bit, Results& y)"
    return "\n  ".join([f"{header} {{", *lines]) + "\n}"
