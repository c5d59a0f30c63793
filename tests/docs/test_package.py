"""The built package: its metadata, the files of an sdist and a wheel, and whether they run."""

import compileall
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml

import gpudrop
from tests import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest requires it there

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
URLS = PROJECT["urls"]


def test_the_changelog_begins_with_this_version():
    entries = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert entries[0].startswith(f"## [{gpudrop.__version__}]")
    assert gpudrop.__version__ == version("gpudrop")


def test_the_citation_agrees_with_the_metadata():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.pop("message")
    assert citation == {
        "cff-version": "1.2.0",
        "type": "software",
        "title": PROJECT["name"],
        "abstract": PROJECT["description"],
        "authors": PROJECT["authors"],
        "version": gpudrop.__version__,
        "license": PROJECT["license"],
        "repository-code": URLS["Source"],
        "url": URLS["Documentation"],
        "keywords": PROJECT["keywords"],
    }


def as_conda(requirements):
    """PyPI's requirements in conda's notation; conda-forge has all of these packages by the same names."""
    return [re.sub(r"(?=[<>=!])", " ", requirement, count=1) for requirement in requirements]


def test_the_conda_recipe_agrees_with_the_metadata():
    recipe = yaml.safe_load((ROOT / "conda.recipe" / "recipe.yaml").read_text())
    assert recipe["context"] == {
        "version": gpudrop.__version__,
        "python_min": PROJECT["requires-python"].removeprefix(">="),
    }
    assert recipe["requirements"] == {
        "host": ["python ${{ python_min }}.*", "pip", *as_conda(PYPROJECT["build-system"]["requires"])],
        "run": ["python >=${{ python_min }}", *as_conda(PROJECT["dependencies"])],
    }
    scripts = [f"{name} = {function}" for name, function in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    assert recipe["about"] == {
        "summary": PROJECT["description"],
        "license": PROJECT["license"],
        "license_file": "LICENSE",
        "homepage": URLS["Homepage"],
        "repository": URLS["Source"],
        "documentation": URLS["Documentation"],
    }


SUFFIXES = (".cff", ".md", ".py", ".rst", ".toml")


def test_project_urls_match_the_metadata():
    files = [path for path in (*ROOT.glob("*"), *(ROOT / "docs").rglob("*")) if path.suffix in SUFFIXES]
    pattern = re.compile(r"https?://(?:github\.com/[\w-]+/gpudrop(?![\w-])|[\w.-]*gpudrop[\w.-]*\w)")
    found = {path: set(pattern.findall(path.read_text())) for path in files}
    known = found[ROOT / "pyproject.toml"]
    assert known == {URLS["Source"], URLS["Documentation"]}
    assert {path: addresses for path, addresses in found.items() if not addresses <= known} == {}


def test_the_classifiers_list_the_python_versions_that_ci_tests():
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if not workflow.exists():
        pytest.skip("an sdist has no workflows")
    tested = yaml.safe_load(workflow.read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]
    assert named == tested
    assert PROJECT["requires-python"] == f">={named[0]}"


def build(kind, tree, folder):
    """Build an sdist or a wheel from a tree with setuptools; returns its path in the empty folder."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools is not installed, or older than 77")
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, folder], cwd=tree, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.mark.slow
def test_an_sdist_has_all_files_of_the_repository(tmp_path):
    """Including tests, benchmarks and documentation. Files whose path begins with a dot are left out."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("there is no git, or no checkout of it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = listed.stdout.removesuffix("\0").split("\0")
    ignored = ["tests/__pycache__/test.pyc", "kernels/__pycache__/cpu.nbi", "bench/results/cpu-quick.json"]
    tree = tmp_path / "tree"
    for name in (*tracked, *ignored):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes() if name in tracked else b"")
    (tmp_path / "dist").mkdir()
    shutil.unpack_archive(build("sdist", tree, tmp_path / "dist"), tmp_path, filter="data")
    unpacked = tmp_path / f"gpudrop-{gpudrop.__version__}"
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    made = {name for name in files if name in ("PKG-INFO", "setup.cfg") or name.startswith("gpudrop.egg-info/")}
    assert files - made == {name for name in tracked if not name.startswith(".")}


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
    """The package in one folder, with the layout of an installation."""
    skip = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(ROOT / "gpudrop", tmp_path / "packed" / "gpudrop", ignore=skip)
    shutil.copytree(ROOT / "kernels", tmp_path / "packed" / "gpudrop" / "kernels", ignore=skip)
    return tmp_path / "packed"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "gpudrop", tree / "gpudrop", ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return build("wheel", tree, folder)


@pytest.mark.slow
def test_a_wheel_has_all_files_of_the_package(packed, wheel):
    files = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files
    assert "gpudrop/py.typed" in names


QUICK_START = """
import numpy as np
import gpudrop
x = np.float32([-3, 3, 6, 9])
y, backprop = gpudrop.dropout_vjp(x, 0.25, activation="relu", rng=gpudrop.Stream(1, 0))
dx = backprop(y)
print(gpudrop.__file__, *y, *dx)
"""


@pytest.mark.slow
def test_an_installed_wheel_runs(wheel, tmp_path):
    """In a new environment that has only the wheel, and finds the dependencies in this environment."""
    pytest.importorskip("pip", reason="pip is not installed")
    venv.create(tmp_path / "venv", symlinks=True)
    commands = tmp_path / "venv" / "bin"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "--python", commands / "python", "install", "--no-deps", "--no-index", wheel)
    packages = Path(run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    assert packages.is_relative_to(tmp_path)
    # Python ignores .pth files in a folder that a .pth file names, so it finds no editable gpudrop there.
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    file, *values = run(commands / "python", "-c", QUICK_START).split()
    assert Path(file).is_relative_to(packages)
    np.testing.assert_allclose(np.float32(values), [0, 4, 0, 12, 0, 16 / 3, 0, 16], rtol=1e-6)
    assert run(commands / "gpudrop", "--version") == f"gpudrop {gpudrop.__version__}\n"
    run(commands / "gpudrop", "selftest", "--quick")


def test_it_runs_from_a_zip_file(packed, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", packed)
    done = subprocess.run([sys.executable, "-c", PROGRAM, archive], capture_output=True, text=True)
    assert done.stdout == "[ 0.  4.  0. 12.]\n", done.stderr


def test_the_error_without_source_files_says_what_is_missing(packed):
    """The package has only .pyc files."""
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
def test_pyinstaller_packs_all_sources_of_the_kernels(packed, tmp_path):
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
