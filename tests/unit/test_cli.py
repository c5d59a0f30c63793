"""The command line: info, warmup, and the raw bytes of a stream."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpudrop
from gpudrop import warming
from gpudrop.testing import reference
from tests.family.layer_calls import CLASSES, arrays
from tests.processes import run
from tests.sampling import few

GPUDROP = [sys.executable, "-m", "gpudrop"]


@pytest.mark.parametrize("count", few([0, 1, 33, 16 * 65536 + 5], 16 * 65536 + 5))
def test_bits_are_the_fields_of_the_stream(count):
    seed, call = 2**63 + 1, 2**33
    command = [*GPUDROP, "bits", "--seed", str(seed), "--call", str(call), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, check=True)
    want = np.asarray(reference.fields(seed, call, 0, count, 8), np.uint8)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint8), want)


@pytest.mark.slow
def test_bits_exit_without_an_error_when_the_reader_closes_the_pipe():
    reader = subprocess.Popen([*GPUDROP, "bits"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(reader.stdout.read(10_000_000)) == 10_000_000
    reader.stdout.close()
    assert reader.stderr.read() == b""
    assert reader.wait(timeout=30) == 0


def test_bits_reject_a_negative_seed():
    done = subprocess.run([*GPUDROP, "bits", "--seed", "-1"], capture_output=True, text=True, env={"TERM": "dumb"})
    assert done.returncode == 2 and done.stdout == "" and "--seed" in done.stderr


def test_info_lists_usable_backends_and_why_others_are_unusable():
    done = subprocess.run([*GPUDROP, "info"], capture_output=True, text=True, check=True, env={"COLUMNS": "200"})
    lines = done.stdout.splitlines()
    for name in ("cpu", "cupy_elementwise", "numba_cuda"):
        row = next(line for line in lines if name in line)
        assert "yes, on " in row or "no: " in row
    assert any("cpu" in line and "CPU threads" in line for line in lines)
    assert any("numba " in line for line in lines)


def test_demo_reports_a_missing_folder_in_one_line(tmp_path):
    command = [*GPUDROP, "demo", "--picture", str(tmp_path / "no" / "such.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("gpudrop demo: the folder of the picture must exist")


def test_warmup_compiles_only_the_named_kernels(monkeypatch):
    from typer.testing import CliRunner

    from gpudrop import backends
    from gpudrop.cli import app
    from gpudrop.kernels import cpu

    compiled = []
    monkeypatch.setattr(cpu, "launch", lambda kernel, *arguments: compiled.append(kernel))
    monkeypatch.setattr(cpu, "grow", lambda seeds, mask, block: np.ones(1, np.uint64))
    command = ["warmup", "gelu", "relu", "--dtype", "float16", "--bits", "8", "--variant", "dropblock1d"]
    done = CliRunner().invoke(app, [*command, "--variant", "zoneout"])
    assert done.exit_code == 0, done.output
    applied = [kernel for kernel in compiled if kernel.inputs and kernel.outputs[0].name != "mask"]
    assert {kernel.name.split("_backward")[0].split("_forward")[0] for kernel in applied} == {
        "gpudrop_gelu", "gpudrop_relu", "gpudrop_relu_of_input", "gpudrop_gelu_zoneout", "gpudrop_relu_zoneout",
        "gpudrop_relu_of_input_zoneout", "gpudrop_gelu_expected_zoneout", "gpudrop_relu_expected_zoneout",
    }  # fmt: skip
    assert {kernel.dtype for kernel in applied} == {"float16"}
    outputs = {tuple(slot.name for slot in kernel.outputs) for kernel in applied}
    assert outputs == {("y",), ("dx",), ("dx", "dprevious")}
    assert any(kernel.counted for kernel in applied)
    assert {kernel.bits for kernel in compiled if kernel.bits} == {8}
    assert backends.load("cpu") is cpu


@pytest.mark.slow
def test_warmup_reports_wrong_arguments_in_one_line():
    wrong = {
        "gelo": "unknown activation 'gelo'; known: elu",
        "relu --variant dropout9d": "unknown variant 'dropout9d'; known: alpha_dropout",
        "relu --backend cuda": "unknown backend 'cuda'; known: cpu",
        "relu --bits 7": "bits must be one of 8, 16, 32, got 7",
    }
    for arguments, message in wrong.items():
        done = subprocess.run([*GPUDROP, "warmup", *arguments.split()], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith(f"gpudrop warmup: {message}"), done.stderr


@pytest.mark.slow
def test_every_command_shows_its_help():
    """An old typer fails here with a newer click, on which it depends."""
    from gpudrop.cli import app

    for command in ([], *([command.callback.__name__] for command in app.registered_commands)):
        done = subprocess.run([*GPUDROP, *command, "--help"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and "Usage:" in done.stdout, done.stderr


COMMANDS = ["info", "bits --count 1000000", "warmup relu", "--help", "--version", "warmup --help", "selftest --quick"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("trouble", ["a full disk", "closed", "a reader that closes the pipe"])
@pytest.mark.parametrize("command", few(COMMANDS, "info", "--version"))
def test_an_output_error_prints_one_line_and_sets_exit_status_1(command, trouble, monkeypatch):
    """Except `bits`, whose reader may close the pipe at any time."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it would leave no output to write at exit
    arguments = [*GPUDROP, *command.split()]
    if trouble == "a full disk":
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True)
        message = "[Errno 28] No space left on device"
    elif trouble == "closed":
        done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *arguments], stderr=subprocess.PIPE, text=True)
        message = "standard output is closed"
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        message = "broken pipe: the reader closed standard output"
        if command.startswith("bits"):
            assert (done.returncode, done.stderr) == (0, "")
            return
    assert (done.returncode, done.stderr) == (1, f"gpudrop {command.split()[0]}: {message}\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("command", ["selftest --quick --json /dev/full", "demo --seeds 1 --picture /dev/full"])
def test_a_full_disk_prints_one_line_and_sets_exit_status_1(command):
    done = subprocess.run([*GPUDROP, *command.split()], capture_output=True, text=True)
    assert (done.returncode, done.stdout != "") == (1, True)
    assert done.stderr == f"gpudrop {command.split()[0]}: [Errno 28] No space left on device\n"


FULL_CACHE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from gpudrop.cli import main
sys.argv[1:] = ["warmup", "relu"]
try:
    main()
except SystemExit as end:
    print("END:", end.code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limits for files")
def test_a_warmup_that_cannot_write_its_cache_fails(tmp_path):
    done = run(FULL_CACHE, clean=False, NUMBA_CACHE_DIR=tmp_path, PYTHONDONTWRITEBYTECODE=1)
    assert "END: gpudrop warmup: Numba's cache can't be used (" in done.stdout


def test_version_prints_the_version_of_the_package():
    done = subprocess.run([*GPUDROP, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"gpudrop {gpudrop.__version__}\n", "")


def test_warmup_of_all_variants_compiles_what_plain_calls_use(monkeypatch):
    """Layers without options, in training and evaluation mode."""
    from typer.testing import CliRunner

    from gpudrop.cli import app
    from gpudrop.kernels import cpu

    assert len(warming.NAMES) == len(CLASSES)
    launched = set()
    monkeypatch.setattr(cpu, "launch", lambda kernel, *arguments: launched.add(kernel))
    monkeypatch.setattr(cpu, "grow", lambda seeds, mask, block: np.ones(1, np.uint64))
    done = CliRunner().invoke(app, ["warmup", "identity", "gelu", "--variant", "all"])
    assert done.exit_code == 0, done.output
    warmed = set(launched)
    for cls in CLASSES:
        for activation in (None, "gelu"):
            launched.clear()
            layer = cls(activation=activation)
            for training in (True, False):
                layer.backward(layer.train(training)(*arrays(layer)))
            assert launched and launched <= warmed, (cls, launched - warmed)
