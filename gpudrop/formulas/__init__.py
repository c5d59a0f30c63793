"""Formulas: plain scalar Python functions that are compiled for every backend.

A formula takes numbers and returns a number. It may use assignments, if, for over range(n),
arithmetic, comparisons, conditional expressions, the functions in MATH (from math or numpy), abs,
min, max, numpy's uint32 and uint64 casts, module-level numbers and other formulas.

A bare number has the type of the array's arithmetic: float32 or float64, called `real` here. Loop variables and values
cast to float have that type too. Parameters and results are real unless annotated. So `0.5 * x` is never computed in
float64 by accident, on any processor.

gpudrop's own index formulas may use more: int64, // and % of integers that are not negative, tuples, `rolled` loops and
`exchanged`. `activations` rejects these in users' formulas.

`parse` reads a function's source text, checks that the function was compiled from it, and returns its canonical form:

- Every name is a cast, a function of MATH, a local variable (ending in an underscore) or another formula (ending in its
  number).
- Every bare number is written real(number).
- Every quotient is written divide(a, b), because a processor may have its own division.

`compiled` converts the canonical form back into a Python function, for Numba or for the CUDA simulator.
`gpudrop.formulas.cuda_cpp` prints it as C++.
"""

import __future__

import ast
import builtins
import functools
import hashlib
import inspect
import linecache
import math
import types
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MATH = ("cos", "erf", "exp", "expm1", "fabs", "floor", "log", "log1p", "sin", "sqrt", "tanh")
CASTS = ("uint32", "uint64", "int64", "real")

# The meaning of a name's value. Values are compared by identity, so that any import style works.
_KNOWN = {getattr(module, name): name for module in (math, np) for name in MATH if hasattr(module, name)}
_KNOWN |= {np.uint32: "uint32", np.uint64: "uint64", np.float32: "real", np.float64: "real", float: "real"}
_KNOWN |= {abs: "fabs", np.abs: "fabs", range: "range", min: "min", max: "max", np.int64: "int64"}


def rolled(count: int) -> range:
    """range, for a loop that CUDA compilers must not unroll."""
    return range(count)


def exchanged(value: Any, distance: Any) -> Any:
    """The value of the thread whose lane differs from this one's in the bit `distance`; for CUDA only."""
    raise NotImplementedError


_KNOWN |= {rolled: "rolled", exchanged: "exchanged"}


Drawn = bool | float
"""The random value of an element: a boolean or a number, depending on the kernel."""
Pair = tuple[float, float]
"""The result of a formula that returns two numbers."""
Triple = tuple[float, float, float]
"""The result of a formula that returns three numbers."""
Location = tuple[np.int64, np.int64, np.int64, np.int64]
"""The location of a thread in the elements: four indices, which the formulas define."""
MaskArray = Any
"""The array of a mask, indexed by an int64."""
BitArray = Any
"""An array of bytes with one bit per element, indexed by an int64."""


