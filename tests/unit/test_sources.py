"""A formula is the function that was passed. If its source differs from its compiled code, an error is raised."""

import asyncio
import functools
import importlib
import inspect
import itertools
import linecache
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import gpudrop
from gpudrop import formulas, layers
from gpudrop.formulas import activations
from tests.processes import run

X = np.float32([-1.5, 0.5, 2])
CELLS = itertools.count()


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(activations, "ACTIVATIONS", dict(activations.ACTIVATIONS))


def values(value, slope=None):
    """The results of gpudrop with an activation made of a function, or of two."""
    name = f"own_{next(CELLS)}"
    gpudrop.register_activation(name, value, slope or value)
    y, backprop = gpudrop.dropout_vjp(X, 0, activation=name)
    return y if slope is None else (y, backprop(np.ones_like(X)))


def agrees(function):
    np.testing.assert_allclose(values(function), np.float32([function(x) for x in X.tolist()]), rtol=1e-6)


class Edited:
    """A module whose file changes after it has been imported."""

    def __init__(self, folder, text):
        self.file = folder / f"edited_{next(CELLS)}.py"
        self.write(text)
        self.module = importlib.import_module(self.file.stem)

    def write(self, text):
        later = self.file.stat().st_mtime + 10 if self.file.exists() else 1e9
        self.file.write_text(text)
        os.utime(self.file, (later, later))  # more than the resolution of any file system's clock


