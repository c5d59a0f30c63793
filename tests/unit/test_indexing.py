"""Index arithmetic of CUDA kernels, run as plain Python. Numba and CuPy compile the same formulas."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudrop.formulas import compiled, indexing
from gpudrop.kernels.chunks import WARP

GEOMETRY = {"period": st.integers(1, 40), "repeat": st.integers(1, 5), "run": st.integers(1, 40)}


def python(formula, **primitives):
    """A formula as a Python function."""
    return compiled(formula, np.float32, primitives, lambda function: function)


locate, advance, index_of = map(python, (indexing.locate, indexing.advance, indexing.index_of))
first_turn, next_turn = python(indexing.first_turn), python(indexing.next_turn)


def at(i, period, repeat, run):
    """The index of element i's value in the mask, by the definition of `gpudrop.kernels.spec.Mask`."""
    return i // (run * period * repeat) * period + i // run % period


@given(i=st.integers(0, 2**40), **GEOMETRY)
def test_locate_finds_the_mask_value_of_an_element(i, period, repeat, run):
    geometry = tuple(map(np.int64, (period, repeat, run)))
    assert index_of(locate(np.int64(i), *geometry)) == at(i, period, repeat, run)


@given(i=st.integers(0, 2**40), by=st.integers(0, 2**40), **GEOMETRY)
def test_advance_adds_two_locations(i, by, period, repeat, run):
    geometry = tuple(map(np.int64, (period, repeat, run)))
    there = advance(locate(np.int64(i), *geometry), locate(np.int64(by), *geometry), *geometry)
    assert there == locate(np.int64(i + by), *geometry)
    assert python(indexing.next_element)(there, *geometry) == locate(np.int64(i + by + 1), *geometry)


@given(chunk=st.sampled_from([4, 8, 16]), i=st.integers(0, 2**12), seed=st.integers(0, 9), **GEOMETRY)
def test_a_chunk_has_the_bits_of_its_elements(chunk, i, seed, period, repeat, run):
    geometry = tuple(map(np.int64, (period, repeat, run)))
    mask = np.random.default_rng(seed).integers(0, 2, at(i + chunk, period, 1, run) + 50, np.uint8)
    bits = python(indexing.chunk_bits(chunk))(mask, locate(np.int64(i), *geometry), *geometry)
    assert [bits >> j & 1 for j in range(chunk)] == [mask[at(i + j, period, repeat, run)] for j in range(chunk)]


@given(i=st.integers(0, 2**40), by=st.integers(0, 2**40), turns=st.integers(1, 2**20))
def test_a_window_is_traversed_row_by_row(i, by, turns):
    turns = np.int64(turns)
    assert first_turn(np.int64(i), turns) == (i // turns, i % turns, 0, 0)
    there = next_turn(first_turn(np.int64(i), turns), first_turn(np.int64(by), turns), turns)
    assert there == first_turn(np.int64(i + by), turns)


@given(i=st.integers(0, 2**32 - 1), columns=st.integers(1, 40) | st.integers(1, 2**40))
def test_columns_of_elements(i, columns):
    i, columns = np.int64(i), np.int64(columns)
    column_before, column_of_chunk = python(indexing.column_before), python(indexing.column_of_chunk(8))
    assert python(indexing.remainder)(i, columns) == i % columns
    assert column_of_chunk(i, columns) == i * 8 % columns
    assert column_before(i * 8 % columns, i, columns) == (i * 8 - i) % columns


@pytest.mark.parametrize("parts", [2, 4])
def test_threads_of_a_warp_exchange_the_words_of_their_chunks(parts):
    """With n accesses per thread, access s of thread t is part t % n of chunk s * 32 / n + t // n."""
    held, barrier, results = [0] * WARP, threading.Barrier(WARP), [()] * WARP
    own_chunk = python(indexing.own_chunk(parts))

    def thread(t):
        def exchanged(value, distance):
            held[t] = value
            barrier.wait()
            value = held[t ^ int(distance)]
            barrier.wait()
            return value

        chunk = own_chunk(np.int64(t))
        words = tuple(np.uint32(4 * chunk + k) for k in range(4))
        results[t] = python(indexing.exchange(parts), exchanged=exchanged)(words, np.uint32(t))

    together = [threading.Thread(target=thread, args=(t,)) for t in range(WARP)]
    for one in together:
        one.start()
    for one in together:
        one.join()
    assert sorted(own_chunk(np.int64(t)) for t in range(WARP)) == list(range(WARP))
    share = 4 // parts
    for t in range(WARP):
        chunks = [s * WARP // parts + t // parts for s in range(parts)]
        assert results[t] == tuple(4 * chunk + t % parts * share + k for chunk in chunks for k in range(share))