@dataclass(frozen=True, eq=False)
class Formula:
    """A function in canonical form: its syntax tree and the formulas that it calls, by name."""

    function: types.FunctionType
    source: str
    line: int  # the line number in its file of the source's first line
    tree: ast.FunctionDef
    calls: dict[str, types.FunctionType]

    @functools.cached_property
    def digest(self) -> str:
        """A hash of everything that the formula's result depends on."""
        text = ast.dump(self.tree) + "".join(f"{n}={parse(f).digest}" for n, f in sorted(self.calls.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def refuse(self, node: Any, why: str = "is not supported in a formula") -> SyntaxError:
        """The error for a node, with its line in the file and its source text."""
        line = self.line + getattr(node, "lineno", 1) - 1
        text = (ast.get_source_segment(self.source, node) if hasattr(node, "lineno") else None) or ast.unparse(node)
        return SyntaxError(f"line {line}: '{text.splitlines()[0]}' {why}")


_formulas: dict[types.FunctionType, Formula] = {}


def parse(function: Any) -> Formula:
    """The canonical form of a function. Its names have the values of the first call of `parse` for the function.

    Raises
    ------
    TypeError
        If it is not a function written with def.
    SyntaxError
        If its source cannot be read, or is not the source that the function was compiled from. If it uses something
        that formulas do not support; the message names the line.
    """
    return _formulas[_parsed(function)]


def _parsed(function: Any, callers: tuple[Any, ...] = ()) -> Any:
    """Parse a function and the formulas that it calls, unless they are in the table; returns the function."""
    plain = isinstance(function, types.FunctionType) and not function.__code__.co_flags & inspect.CO_COROUTINE
    if not plain or function.__code__.co_name == "<lambda>":
        raise TypeError(f"a formula must be a function written with def, got {function!r}")
    if function not in _formulas:
        _formulas[function] = _read(function, callers, _parsed)
    return function


def latest(function: Any) -> Any:
    """The function itself, or a copy of it if its names have other values now. `parse` uses these values for the copy.

    The errors are those of `parse`.
    """
    found: dict[Any, Any] = {}

    def visit(function: Any, callers: tuple[Any, ...]) -> Any:
        if function not in found:
            formula = _read(_parsed(function, callers), callers, visit)
            found[function] = function
            if formula.digest != _formulas[function].digest:
                twin = types.FunctionType(
                    function.__code__, function.__globals__, function.__name__, None, function.__closure__
                )
                found[function], _formulas[twin] = twin, formula
        return found[function]

    return visit(function, ())


def _read(function: types.FunctionType, callers: tuple[Any, ...], each: Callable[..., Any]) -> Formula:
    """The canonical form of a function. each(f, callers) replaces every formula f that it calls.

    callers: the functions that are being read; each calls the next.
    """
    source, line = _definition(function, _source(function))
    tree: Any = ast.parse(source).body[0]
    formula = Formula(function, source, line, tree, {})
    _Canonical(formula).visit(formula.tree)
    callers = (*callers, function)
    for name, called in formula.calls.items():
        if called in callers:
            raise formula.refuse(formula.tree, "calls itself")
        formula.calls[name] = each(called, callers)
    return formula


def text_of(file: str, namespace: dict[str, Any]) -> str:
    """The text of a Python file, of a module in a zip file or of a notebook's cell; "" if it cannot be found.

    namespace: the module's namespace. Its loader can read modules that are not files.
    """
    linecache.checkcache(file)
    return "".join(linecache.getlines(file, namespace))


@functools.cache
def assembled(
    parameters: tuple[str, ...], lines: tuple[str, ...], results: tuple[str, ...], names: tuple[tuple[str, Any], ...]
) -> Any:
    """The formula with these parameters, lines and results, all as text. Equal arguments have the same function.

    names: pairs of a name in the text and its value, a number or a formula.
    """
    returned = ("float", "Pair", "Triple")[len(results) - 1]
    header = f"def element({', '.join(parameters)}) -> {returned}:"
    source = "\n    ".join([header, *lines, f"return {', '.join(results)}"]) + "\n"
    namespace = {"Drawn": Drawn, "Pair": Pair, "Triple": Triple, **dict(names)}
    exec(source, namespace)  # noqa: S102  (the text above)
    namespace["element"]._gpudrop_source = source
    return namespace["element"]


def _source(function: types.FunctionType) -> str:
    """The text of the whole file or notebook's cell in which a function is defined."""
    source = getattr(function, "_gpudrop_source", "") or text_of(function.__code__.co_filename, function.__globals__)
    if source:
        return source
    if (function.__module__ or "").startswith("gpudrop."):
        raise SyntaxError("gpudrop's .py files are missing, and its kernels are compiled from them: install them too")
    try:
        return "".join(inspect.findsource(function)[0])  # code that is typed at the prompt, from Python 3.13 on
    except (OSError, TypeError):
        raise SyntaxError(f"the source of {function.__name__} can't be read; put it into a file") from None


def _definition(function: types.FunctionType, source: str) -> tuple[str, int]:
    """The part of a source that a function was compiled from, and its first line now: it may have moved."""
    code = function.__code__
    meaning = _meaning(code)
    found: list[ast.FunctionDef] = []
    for optimize in (-1, 0, 2):  # the level of this process, or of the .pyc file, with or without docstrings
        found = found or [
            node for other, node in _definitions(source, code.co_flags & _FUTURE, optimize) if other == meaning
        ]
    here = [node for node in found if _first_line(node) == code.co_firstlineno] or found
    if len({ast.unparse(node) for node in here}) != 1:  # none, or several that differ in their annotations
        raise SyntaxError(
            f"the source of {function.__name__} in {code.co_filename}, line {code.co_firstlineno}, is not what the "
            "function was compiled from: import the edited file again, or run the notebook's cell again"
        )
    return ast.get_source_segment(source, here[0]) or "", here[0].lineno


_FUTURE = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


@functools.lru_cache(maxsize=64)
def _definitions(source: str, flags: int, optimize: int) -> list[tuple[tuple[Any, ...], ast.FunctionDef]]:
    """The meaning and the definition of each function in a source; an empty list if it cannot be compiled.

    flags: the compiler flags of a function in it. optimize: as for Python's compile.
    """
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # notebooks' cells allow it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown at import
            tree = compile(source, "<formulas>", "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
            code = compile(source, "<formulas>", "exec", flags, dont_inherit=True, optimize=optimize)
    except (SyntaxError, ValueError):
        return []
    nodes = {(node.name, _first_line(node)): node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    named = ((inner, nodes.get((inner.co_name, inner.co_firstlineno))) for inner in _codes(code))
    return [(_meaning(inner), node) for inner, node in named if node is not None]


def _first_line(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _meaning(code: types.CodeType) -> tuple[Any, ...]:
    """A value that is equal for code objects that compute the same: everything except the lines."""
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    constants = [_meaning(c) if isinstance(c, types.CodeType) else (type(c), repr(c)) for c in code.co_consts]
    return code.co_code, arguments, names, constants


class _Canonical(ast.NodeTransformer):
    def __init__(self, formula):
        self.formula = formula
        code = formula.function.__code__
        self.local = set(code.co_varnames)
        self.names = self.local.union(code.co_names, code.co_freevars)
        self.counters = set()  # loop variables, which are integers
        try:
            closure = inspect.getclosurevars(formula.function)
        except ValueError:
            name = formula.function.__name__
            raise SyntaxError(f"{name} reads a variable of an enclosing function that has no value yet") from None
        self.outer = {**vars(builtins), **formula.function.__globals__, **closure.nonlocals}

    def visit(self, node):
        # These bind new names.
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr)):
            raise self.formula.refuse(node)
        return super().visit(node)

    def visit_FunctionDef(self, node):
        if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            node.body = node.body[1:]
        node.decorator_list = []
        if ast.unparse(node.args) != ast.unparse(ast.arguments([], node.args.args, None, [], [], None, [])):
            raise self.formula.refuse(node.args, "must be plain arguments, without defaults")
        for argument in node.args.args:
            self.check_name(argument.arg, argument)
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

    def check_name(self, name, node):
        """Raise an error for a name that Python changes: in a class, one that begins with two underscores."""
        if name.startswith("__") and name not in self.names:
            raise self.formula.refuse(node, "is renamed by Python: in a class, don't begin names with two underscores")

    def visit_Name(self, node):
        self.check_name(node.id, node)
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
        if isinstance(value, (np.uint32, np.uint64, np.int64)):
            return _cast(type(value).__name__, ast.Constant(int(value)), node)
        if isinstance(value, (int, float, np.floating)):
            return self._real(node, value)
        if isinstance(value, Hashable) and value in _KNOWN:
            name = _KNOWN[value]
        elif isinstance(value, types.FunctionType):
            # Two formulas may have the same name. The name of a local variable never ends in a digit here.
            calls = self.formula.calls
            name = next((n for n, f in calls.items() if f is value), f"{value.__code__.co_name}_{len(calls)}")
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
        if function.id in ("range", "rolled"):
            arguments = [self._count(a) for a in node.args]
        elif function.id in CASTS:
            arguments = [a if isinstance(a, ast.Constant) else self._uncast(self.visit(a)) for a in node.args]
        elif function.id in (*MATH, "exchanged") or function.id in self.formula.calls:
            arguments = [self.visit(a) for a in node.args]
        else:
            raise self.formula.refuse(node)
        return ast.copy_location(ast.Call(function, arguments, []), node)

    def _count(self, argument):
        """The number of iterations of a loop: an integer, or the name of an integer outside the function."""
        if (
            isinstance(argument, ast.Name)
            and type(self.outer.get(argument.id)) is int
            and argument.id not in self.local
        ):
            return ast.copy_location(ast.Constant(self.outer[argument.id]), argument)
        return argument if isinstance(argument, ast.Constant) else self.visit(argument)

    def visit_Subscript(self, node):
        index = node.slice if isinstance(node.slice, ast.Constant) else self.visit(node.slice)
        return ast.copy_location(ast.Subscript(self.visit(node.value), index, node.ctx), node)

    def _uncast(self, argument):
        """Remove a cast to real that another cast surrounds."""
        match argument:
            case ast.Call(func=ast.Name(id="real"), args=[ast.Name() as name]):
                return name
        return argument


def _cast(name, value, node):
    return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), [value], []), node)


