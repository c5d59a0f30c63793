"""Formulas: their text in C++, the errors for code without such a text, and the same results from Numba."""

import math
import subprocess
from math import erf, exp  # noqa: F401  (used by formulas below)

import numpy as np
import pytest
from numpy import int64

import gpudrop
from gpudrop.formulas import Location, compiled, parse, philox, rolled
from gpudrop.formulas.cuda_cpp import CudaSource, prelude
from gpudrop.testing import reference, ulps
from tests.unit import own_activation, own_helpers

TWO = 2


def printed(function):
    source = CudaSource()
    source.add(function)
    return source.text


def everything(x):
    """A docstring is no code."""
    total = x
    for _ in range(3):
        total = total + abs(x) ** 2
    if (x > 1 and not x > 5) or x == -1:
        total -= math.exp(x)
    elif 0 < x <= TWO:
        total = min(total, max(x, 0.5))
    else:
        total = -total / 3 + np.sqrt(abs(x))
    return total if total > -1e3 else np.tanh(total)


def truths(x):
    positive = x > 0
    small = positive and x < 3
    value = x > -5 and x
    always = True
    return (value or 5) + (small or 0) + (0.5 if positive else 0) + (0.25 if always else 8)


def same_names(x):
    real = own_activation_double(x) + own_helpers_double(x)
    fabs = abs(real)
    return fabs + tanh(x) + np.tanh(x)


own_activation_double, own_helpers_double, tanh = own_activation.double, own_helpers.double, own_helpers.tanh


def numbers(x: float) -> float:
    total = np.float32(x) / 3 + float(1)
    for i in range(4):
        total += x * i + np.float32(i)
    return min(total, 7, 2 * x) + 100000000000000000000


def integers(x):
    whole = np.int64(x * x)
    here = _quotient(whole, COUNT)
    share, rest = here
    for k in rolled(TWO):
        share += rest * np.int64(k)
    return float(share * np.int64(100) + rest)


COUNT = np.int64(7)


def _quotient(a: int64, b: int64) -> Location:
    return a // b, a % b


