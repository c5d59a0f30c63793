"""Formulas: plain scalar Python functions that every processor compiles.

A formula takes numbers and returns a number. It may use assignments, if, for over range(n),
arithmetic, comparisons, conditional expressions, the functions in MATH (from math or numpy), abs,
min, max, numpy's uint32 and uint64 casts, module-level numbers and other formulas.

A bare number takes the type of the array's arithmetic (float32 or float64, called `real` here);
parameters and results are real unless annotated. So `0.5 * x` is never computed in float64 by
accident, on any processor.

`parse` brings a function into canonical form, in which every name is a local variable, a cast, a
function of MATH or another formula, and every bare number reads real(number). `compiled` turns that
back into a Python function for Numba or for the CUDA simulator; `gpudrop.cuda_source` prints it as C++.
"""

import ast
import builtins
import functools
import hashlib
import inspect
import math
import textwrap
import types
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

MATH = ("cos", "erf", "exp", "expm1", "fabs", "floor", "log", "log1p", "sin", "sqrt", "tanh")
CASTS = ("uint32", "uint64", "float32", "float64")

# What a name's value means, found by identity so that any import style works.
_KNOWN = {getattr(module, name): name for module in (math, np) for name in MATH if hasattr(module, name)}
_KNOWN |= {getattr(np, name): name for name in CASTS}
_KNOWN |= {abs: "fabs", np.abs: "fabs", range: "range", min: "min", max: "max"}


@dataclass(frozen=True, eq=False)
class Formula:
    """A function in canonical form: its syntax tree and the formulas it calls, by name."""

    function: types.FunctionType
    source: str
    tree: ast.FunctionDef
    calls: dict

    @functools.cached_property
    def digest(self):
        """A hash of everything the formula's result depends on."""
        text = ast.dump(self.tree) + "".join(f"{n}={parse(f).digest}" for n, f in sorted(self.calls.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def refuse(self, node, why="has no CUDA spelling"):
        """The error for a node: its line in the file, and its text as it stands there."""
        line = self.function.__code__.co_firstlineno + getattr(node, "lineno", 1) - 1
        text = ast.get_source_segment(self.source, node) if hasattr(node, "lineno") else ast.unparse(node)
        return SyntaxError(f"line {line}: '{text.splitlines()[0]}' {why}")


@functools.cache
def parse(function):
    """The canonical form of a function.

    Raises
    ------
    TypeError
        If it isn't a function written with def.
    SyntaxError
        If its source can't be read, or it uses what a formula may not use, with the line.
    """
    if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>":
        raise TypeError(f"a formula must be a function written with def, got {function!r}")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:
        raise SyntaxError(f"the source of {function.__name__} can't be read; put it into a file") from None
    tree = ast.parse(source).body[0]
    formula = Formula(function, source, tree, {})
    _Canonical(formula).visit(tree)
    return formula


class _Canonical(ast.NodeTransformer):
    def __init__(self, formula):
        self.formula = formula
        self.local = set(formula.function.__code__.co_varnames)
        closure = inspect.getclosurevars(formula.function)
        self.outer = {**vars(builtins), **formula.function.__globals__, **closure.nonlocals}

    def visit(self, node):
        # These bind names of their own.
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr)):
            raise self.formula.refuse(node)
        return super().visit(node)

    def visit_FunctionDef(self, node):
        if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            node.body = node.body[1:]
        node.decorator_list = []
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Name(self, node):
        if node.id in self.local:
            return node
        if node.id not in self.outer:
            raise self.formula.refuse(node, "is not defined")
        return self._spell(node, self.outer[node.id], node.id)

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name) and isinstance(self.outer.get(node.value.id), types.ModuleType):
            value = getattr(self.outer[node.value.id], node.attr, None)
            return self._spell(node, value, node.attr)
        raise self.formula.refuse(node)

    def _spell(self, node, value, name):
        if isinstance(value, (np.uint32, np.uint64)):
            return _cast(type(value).__name__, int(value), node)
        if isinstance(value, (int, float, np.floating)) and math.isfinite(value):
            return _cast("real", float(value), node)
        if isinstance(value, Hashable) and value in _KNOWN:
            name = _KNOWN[value]
        elif isinstance(value, types.FunctionType):
            self.formula.calls[name] = value
        else:
            raise self.formula.refuse(node)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            return node
        if isinstance(node.value, (int, float)):
            return _cast("real", node.value, node)
        raise self.formula.refuse(node)

    def visit_Call(self, node):
        if node.keywords:
            raise self.formula.refuse(node)
        function = self.visit(node.func)
        if not isinstance(function, ast.Name):
            raise self.formula.refuse(node)
        plain = function.id in CASTS or function.id == "range"
        arguments = [a if plain and isinstance(a, ast.Constant) else self.visit(a) for a in node.args]
        if function.id in ("min", "max") and len(arguments) == 2:
            # As Python defines them, so that nan behaves the same everywhere.
            first, second = arguments
            order = ast.Lt() if function.id == "min" else ast.Gt()
            choice = ast.IfExp(ast.Compare(second, [order], [first]), second, first)
            return ast.copy_location(choice, node)
        return ast.copy_location(ast.Call(function, arguments, []), node)


def _cast(name, number, node):
    call = ast.Call(ast.Name(name, ast.Load()), [ast.Constant(number)], [])
    return ast.copy_location(call, node)


def compiled(function, real, math_functions, decorate, memo=None):
    """The formula as a Python function over one type of arithmetic.

    Parameters
    ----------
    function : function
        The formula.
    real : type
        numpy.float32 or numpy.float64, the type of bare numbers.
    math_functions : dict
        What each name in MATH means on this processor.
    decorate : callable
        Applied to the result and to each formula it calls: a jit, say.
    """
    memo = {} if memo is None else memo
    if function not in memo:
        formula = parse(function)
        namespace = {name: getattr(np, name) for name in CASTS} | math_functions | {"real": real}
        for name, called in formula.calls.items():
            namespace[name] = compiled(called, real, math_functions, decorate, memo)
        bare = _without_annotations(formula.tree)
        code = compile(ast.fix_missing_locations(ast.Module([bare], [])), f"<formula {bare.name}>", "exec")
        exec(code, namespace)
        memo[function] = decorate(namespace[bare.name])
    return memo[function]


def _without_annotations(tree):
    arguments = ast.arguments([], [ast.arg(a.arg) for a in tree.args.args], None, [], [], None, [])
    # type_params is new in Python 3.12 and required from 3.13 on.
    return ast.FunctionDef(name=tree.name, args=arguments, body=tree.body, decorator_list=[], type_params=[])
