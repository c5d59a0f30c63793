"""The README's snippets run as they stand."""

import re

import pytest

from gpudrop import backends
from gpudrop.formulas import activations
from gpudrop.variants import FAMILY
from tests import ROOT
from tests.conftest import SIMULATED

README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", README, re.MULTILINE | re.DOTALL)


def needs(code):
    return next(
        (name for module, name in (("import cupy", "cupy_elementwise"), ("cuda.jit", "numba_cuda")) if module in code),
        "cpu",
    )


def parameters():
    for title, code in SNIPPETS:
        name = needs(code)
        marks = [pytest.mark.gpu] if name != "cpu" and not SIMULATED else []
        marks += [pytest.mark.simulator] if name == "numba_cuda" else []
        yield pytest.param(name, code, id=title, marks=marks)


@pytest.mark.parametrize(("backend_name", "code"), list(parameters()))
def test_snippet(backend_name, code, tmp_path, monkeypatch):
    if "import torch" in code:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    module = backends.load(backend_name)
    if isinstance(module, str):
        pytest.skip(module)
    script = tmp_path / "snippet.py"  # formulas are read from their file
    script.write_text(code)
    monkeypatch.setattr("gpudrop.formulas.activations.ACTIVATIONS", dict(activations.ACTIVATIONS))
    exec(compile(code, str(script), "exec"), {"__name__": "snippet"})


def test_what_it_links_to_is_there():
    """In a fresh clone: results that git ignores are on no other machine."""
    links = re.findall(r"\]\(([\w./-]+\.\w+)\)", README)
    assert "bench/results/batteries.json" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_kind_of_array_has_its_snippet():
    needed = [needs(code) for _, code in SNIPPETS]
    assert needed == ["cpu", "cpu", "cupy_elementwise", "numba_cuda", "cpu", "cpu", "cpu", "cpu"]


def test_the_table_of_variants_is_complete():
    """Every row has its test and its benchmark, for the tables of those are tested to be complete."""
    rows = re.findall(r"^\| `(\w+)(?:\(mask_shape=\))?` \|", README, re.MULTILINE)
    assert sorted(rows) == sorted([*FAMILY, "dropout"])  # which has a second row for mask_shape
