"""A network of two layers on Numba's device arrays, between kernels of your own.

    python examples/train_numba.py
    NUMBA_ENABLE_CUDASIM=1 python examples/train_numba.py

It needs a CUDA GPU; the second command runs it in Numba's simulator, on any machine. The network learns |x0 - x1|.
It calls four kernels that are written here, and gpudrop's for relu with dropout.
"""

import sys

import numpy as np
from numba import cuda

import gpudrop

SAMPLES, HIDDEN, STEPS = 16, 8, 40  # small, for the simulator
RATE, P = 0.3, 0.1


@cuda.jit
def multiply(a, b, out):
    """Compute out = a @ b."""
    i, j = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = np.float32(0)
        for k in range(a.shape[1]):
            total += a[i, k] * b[k, j]
        out[i, j] = total


@cuda.jit
def multiply_by_transposed(a, b, out):
    """Compute out = a @ b.T."""
    i, j = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = np.float32(0)
        for k in range(a.shape[1]):
            total += a[i, k] * b[j, k]
        out[i, j] = total


@cuda.jit
def subtract(a, b, scale, out):
    """Compute out = (a - b) * scale."""
    i, j = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        out[i, j] = (a[i, j] - b[i, j]) * scale


@cuda.jit
def descend(weights, inputs, gradient, rate):
    """Compute weights -= rate * inputs.T @ gradient."""
    i, j = cuda.grid(2)
    if i < weights.shape[0] and j < weights.shape[1]:
        total = np.float32(0)
        for k in range(inputs.shape[0]):
            total += inputs[k, i] * gradient[k, j]
        weights[i, j] -= rate * total


def launch(kernel, out, *arguments):
    """Launch a kernel on these arguments, with a thread for each element of out."""
    kernel[(-(-out.shape[0] // 8), -(-out.shape[1] // 8)), (8, 8)](*arguments)


def product(kernel, a, b, columns):
    """A new device array, filled by one of the two kernels that multiply."""
    out = cuda.device_array((a.shape[0], columns), np.float32)
    launch(kernel, out, a, b, out)
    return out


def train(x, target, w1, w2, rng):
    """Gradient descent of the mean squared error; returns the cost before each step, with dropout."""
    costs, error = [], cuda.device_array(target.shape, np.float32)
    for _ in range(STEPS):
        hidden, backprop = gpudrop.dropout_vjp(product(multiply, x, w1, HIDDEN), P, activation="relu", rng=rng)
        launch(subtract, error, product(multiply, hidden, w2, 1), target, np.float32(1 / len(x)), error)
        dz = backprop(product(multiply_by_transposed, error, w2, HIDDEN))  # the same mask, drawn again
        launch(descend, w2, w2, hidden, error, np.float32(RATE))
        launch(descend, w1, w1, x, dz, np.float32(RATE))
        costs.append(float(np.square(error.copy_to_host()).sum()) * len(x) / 2)
    return costs


def main():
    """Train, compare a result with the CPU's, print the results and return them."""
    if not cuda.is_available():
        sys.exit("train_numba.py needs a CUDA GPU, or the simulator: NUMBA_ENABLE_CUDASIM=1")
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (SAMPLES, 2)).astype(np.float32)
    w1, w2 = (rng.standard_normal(shape).astype(np.float32) / 2 for shape in ((2, HIDDEN), (HIDDEN, 1)))
    arrays = map(cuda.to_device, (x, np.abs(x[:, :1] - x[:, 1:]), w1, w2))
    costs = train(*arrays, gpudrop.Generator(1))
    print(f"the cost falls from {np.mean(costs[:5]):.3f} to {np.mean(costs[-5:]):.3f}, means of 5 steps")

    stream = gpudrop.Stream(1, 0)  # the generator's first stream
    on_device = gpudrop.dropout(cuda.to_device(x), P, rng=stream).copy_to_host()
    same = np.array_equal(on_device, gpudrop.dropout(x, P, rng=stream))
    print(f"the same stream drops the same elements on the CPU: {same}")
    return costs, same


if __name__ == "__main__":
    main()
