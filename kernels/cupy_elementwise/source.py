"""The source text of CuPy's kernels. Fixed parts are .cuh files; variable parts are printed in front of them.

The files are inserted as text rather than included. CuPy caches compiled kernels under a hash of their text and
options, which does not cover the content of included files.
"""

import functools
import importlib.resources

from gpudrop.formulas import philox
from gpudrop.formulas.cuda_cpp import CudaSource, prelude
from gpudrop.kernels import device_math
from gpudrop.kernels.chunks import WARP, chunks, formulas_of

CONVERSIONS = {
    "float16": ("__half2float(__ushort_as_half(x))", "__half_as_ushort(__float2half_rn(x))"),
    "bfloat16": ("__uint_as_float(static_cast<uint32>(x) << 16)", "__bfloat16_as_ushort(__float2bfloat16_rn(x))"),
    "float32": ("x", "x"),
    "float64": ("x", "x"),
    "bool": ("x", "static_cast<storage>(x)"),
}
HEADERS = {"float16": "#include <cuda_fp16.h>", "bfloat16": "#include <cuda_bf16.h>"}
C_TYPES = {"uint8": "unsigned char", "uint16": "unsigned short", "float32": "float", "float64": "double"}


@functools.cache
def file(name):
    """The text of a file of this folder, also if the package is in a zip file."""
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")


def raw(kernel):
    """The program of a kernel for contiguous arrays."""
    return f"{preamble(kernel)}#define KERNEL {kernel.name}\n{file('map.cuh')}#undef KERNEL\n"


def operation(kernel):
    """The body of an ElementwiseKernel, and the names of its input arrays and output arrays."""
    inputs, outputs = [f"a{k}" for k in range(kernel.num_inputs)], [f"y{k}" for k in range(kernel.num_outputs)]
    elements = ", ".join(f"{name}[e]" for name in inputs) or "storage()"
    assignments = " ".join(f"{name}[e] = y[{k}];" for k, name in enumerate(outputs))
    text = f"\n#define INPUTS(e) {elements}\n#define OUTPUTS(e) {assignments}\n{file('elementwise.cuh')}"
    return f"{text}#undef INPUTS\n#undef OUTPUTS\n", inputs, outputs


def preamble(kernel):
    """The text in front of both kinds of kernels: types, constants, formulas and `compute`."""
    source = CudaSource({philox.product: "product", device_math.exp2: "power_of_two"})
    formulas = formulas_of(kernel)
    if kernel.approximate:
        for replaced, by in device_math.FORMULAS.items():
            source.names[replaced] = source.add(by)
    for name, formula in formulas.items():
        source.add(formula, name)
    widen, narrow = CONVERSIONS[kernel.dtype]
    mask = "unsigned char" if kernel.keeps else C_TYPES[kernel.real]
    return f"""
{HEADERS.get(kernel.dtype, "")}
namespace gpudrop {{
{prelude(C_TYPES[kernel.real], "bool" if kernel.keeps else "real")}
typedef {C_TYPES[kernel.storage]} storage;
typedef {mask} mask_t;
{constants(kernel)}
__device__ inline real widen(storage x) {{ return {widen}; }}
__device__ inline storage narrow(real x) {{ return {narrow}; }}
{file("device.cuh")}
{source.text}
{file("chunk.cuh")}
{compute(kernel)}
}}
"""


def constants(kernel):
    """The constants of a kernel, with the names of numba_cuda/map.py."""
    size, shares, width, parts, exchanges, together, group = chunks(kernel)
    numbers = {"num_inputs": kernel.num_inputs, "num_outputs": kernel.num_outputs, "size": size, "width": width}
    numbers |= {"group": group, "parts": parts, "step": size // parts, "shares": shares, "warp": WARP}
    flags = {"draws": kernel.bits > 0, "stored": kernel.stored, "masked": kernel.masked, "counted": kernel.counted}
    flags |= {"windowed": kernel.window, "bits_of_mask": kernel.masked and kernel.keeps, "exchanges": exchanges}
    flags |= {"reads_bits": kernel.reads_bits, "writes_bits": kernel.writes_bits, "works_together": together}
    flags["approximate"] = kernel.approximate
    text = "".join(f"constexpr int {name} = {number};\n" for name, number in numbers.items())
    return text + "".join(f"constexpr bool {name} = {str(flag).lower()};\n" for name, flag in flags.items())


def compute(kernel):
    """The C++ function that applies the formula to stored elements. It takes the element's bit and returns another."""
    inputs = "".join(f", widen(x[{k}])" for k in range(kernel.num_inputs)) + ", bit" * kernel.reads_bits
    lines, results = [], [f"element(r, scale, shift{inputs})"]
    if len(kernel.outputs) > 1:
        lines, results = [f"const Pair pair = {results[0]};"], ["pair.of[0]", "pair.of[1]"]
    lines += [f"y[{k}] = narrow({results[k]});" for k in range(kernel.num_outputs)]
    lines += [f"return {results[-1]} != 0;" if kernel.writes_bits else "return false;"]
    header = "__device__ inline bool compute(drawn_t r, real scale, real shift, const storage* x, bool bit, storage* y)"
    return "\n  ".join([f"{header} {{", *lines]) + "\n}"
