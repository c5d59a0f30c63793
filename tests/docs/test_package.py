"""The package as it is built: its version has an entry in the changelog, and a wheel has all of its files."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests import ROOT


def test_the_changelog_begins_with_this_version():
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version = "))
    entries = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert entries[0].startswith(f"## [{version.split(chr(34))[1]}]")


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
    files |= {f"gpudrop/{path.relative_to(tree).as_posix()}" for path in (tree / "kernels").rglob("*.py")}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files
    assert "gpudrop/py.typed" in packed
