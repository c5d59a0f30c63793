"""Blocks that change the context: entered again, nested, and as decorators of every kind of function."""

import asyncio
import threading

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream
from gpudrop.context import DEFAULT, Changes, current, visible


def drops():
    return not gpudrop.keep_mask(100, 0.5, Stream(1, 1)).all()


def test_a_block_may_be_entered_again_and_within_itself():
    block = gpudrop.no_dropout()
    for _ in range(2):
        with block:
            assert not drops()
            with block:
                assert not drops()
            assert not drops()
        assert drops() and current() is DEFAULT
    with pytest.raises(KeyError), block:
        raise KeyError
    assert current() is DEFAULT


def test_one_block_in_several_threads_at_once():
    block, barrier, seen = gpudrop.no_dropout(), threading.Barrier(2, timeout=60), []

    def within(first):
        if not first:
            barrier.wait()
        with block:
            if first:
                barrier.wait()
                barrier.wait()
            seen.append(drops())
        seen.append(drops())
        if not first:
            barrier.wait()

    threads = [threading.Thread(target=within, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [False, False, True, True] and drops()


def test_a_block_changes_only_its_own_settings():
    rng = Generator(3)
    with Changes(rng=rng, first=2), gpudrop.no_dropout():
        assert (current().on, current().rng, current().first) == (False, rng, 2)
        assert (visible.on, visible.draws, visible.first) == (False, True, 2)
    assert (visible.on, visible.draws, visible.first) == (True, False, 0)


@gpudrop.no_dropout()
def decorated(*args, scale=1):
    """What it does."""
    return scale * sum(args), drops()


def test_decorated_functions_keep_their_names_arguments_and_results():
    assert decorated.__name__ == "decorated" and decorated.__doc__ == "What it does."
    assert decorated(1, 2, scale=3) == (9, False) and drops()


def test_the_body_of_a_decorated_generator_function_runs_within_the_block():
    ended = []

    @gpudrop.no_dropout()
    def batches(n):
        try:
            for k in range(n):
                got = yield k, drops()
                if got is not None:
                    yield got, drops()
        except KeyError:
            yield "caught", drops()
        finally:
            ended.append(drops())
        return "end", drops()

    def delegating():
        return (yield from batches(2)), drops()

    steps = delegating()
    assert next(steps) == (0, False) and drops()
    assert steps.send("sent") == ("sent", False) and drops()
    assert next(steps) == (1, False)
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == (("end", False), True) and ended == [False]
    steps = batches(5)
    next(steps)
    assert steps.throw(KeyError()) == ("caught", False)
    steps.close()
    assert ended == [False, False] and current() is DEFAULT
    with pytest.raises(ValueError, match="mine"):
        batches(5).throw(ValueError("mine"))


def test_a_decorated_coroutine_runs_within_the_block_and_others_do_not():
    @gpudrop.no_dropout()
    async def off():
        before = drops()
        await asyncio.sleep(0)
        return before, drops()

    async def on():
        await asyncio.sleep(0)
        return drops()

    async def both():
        return await asyncio.gather(off(), on(), off())

    assert asyncio.run(both()) == [(False, False), True, (False, False)]
    with pytest.raises(TypeError, match="an asynchronous generator can't be decorated, got stream"):

        @gpudrop.no_dropout()
        async def stream():
            yield 1


def test_an_interrupt_at_the_end_of_a_block_leaves_it():
    """The interrupt comes between the last line of the block and the first line of __exit__."""

    class Interrupted(Changes):
        def __exit__(self, *error):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt, Interrupted(on=False):
        pass
    del interrupt
    assert current() is DEFAULT


def test_blocks_may_end_in_any_order():
    """This includes a copied context, as a new task has, and generators that are suspended within blocks."""
    import contextvars

    with gpudrop.no_dropout():
        copied = contextvars.copy_context()

    def later():
        with gpudrop.no_dropout():
            pass
        return drops()

    assert copied.run(later) is False and drops()

    def within(value):
        with Changes(first=value):
            yield current().first
            yield current().first

    first, second = within(1), within(2)
    assert (next(first), next(second)) == (1, 2)
    first.close()
    assert next(second) == 2
    second.close()
    assert current() is DEFAULT
    block = gpudrop.no_dropout()
    block.__exit__(None, None, None)  # it was never entered
    assert current() is DEFAULT and drops()


def test_the_generator_of_a_block_replaces_all_others():
    with Changes(rng=Generator(7)):
        first, second = gpudrop.keep_mask(50, 0.5, Generator(1)), gpudrop.keep_mask(50, 0.5, Stream(9, 9))
    np.testing.assert_array_equal(first, gpudrop.keep_mask(50, 0.5, Stream(7, 0)))
    np.testing.assert_array_equal(second, gpudrop.keep_mask(50, 0.5, Stream(9, 9)))
