"""The C++ header for users' own kernels: built and run by g++, and compiled for GPUs by NVRTC."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

import gpudrop
from gpudrop import device
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.testing import reference
from tests.backends.test_device import FIRST, STREAMS

BITS = 8, 16, 32
NAMES = [name for name in ACTIVATIONS if name in reference.ACTIVATIONS]

PROGRAM = """
#include <cmath>
#include <cstdint>
typedef unsigned long long number;
extern "C" void words(unsigned* out, number seed, number call, number chunk) {
  for (int k = 0; k < 4; ++k) out[k] = gpudrop::draw(seed, call, chunk)[k];
}
template <int bits>
void masks(bool* by_chunk, bool* by_element, number seed, number call, number chunk, number threshold) {
  const gpudrop::Words words = gpudrop::draw(seed, call, chunk);
  for (int lane = 0; lane < 128 / bits; ++lane) {
    by_chunk[lane] = gpudrop::keep<bits>(words, lane, threshold);
    by_element[lane] = gpudrop::keep_at<bits>(seed, call, chunk * (128 / bits) + lane, threshold);
  }
}
template <int bits>
void uniforms(float* single, double* both, const unsigned* words) {
  const gpudrop::Words drawn = {{words[0], words[1], words[2], words[3]}};
  for (int lane = 0; lane < 128 / bits; ++lane) {
    single[lane] = gpudrop::uniform<bits>(drawn, lane);
    both[lane] = gpudrop::uniform<bits, double>(drawn, lane);
  }
}
extern "C" void normals(float* single, double* both, number seed, number call, int size) {
  for (int i = 0; i < size; ++i) {
    single[i] = gpudrop::normal(gpudrop::draw(seed, call, i / 4), i % 4);
    both[i] = gpudrop::normal<double>(gpudrop::draw(seed, call, i / 4), i % 4);
  }
}
"""
for number in BITS:
    PROGRAM += f"""
extern "C" void masks_{number}(bool* c, bool* e, number seed, number call, number chunk, number threshold) {{
  masks<{number}>(c, e, seed, call, chunk, threshold);
}}
extern "C" void uniforms_{number}(float* single, double* both, const unsigned* w) {{
  uniforms<{number}>(single, both, w);
}}
"""
for name in NAMES:
    PROGRAM += f"""
