"""Memory that runs out leaves generators where they were, and what can still be computed is."""

import sys

import numpy as np
import pytest

import gpudrop
from gpudrop import Generator, Stream, layers
from tests.family.layer_calls import CLASSES, arrays_of, call
from tests.family.shapes import SHAPES
from tests.processes import run


def huge(shape):
    """As many axes, with more elements than any memory, all in one place that may be written to."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**48, *shape[1:]), (0,) * len(shape))


@pytest.mark.parametrize("cls", CLASSES)
def test_no_memory_for_the_result_leaves_the_generator_where_it_was(cls):
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
def test_no_memory_for_the_mask_leaves_the_generator_where_it_was(name, monkeypatch):
    monkeypatch.setattr("gpudrop.arrays.overlaps_itself", lambda array: False)  # such an out is refused, else
    rng, cls, x = Generator(1), layers.VARIANTS[name], huge(SHAPES[name])
    with pytest.raises(MemoryError):
        call(cls, x=x, out=x, rng=rng)  # in place, so that the mask alone needs memory
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
gpudrop.dropout(x, 0.5, rng=gpudrop.Stream(2, 2), out=y)  # which needs none
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
assert {name: zlib.crc32(call()) for name, call in calls.items()} == want
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_after_memory_has_run_out_all_goes_on_as_before():
    run(OUT_OF_MEMORY, MALLOC_ARENA_MAX=1)  # other threads' arenas have room that counts already
