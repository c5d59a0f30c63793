"""The snippets of the README and of the documentation run unchanged, and print the output that the page shows."""

import re
from contextlib import redirect_stdout
from io import StringIO

import pytest

from gpudrop import backends
from gpudrop.formulas import activations
from gpudrop.variants import FAMILY
from tests import ROOT
from tests.conftest import SIMULATED

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README, FAMILY_PAGE, NAMES_PAGE = (
    (ROOT / name).read_text() for name in ("README.md", "docs/family.md", "docs/coming_from.md")
)
SNIPPET = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
WORDS = 900  # the limit for the README, including its code


def needs(code):
    return next(
        (
            name
            for module, name in (("import cupy", "cupy_elementwise"), ("import cuda", "numba_cuda"))
            if module in code
        ),
        "cpu",
    )


def parameters():
    """The snippets of a page that need the same backend. They run one after another in one namespace."""
    for page in PAGES:
        snippets = SNIPPET.findall(page.read_text())
        for name in backends.BACKENDS:
            chosen = [snippet for snippet in snippets if needs(snippet[0]) == name]
            marks = [pytest.mark.gpu] if name != "cpu" and not SIMULATED else []
            marks += [pytest.mark.simulator] if name == "numba_cuda" else []
            if chosen:
                yield pytest.param(name, chosen, id=f"{page.relative_to(ROOT)}-{name}", marks=marks)


@pytest.mark.parametrize(("backend_name", "snippets"), list(parameters()))
def test_snippets(backend_name, snippets, tmp_path, monkeypatch):
    if any("import torch" in code or "gpudrop.torch" in code for code, _ in snippets):
        pytest.importorskip("torch", reason="PyTorch is not installed")
    module = backends.load(backend_name)
    if isinstance(module, str):
        pytest.skip(module)
    monkeypatch.setattr("gpudrop.formulas.activations.ACTIVATIONS", dict(activations.ACTIVATIONS))
    namespace = {"__name__": "snippet"}
    for number, (code, wanted) in enumerate(snippets):
        script = tmp_path / f"snippet_{number}.py"  # gpudrop reads formulas from their source file
        script.write_text(code)
        with redirect_stdout(StringIO()) as printed:
            exec(compile(code, str(script), "exec"), namespace)
        assert not wanted or printed.getvalue() == wanted


def test_every_kind_of_array_has_a_snippet_in_the_readme():
    assert {needs(code) for code, _ in SNIPPET.findall(README)} == set(backends.BACKENDS)
    assert "import gpudrop.torch" in README


def test_the_readme_is_short():
    assert len(README.split()) <= WORDS


def test_link_targets_in_the_readme_exist():
    """This check is reliable only in a fresh clone, which lacks the results that git ignores."""
    links = re.findall(r"\]\(([\w./-]+)\)", README)
    assert "docs/mask.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tables_of_variants_are_complete():
    """Other tests check that every variant has a test and a benchmark."""
    assert sorted(re.findall(r"^\| \{py:func\}`~gpudrop\.(\w+)` \|", FAMILY_PAGE, re.MULTILINE)) == sorted(FAMILY)
    assert sorted(re.findall(r"^\| `(\w+)` \|", NAMES_PAGE, re.MULTILINE)) == sorted(FAMILY)
