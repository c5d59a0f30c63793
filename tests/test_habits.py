"""What the documents promise of the package as a whole, as far as a machine can check it."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "gpudrop").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
NETWORK = {"asyncio", "ftplib", "http", "requests", "smtplib", "socket", "socketserver", "ssl", "urllib", "xmlrpc"}
PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
PROGRAMS = {"multiprocessing", "pty", "subprocess"}
READING = {"np.load", "os.popen", "os.system", "torch.load"}  # pickles, or commands


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reaches_for_the_network_reads_pickles_or_runs_what_is_no_formula(source):
    """As SECURITY.md says."""
    tree = ast.parse(source.read_text())
    assert not set(imported(tree)) & (NETWORK | PICKLES | PROGRAMS)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    running = [f.id for f in calls if isinstance(f, ast.Name) and f.id in ("__import__", "compile", "eval", "exec")]
    assert running == (["compile", "exec"] if source == ROOT / "gpudrop" / "formulas.py" else [])
    assert not {ast.unparse(function) for function in calls} & READING


def test_the_changelog_begins_with_this_version():
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version = "))
    entries = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert entries[0].startswith(f"## [{version.split(chr(34))[1]}]")


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


def test_the_self_test_refuses_to_run_without_its_assertions():
    code = "from gpudrop.cli import app; app(['selftest', '--quick', '--backend', 'cpu'])"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "gpudrop selftest: the test is made of assertions, which python -O leaves out\n",
    )
