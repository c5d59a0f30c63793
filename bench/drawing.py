"""The speed of drawing alone: the random fields that one thread writes to a buffer in its L1 cache."""

import functools

import numpy as np
from numba import njit

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


def measure(rounds):
    """Check the last fill, and return the fields per second of one thread with the times of a measurement."""
    words = np.empty(WORDS, np.uint64)
    call = functools.partial(_fill, words, FILLS, np.uint64(SEED), np.uint64(0))
    call()
    fields = words.astype("<u8").view("<u2")
    if not np.array_equal(fields, reference.fields(SEED, 0, (FILLS - 1) * fields.size, fields.size, BITS)):
        raise Wrong("the fields are not those of the stream")
    times = runner.in_turns({"": functools.partial(runner.warm_seconds, call, 1)}, rounds)[""]
    return {"bits": BITS, "threads": 1, "fields_per_second": FILLS * fields.size / times["seconds"]} | times
