"""Many threads and asyncio tasks at once: each draws its own masks, and `no_dropout` affects only its caller."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream
from gpudrop.context import DEFAULT, current


def at_once(count, call):
    """Run call(number) in `count` threads that start together. Return the results, or raise the first exception."""
    barrier = threading.Barrier(count)

    def begin(number):
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def numbers_of(masks, seed):
    """The calls that drew these masks, which all have one shape."""
    calls = {gpudrop.keep_mask(masks[0].shape, 0.5, Stream(seed, call)).tobytes(): call for call in range(len(masks))}
    assert len(calls) == len(masks)
    return sorted(calls.get(mask.tobytes(), -1) for mask in masks)


@pytest.mark.parametrize("rng", ["one generator", "the default generator"])
def test_32_threads_get_each_mask_of_a_generator_once(rng):
    source = Generator(6) if rng == "one generator" else gpudrop.manual_seed(6)
    x = np.ones(500, np.float32)  # read by all threads

    def draw(number):
        y, backprop = gpudrop.dropout_vjp(x, 0.5, rng=source if rng == "one generator" else None)
        np.testing.assert_array_equal(backprop(x), y)
        return [y != 0, gpudrop.keep_mask(500, 0.5, source), gpudrop.layers.Dropout(rng=source)(x) != 0]

    masks = [mask for drawn in at_once(32, draw) for mask in drawn]
    assert numbers_of(masks, 6) == list(range(96))
    assert source.state_dict() == {"seed": 6, "call": 96}


def test_32_threads_write_parts_of_one_array():
    x, out = np.arange(1, 32 * 4099 + 1, dtype=np.float32), np.full(32 * 4099, np.nan, np.float32)

    def write(number):
        mine = slice(number * 4099, (number + 1) * 4099)  # neighbours share a cache line
        gpudrop.dropout(x[mine], 0.5, rng=Stream(3, number), out=out[mine])
        gpudrop.dropout(x[mine], 0.5, rng=Stream(3, number), out=x[mine])

    at_once(32, write)
    masks = [gpudrop.keep_mask(4099, 0.5, Stream(3, number)) for number in range(32)]
    want = np.where(np.concatenate(masks), 2 * np.arange(1, x.size + 1), 0)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(x, want)


def test_no_dropout_affects_only_its_own_thread():
    x = np.ones(300, np.float32)

    def half_of_them(number):
        if number % 2:
            return gpudrop.dropout(x, 1).sum()
        with gpudrop.no_dropout():
            return gpudrop.dropout(x, 1).sum()

    assert at_once(32, half_of_them) == [300, 0] * 16


def test_no_dropout_affects_only_its_own_task():
    x = np.ones(300, np.float32)

    async def off(inside, outside):
        with gpudrop.no_dropout():
            inside.set()
            await outside.wait()  # waits until the other task has called dropout
            return [gpudrop.dropout(x, 1).sum(), await asyncio.to_thread(lambda: gpudrop.dropout(x, 1).sum())]

    async def on(inside, outside):
        await inside.wait()
        total = gpudrop.dropout(x, 1).sum()
        outside.set()
        return total

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(off(*events), on(*events))

    assert asyncio.run(both()) == [[300, 300], 0]
    assert current() is DEFAULT


def test_tasks_get_each_mask_of_the_default_generator_once():
    gpudrop.manual_seed(9)
    x = np.ones(500, np.float32)

    async def draw():
        await asyncio.sleep(0)
        return [gpudrop.dropout(x) != 0, await asyncio.to_thread(gpudrop.dropout, x) != 0]

    async def many():
        return [mask for drawn in await asyncio.gather(*(draw() for _ in range(20))) for mask in drawn]

    assert numbers_of(asyncio.run(many()), 9) == list(range(40))
