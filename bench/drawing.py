"""The speed of drawing alone: the random fields that one thread writes to a buffer in its L1 cache.

They are drawn by the loop of gpudrop's kernels, and by `gpudrop.device` in a user's loop.
"""

import functools

import numpy as np
from numba import njit

from gpudrop import device
from gpudrop.kernels.cpu import draw_fields
from gpudrop.testing import reference
from gpudrop.testing.benchmark import runner
from gpudrop.testing.benchmark.checks import Wrong
from gpudrop.testing.benchmark.contenders import SEED

BITS = 16  # of a field
WORDS = 1024  # 64-bit words of the buffer
CHUNKS = WORDS // 2
FILLS = 10_000  # of the buffer per measurement: a few milliseconds


@njit
def _fill(words, fills, seed, call):
    """Draw consecutive chunks. The sum of some words makes every fill necessary, so that none is optimised away."""
    total = np.uint64(0)
    for i in range(fills):
        draw_fields(words, np.uint64(i * CHUNKS), seed, call)
        total += words[i % WORDS]
    return total


@njit
def _fill_by_user(words, fills, seed, call):
    """The same, as users may write it."""
    total = np.uint32(0)
    for i in range(fills):
        for chunk in range(CHUNKS):
            words[4 * chunk], words[4 * chunk + 1], words[4 * chunk + 2], words[4 * chunk + 3] = device.draw(
                seed, call, i * CHUNKS + chunk
            )
        total += words[i % WORDS]
    return total


def measure(rounds):
    """Check the last fill of each loop, and return the fields per second of one thread with the times."""
    loops = {"": (_fill, np.empty(WORDS, "<u8")), "in a user's kernel": (_fill_by_user, np.empty(2 * WORDS, "<u4"))}
    calls = {}
    for name, (fill, words) in loops.items():
        call = functools.partial(fill, words, FILLS, np.uint64(SEED), np.uint64(0))
        call()
        fields = words.view("<u2")
        if not np.array_equal(fields, reference.fields(SEED, 0, (FILLS - 1) * fields.size, fields.size, BITS)):
            raise Wrong(f"the fields {name} are not those of the stream")
        calls[name] = functools.partial(runner.warm_seconds, call, 1)
    own, users = (
        {"fields_per_second": FILLS * WORDS * 64 // BITS / times["seconds"]} | times
        for times in runner.in_turns(calls, rounds).values()
    )
    return {"bits": BITS, "threads": 1} | own | {"in_a_users_kernel": users}