def compiled(function, real, math_functions, decorate, memo=None, unrolled=False):
    """The formula as a Python function for one arithmetic type.

    Parameters
    ----------
    function : function
        The formula.
    real : type
        numpy.float32 or numpy.float64, the type of bare numbers.
    math_functions : dict
        This processor's implementation of each name in MATH, and of divide.
    decorate : callable
        Applied to the result and to each formula that it calls: a jit, for example.
    memo : dict, optional
        Formulas that are already compiled, or that have an implementation for this processor. Newly compiled formulas
        are added.
    unrolled : bool
        Whether loops that do not use their variable are written as repeated statements.
    """
    memo = {} if memo is None else memo
    if function not in memo:
        formula = parse(function)
        casts = {"uint32": np.uint32, "uint64": np.uint64, "int64": np.int64, "real": real}
        namespace = casts | {"rolled": range} | math_functions
        for name, called in formula.calls.items():
            namespace[name] = compiled(called, real, math_functions, decorate, memo, unrolled)
        bare = _without_annotations(formula.tree)
        if unrolled:
            bare.body = [part for statement in bare.body for part in _repeated(statement)]
        code = compile(ast.fix_missing_locations(ast.Module([bare], [])), f"<formula {bare.name}>", "exec")
        exec(code, namespace)  # noqa: S102  (the caller's own function, in canonical form)
        memo[function] = decorate(namespace[bare.name])
    return memo[function]


def _repeated(statement):
    """The statements that replace a statement if loops are unrolled: a loop's body, as often as it runs."""
    match statement:
        case ast.For(target=ast.Name(id=name), iter=ast.Call(args=[ast.Constant(value=int(count))])):
            nodes = (node for line in statement.body for node in ast.walk(line))
            if not any(isinstance(node, ast.Name) and node.id == name for node in nodes):
                return statement.body * count
    return [statement]


def _without_annotations(tree):
    arguments = ast.arguments([], [ast.arg(a.arg) for a in tree.args.args], None, [], [], None, [])
    # type_params is new in Python 3.12 and required from 3.13 on.
    more: dict[str, Any] = {"type_params": []}
    return ast.FunctionDef(name=f"{tree.name}_", args=arguments, body=tree.body, decorator_list=[], **more)