@pytest.fixture
def edited(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return functools.partial(Edited, tmp_path)


TWO = "def act(x):\n    return x * x\n\n\ndef other(x):\n    return 2 * x\n"
MOVED = [
    "def helper(x):\n    return 0 * x\n\n\n" + TWO,
    TWO.replace("def other", "import math\n\n\ndef other"),
    "def act(x):\n    return x - 1\n\n\nclass Within:\n" + "".join(f"    {line}\n" for line in TWO.splitlines()),
    TWO.replace("def act(x):\n", "def act(x):\n\n    # a comment, and more space\n\n"),
]
CHANGED = [
    TWO.replace("x * x", "x * x + 0"),
    TWO.replace("x * x", "x + x"),
    TWO.replace("return x * x", "if x > 9:\n        return 0\n    return x * x"),
    "def other(x):\n    return x * x\n",
    "",
    "def act(x):\n    return (x * x\n",
    "\n",
]


@pytest.mark.parametrize("text", MOVED)
def test_a_function_that_was_moved_within_its_file_is_found(edited, text):
    module = edited(TWO)
    module.write(text)
    agrees(module.module.act)
    agrees(module.module.other)


@pytest.mark.parametrize("text", CHANGED)
def test_a_function_that_was_changed_in_its_file_is_refused(edited, text):
    module = edited(TWO)
    module.write(text)
    refused = (
        r"the source of act in .*edited_\d+.py, line 1, is not what the function was compiled from: import the edited"
    )
    message = f"^({refused}|the source of act can't be read)"
    with pytest.raises(SyntaxError, match=message):
        gpudrop.register_activation("changed", module.module.act, module.module.act)
    assert "changed" not in activations.ACTIVATIONS
    module.write(TWO)
    agrees(module.module.act)


def test_errors_name_the_present_lines_of_an_edited_file(edited):
    module = edited("def act(x):\n    return (\n        x +\n        int(x))\n")
    module.write("\n\n" + module.file.read_text())
    with pytest.raises(SyntaxError, match=r"^line 6: 'int' is not supported in a formula"):
        gpudrop.register_activation("refused", module.module.act, module.module.act)


def test_constants_of_another_type_or_sign_are_another_formula(edited):
    for before, after in (("0.0", "-0.0"), ("1", "1.0"), ("1", "True"), ("2", "3")):
        module = edited(f"def act(x):\n    return x * {before}\n")
        module.write(f"def act(x):\n    return x * {after}\n")
        with pytest.raises(SyntaxError, match="is not what the function was compiled from"):
            formulas.parse(module.module.act)


def test_functions_that_differ_only_in_annotations_are_distinguished_or_refused(edited):
    text = "def make(truth):\n    if truth:\n        def f(r: bool):\n            return r\n        return f\n"
    text += "    def f(r):\n        return r\n    return f\n"
    module = edited(text)
    trees = [formulas.parse(module.module.make(truth)).tree for truth in (True, False)]
    assert [tree.args.args[0].annotation is None for tree in trees] == [False, True]
    module.write("\n" + text)
    with pytest.raises(SyntaxError, match="is not what the function was compiled from"):
        formulas.parse(module.module.make(True))


def twice(function):
    @functools.wraps(function)
    def inner(x):
        return 2 * function(x)

    return inner


def counted(function):
    """A decorator that returns the same function."""
    function.calls = 0
    return function


@twice
def square(x):
    return x * x


@twice
@twice
@counted
def nested(x):
    return x + 1


@counted
def marked(x):
    return x * x - 1


def closure(factor):
    def act(x):
        return factor * x if x > 0 else x / factor

    return act


def test_a_decorated_function_is_the_result_of_its_decorator():
    for function in (square, nested, marked, closure(3.0), closure(0.5)):
        agrees(function)
    assert square(3) == 18


def logged(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


def test_a_decorator_with_variable_arguments_is_refused():
    for decorated in (logged(square), functools.cache(square), functools.partial(square)):
        with pytest.raises(TypeError, match=r"^(value must take one number|a formula must be a function written with)"):
            gpudrop.register_activation("refused", decorated, decorated)


def helper_with_default(x, a=2):
    return a * x


def calls_helper_with_default(x):
    return helper_with_default(x)


def test_defaults_of_a_function_that_is_called_are_refused():
    with pytest.raises(SyntaxError, match=r"'x, a=2' must be plain arguments, without defaults"):
        gpudrop.register_activation("refused", calls_helper_with_default, square)


def of_a_truth(x: bool):
    return x


def test_an_annotation_that_is_not_a_real_number_is_refused():
    with pytest.raises(TypeError, match="value must take a real number, of_a_truth takes bool"):
        gpudrop.register_activation("refused", of_a_truth, square)


def cell(text, flags=0):
    """Run a cell as a notebook does, under a new file name. Returns its namespace."""
    name = f"<cell {next(CELLS)}>"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    namespace = {"__name__": "__main__", "math": math}
    result = eval(compile(text, name, "exec", flags), namespace)
    if inspect.iscoroutine(result):
        asyncio.run(result)
    return namespace


def test_functions_of_a_notebook_are_read_from_their_cells():
    first = cell("act = None\ndef act(x):\n    return x * x\n")["act"]
    again = cell("def act(x):\n    return 3 * x\n")["act"]
    agrees(first)
    agrees(again)
    annotations = importlib.import_module("__future__").annotations.compiler_flag  # set by an earlier cell
    agrees(cell("def act(x: float):\n    return math.exp(-x * x)\n", annotations)["act"])
    text = "def act(x):\n    return x + 1\n\nasync def more():\n    pass\n\nawait more()\n"  # modules forbid it
    agrees(cell(text, importlib.import_module("ast").PyCF_ALLOW_TOP_LEVEL_AWAIT)["act"])


def test_a_cell_whose_text_has_changed_is_refused():
    """Some notebooks use one file name for a cell, whatever its text."""
    function = cell("def act(x):\n    return x * x\n")["act"]
    name, text = function.__code__.co_filename, "def act(x):\n    return x + x\n"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    with pytest.raises(SyntaxError, match="or run the notebook's cell again"):
        gpudrop.register_activation("refused", function, function)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python before 3.13 discards the source typed at its prompt")
def test_functions_typed_at_the_prompt_are_read():
    typed = "import gpudrop, numpy as np\ndef act(x):\n    return x * x\n\n"
    typed += "_ = gpudrop.register_activation('typed', act, act)\n"
    typed += "print(gpudrop.dropout(np.ones(1) * 3, 0, activation='typed'))\n"
    done = subprocess.run([sys.executable, "-i"], input=typed, capture_output=True, text=True)
    assert "[9.]" in done.stdout, done.stderr


FACTOR = 2.0


def scaled(x):
    return FACTOR * x


def through_another(x):
    return scaled(x) + 1


def test_a_formula_is_fixed_when_it_is_registered(monkeypatch):
    """Registration fixes the module's constants, and the functions that the formula calls.

    Later changes have no effect.
    """
    names = []

    def register(value):
        names.append(f"settled_{next(CELLS)}")
        return gpudrop.register_activation(names[-1], value, value)

    first = register(through_another)
    assert first.value is through_another
    assert register(through_another).value is through_another
    with monkeypatch.context() as now:
        now.setattr(sys.modules[__name__], "FACTOR", 5.0)
        register(through_another)
        now.setattr(sys.modules[__name__], "scaled", square)
        register(through_another)
    register(through_another)
    results = [gpudrop.dropout(np.float64([3]), 0, activation=name).item() for name in names]
    assert results == [7, 7, 16, 19, 7]


def test_a_replaced_activation_is_replaced_everywhere():
    gpudrop.register_activation("mine", square, square)
    layer = layers.Dropout(0, activation="mine")
    _, backprop = gpudrop.dropout_vjp(X, 0, activation="mine")
    before, old_gradient = layer(X), backprop(X)
    np.testing.assert_array_equal(before, 2 * X * X)
    with pytest.raises(ValueError, match=r"^activation 'mine' exists already; replace=True replaces it"):
        gpudrop.register_activation("mine", nested, nested)
    np.testing.assert_array_equal(layer(X), before)
    gpudrop.register_activation("mine", nested, marked, replace=True)
    np.testing.assert_array_equal(layer.eval()(X), 4 * (X + 1))
    np.testing.assert_array_equal(layer.backward(np.ones_like(X)), X * X - 1)
    np.testing.assert_array_equal(backprop(X), old_gradient)  # from a call before the replacement
    with pytest.raises(SyntaxError):
        gpudrop.register_activation("mine", calls_helper_with_default, square, replace=True)
    np.testing.assert_array_equal(layer(X), 4 * (X + 1))
    gpudrop.unregister_activation("mine")
    with pytest.raises(ValueError, match=r"^unknown activation 'mine'"):
        layer(X)
    gpudrop.register_activation("mine", square, square)
    np.testing.assert_array_equal(layer(X), before)


def test_built_in_activations_can_not_be_replaced_or_removed():
    for name in activations.BUILT_IN:
        with pytest.raises(ValueError, match=f"^activation '{name}' exists already; a built-in one can't be replaced"):
            gpudrop.register_activation(name, square, square, replace=True)
        with pytest.raises(ValueError, match=f"^activation '{name}' is built in and can't be removed"):
            gpudrop.unregister_activation(name)
    with pytest.raises(ValueError, match=r"^unknown activation 'gelo'; known: .*; did you mean 'gelu'"):
        gpudrop.unregister_activation("gelo")
    for name in (None, ["relu"], 3):
        with pytest.raises(ValueError, match=r"^unknown activation|built in"):
            gpudrop.unregister_activation(name)


def test_a_module_that_is_reloaded_registers_again(edited):
    text = (
        "import gpudrop\n\n\ndef act(x):\n    return {} * x\n\n\ngpudrop.register_activation('reloaded', act, act{})\n"
    )
    module = edited(text.format(2, ""))
    np.testing.assert_array_equal(gpudrop.dropout(X, 0, activation="reloaded"), 2 * X)
    module.write(text.format(3, ""))
    with pytest.raises(ValueError, match="replace=True"):
        importlib.reload(module.module)
    module.write(text.format(4, ", replace=True"))
    importlib.reload(module.module)
    np.testing.assert_array_equal(gpudrop.dropout(X, 0, activation="reloaded"), 4 * X)


def test_a_file_of_another_encoding_is_read(tmp_path, monkeypatch):
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\ndef act(x):\n    'ä'\n    return x * x\n".encode("latin-1"))
    monkeypatch.syspath_prepend(tmp_path)
    agrees(importlib.import_module("latin").act)


UNKNOWN = """
import pickle, sys
import gpudrop
with open(sys.argv[1], "rb") as file:
    try:
        pickle.load(file)
    except ValueError as error:
        print(error)
    gpudrop.register_activation("far", gpudrop.formulas.activations.relu2, gpudrop.formulas.activations.relu2_slope)
    file.seek(0)
    print(pickle.load(file))
"""


@pytest.mark.parametrize("face", ["layers", "torch"])
def test_unpickling_a_layer_with_an_unregistered_activation_raises(face, tmp_path):
    if face == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
        layers = importlib.import_module("gpudrop.torch")
    else:
        layers = gpudrop.layers
    gpudrop.register_activation("far", activations.relu2, activations.relu2_slope)
    file = tmp_path / "layer"
    file.write_bytes(pickle.dumps(layers.DropPath(0.5, activation="far")))
    refused, shown = run(UNKNOWN, file).stdout.splitlines()
    assert refused.startswith("unknown activation 'far'; known: elu,")
    assert refused.endswith("register your own activation in this process before you load a layer that uses it")
    assert "activation='far'" in shown


def test_a_layer_accepts_a_row_of_the_table_of_activations():
    row = gpudrop.register_activation("as_a_row", square, square)
    assert layers.Dropout(activation=row).activation == "as_a_row"
    gpudrop.unregister_activation(row)
    with pytest.raises(ValueError, match="unknown activation 'as_a_row'"):
        layers.Dropout(activation=row)


def test_a_function_with_an_unset_closure_variable_is_refused():
    def make():
        def act(x):
            return later * x

        if math.pi < 3:
            later = 1.0
        return act

    with pytest.raises(SyntaxError, match=r"^act reads a variable of an enclosing function that has no value yet"):
        gpudrop.register_activation("refused", make(), square)


async def coroutine(x):
    return x


def test_a_coroutine_is_not_a_formula():
    with pytest.raises(TypeError, match=r"^a formula must be a function written with def, got <function coroutine"):
        gpudrop.register_activation("refused", coroutine, square)


__x = 100.0


class Mangled:
    """A class, in which Python mangles names that begin with two underscores."""

    @staticmethod
    def parameter(__x):  # noqa: PYI063
        return 3 * __x

    @staticmethod
    def local(x):
        __y = 2 * x
        return __y


def test_names_that_python_mangles_are_refused():
    for formula in (Mangled.parameter, Mangled.local):
        with pytest.raises(SyntaxError, match="don't begin names with two underscores"):
            gpudrop.register_activation("refused", formula, square)


def test_helpers_that_many_functions_share_are_read_once():
    """Otherwise 2**30 paths through the calls would be read."""
    text = "def a0(x):\n    return x\n\n\ndef b0(x):\n    return x\n"
    for n in range(30):
        for name in "ab":
            text += f"\n\ndef {name}{n + 1}(x):\n    return a{n}(x) - b{n}(x) if x > 9 else x\n"
    function = cell(text)["a30"]
    assert gpudrop.register_activation("shared", function, square).value is function


@pytest.mark.parametrize("optimize", [0, 1, 2])
def test_a_module_may_be_compiled_with_docstrings_or_without(optimize):
    text = "def act(x):\n    'A docstring.'\n    return 2 * x\n"
    name, namespace = f"<optimized {next(CELLS)}>", {}
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    exec(compile(text, name, "exec", optimize=optimize), namespace)
    assert (namespace["act"].__doc__ is None) == (optimize == 2)
    agrees(namespace["act"])
