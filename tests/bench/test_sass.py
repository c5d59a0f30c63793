"""`python -m bench sass` and `launch`, on machine code and records that are written by hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import launch, sass

RELU = sass.kernel_of("forward", "relu", 16, "float32")


def code(*lines):
    """Instructions as nvdisasm prints them; the target of a jump is the number of a line."""
    found = []
    for line in lines:
        predicate, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        opcode, _, operands = rest.partition(" ")
        if opcode == "BRA":
            operands = hex(16 * int(operands))
        found.append({"opcode": opcode, "operands": operands} | ({"predicate": predicate} if predicate else {}))
    return found


KERNEL = code(
    "S2R R0",
    "@P0 EXIT",
    "IMAD.WIDE.U32 R2",  # 2, the top of the loop
    "@P1 BRA 7",  # to the code for the ends of the array
    "LDG.E.128 R4",
    "@P2 BRA 11",  # to the code for values that need more work
    "BRA 13",
    "LDG.E R4",  # 7, an inner loop
    "STG.E R4",
    "@P3 BRA 7",
    "BRA 14",
    "MUFU.EX2 R4",  # 11
    "CALL.REL.NOINC `(slow)`",
    "STG.E.128 R4",  # 13
    "IADD3 R0",  # 14
    "@P4 BRA 2",
    "EXIT",
)


def test_the_path_is_the_longest_one_through_the_wide_store_without_calls():
    loop, way = sass.loop_of(KERNEL)
    assert way == [2, 3, 4, 5, 6, 13, 14, 15]
    assert loop == {2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15}
    without_call = [*KERNEL[:12], *code("FADD R4"), *KERNEL[13:]]
    assert sass.loop_of(without_call)[1] == [2, 3, 4, 5, 11, 12, 13, 14, 15]


def test_figures_count_the_path_and_faults_list_forbidden_instructions():
    resources = {"registers": 30, "frame": 0, "stack": 0}
    figures = sass.figures(KERNEL, resources, RELU)
    assert (figures.loads, figures.stores, figures.elements) == ({128: 1}, {128: 1}, 4)
    assert figures.instructions == 8 / 4 and figures.pipes == {"multiply": 1 / 4, "integer": 1 / 4}
    assert sass.faults(RELU, figures) == []
    bad = [*KERNEL]
    bad[4], bad[12] = code("LDG.E.64 R4", "CALL.REL.NOINC `($__cuda_sm20_div_s64)`")
    bad[14:15] = code("DADD R4", "STL R4")
    figures = sass.figures(bad, resources | {"stack": 16}, RELU)
    assert sass.faults(RELU, figures) == [
        "16 bytes of stack",
        "1 accesses to local memory",
        "1 64-bit divisions in the loop",
        "1 instructions of float64",
        "accesses of [64, 128] bits",
    ]


def test_a_store_outside_of_a_loop_raises():
    with pytest.raises(ValueError, match="no wide store is in a loop"):
        sass.loop_of(code("LDG.E.128 R4", "STG.E.128 R4", "EXIT"))


def test_bounds_are_bytes_over_bandwidth_and_instructions_over_rates():
    gpu = {"arch": "sm_90", "multiprocessors": 10, "clock_hz": 1e9, "bytes_per_second": 8e9}
    figures = SimpleNamespace(instructions=12.8, pipes={"multiply": 3.2, "special": 1.6})
    found = sass.bounds(RELU, figures, gpu)
    assert found == pytest.approx({"memory": 1e-9, "issue": 1e-11, "multiply": 5e-12, "special": 1e-11})
    assert sass.predicted_share(found) == 1
    assert sass.predicted_share(found | {"special": 4e-9}) == 0.25


def test_limits_depend_on_the_activation_and_the_dtype():
    bars = {
        ("forward", "relu", 16, "float32"): 22,
        ("backward", "identity", 16, "bfloat16"): 22,
        ("forward", "gelu", 16, "float16"): 22,
        ("backward", "silu", 16, "float16"): 23,
        ("backward", "gelu_tanh", 16, "bfloat16"): 26,
        ("forward", "gelu", 16, "float32"): None,
        ("forward", "gelu", 8, "float16"): None,
        ("forward", "mish", 16, "float16"): None,
        ("forward", "relu", 16, "float64"): None,
        ("forward", "relu", 16, "float32", False, True): 24,
    }
    for of, bar in bars.items():
        assert sass.bar(sass.kernel_of(*of)) == bar, of


def test_tables_and_notes_label_predictions():
    gpu = sass.GPUS["gpus"]["H100"]
    figures = sass.figures(KERNEL, {"registers": 30, "frame": 8, "stack": 0}, RELU)
    rows = [sass.row("cupy_elementwise", RELU, figures, gpu), sass.row("numba_cuda", RELU, figures, gpu)]
    rows[1] |= {"instructions": 23.0, "faults": []}
    record = {"device": gpu["name"], "cases": rows}
    (table,) = [table for table in sass.tables(record) if table.row_count]
    assert "PREDICTED" in table.title and table.columns[3].header == "cupy: predicted"
    notes = list(sass.notes(record))
    assert notes[0] == "cupy_elementwise float32 gpudrop_relu_forward_16: 8 bytes of stack"
    assert notes[1] == "numba_cuda float32 gpudrop_relu_forward_16: 23.0 instructions per element, the limit is 22"
    assert "2 kernels, 2 of them PREDICTED to be limited by memory alone on H100 SXM" in notes[2]
    assert "float32 gpudrop_relu_forward_16 (1050%)" in notes[3]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_calls_reach_the_launch(monkeypatch):
    """Calls go through CuPy and Numba, and each process counts its own launches."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    found = launch.measure(1)
    for library in launch.LIBRARIES:
        own = found[f"{library}: an addition of its own, out given"]
        assert 0 < own < found[f"{library}: dropout_vjp and backprop, gelu"]


THROUGH_CUPY = """
import ctypes, sys
from bench.launch import replace_cuda
stand_in = ctypes.PyDLL(sys.argv[1])
replace_cuda(stand_in)
import cupy, gpudrop
from gpudrop import Shard
calls = [
    (gpudrop.dropout, {"activation": "relu"}), (gpudrop.dropout, {"activation": "gelu", "bits": 8}),
    (gpudrop.dropout, {"shard": Shard((2, 3, 5, 100), (0, 0, 0, 50))}), (gpudrop.dropout2d, {"activation": "silu"}),
    (gpudrop.dropblock2d, {"block_size": 3}), (gpudrop.gaussian_dropout, {}), (gpudrop.zoneout, {"activation": "silu"}),
]
for dtype in ("float16", "float32"):
    for x in (cupy.empty((2, 3, 5, 40), dtype), cupy.empty((40, 5, 3, 2), dtype).T):
        for function, options in calls:
            others = (x,) if function is gpudrop.zoneout else ()
            before = stand_in.stand_in_launches()
            _, backprop = function.vjp(x, *others, 0.3, rng=gpudrop.Stream(1, 2), **options)
            backprop(x)
            assert stand_in.stand_in_launches() - before >= 2
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_cupy_compiles_kernels_of_every_kind(tmp_path):
    """CuPy uses its own headers and options, which other tests may lack. No kernel is launched."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    library, source = tmp_path / "libcuda.so.1", Path(launch.__file__).with_name("stand_in.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    command = [sys.executable, "-W", "ignore", "-c", THROUGH_CUPY, library]
    environment = os.environ | {"CUPY_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout == "done\n", done.stderr[-3000:]
