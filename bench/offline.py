"""Compiles CUDA kernels without a GPU, and disassembles them: CuPy's with NVRTC, Numba's with NVVM."""

import functools
import importlib.metadata
import itertools
import json
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import cupy
import nvidia
from cuda import core

import gpudrop
from bench.cupy_text import elementwise_source, program
from bench.store import stored
from gpudrop import kernels
from gpudrop.formulas import parse
from gpudrop.kernels.cupy_elementwise.launching import elementwise
from gpudrop.kernels.cupy_elementwise.source import raw
from gpudrop.kernels.numba_cuda.launching import any_kernel, flat_kernel, strided_signature

CUDA = Path(next(iter(nvidia.__path__))) / "cu13"
INCLUDE = [f"{Path(cupy.__file__).parent}/_core/include", f"{CUDA}/include"]


# The packages with compilers or headers, and the sources that Numba's kernels are made of beside their formula.
COMPILERS = ("cuda-core", "numba-cuda", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-nvjitlink", "nvidia-nvvm")
PACKAGE = Path(gpudrop.__file__).parent
SOURCES = sorted((PACKAGE / "formulas").glob("*.py"))
SOURCES += sorted(Path(kernels.__file__).parent.rglob("*.py"))


@functools.cache
def compilers():
    """The versions of the installed compilers."""
    return {name: importlib.metadata.version(name) for name in COMPILERS} | {"cupy": cupy.__version__}


@functools.cache
def sources():
    return [path.read_text() for path in SOURCES]


def cubin(source, kind, architecture):
    """Machine code for sm_<architecture>. kind: "c++" or "ptx"."""
    options = {"arch": f"sm_{architecture}"}
    if kind == "c++":
        options |= {"std": "c++17", "include_path": INCLUDE, "ftz": True}  # CuPy always sets ftz

    def make(path):
        path.write_bytes(core.Program(source, kind, core.ProgramOptions(**options)).compile("cubin").code)

    return stored(".cubin", (source, kind, options, compilers()), make).read_bytes()


def cupy_source(keys):
    """The complete sources of CuPy kernels, given as (kernel, form), as one program. Kernel number i is kernel_i.

    form: None, or (ndim, whether 32 bits index the arrays) for arrays that aren't contiguous.
    """
    return program([(_cupy_text(kernel, form), kernel.name) for kernel, form in keys])


def _cupy_text(kernel, form):
    if form is None:
        return raw(kernel)
    ndim, narrow = form
    return elementwise_source(elementwise(kernel), (ndim, False, narrow))


def numba_ptx(key, architectures):
    """The PTX of (kernel, form) for each architecture."""
    kernel, form = key
    described = [kernel.name, kernel.dtype, parse(kernel.formula).digest, form]
    texts = {}
    for native in {_is_native(kernel, architecture) for architecture in architectures}:
        alike = [architecture for architecture in architectures if _is_native(kernel, architecture) == native]

        def make(path, native=native, alike=alike):
            path.write_text(json.dumps(_compiled_by_numba(kernel, form, native, alike)))

        made = stored(".ptx.json", (described, native, alike, sources(), compilers()), make)
        texts |= {int(architecture): text for architecture, text in json.loads(made.read_text()).items()}
    return texts


def _is_native(kernel, architecture):
    """Whether the GPU has instructions for the kernel's conversions."""
    return architecture >= 80 or "bfloat16" not in (kernel.dtype, *itertools.chain(*kernel.dtypes))


def _compiled_by_numba(kernel, form, native, architectures):
    """The PTX for each architecture. Typing and lowering do not depend on the architecture, and are shared."""
    from numba.cuda.compiler import _compile_pyfunc_with_fixup

    if form is None:
        function, signature = flat_kernel(kernel, native)
    else:
        function = any_kernel(kernel, False, native).py_func
        signature = strided_signature(kernel, form[0])
    library, _ = _compile_pyfunc_with_fixup(function, signature, device=False, abi="numba", cc=(7, 5))
    return {architecture: library.get_asm_str(divmod(architecture, 10)) for architecture in architectures}


def disassembled(code):
    """The functions of a cubin, as nvdisasm prints them: {name: [{"opcode": ..., "operands": ...}, ...]}."""

    def make(path):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code)
            file.flush()
            command = [_nvdisasm(), "-json", file.name]
            path.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    _, functions = json.loads(stored(".sass.json", (code, _disassembler()), make).read_text())
    return {function["function-name"]: function["sass-instructions"] for function in functions}


@functools.cache
def _nvdisasm():
    return shutil.which("nvdisasm") or f"{CUDA}/bin/nvdisasm"


@functools.cache
def _disassembler():
    """The version of nvdisasm."""
    return subprocess.run([_nvdisasm(), "--version"], capture_output=True, text=True, check=True).stdout


ATTRIBUTES = {0x2F: "registers", 0x11: "frame", 0x12: "stack"}


def resources(code):
    """{kernel: {"registers": per thread, "frame": bytes of its stack, "stack": the stack's minimum}} of a cubin.

    The section .nv.info of the ELF file contains them. A record has a format, an attribute, an extent and a payload.
    """
    (sections_at,), (size, count, names) = struct.unpack_from("<Q", code, 40), struct.unpack_from("<HHH", code, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, sections_at + i * size) for i in range(count)]

    def text(table, at):
        begin = sections[table][4] + at
        return code[begin : code.index(b"\0", begin)].decode()

    by_name = {text(names, section[0]): section for section in sections}
    symbols, (*_, begin, length, _, _, _, _) = by_name[".symtab"], by_name[".nv.info"]
    found, at = {}, begin
    while at < begin + length:
        form, attribute, extent = struct.unpack_from("<BBH", code, at)
        at += 4
        if form == 4:  # a record whose payload has that extent
            if attribute in ATTRIBUTES:
                symbol, value = struct.unpack_from("<II", code, at)
                (name,) = struct.unpack_from("<I", code, symbols[4] + 24 * symbol)
                found.setdefault(text(symbols[6], name), {})[ATTRIBUTES[attribute]] = value
            at += extent
    return found
