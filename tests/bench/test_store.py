"""Compiled files are stored by their inputs, completely or not at all."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from bench import store


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path / "new")
    return tmp_path / "new"


def test_a_file_is_made_once_for_each_set_of_inputs():
    made = []

    def make(path):
        made.append(path)
        path.write_text("compiled")

    first = store.stored(".so", ("source", 1), make)
    assert store.stored(".so", ("source", 1), make) == first and len(made) == 1
    assert first.read_text() == "compiled" and first.suffix == ".so"
    assert len({first, *(store.stored(*of, make) for of in ((".so", ("source", 2)), (".ptx", ("source", 1))))}) == 3


def test_a_failure_leaves_no_file(folder):
    def half(path):
        path.write_text("half")
        raise ValueError("the compiler failed")

    with pytest.raises(ValueError, match="the compiler failed"):
        store.stored(".so", "source", half)
    assert list(folder.iterdir()) == []
    assert store.stored(".so", "source", lambda path: path.write_text("whole")).read_text() == "whole"


def test_concurrent_readers_get_the_complete_file():
    def make(path):
        with path.open("w") as file:
            for _ in range(1000):
                file.write("x" * 1000)
                file.flush()

    with ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda _: len(store.stored(".so", "source", make).read_bytes()), range(8))
    assert set(sizes) == {1_000_000}
