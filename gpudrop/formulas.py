"""Formulas: plain scalar Python functions that every processor compiles.

A formula takes numbers and returns a number. It may use assignments, if, for over range(n),
arithmetic, comparisons, conditional expressions, the functions in MATH (from math or numpy), abs,
min, max, numpy's uint32 and uint64 casts, module-level numbers and other formulas.

A bare number takes the type of the array's arithmetic (float32 or float64, called `real` here), and so
do loop variables and what is cast to a float; parameters and results are real unless annotated. So
`0.5 * x` is never computed in float64 by accident, on any processor.

`parse` brings a function into canonical form, in which every name is a cast, a function of MATH, a local variable
(ending in an underscore) or another formula (ending in its number), every bare number reads real(number), and every
quotient divide(a, b), since a processor may have a way of its own to divide. `compiled` turns that back into a Python
function for Numba or for the CUDA simulator; `gpudrop.cuda_source` prints it as C++.
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
from typing import Any

import numpy as np

MATH = ("cos", "erf", "exp", "expm1", "fabs", "floor", "log", "log1p", "sin", "sqrt", "tanh")
CASTS = ("uint32", "uint64", "real")

# What a name's value means, found by identity so that any import style works.
_KNOWN = {getattr(module, name): name for module in (math, np) for name in MATH if hasattr(module, name)}
_KNOWN |= {np.uint32: "uint32", np.uint64: "uint64", np.float32: "real", np.float64: "real", float: "real"}
_KNOWN |= {abs: "fabs", np.abs: "fabs", range: "range", min: "min", max: "max"}


@dataclass(frozen=True, eq=False)
class Formula:
    """A function in canonical form: its syntax tree and the formulas it calls, by name."""

    function: types.FunctionType
    source: str
    tree: ast.FunctionDef
    calls: dict[str, types.FunctionType]

    @functools.cached_property
    def digest(self) -> str:
        """A hash of everything the formula's result depends on."""
        text = ast.dump(self.tree) + "".join(f"{n}={parse(f).digest}" for n, f in sorted(self.calls.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def refuse(self, node: Any, why: str = "has no CUDA spelling") -> SyntaxError:
        """The error for a node: its line in the file, and its text as it stands there."""
        line = self.function.__code__.co_firstlineno + getattr(node, "lineno", 1) - 1
        text = (ast.get_source_segment(self.source, node) if hasattr(node, "lineno") else None) or ast.unparse(node)
        return SyntaxError(f"line {line}: '{text.splitlines()[0]}' {why}")


@functools.cache
def parse(function: Any) -> Formula:
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
    tree: Any = ast.parse(source).body[0]
    formula = Formula(function, source, tree, {})
    _Canonical(formula).visit(tree)
    return formula


class _Canonical(ast.NodeTransformer):
    def __init__(self, formula):
        self.formula = formula
        self.local = set(formula.function.__code__.co_varnames)
        self.counters = set()  # the variables of loops, which are integers
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
        for argument in node.args.args:
            argument.arg += "_"
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_For(self, node):
        if isinstance(node.target, ast.Name):
            self.counters.add(node.target.id)
            node.target.id += "_"
        node.iter = self.visit(node.iter)
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_Name(self, node):
        if node.id in self.local:
            name = ast.copy_location(ast.Name(f"{node.id}_", node.ctx), node)
            return _cast("real", name, node) if node.id in self.counters else name
        if node.id not in self.outer:
            raise self.formula.refuse(node, "is not defined")
        return self._spell(node, self.outer[node.id])

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name) and isinstance(self.outer.get(node.value.id), types.ModuleType):
            return self._spell(node, getattr(self.outer[node.value.id], node.attr, None))
        raise self.formula.refuse(node)

    def _spell(self, node, value):
        if isinstance(value, (np.uint32, np.uint64)):
            return _cast(type(value).__name__, ast.Constant(int(value)), node)
        if isinstance(value, (int, float, np.floating)):
            return self._real(node, value)
        if isinstance(value, Hashable) and value in _KNOWN:
            name = _KNOWN[value]
        elif isinstance(value, types.FunctionType):
            # Two formulas may have one name; no name of a local ends in a digit here.
            calls = self.formula.calls
            name = next((n for n, f in calls.items() if f is value), f"{value.__name__}_{len(calls)}")
            calls[name] = value
        else:
            raise self.formula.refuse(node)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            return node
        return self._real(node, node.value)

    def _real(self, node, value):
        try:
            finite = math.isfinite(value)
        except (TypeError, OverflowError):
            finite = False
        if not finite:
            raise self.formula.refuse(node)
        return _cast("real", ast.Constant(float(value)), node)

    def visit_BinOp(self, node):
        node = self.generic_visit(node)
        if not isinstance(node.op, ast.Div):
            return node
        return ast.copy_location(ast.Call(ast.Name("divide", ast.Load()), [node.left, node.right], []), node)

    def visit_Call(self, node):
        function = self.visit(node.func)
        if node.keywords or not isinstance(function, ast.Name):
            raise self.formula.refuse(node)
        if function.id in ("min", "max") and len(node.args) > 1:
            # As Python defines them, so that nan behaves the same everywhere.
            order = ast.Lt() if function.id == "min" else ast.Gt()
            best, *rest = map(self.visit, node.args)
            for other in rest:
                choice = ast.IfExp(ast.Compare(other, [order], [best]), other, best)
                best = ast.copy_location(choice, node)
            return best
        if function.id in (*CASTS, "range"):
            arguments = [a if isinstance(a, ast.Constant) else self._uncast(self.visit(a)) for a in node.args]
        elif function.id in MATH or function.id in self.formula.calls:
            arguments = [self.visit(a) for a in node.args]
        else:
            raise self.formula.refuse(node)
        return ast.copy_location(ast.Call(function, arguments, []), node)

    def _uncast(self, argument):
        """What is cast anyway needn't be made real before."""
        match argument:
            case ast.Call(func=ast.Name(id="real"), args=[ast.Name() as name]):
                return name
        return argument


def _cast(name, value, node):
    return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), [value], []), node)


def compiled(function, real, math_functions, decorate, memo=None):
    """The formula as a Python function over one type of arithmetic.

    Parameters
    ----------
    function : function
        The formula.
    real : type
        numpy.float32 or numpy.float64, the type of bare numbers.
    math_functions : dict
        What each name in MATH, and divide, means on this processor.
    decorate : callable
        Applied to the result and to each formula it calls: a jit, say.
    memo : dict, optional
        What formulas are compiled already, or are on this processor; those that are compiled here are added.
    """
    memo = {} if memo is None else memo
    if function not in memo:
        formula = parse(function)
        namespace = {"uint32": np.uint32, "uint64": np.uint64, "real": real} | math_functions
        for name, called in formula.calls.items():
            namespace[name] = compiled(called, real, math_functions, decorate, memo)
        bare = _without_annotations(formula.tree)
        code = compile(ast.fix_missing_locations(ast.Module([bare], [])), f"<formula {bare.name}>", "exec")
        exec(code, namespace)  # noqa: S102  (the caller's own function, in canonical form)
        memo[function] = decorate(namespace[bare.name])
    return memo[function]


def _without_annotations(tree):
    arguments = ast.arguments([], [ast.arg(a.arg) for a in tree.args.args], None, [], [], None, [])
    # type_params is new in Python 3.12 and required from 3.13 on.
    more: dict[str, Any] = {"type_params": []}
    return ast.FunctionDef(name=f"{tree.name}_", args=arguments, body=tree.body, decorator_list=[], **more)
