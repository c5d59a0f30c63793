"""The table of breakages matches the sources: each text occurs once, and every file has a breakage or a reason."""

import pytest

from tests import ROOT
from tests.mutants import LEFT_OUT, MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_breakage_applies_to_the_sources(mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.text) == 1
    if mutant.file.endswith(".py"):
        compile(text.replace(mutant.text, mutant.replacement), mutant.file, "exec")
    assert all((ROOT / "tests" / path).is_file() for path in mutant.near.split())


def test_breakages_have_unique_names_and_cover_every_file():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    sources = [path for folder in ("gpudrop", "kernels") for path in (ROOT / folder).rglob("*.*")]
    files = {path.relative_to(ROOT).as_posix() for path in sources if path.suffix in (".py", ".cuh")}
    assert files == {mutant.file for mutant in MUTANTS} | set(LEFT_OUT)