extern "C" void {name}_of(const double* x, double* y, double* slope, float* single, int size) {{
  for (int i = 0; i < size; ++i) {{
    y[i] = gpudrop::activations::{name}(x[i]);
    slope[i] = gpudrop::slopes::{name}({"y" if ACTIVATIONS[name].slope_of == "output" else "x"}[i]);
    single[i] = gpudrop::activations::{name}(float(x[i]));
  }}
}}
"""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def built(folder, *options):
    source, library = folder / "program.cpp", folder / "program.so"
    source.write_text(f'#include "gpudrop_device.h"\n{PROGRAM}')
    command = ["g++", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{device.include_dir()}", *options]
    subprocess.run([*command, source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module", params=[["-std=c++17"], ["-std=c++11", "-D__device__="]], ids=" ".join)
def library(request, tmp_path_factory):
    """The header in a C++ program, as it is and where __device__ has a meaning."""
    return built(tmp_path_factory.mktemp("header"), *request.param)


def call(function, *arguments):
    function(*(a.ctypes if isinstance(a, np.ndarray) else ctypes.c_uint64(a) for a in arguments))


@needs_compiler
@pytest.mark.parametrize("bits", BITS)
def test_words_and_masks_are_those_of_the_stream(library, bits):
    lanes = 128 // bits
    for stream, first in zip(STREAMS, FIRST, strict=True):
        words = np.zeros(4, np.uint32)
        call(library.words, words, *stream, first)
        np.testing.assert_array_equal(words, reference.words(*stream, np.uint64(first)))
        fields = reference.fields(*stream, first * lanes, lanes, bits)
        for threshold in (0, 5, 2 ** (bits - 1), 2**bits - 1, 2**bits):
            chunk, element = np.zeros((2, lanes), np.bool_)
            call(library[f"masks_{bits}"], chunk, element, *stream, first, threshold)
            np.testing.assert_array_equal(chunk, fields >= threshold)
            np.testing.assert_array_equal(element, fields >= threshold)


@needs_compiler
@pytest.mark.parametrize("bits", BITS)
def test_uniform_numbers(library, bits):
    for words in ([0] * 4, [2**32 - 1] * 4, reference.words(7, 3, np.uint64(5))):
        single, both = np.zeros(128 // bits, np.float32), np.zeros(128 // bits)
        call(library[f"uniforms_{bits}"], single, both, np.array(words, np.uint32))
        want = (np.array(words, "<u4").view(f"<u{bits // 8}") + 0.5) / 2.0**bits
        np.testing.assert_array_equal(both, want)
        np.testing.assert_array_max_ulp(single, want.astype(np.float32), 1)


@needs_compiler
def test_normal_deviates(library):
    single, both = np.zeros(4000, np.float32), np.zeros(4000)
    call(library.normals, single, both, 7, 3, 4000)
    want = reference.normals(7, 3, 4000)
    np.testing.assert_allclose(both, want, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(single, want, rtol=3e-6, atol=3e-7)


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_activations_and_slopes(library, name):
    x = np.linspace(-6.1, 6.3, 1001)
    y, slope, single = np.zeros_like(x), np.zeros_like(x), np.zeros(x.size, np.float32)
    call(library[f"{name}_of"], x, y, slope, single, x.size)
    value, derivative = reference.activated(x, name)
    np.testing.assert_allclose(y, value, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(slope, derivative, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(single, value, rtol=2e-5, atol=2e-6)


def test_the_folder_is_written_once_and_named_after_the_text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = device.include_dir()
    (file,) = folder.iterdir()
    assert folder.is_relative_to(tmp_path) and folder.name.startswith(f"{gpudrop.__version__}-")
    before = file.stat()
    assert device.include_dir() == folder and file.stat() == before and file.read_text() == device.cuda_source()
    monkeypatch.setattr("gpudrop.device.cuda.cuda_source", lambda: "another text")
    assert device.include_dir() != folder


def test_a_registered_activation_does_not_change_the_header(monkeypatch):
    text = device.cuda_source()
    monkeypatch.setitem(ACTIVATIONS, "mine", ACTIVATIONS["relu"])
    device.cuda_source.cache_clear()
    assert device.cuda_source() == text


KERNEL = """
extern "C" __global__ void layer(
    const float* x, const float* bias, const float* residual, float* y, int columns, unsigned long long size,
    unsigned long long seed, unsigned long long call, unsigned long long threshold, float scale) {
  unsigned long long chunk = blockIdx.x * static_cast<unsigned long long>(blockDim.x) + threadIdx.x;
  if (8 * chunk >= size) return;
  const gpudrop::Words words = gpudrop::draw(seed, call, chunk);
  for (int lane = 0; lane < 8; ++lane) {
    unsigned long long i = 8 * chunk + lane;
    if (i >= size) break;
    float z = gpudrop::activations::gelu(x[i] + bias[i % columns]);
    y[i] = residual[i] + (gpudrop::keep<16>(words, lane, threshold) ? z * scale : 0.0f);
  }
}
"""


@needs_compiler
def test_other_numbers_of_bits_are_refused(tmp_path):
    source = tmp_path / "program.cpp"
    source.write_text(f"{device.cuda_source()}bool f(gpudrop::Words w) {{ return gpudrop::keep<12>(w, 0, 1); }}")
    done = subprocess.run(["g++", "-c", source, "-o", tmp_path / "o"], capture_output=True, text=True)
    assert done.returncode and "bits must be 8, 16 or 32" in done.stderr


@pytest.mark.parametrize("architecture", [75, 90, 120])
def test_kernels_compile_for_gpus(architecture):
    """As a RawKernel's text, and as the preamble of an ElementwiseKernel."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    pytest.importorskip("nvidia.cu13", reason="CUDA 13's compilers from PyPI are not installed")
    from bench import offline
    from bench.cupy_text import elementwise_source, program

    (instructions,) = offline.disassembled(offline.cubin(device.cuda_source() + KERNEL, "c++", architecture)).values()
    assert not [i for i in instructions if i["opcode"].startswith(("LDL", "STL"))], "the words are in memory"
    kernel = cupy.ElementwiseKernel(
        "raw float32 x, uint64 seed, uint64 call, uint64 threshold, float32 scale",
        "raw float32 y",
        "y[i] = gpudrop::keep_at<16>(seed, call, i, threshold) ? gpudrop::activations::relu(x[i]) * scale : 0.0f",
        "relu_dropout",
        preamble=device.cuda_source(),
    )
    assert b"kernel_0" in offline.cubin(program([(elementwise_source(kernel), kernel.name)]), "c++", architecture)
