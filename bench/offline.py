"""CUDA kernels compiled and taken apart without a GPU: CuPy's text by NVRTC, Numba's by NVVM and the PTX compiler."""

import functools
import importlib.metadata
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
from bench.cupy_text import program
from bench.store import stored
from gpudrop.formulas import parse
from gpudrop.kernels import cupy_elementwise
from gpudrop.kernels.numba_cuda.launch import any_kernel, flat_kernel, strided_signature

CUDA = Path(next(iter(nvidia.__path__))) / "cu13"
INCLUDE = [f"{Path(cupy.__file__).parent}/_core/include", f"{CUDA}/include"]


# The packages that compile or bring headers, and the sources that Numba's kernels are made of beside their formula.
COMPILERS = ("cuda-core", "numba-cuda", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-nvjitlink", "nvidia-nvvm")
PACKAGE = Path(gpudrop.__file__).parent
SOURCES = [*(PACKAGE / "formulas").glob("*.py"), PACKAGE / "fusion.py"]
SOURCES += sorted(Path(cupy_elementwise.__file__).parent.rglob("*.py"))


@functools.cache
def compilers():
    """The versions of the compilers that are installed."""
    return {name: importlib.metadata.version(name) for name in COMPILERS} | {"cupy": cupy.__version__}


@functools.cache
def sources():
    return [path.read_text() for path in SOURCES]


def cubin(source, kind, architecture):
    """Machine code for sm_<architecture>; kind: "c++" or "ptx"."""
    options = {"arch": f"sm_{architecture}"}
    if kind == "c++":
        options |= {"std": "c++17", "include_path": INCLUDE, "ftz": True}  # as CuPy always has it

    def make(path):
        path.write_bytes(core.Program(source, kind, core.ProgramOptions(**options)).compile("cubin").code)

    return stored(".cubin", (source, kind, options, compilers()), make).read_bytes()


def cupy_source(keys):
    """The complete texts of CuPy kernels as one program; number i of them, (fusion, form), is kernel_i."""
    return program([(cupy_elementwise.source(fusion, form), fusion.name) for fusion, form in keys])


def numba_ptx(key, architectures):
    """PTX by architecture, of (fusion, form)."""
    fusion, form = key
    described = [fusion.name, fusion.dtype, parse(fusion.element).digest, form]
    texts = {}
    for native in {_is_native(fusion, architecture) for architecture in architectures}:
        alike = [architecture for architecture in architectures if _is_native(fusion, architecture) == native]

        def make(path, native=native, alike=alike):
            path.write_text(json.dumps(_compiled_by_numba(fusion, form, native, alike)))

        made = stored(".ptx.json", (described, native, alike, sources(), compilers()), make)
        texts |= {int(architecture): text for architecture, text in json.loads(made.read_text()).items()}
    return texts


def _is_native(fusion, architecture):
    """Whether the GPU itself converts what the kernel converts."""
    return architecture >= 80 or fusion.dtype != "bfloat16"


def _compiled_by_numba(fusion, form, native, architectures):
    """PTX by architecture. Typing and lowering are shared, for the architecture doesn't matter there."""
    from numba.cuda.compiler import _compile_pyfunc_with_fixup

    if form is None:
        function, signature = flat_kernel(fusion, native)
    else:
        function = any_kernel(fusion, False, native).py_func
        signature = strided_signature(fusion, form[0])
    library, _ = _compile_pyfunc_with_fixup(function, signature, device=False, abi="numba", cc=(7, 5))
    return {architecture: library.get_asm_str(divmod(architecture, 10)) for architecture in architectures}


def disassembled(code):
    """The functions of a cubin, as nvdisasm gives them: {name: [{"opcode": ..., "operands": ...}, ...]}."""

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
    """{kernel: {"registers": of a thread, "frame": bytes of its stack, "stack": the least that it needs}} of a cubin.

    They are in the section .nv.info of the ELF file, as records of a format, an attribute, an extent and a payload.
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
        if form == 4:  # a record with a payload of that extent
            if attribute in ATTRIBUTES:
                symbol, value = struct.unpack_from("<II", code, at)
                (name,) = struct.unpack_from("<I", code, symbols[4] + 24 * symbol)
                found.setdefault(text(symbols[6], name), {})[ATTRIBUTES[attribute]] = value
            at += extent
    return found
