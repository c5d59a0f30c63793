"""The command line: info, and the raw bytes of a stream."""

import subprocess
import sys

import numpy as np
import reference

GPUDROP = [sys.executable, "-c", "from gpudrop.cli import app; app()"]


def test_bits_are_the_fields_of_the_stream():
    seed, call = 2**63 + 1, 2**33
    command = [*GPUDROP, "bits", "--seed", str(seed), "--call", str(call), "--count"]
    for count in (0, 1, 33, 16 * 65536 + 5):
        done = subprocess.run([*command, str(count)], capture_output=True, check=True)
        want = np.asarray(reference.fields(seed, call, 0, count, 8), np.uint8)
        np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint8), want)


def test_bits_end_quietly_when_the_reader_has_enough():
    reader = subprocess.Popen([*GPUDROP, "bits"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(reader.stdout.read(10_000_000)) == 10_000_000
    reader.stdout.close()
    assert reader.stderr.read() == b""
    assert reader.wait(timeout=30) == 0


def test_bits_refuse_a_negative_seed():
    done = subprocess.run([*GPUDROP, "bits", "--seed", "-1"], capture_output=True, text=True, env={"TERM": "dumb"})
    assert done.returncode == 2 and done.stdout == "" and "--seed" in done.stderr


def test_info_says_what_serves_and_why_the_rest_does_not():
    done = subprocess.run([*GPUDROP, "info"], capture_output=True, text=True, check=True, env={"COLUMNS": "200"})
    lines = done.stdout.splitlines()
    for name in ("cpu", "cupy_elementwise", "numba_cuda"):
        row = next(line for line in lines if name in line)
        assert "yes, on " in row or "no: " in row
    assert any("cpu" in line and "host threads" in line for line in lines)
    assert any("numba " in line for line in lines)


def test_demo_says_what_is_missing_in_one_line(tmp_path):
    command = [*GPUDROP, "demo", "--picture", str(tmp_path / "no" / "such.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("gpudrop demo: the folder of the picture must exist")
