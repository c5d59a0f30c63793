"""The package as it is built: its version has an entry in the changelog, and a wheel has all of its files."""

import compileall
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest

import gpudrop
from tests import ROOT


def test_the_changelog_begins_with_this_version():
    entries = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert entries[0].startswith(f"## [{gpudrop.__version__}]")
    assert gpudrop.__version__ == version("gpudrop")


@pytest.mark.slow
def test_a_wheel_has_all_files_of_the_package(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="setuptools is not installed, or older than 77")
    tree = tmp_path / "tree"
    for folder in ("gpudrop", "kernels"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {path.relative_to(tree).as_posix() for path in (tree / "gpudrop").rglob("*") if path.is_file()}
    kernels = (path for path in (tree / "kernels").rglob("*") if path.is_file())
    files |= {f"gpudrop/{path.relative_to(tree).as_posix()}" for path in kernels}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files
    assert "gpudrop/py.typed" in packed


PROGRAM = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path.insert(0, sys.argv[1])
import numpy as np
import gpudrop
from gpudrop.testing import reference, ulps
assert gpudrop.__file__.startswith(sys.argv[1]), gpudrop.__file__
assert reference.known_answers() and ulps.allowed("relu", "value", "float32")
try:
    print(gpudrop.dropout(np.float32([-3, 3, 6, 9]), 0.25, activation="relu", rng=gpudrop.Stream(1, 0)))
except RuntimeError as error:
    print(error)
"""


@pytest.fixture
def packed(tmp_path):
    """The package in one folder, as it is installed."""
    skip = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(ROOT / "gpudrop", tmp_path / "packed" / "gpudrop", ignore=skip)
    shutil.copytree(ROOT / "kernels", tmp_path / "packed" / "gpudrop" / "kernels", ignore=skip)
    return tmp_path / "packed"


def test_in_a_zip_file_it_works(packed, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", packed)
    done = subprocess.run([sys.executable, "-c", PROGRAM, archive], capture_output=True, text=True)
    assert done.stdout == "[ 0.  4.  0. 12.]\n", done.stderr


def test_without_its_sources_one_error_says_what_is_missing(packed):
    """Where there are only .pyc files."""
    compileall.compile_dir(packed, quiet=2, legacy=True)
    for file in packed.rglob("*.py"):
        file.unlink()
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(packed)], capture_output=True, text=True)
    reason = "gpudrop's .py files are missing, and its kernels are compiled from them: install them too"
    assert done.stdout == f"backend 'cpu' is not available: it can't be imported ({reason})\n", done.stderr


FROZEN = """
import numpy as np
import gpudrop
print(gpudrop.dropout(np.float32([-3, 3, 6, 9]), 0.25, activation="relu", rng=gpudrop.Stream(1, 0)))
"""
LARGE = ("torch", "matplotlib", "sklearn", "transformers", "cupy", "pytest")


@pytest.mark.slow
def test_pyinstaller_packs_all_that_kernels_are_made_of(packed, tmp_path):
    pytest.importorskip("PyInstaller", reason="PyInstaller is not installed")
    (tmp_path / "program.py").write_text(FROZEN)
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "--paths", str(packed)]
    command += [
        f"--additional-hooks-dir={packed}/gpudrop/_pyinstaller",
        *(f"--exclude-module={name}" for name in LARGE),
    ]
    environment = os.environ | {"PYTHONPATH": str(packed), "PYINSTALLER_CONFIG_DIR": str(tmp_path / "config")}
    subprocess.run([*command, "program.py"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    done = subprocess.run([tmp_path / "dist" / "program" / "program"], cwd=packed, capture_output=True, text=True)
    assert done.stdout == "[ 0.  4.  0. 12.]\n", done.stderr
