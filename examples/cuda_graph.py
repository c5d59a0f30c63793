"""A CUDA graph, captured with CuPy from a forward and a backward pass, that draws a fresh mask at each replay.

    python examples/cuda_graph.py

It needs CuPy and a CUDA GPU. The state of `Generator(seed, device=True)` is in the GPU's memory, and the captured
kernels advance it there. Replay k draws the mask of Stream(seed, k), which the program compares to the bit.
"""

import sys

import gpudrop

try:
    import cupy as cp
except ImportError:
    sys.exit("cuda_graph.py needs CuPy: pip install 'gpudrop[cuda13]', or cuda12")

SEED, REPLAYS = 0, 5


def step(x, dy, y, dx, rng):
    """Gelu and dropout, forward and backward. The results go to y and dx, whose addresses the graph keeps."""
    _, backprop = gpudrop.dropout_vjp(x, 0.5, activation="gelu", rng=rng, out=y)
    backprop(dy, out=dx)


def captured(arrays, rng, stream):
    """A graph of one step."""
    step(*arrays, rng)  # call 0 compiles the kernels, which can't be captured
    stream.begin_capture()
    step(*arrays, rng)
    return stream.end_capture()


def replays(stream):
    """For each replay, the fraction of elements that it kept, and whether it has the bits of its stream."""
    rng = gpudrop.Generator(SEED, device=True)
    x, dy = cp.random.default_rng(1).standard_normal((2, 1024, 1024), dtype=cp.float32)
    y, dx = cp.empty_like(x), cp.empty_like(x)
    graph = captured((x, dy, y, dx), rng, stream)
    found = []
    for call in range(1, REPLAYS + 1):
        graph.launch(stream)
        expected, backprop = gpudrop.dropout_vjp(x, 0.5, activation="gelu", rng=gpudrop.Stream(SEED, call))
        same = bool((y == expected).all()) and bool((dx == backprop(dy)).all())
        found.append((float((y != 0).mean()), same))
    return found, rng.state_dict()


def main():
    """Capture a graph, replay it, print the results and return them."""
    if not cp.cuda.is_available():
        sys.exit("cuda_graph.py needs a CUDA GPU, and CuPy found none")
    # A separate memory pool, because a replay writes again to the memory that the captured calls allocated.
    pool, stream = cp.cuda.MemoryPool(), cp.cuda.Stream(non_blocking=True)
    with stream, cp.cuda.using_allocator(pool.malloc):
        found, state = replays(stream)
    for call, (kept, same) in enumerate(found, 1):
        print(f"replay {call}: keeps {kept:.1%}, the bits of Stream({SEED}, {call}): {same}")
    print(f"the generator's next call is {state['call']}")
    return found, state


if __name__ == "__main__":
    main()
