"""After an allocation fails, generators are unchanged, and calls that need no memory still work."""

import sys

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, layers
from tests.family.layer_calls import CLASSES, arrays_of, call
from tests.family.shapes import SHAPES
from tests.processes import run


def huge(shape):
    """An array with as many axes and too many elements for any memory. All share one writable address."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**48, *shape[1:]), (0,) * len(shape))


@pytest.mark.parametrize("cls", CLASSES)
def test_without_memory_for_the_result_the_generator_is_unchanged(cls):
    rng, x = Generator(1), huge(SHAPES[cls.variant.name])
    changes = dict.fromkeys(cls.variant.inputs, x) | {"rng": rng}
    for function in (cls.function, cls.function.vjp):
        with pytest.raises(MemoryError):
            call(cls, function, **changes)
    with pytest.raises(MemoryError):
        cls(rng=rng)(*(x for _ in arrays_of(cls)))
    assert rng.state_dict() == {"seed": 1, "call": 0}
    np.testing.assert_array_equal(call(cls, rng=rng), call(cls, rng=Stream(1, 0)))


@pytest.mark.parametrize("name", ["drop_path", "embedding_dropout", "token_dropout", "dropblock1d", "dropblock2d"])
def test_without_memory_for_the_mask_the_generator_is_unchanged(name, monkeypatch):
    monkeypatch.setattr("gpudrop.arrays.overlaps_itself", lambda array: False)  # otherwise such an out is refused
    rng, cls, x = Generator(1), layers.VARIANTS[name], huge(SHAPES[name])
    with pytest.raises(MemoryError):
        call(cls, x=x, out=x, rng=rng)  # in place: only the mask needs memory
    assert rng.state_dict() == {"seed": 1, "call": 0} and x[0].max() == 0
    with pytest.raises(MemoryError):
        gpudrop.keep_mask(x.shape, 0.5, rng)
    with pytest.raises(MemoryError):
        gpudrop.drop_connect(np.ones((2, 3), np.float32), samples=2**48, rng=rng)
    assert rng.next() == Stream(1, 0)


OUT_OF_MEMORY = """
import resource, zlib
import numpy as np
import gpudrop
x = np.ones((40 << 20, 2), np.float16)
y, rng = np.empty_like(x), gpudrop.Generator(1)
calls = {
    "dropout": lambda: gpudrop.dropout(x, 0.5, rng=rng),
    "drop_path": lambda: gpudrop.drop_path(x, 0.5, rng=rng, out=y),
    "keep_mask": lambda: gpudrop.keep_mask(x.size, 0.5, rng),
    "backprop": lambda: backprop(x),
    "backprop of drop_path": lambda: backprop_of_paths(x, out=y),
}
_, backprop = gpudrop.dropout_vjp(x, 0.5, rng=gpudrop.Stream(2, 2), out=y)
_, backprop_of_paths = gpudrop.drop_path.vjp(x, 0.5, rng=gpudrop.Stream(2, 2), out=y)
want = {name: zlib.crc32(call()) for name, call in calls.items()}
rng.load_state_dict({"seed": 1, "call": 0})
pages = int(open("/proc/self/statm").read().split()[0])
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 20), hard))
y.fill(7)
for name, call in calls.items():
    try:
        call()
    except MemoryError:
        continue
    raise AssertionError(name)
assert rng.state_dict() == {"seed": 1, "call": 0} and (y[::999] == 7).all()
gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(2, 2), out=y)  # needs no memory
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
assert {name: zlib.crc32(call()) for name, call in calls.items()} == want
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's memory limits")
def test_everything_works_again_after_memory_has_run_out():
    run(OUT_OF_MEMORY, MALLOC_ARENA_MAX=1)  # the arenas of other threads already count as used
