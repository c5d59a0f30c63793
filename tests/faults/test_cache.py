"""Numba's cache on disk: if it can't be written or read, everything works, with one warning."""

import shutil
import sys

import pytest

from tests.processes import run
from tests.sampling import few

CACHE = """
import resource, sys, warnings
import numba.core.caching as caching
import numpy as np
import gpudrop
if sys.argv[1] == "full":  # larger files can't be written from here on
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
if sys.argv[1] == "nowhere":
    for locator in caching.CacheImpl._locator_classes:
        locator.from_function = classmethod(lambda cls, function, path: None)
x = np.ones((4, 3), np.float32)
y, backprop = gpudrop.dropout_vjp(x, 0.5, activation="relu", rng=gpudrop.Stream(0, 0))
assert np.array_equal(y, backprop(x)) and np.array_equal(y != 0, gpudrop.keep_mask((4, 3), 0.5, gpudrop.Stream(0, 0)))
print(y.sum())
"""
WARNING = "RuntimeWarning: Numba's cache can't be used ("
ADVICE = "): every process compiles the kernels again; set NUMBA_CACHE_DIR to a writable folder"


def warned_once(done):
    lines = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(lines) == 1, done.stderr
    assert WARNING in lines[0] and lines[0].endswith(ADVICE)


@pytest.mark.slow
def test_without_a_folder_for_the_cache_it_works_and_warns_once():
    warned_once(run(CACHE, "nowhere", clean=False))


@pytest.mark.slow
def test_with_an_impossible_cache_folder_it_works_and_warns_at_most_once(tmp_path):
    """No user can create a folder within a file. Numba then uses its default folder, if it can."""
    (tmp_path / "file").write_text("")
    done = run(CACHE, "as it is", clean=False, NUMBA_CACHE_DIR=tmp_path / "file" / "folder")
    if done.stderr:
        warned_once(done)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of file sizes")
@pytest.mark.parametrize("limit", few([0, 1000, 20_000]))
def test_a_full_disk_warns_once(tmp_path, limit):
    """The limits allow no file at all, only indices, and half of a kernel."""
    warned_once(run(CACHE, "full", limit, clean=False, NUMBA_CACHE_DIR=tmp_path, PYTHONDONTWRITEBYTECODE=1))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > max(limit, 1)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    run(CACHE, "as it is", NUMBA_CACHE_DIR=folder)
    return folder


DAMAGES = {
    "index cut off": ("nbi", lambda data: data[: len(data) // 2]),
    "kernel cut off": ("nbc", lambda data: data[: len(data) // 2]),
    "kernel of zeros": ("nbc", lambda data: bytes(len(data))),
    "text": ("nb?", lambda data: b"not a cache"),
}


@pytest.mark.parametrize("damage", few(DAMAGES))
def test_damaged_cache_files_warn_once(cache, tmp_path, damage):
    kind, change = DAMAGES[damage]
    folder = shutil.copytree(cache, tmp_path / "cache")
    damaged = list(folder.rglob(f"*.{kind}"))
    for path in damaged:
        path.write_bytes(change(path.read_bytes()))
    assert len(damaged) >= 3
    warned_once(run(CACHE, "as it is", clean=False, NUMBA_CACHE_DIR=folder))
