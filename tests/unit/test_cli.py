"""The command line: info, warmup, and the raw bytes of a stream."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpudrop
from gpudrop import backends, cli, demo, warming
from gpudrop.checks import check_writable
from gpudrop.kernels import cpu
from gpudrop.testing import reference, selftest
from gpudrop.testing.benchmark import comparison
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
    assert any("cpu" in line and "CPU thread" in line for line in lines)
    assert any("numba " in line for line in lines)


WRITERS = {"bench": "--json", "demo": "--picture", "selftest": "--json"}


def failure(monkeypatch, *arguments):
    """Run a command that fails, and return its message."""
    monkeypatch.setattr(sys, "argv", ["gpudrop", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("path", ["no folder", "folder", "long name", "no permission"])
def test_a_file_that_cannot_be_written_is_reported_at_once(monkeypatch, tmp_path, command, path):
    for module in (comparison, selftest):
        monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(demo, "_device", lambda: pytest.fail("it was trained"))
    of = "picture" if command == "demo" else "results"
    file = {"no folder": tmp_path / "no" / "such", "folder": tmp_path, "long name": tmp_path / ("n" * 300)}.get(path)
    if path == "no permission":
        file = tmp_path / "kept"
        file.write_text("older results")
        file.chmod(0o400)
        if os.access(file, os.W_OK):
            pytest.skip("this user may write to every file")
    message = failure(monkeypatch, command, WRITERS[command], file)
    if path == "no folder":
        assert message == f"gpudrop {command}: the folder of the {of} must exist, got {file}"
    else:
        assert message.startswith(f"gpudrop {command}: the file of the {of} must be writable, got {file} (")
    assert path != "no permission" or file.read_text() == "older results"


def test_checking_a_file_changes_nothing(tmp_path):
    new, old, link = tmp_path / "new", tmp_path / "old", tmp_path / "link"
    old.write_text("older results")
    link.symlink_to(tmp_path / "target")
    for path in (new, old, link):
        check_writable("results", path)
    assert (sorted(tmp_path.iterdir()), old.read_text()) == ([link, old], "older results")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_checking_a_pipe_does_not_open_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_writable("results", tmp_path / "pipe")  # opening would wait for a reader


@pytest.mark.parametrize("command", sorted(command.callback.__name__ for command in cli.app.registered_commands))
@pytest.mark.parametrize("message", ["Unable to allocate 1 TiB", ""])
def test_a_lack_of_memory_is_one_line(monkeypatch, command, message):
    def fails(*arguments, **options):
        raise MemoryError(message)

    for module, name in (
        (comparison, "run"), (selftest, "run"), (demo, "_device"), (backends, "load"), (warming, "warmup"),
        (cpu, "random_bytes"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, fails)
    assert failure(monkeypatch, command) == f"gpudrop {command}: {message or 'MemoryError'}"


@pytest.mark.parametrize(("count", "words"), [(1, "1 CPU thread"), (2, "2 CPU threads")])
def test_the_number_of_threads_is_in_words(monkeypatch, count, words):
    monkeypatch.setattr(cpu.threads, "available", lambda: count)
    assert cpu.devices() == [words]


def test_warmup_compiles_only_the_named_kernels(monkeypatch):
    from typer.testing import CliRunner

    from gpudrop import backends, operations
    from gpudrop.cli import app
    from gpudrop.kernels import cpu

    compiled = []
    monkeypatch.setattr(cpu, "launch", lambda kernel, *arguments: compiled.append(kernel))
    monkeypatch.setattr(cpu, "grow", lambda seeds, mask, block: np.ones(1, np.uint64))
    command = ["warmup", "gelu", "relu", "--dtype", "float16", "--bits", "8", "--variant", "dropblock1d"]
    done = CliRunner().invoke(app, [*command, "--variant", "zoneout"])
    assert done.exit_code == 0, done.output
    assert operations.PACK in compiled
    applied = [kernel for kernel in compiled if kernel.inputs and kernel.dtype != "bool"]
    assert {kernel.name.split("_backward")[0].split("_forward")[0] for kernel in applied} == {
        "gpudrop_gelu", "gpudrop_relu", "gpudrop_gelu_zoneout", "gpudrop_relu_zoneout",
        "gpudrop_gelu_expected_zoneout", "gpudrop_relu_expected_zoneout",
    }  # fmt: skip
    assert {kernel.dtype for kernel in applied} == {"float16"}
    outputs = {tuple(slot.name for slot in kernel.outputs) for kernel in applied}
    assert outputs == {("y",), ("y", "bits"), ("dx",), ("dx", "dprevious")}
    assert {kernel.name.split("_")[1] for kernel in applied if kernel.reads_bits or kernel.writes_bits} == {"relu"}
    assert any(kernel.counted for kernel in applied)
    assert {kernel.bits for kernel in compiled if kernel.bits} == {8}
    assert backends.load("cpu") is cpu


def test_warmup_compiles_kernels_with_rows_and_gates(monkeypatch):
    from gpudrop.kernels import cpu

    compiled = []
    monkeypatch.setattr(cpu, "launch", lambda kernel, *arguments: compiled.append(kernel))
    gpudrop.warmup(["relu"], variant="dropout_add", rows=["bias", "gain"])
    gpudrop.warmup(["silu"], variant="dropout_glu")
    gpudrop.warmup(["relu"], rows=["bias"])
    inputs = {tuple(slot.name for slot in kernel.inputs) for kernel in compiled}
    assert {("x", "residual", "bias", "gain"), ("dy", "x", "bias", "gain"), ("x", "value"), ("dy", "x", "value"),
            ("x", "bias"), ("dy", "bits")} <= inputs  # fmt: skip
    outputs = {tuple(slot.name for slot in kernel.outputs) for kernel in compiled}
    assert {("dx", "dbias", "dgain"), ("dx", "dvalue"), ("dx", "dbias")} <= outputs
    with pytest.raises(ValueError, match="unknown row 'gain' of dropout; known: bias"):
        gpudrop.warmup(["relu"], rows=["gain"])
    with pytest.raises(TypeError, match="rows must be a list of names, got 'bias'"):
        gpudrop.warmup(["relu"], rows="bias")


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
    done = CliRunner().invoke(app, ["warmup", "relu", "--variant", "all", "--row", "bias"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["warmup", "relu", "--variant", "all", "--row", "base"])
    assert isinstance(done.exception, ValueError) and str(done.exception).startswith("unknown row 'base'")
