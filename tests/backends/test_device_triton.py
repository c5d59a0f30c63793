"""The mask in users' Triton kernels: run by Triton's interpreter, and compiled for a GPU."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gpudrop.testing import reference
from tests import ROOT

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("torch", reason="PyTorch is not installed")

import torch
import triton
import triton.language as tl

from gpudrop.device import triton as device

BLOCK = 256


@triton.jit
def each(out, first, seed, call, threshold, bits: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, device.keep(seed, call, first + offsets, threshold, bits))


@triton.jit
def chunks(out, first, seed, call, threshold, bits: tl.constexpr, BLOCK: tl.constexpr):
    lanes: tl.constexpr = 128 // bits
    chunk = first // lanes + tl.arange(0, BLOCK // lanes)
    tl.store(out + tl.arange(0, BLOCK), device.keep_chunks(seed, call, chunk, threshold, bits))


KERNELS = {"each": each, "chunks": chunks}


def check(name):
    """Compare masks with the reference: thresholds from none to all, and integers that Triton treats specially."""
    for bits in (8, 16, 32):
        for seed, call in ((0, 0), (1, 1), (2**63, 2**63), (2**64 - 1, 1), (5, 2**40)):
            for threshold in (0, 1, 2 ** (bits - 1), 2**bits - 1, 2**bits):
                for first in (0, 2**33, 2**40 + 128):
                    out = torch.zeros(BLOCK, dtype=torch.bool)
                    KERNELS[name][(1,)](out, first, seed, call, threshold, bits, BLOCK)
                    want = reference.fields(seed, call, first, BLOCK, bits) >= threshold
                    np.testing.assert_array_equal(
                        out.numpy(), want, err_msg=f"{bits} {seed} {call} {threshold} {first}"
                    )


@pytest.mark.parametrize("name", KERNELS)
def test_masks_are_those_of_the_stream(name):
    """In a process of its own: Triton reads the variable when it is imported."""
    code = f"from tests.backends import test_device_triton as t; t.check({name!r})"
    interpret("-c", code)


def interpret(*arguments):
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)


def test_the_kernel_of_the_documentation(tmp_path):
    page = (ROOT / "docs/guide/own_kernels.md").read_text()
    (code,) = re.findall(r"```{code-block} python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "kernel.py").write_text(code.replace('device="cuda"', 'device="cpu"'))
    interpret(str(tmp_path / "kernel.py"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["i32", "i64", "u64", "constexpr"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_gpus(name, kind):
    """For each type that Triton has for an integer; an argument that is 1 is a constant."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"out": "*i1", "first": "i64"} | dict.fromkeys(("seed", "call", "threshold"), kind)
    constants = {"bits": 16, "BLOCK": 1024} | ({"seed": 1, "call": 1, "threshold": 1} if kind == "constexpr" else {})
    signature |= dict.fromkeys(("bits", "BLOCK"), "constexpr")
    source = ASTSource(fn=KERNELS[name], signature=signature, constexprs=constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    # 8 elements per thread. A draw has 20 products, and some of them are constants of the call.
    draws = 1 if name == "chunks" else 8
    assert 16 * draws <= ptx.count("mul.hi.u32") <= 20 * draws and ".local" not in ptx
