"""The feed-forward half of a transformer block by hand, forward and backward, with two fused passes.

    python examples/feed_forward.py
    python examples/feed_forward.py cupy

The second command uses CuPy arrays, and needs CuPy and a CUDA GPU. Its masks are those of the first one.
"""

import sys

import numpy as np

import gpudrop

TOKENS, WIDTH, HIDDEN, P = 512, 64, 256, 0.1


class FeedForward:
    """y = x + gain * dropout(dropout(silu(gate) * value) @ down + bias), where gate and value are halves of x @ up."""

    def __init__(self, xp, seed=0):
        rng = np.random.default_rng(seed)
        self.up = xp.asarray((rng.standard_normal((WIDTH, 2 * HIDDEN)) / WIDTH**0.5).astype(np.float32))
        self.down = xp.asarray((rng.standard_normal((HIDDEN, WIDTH)) / HIDDEN**0.5).astype(np.float32))
        self.bias = xp.zeros(WIDTH, np.float32)
        self.gain = xp.ones(WIDTH, np.float32)

    def __call__(self, x, rng, training=True):
        """Return y, and the function that computes the gradients from dy: of x and of each parameter."""
        options = {"training": training, "rng": rng}
        gated, through_gate = gpudrop.dropout_glu.vjp(x @ self.up, p=P, **options)
        y, through_add = gpudrop.dropout_add.vjp(gated @ self.down, x, P, bias=self.bias, gain=self.gain, **options)

        def backprop(dy):
            add = through_add(dy)  # dx, dresidual, dbias and dgain come from one kernel
            both = through_gate(add.dx @ self.down.T).dgate  # the gradients of gate and value, side by side
            gradients = {"up": x.T @ both, "down": gated.T @ add.dx, "bias": add.dbias, "gain": add.dgain}
            return add.dresidual + both @ self.up.T, gradients

        return y, backprop


def step_by_step(block, x, rng):
    """The same block without fused passes: the same masks, and the same y except for rounding."""
    gate, value = (x @ block.up)[:, :HIDDEN], (x @ block.up)[:, HIDDEN:]
    gated = gpudrop.dropout(gpudrop.dropout(gate, 0, activation="silu") * value, P, rng=rng)
    return x + block.gain * gpudrop.dropout(gated @ block.down + block.bias, P, rng=rng)


def train(block, x, target, steps=100, rate=4.0):
    """Change the block's parameters by gradient descent. Return the mean squared error before each step."""
    rng, costs = gpudrop.Generator(1), []
    for _ in range(steps):
        y, backprop = block(x, rng)
        costs.append(float(((y - target) ** 2).mean()))
        _, gradients = backprop(2 * (y - target) / len(x))
        for name, gradient in gradients.items():
            parameter = getattr(block, name)
            parameter -= rate / WIDTH * gradient
    return costs


def main(xp=np):
    """Compare the fused passes with single steps, train the block, print the results and return them."""
    rng = np.random.default_rng(2)
    x = xp.asarray(rng.standard_normal((TOKENS, WIDTH)).astype(np.float32))
    target, _ = FeedForward(xp, seed=3)(x, None, training=False)  # another block, to be imitated
    block = FeedForward(xp)
    y, backprop = block(x, gpudrop.Generator(0))
    error = float(abs(y - step_by_step(block, x, gpudrop.Generator(0))).max())
    again = backprop(y)[1]
    same = all(bool((gradient == again[name]).all()) for name, gradient in backprop(y)[1].items())
    print(f"fused and single steps differ by less than 1e-5: {error < 1e-5}")
    print(f"the gradients are equal in every run: {same}")
    costs = train(block, x, target)
    print(f"the mean squared error falls from {costs[0]:.2f} to {costs[-1]:.2f}")
    return error, same, costs


if __name__ == "__main__":
    if sys.argv[1:] != ["cupy"]:
        main()
    else:
        try:
            import cupy
        except ImportError:
            sys.exit("feed_forward.py needs CuPy: pip install 'gpudrop[cuda13]', or cuda12")
        if not cupy.cuda.is_available():
            sys.exit("feed_forward.py needs a CUDA GPU, and CuPy found none")
        main(cupy)