@pytest.mark.parametrize("formula", [everything, truths, same_names, numbers, integers])
def test_python_numba_and_cpp_compute_the_same_from_a_formula(formula, tmp_path):
    from gpudrop.kernels.cpu import jit
    from gpudrop.kernels.host_math import HOST_MATH

    source = tmp_path / "formula.cpp"
    name = f"{formula.__name__}_"
    loop = f'int main() {{ double x; while (scanf("%lf", &x) == 1) printf("%.17g\\n", {name}(x)); }}'
    divide = "real divide(real a, real b) { return a / b; }\n"
    header = "#include <math.h>\n#include <stdio.h>\n#define __device__\n"
    source.write_text(header + prelude("double") + divide + printed(formula) + loop)
    subprocess.run(["g++", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-o", tmp_path / "formula", source], check=True)
    values = [-7.5, -1.0, -0.25, 0.0, 0.25, 1.0, 1.75, 2.0, 3.25, 5.0, 8.0]
    text = "\n".join(map(repr, values))
    done = subprocess.run([tmp_path / "formula"], input=text, capture_output=True, text=True, check=True)
    in_numba = compiled(formula, np.float64, HOST_MATH["float64"], jit())
    for x, result in zip(values, done.stdout.split(), strict=True):
        # A cast to float converts to the type of the arithmetic.
        python = formula(x) if formula is not numbers else float(x / 3 + 7 + 6 * x)
        python = min(python, 7, 2 * x) + 1e20 if formula is numbers else python
        assert float(result) == pytest.approx(python, rel=1e-15)
        assert in_numba(x) == pytest.approx(python, rel=1e-15)


def test_bare_numbers_have_the_type_of_x():
    from gpudrop.kernels.cpu import jit
    from gpudrop.kernels.host_math import HOST_MATH

    def mixed(x):
        total = x / 3 + 0.1 + TWO
        for i in range(3):
            total += i * x
        return total

    single = compiled(mixed, np.float32, HOST_MATH["float32"], jit())
    single(np.float32(1))
    assert [str(s.signature.return_type) for s in single.overloads.values()] == ["float32"]


def comprehension(x):
    y = [v for v in x]  # noqa: C416
    return y


def loop(x):
    while x > 1:
        x = x / 2
    return x


def unknown(x):
    return no_such_function(x)  # noqa: F821


def foreign(x):
    return np.linalg.norm(x)


def keyword(x):
    return max(x, default=0)


def undeclared(x):
    if x > 0:
        y = x
    return y


def text(x):
    return "x"


def infinite(x):
    return x * 1e400


def endless(x):
    if x > 0:
        return x


def turncoat(x):
    y = x > 0
    y = 2 * x
    return y


def annotated(x: np.float32):
    return x


def recursive(x):
    return x if x < 1 else recursive(x / 2)


def minimum(x):
    return min(x)


UNITS = {"one": 1}


def table(x):
    return x * UNITS["one"]


def pair(x):
    return x, x


def floored(x):
    return x // 2


def parts(x):
    a, b = x
    return a + b


def remainder(x):
    return float(np.int64(x) % np.int64(3))


def helped(x):
    return remainder(x)


def uncounted(x):
    for _ in range(missing):  # noqa: F821
        x = x * x
    return x


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        (comprehension, r"line \d+: '\[v for v in x\]' is not supported in a formula"),
        (loop, r"line \d+: 'while x > 1:"),
        (unknown, r"line \d+: 'no_such_function' is not defined"),
        (foreign, r"line \d+: 'np.linalg.norm' is not supported in a formula"),
        (keyword, r"line \d+: 'max\(x, default=0\)' is not supported in a formula"),
        (undeclared, r"line \d+: 'y' is not supported in a formula"),
        (text, r"line \d+: '\"x\"' is not supported in a formula"),
        (infinite, r"line \d+: '1e400' is not supported in a formula"),
        (endless, r"line \d+: 'def endless\(x\):' doesn't return on every path"),
        (turncoat, r"line \d+: 'y = 2 \* x' changes the type of its variable"),
        (annotated, r"line \d+: 'np.float32' is not supported in a formula"),
        (recursive, r"line \d+: 'def recursive\(x\):' calls itself"),
        (minimum, r"line \d+: 'min\(x\)' is not supported in a formula"),
        (pair, r"line \d+: 'x, x' is not one number"),
        (floored, r"line \d+: 'x // 2' is not supported in a formula"),
        (parts, r"line \d+: 'a, b = x' is not supported in a formula"),
        (remainder, r"line \d+: 'np.int64\(x\) % np.int64\(3\)' is not supported in a formula"),
        (helped, r"line \d+: 'np.int64\(x\) % np.int64\(3\)' is not supported in a formula"),
        (uncounted, r"line \d+: 'missing' is not defined"),
        (table, r"line \d+: 'UNITS' is not supported in a formula"),
    ],
)
def test_code_without_a_cuda_spelling_is_refused_with_its_line(formula, message):
    with pytest.raises(SyntaxError, match=message) as caught:
        gpudrop.register_activation(f"refused_{formula.__name__}", formula, formula)
    line = int(str(caught.value).partition(":")[0].removeprefix("line "))
    first = (remainder if formula is helped else formula).__code__.co_firstlineno
    assert first <= line <= first + 3
    assert f"refused_{formula.__name__}" not in gpudrop.formulas.activations.ACTIVATIONS


def test_a_function_without_source_is_refused():
    namespace = {}
    exec(compile("def typed(x):\n    return x", "<nowhere>", "exec"), namespace)
    with pytest.raises(SyntaxError, match="the source of typed can't be read; put it into a file"):
        gpudrop.register_activation("refused", namespace["typed"], namespace["typed"])


@pytest.mark.parametrize("formula", [lambda x: x, math.exp, 3])
def test_other_objects_than_functions_are_refused(formula):
    with pytest.raises(TypeError, match="written with def"):
        gpudrop.register_activation("refused", formula, formula)


