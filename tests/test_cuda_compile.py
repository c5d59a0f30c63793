"""Every kernel of both CUDA backends compiled for every supported architecture, without a GPU."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gpudrop import noises
from gpudrop.activations import ACTIVATIONS, find_activation
from gpudrop.fusion import Fusion

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytest.importorskip("nvidia.cu13", reason="CUDA 13's compilers from PyPI are not installed")
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the CUDA simulator compiles nothing", allow_module_level=True)

ARCHITECTURES = [75, 80, 90, 100, 120]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def fusions(dtype):
    """(fusion, contiguous, ndim) of every kernel there is for a dtype; strided ones for two activations."""
    directions = ("forward", "backward")
    keys = [(Fusion(d, a, 16, dtype), True, 1) for d in directions for a in ACTIVATIONS.values()]
    some = ACTIVATIONS["identity"], ACTIVATIONS["silu"]
    keys += [(Fusion(d, a, bits, dtype), True, 1) for d in directions for a in some for bits in (0, 8, 32)]
    keys += [(Fusion(d, a, 16, dtype), False, 3) for d in directions for a in some]
    keys += [(Fusion(d, some[1], 16, dtype, window=True, stored=True), True, 1) for d in directions]
    keys += [(described, True, 1) for described in varied(dtype, some[1])]
    keys += [(Fusion("forward", some[1], 0, dtype, noises.DROPOUT, given=True), False, 3)]
    if dtype == "float32":
        drawn = noises.DRAWN
        keys += [(Fusion("mask", some[0], bits, "bool", drawn["keep"]), True, 1) for bits in (0, 8, 16, 32)]
        keys += [(Fusion("mask", some[0], 0, "bool", drawn["keep"], given=True), True, 1)]
        keys += [(Fusion("mask", some[0], 16, "bool", drawn["keep"], window=w, stored=not w), True, 1) for w in (0, 1)]
    return keys


def varied(dtype, activation):
    """A fusion of every noise, in both directions, with what is drawn in the kernel and with what is given."""
    rows = {noises.ALPHA: 16, noises.GAUSSIAN: 32, noises.UNIFORM: 16, noises.ADDITIVE: 32, noises.ZONEOUT: 16}
    for noise, bits in rows.items():
        yield Fusion("forward", activation, bits, dtype, noise)
        yield Fusion("forward", activation, 0, dtype, noise, given=True)
        drawn = (noise.gradient or noise).drawn
        yield Fusion("backward", activation, bits if drawn else 0, dtype, noise)
        yield Fusion("backward", activation, 0, dtype, noise, given=drawn is not None)
    for direction in ("forward", "backward"):
        yield Fusion(direction, activation, 0, dtype, noises.EXPECTED_ZONEOUT)
        yield Fusion(direction, activation, 0, dtype, noises.DROPOUT, given=True)
        yield Fusion(direction, activation, 0, dtype, noises.DROPOUT, given=True, counted=True)
    if dtype.startswith("float") and dtype != "float16":
        yield Fusion("mask", find_activation(None), 32, dtype, noises.DRAWN["normal"])


def include_paths():
    import nvidia

    return [f"{Path(cupy.__file__).parent}/_core/include", f"{next(iter(nvidia.__path__))}/cu13/include"]


def cubin(source, kind, architecture):
    options = {"arch": f"sm_{architecture}"}
    if kind == "c++":
        options |= {"std": "c++17", "include_path": include_paths()}
    return core.Program(source, kind, core.ProgramOptions(**options)).compile("cubin").code


def cupy_source(keys, narrow_index=True):
    """The complete texts of CuPy kernels as one program: each in its own namespace, under its own name."""
    import cupy_text

    source = "#include <cupy/carray.cuh>\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
    for i, (fusion, contiguous, ndim) in enumerate(keys):
        text = cupy_text.text(fusion, contiguous, ndim, narrow_index)
        source += f"#define {fusion.name} kernel_{i}\nnamespace n{i} {{{text}}}\n#undef {fusion.name}\n"
    return source


def numba_ptx(key):
    """PTX by architecture. Typing and lowering are shared, since the architecture doesn't enter them."""
    from numba.cuda.compiler import _compile_pyfunc_with_fixup

    from gpudrop.kernels import numba_cuda

    fusion, contiguous, ndim = key
    function = numba_cuda.kernel(fusion, contiguous).py_func
    signature = numba_cuda.signature(fusion, contiguous, ndim)
    library, _ = _compile_pyfunc_with_fixup(function, signature, device=False, abi="numba", cc=(7, 5))
    return {architecture: library.get_asm_str(divmod(architecture, 10)) for architecture in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_kernels_compile(dtype, architecture):
    keys = fusions(dtype)
    code = cubin(cupy_source(keys), "c++", architecture)
    assert [i for i in range(len(keys)) if f"kernel_{i}\0".encode() not in code] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_kernels_compile_with_64_bit_indices(dtype):
    assert cubin(cupy_source(fusions(dtype)[::9], narrow_index=False), "c++", 90)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("direction", ["forward", "backward", "mask"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numba_kernels_compile(dtype, direction):
    for key in fusions(dtype):
        if key[0].direction == direction:
            ptx = numba_ptx(key)
            for architecture, text in ptx.items():
                assert cubin(text, "ptx", architecture)
            check_ptx(*key, ptx[90])


# One access of 16 or of 8 bytes, by whatever types.
VECTOR = {16: r"(v4\.[buf]32|v2\.[buf]64)", 8: r"v2\.[buf]32"}


def check_ptx(fusion, contiguous, ndim, ptx):
    name = f"{fusion.name} {fusion.dtype} contiguous={contiguous}"
    assert ".local" not in ptx, f"{name} uses local memory"
    assert fusion.real == "float64" or ".f64" not in ptx, f"{name} computes in float64"
    size = fusion.chunk * np.dtype(fusion.storage).itemsize
    width = min(16, size)
    if contiguous and width in VECTOR:
        loads, stores = (len(re.findall(rf"{op}\.global\S*\.{VECTOR[width]}", ptx)) for op in ("ld", "st"))
        expected = (fusion.reads * size // width, size // width)
        assert (loads, stores) == expected, f"{name}: {loads} loads, {stores} stores"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropblock_kernels_compile(architecture):
    import cupy_text
    from numba.cuda import compile_ptx, types

    from gpudrop.kernels import numba_cuda

    source = "#include <cupy/carray.cuh>\n" + cupy_text.kernel_text(cupy_text.GROW(), [(True, 1)] * 2)
    assert b"gpudrop_grow" in cubin(source, "c++", architecture)
    maps, counts = types.Array(types.uint8, 3, "C"), types.Array(types.uint64, 1, "C")
    function = numba_cuda.grow_kernel().py_func
    arguments = types.void(maps, maps, types.int64, types.int64, counts)
    ptx, _ = compile_ptx(function, arguments, cc=divmod(architecture, 10))
    assert ".local" not in ptx and cubin(ptx, "ptx", architecture)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_machine_code_loads_16_bytes_and_spills_nothing(dtype, tmp_path):
    nvdisasm = shutil.which("nvdisasm") or f"{include_paths()[1]}/../bin/nvdisasm"
    keys = [key for key in fusions(dtype) if key[1] and key[0].bits == 16 and key[0].direction == "forward"]
    (tmp_path / "kernels.cubin").write_bytes(cubin(cupy_source(keys), "c++", 90))
    sass = subprocess.run([nvdisasm, tmp_path / "kernels.cubin"], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"\.section\s+\.text\.(\w+)", sass)
    assert len(sections) == 1 + 2 * len(keys)
    for text in sections[2::2]:
        assert "LDG.E.128" in text and "STG.E.128" in text
        assert not re.search(r"\b(LDL|STL)\b", text)
