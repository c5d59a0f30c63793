"""Prints formulas as CUDA C++. An error for something unsupported names its line.

The printed text uses the type names that `prelude` defines. It is ordinary C++, so g++ can build it for the CPU.
"""

import ast
import re

from gpudrop.formulas import parse

# For integers only, which must not be negative.
DIVISIONS: dict[type[ast.AST], str] = {ast.FloorDiv: "/", ast.Mod: "%"}
OPERATORS: dict[type[ast.AST], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.RShift: ">>", ast.LShift: "<<"}
OPERATORS |= {ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.Not: "!"}
OPERATORS |= {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">"}
OPERATORS |= {ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}

TYPES = {"float": "real", "bool": "bool", "uint32": "uint32", "uint64": "uint64", "Words": "Words"}
TYPES |= {
    "int64": "int64",
    "Location": "Location",
    "MaskArray": "const mask_t*",
    "BitArray": "const uint8*",
    "Drawn": "drawn_t",
    "Pair": "Pair",
    "Triple": "Triple",
}
"""The C++ types of annotations. A parameter or result without an annotation is real."""
INTEGERS = ("uint32", "uint64", "int64")
KINDS = {"bool": "truth"} | dict.fromkeys(INTEGERS, "integer")
KINDS |= dict.fromkeys(("Words", "Location", "const mask_t*", "const uint8*"), "several")
"""The kind of each type's values: a boolean, an integer or several numbers. Other types are real."""


WORDS = """
typedef unsigned int uint32;
typedef unsigned long long uint64;
struct Words {
  uint32 w[4];
  __device__ inline uint32 operator[](uint32 i) const { return w[i]; }
};

// Given a 64-bit product, the PTX compiler would add instructions for the upper halves, which are 0.
__device__ inline uint64 product(uint32 a, uint32 b) {
#ifdef __CUDA_ARCH__
  uint64 both;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(both) : "r"(a), "r"(b));
  return both;
#else
  return static_cast<uint64>(a) * b;
#endif
}
"""
"""The types and the product of Philox."""


def prelude(real, drawn="real"):
    """The types that printed formulas use. real is "float" or "double"; drawn is the type drawn_t, "bool" or "real"."""
    return f"""
typedef {real} real;
typedef {drawn} drawn_t;
typedef long long int64;
typedef unsigned char uint8;
{WORDS}
struct Location {{
  int64 of[4];
  __device__ int64 operator[](uint32 i) const {{ return of[i]; }}
}};
struct Pair {{
  real of[2];
}};
struct Triple {{
  real of[3];
}};
"""


class CudaSource:
    """The C++ text of formulas and of all formulas that they call. Each is printed once.

    Examples
    --------
    >>> from gpudrop.formulas.activations import silu
    >>> source = CudaSource()
    >>> source.add(silu)
    'silu_'
    >>> print(source.text)
    __device__ inline real silu_(real x_) {
      return divide(x_, (real(1.0) + exp((-x_))));
    }
    <BLANKLINE>

    Parameters
    ----------
    names : dict, optional
        {formula: name} of formulas that the surrounding text already defines.
    generic : bool
        Whether `real` is a template's parameter. Then the name of a function with real numbers ends in "<real>".
    """

    def __init__(self, names=None, generic=False):
        self.names, self.generic = dict(names or {}), generic
        self.text = ""

    def add(self, function, name=None):
        """Print a formula under the given name, or under its own. Return its C++ name."""
        formula = parse(function)
        if function not in self.names:
            # No keyword of C++ and no name in the kernels' own text ends in an underscore.
            name = name or f"{function.__code__.co_name}_"
            while {name, f"{name}<real>"} & {*self.names.values()}:
                name += "_"
            self.names[function] = name
            calls = {called: self.add(f) for called, f in formula.calls.items()}
            text = _Printer(formula, calls).function(name)
            if self.generic and re.search(r"\breal\b", text):
                text, self.names[function] = f"template <typename real>\n{text}", f"{name}<real>"
            self.text += text
        return self.names[function]