def test_a_digest_depends_on_every_function_of_a_formula():
    def make(inner):
        def outer(x):
            return inner(x) + 1

        return outer

    def plain(x):
        return x

    def squared(x):
        return x * x

    def of_the_same_name():
        def plain(x):
            return x * x

        return plain

    assert parse(make(plain)).digest != parse(make(squared)).digest
    assert parse(make(plain)).digest != parse(make(of_the_same_name())).digest
    assert parse(make(plain)).digest == parse(make(plain)).digest


def in_cpp(printed_by, tmp_path, rows):
    """Compute the words of the known answers' counters and keys with the printed C++."""
    loop = """
int main() {
  unsigned int c[4], k[2];
  while (scanf("%x %x %x %x %x %x", c, c + 1, c + 2, c + 3, k, k + 1) == 6) {
    Words w = philox4x32_(c[0], c[1], c[2], c[3], k[0], k[1]);
    printf("%x %x %x %x\\n", w[0], w[1], w[2], w[3]);
  }
}
"""
    source = tmp_path / "philox.cpp"
    source.write_text("#include <stdio.h>\n#define __device__\n" + prelude("float") + printed_by + loop)
    subprocess.run(["g++", "-O2", "-o", tmp_path / "philox", source], check=True)
    text = "\n".join(" ".join(f"{word:x}" for word in (*counter, *key)) for counter, key, _ in rows)
    done = subprocess.run([tmp_path / "philox"], input=text, capture_output=True, text=True, check=True)
    return [tuple(int(word, 16) for word in line.split()) for line in done.stdout.splitlines()]


def test_known_answers_on_every_processor(tmp_path):
    from gpudrop.kernels.cpu import jit

    rows = [row[1:] for row in reference.known_answers() if row[0] == 10]
    assert len(rows) > 50
    in_numba = compiled(philox.philox4x32, np.float32, {}, jit())
    cpp_words = in_cpp(printed(philox.philox4x32), tmp_path, rows)
    for (counter, key, answer), cpp in zip(rows, cpp_words, strict=True):
        words = [np.uint32(word) for word in (*counter, *key)]
        assert tuple(philox.philox4x32(*words)) == answer  # as the simulator runs it
        assert tuple(in_numba(*words)) == answer
        assert cpp == answer


def test_the_cpu_kernels_radius_equals_the_formulas(monkeypatch):
    """Covers both ends of the words, where a float32 near 1 or a small word loses most, and the middle."""
    from gpudrop.kernels import host_math
    from gpudrop.kernels.cpu import jit

    assert set(host_math.FORMULAS["float32"]) == {philox.radius}
    own = jit()(host_math.radius32.py_func)
    formula = compiled(philox.radius, np.float64, host_math.HOST_MATH["float64"], jit())
    near = np.arange(3000)
    words = np.concatenate([near, 2**32 - 1 - near, 2**31 - 1500 + near, 2**24 - 1500 + near])
    words = np.concatenate([words, np.random.default_rng(0).integers(0, 2**32, 100_000)]).astype(np.uint32)
    exact = np.array([formula(word) for word in words])
    got = np.array([own(word) for word in words], np.float32)
    assert ulps.error(got, exact).max() < 2


def test_sine_of_every_part_of_the_turn():
    from gpudrop.kernels.cpu import jit
    from gpudrop.kernels.host_math import HOST_MATH

    near = np.arange(500)
    turns = np.concatenate([(eighth << 29) + near - 250 for eighth in range(9)]) % 2**32
    exact = np.sin(2 * np.pi * (turns % 2**30) / 2**32)
    exact = np.where(turns & 2**30, np.sin(2 * np.pi * (2**30 - turns % 2**30) / 2**32), exact)
    exact *= np.where(turns & 2**31, -1, 1)
    for real, limit in ((np.float32, 2), (np.float64, 3)):
        sine = compiled(philox.sine, real, HOST_MATH[real.__name__], jit())
        got = np.array([sine(np.uint32(turn)) for turn in turns], real)
        assert ulps.error(got, exact, 2.0**-30).max() < limit