class _Printer:
    def __init__(self, formula, calls):
        self.formula, self.calls = formula, calls
        self.kinds = {a.arg: KINDS.get(self.type(a.annotation), "other") for a in formula.tree.args.args}
        """The declared variables and their kinds, as in `KINDS`."""

    def type(self, annotation):
        text = ast.unparse(annotation) if annotation else "float"
        if text not in TYPES:
            raise self.formula.refuse(annotation)
        return TYPES[text]

    def function(self, name):
        tree = self.formula.tree
        if not _returns(tree.body):
            raise self.formula.refuse(tree, "doesn't return on every path")
        parameters = ", ".join(f"{self.type(a.annotation)} {a.arg}" for a in tree.args.args)
        return f"__device__ inline {self.type(tree.returns)} {name}({parameters}) {{\n{self.block(tree.body)}}}\n"

    def block(self, statements, indent="  "):
        return "".join(f"{indent}{self.statement(s, indent)}\n" for s in statements)

    def nested(self, statements, indent):
        outer = dict(self.kinds)
        text = self.block(statements, indent + "  ")
        self.kinds = outer  # variables that are first assigned in a block end with it
        return f"{{\n{text}{indent}}}"

    def statement(self, s, indent):
        match s:
            case ast.Return(value=ast.Tuple(elts=elements) as value):
                if self.type(self.formula.tree.returns) == "real":
                    raise self.formula.refuse(value, "is not one number")
                return f"return {{{{{', '.join(map(self.expression, elements))}}}}};"
            case ast.Return(value=value) if value:
                return f"return {self.expression(value)};"
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                text, kind = self.expression(value), self.kind(value)
                declared = "" if name in self.kinds else "auto "
                if (self.kinds.setdefault(name, kind) == "truth") != (kind == "truth"):
                    raise self.formula.refuse(s, "changes the type of its variable")
                return f"{declared}{name} = {text};"
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Name() as value) if (
                self.kind(value) == "several"
            ):
                parts = [ast.Assign([n], ast.Subscript(value, ast.Constant(k))) for k, n in enumerate(names)]
                return " ".join(self.statement(part, indent) for part in parts)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                return self.statement(ast.Assign([target], ast.BinOp(ast.Name(name), op, value)), indent)
            case ast.If(test=test, body=body, orelse=orelse):
                text = f"if ({self.expression(test)}) {self.nested(body, indent)}"
                return text + (f" else {self.nested(orelse, indent)}" if orelse else "")
            case ast.For(
                target=ast.Name(id=i),
                iter=ast.Call(func=ast.Name("range" | "rolled" as how), args=[ast.Constant(value=int(n))]),
                body=body,
                orelse=[],
            ):
                self.kinds[i] = "integer"
                pragma = f"#pragma unroll 1\n{indent}" if how == "rolled" else ""
                return f"{pragma}for (int {i} = 0; {i} < {n}; ++{i}) {self.nested(body, indent)}"
        raise self.formula.refuse(s)

    def kind(self, e):
        """The kind of an expression, as in `KINDS`."""
        match e:
            case ast.Compare() | ast.UnaryOp(op=ast.Not()) | ast.Constant():
                return "truth"
            case ast.Name(id=name):
                return self.kinds.get(name, "other")
            case ast.BoolOp(values=values):
                return self.common(values)
            case ast.IfExp(body=body, orelse=orelse):
                return self.common([body, orelse])
            case ast.Call(func=ast.Name(id=name)) if name in INTEGERS:
                return "integer"
            case ast.Call(func=ast.Name(id=name)) if name in self.formula.calls:
                return KINDS.get(self.type(parse(self.formula.calls[name]).tree.returns), "other")
            case ast.Subscript(value=value):
                return "integer" if self.kind(value) == "several" else "other"
            case ast.BinOp(left=left, right=right):
                return "integer" if self.kind(left) == self.kind(right) == "integer" else "other"
        return "other"

    def common(self, expressions):
        kinds = {self.kind(e) for e in expressions}
        return kinds.pop() if len(kinds) == 1 else "other"

    def expression(self, e):
        match e:
            case ast.Name(id=name) if name in self.kinds:
                return name
            case ast.Constant(value=value):
                return str(value).lower()
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return f"pow({self.expression(left)}, {self.expression(right)})"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in DIVISIONS and self.kind(e) == "integer":
                return f"({self.expression(left)} {DIVISIONS[type(op)]} {self.expression(right)})"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return f"({self.expression(left)} {OPERATORS[type(op)]} {self.expression(right)})"
            case ast.UnaryOp(op=op, operand=operand):
                return f"({OPERATORS[type(op)]}{self.expression(operand)})"
            case ast.BoolOp(op=op, values=[first, *rest]):
                # The value of one of the operands, as in Python.
                one = self.expression(first)
                other = self.expression(rest[0] if len(rest) == 1 else ast.BoolOp(op, rest))
                return f"({one} ? {other} : {one})" if isinstance(op, ast.And) else f"({one} ? {one} : {other})"
            case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(op) in OPERATORS for op in ops):
                links = zip([left, *rights], ops, rights, strict=False)
                tests = [f"{self.expression(a)} {OPERATORS[type(op)]} {self.expression(b)}" for a, op, b in links]
                return f"({' && '.join(tests)})"
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return f"({self.expression(test)} ? {self.expression(body)} : {self.expression(orelse)})"
            case ast.Subscript(value=value, slice=index):
                return f"{self.expression(value)}[{self.expression(index)}]"
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return f"{self.calls.get(name, name)}({', '.join(map(self.expression, arguments))})"
        raise self.formula.refuse(e)


def _returns(statements):
    """Whether every path through the statements ends in a return."""
    match statements[-1:]:
        case [ast.Return()]:
            return True
        case [ast.If(body=body, orelse=orelse)]:
            return _returns(body) and _returns(orelse)
    return False
