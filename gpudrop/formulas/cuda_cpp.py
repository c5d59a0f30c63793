"""Prints formulas as CUDA C++, and refuses by line what it doesn't know.

The printed text spells its types real, uint32, uint64 and Words, as `prelude` defines them, and it
is ordinary C++: g++ builds the same text for the host.
"""

import ast

from gpudrop.formulas import parse

OPERATORS: dict[type[ast.AST], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.RShift: ">>", ast.LShift: "<<"}
OPERATORS |= {ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.Not: "!"}
OPERATORS |= {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">"}
OPERATORS |= {ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}

TYPES = {"float": "real", "bool": "bool", "uint32": "uint32", "uint64": "uint64", "Words": "Words"}
"""What annotations mean; without one a parameter or result is real."""


def prelude(real):
    """The types that printed formulas use; real is "float" or "double"."""
    return f"""
typedef {real} real;
typedef unsigned int uint32;
typedef unsigned long long uint64;
struct Words {{
  uint32 w[4];
  __device__ uint32 operator[](uint32 i) const {{ return w[i]; }}
}};
"""


class CudaSource:
    """The C++ text of formulas and of all they call, each printed once.

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
        {formula: name} of those that the text around has under a name already.
    """

    def __init__(self, names=None):
        self.names = dict(names or {})
        self.text = ""

    def add(self, function, name=None):
        """Print a formula, under a name of the caller's or its own; returns its C++ name."""
        formula = parse(function)
        if function not in self.names:
            # No keyword of C++ and no name in the kernels' own text ends in an underscore.
            name = name or f"{function.__code__.co_name}_"
            while name in self.names.values():
                name += "_"
            self.names[function] = name
            calls = {called: self.add(f) for called, f in formula.calls.items()}
            self.text += _Printer(formula, calls).function(name)
        return self.names[function]


class _Printer:
    def __init__(self, formula, calls):
        self.formula, self.calls = formula, calls
        self.truths = {a.arg: self.type(a.annotation) == "bool" for a in formula.tree.args.args}
        """The variables that are declared, and whether each is a truth value."""

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
        outer = dict(self.truths)
        text = self.block(statements, indent + "  ")
        self.truths = outer  # what is first assigned inside a block ends with it
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
                text, truth = self.expression(value), self.is_truth(value)
                kind = "" if name in self.truths else "auto "
                if self.truths.setdefault(name, truth) != truth:
                    raise self.formula.refuse(s, "changes the type of its variable")
                return f"{kind}{name} = {text};"
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                return self.statement(ast.Assign([target], ast.BinOp(ast.Name(name), op, value)), indent)
            case ast.If(test=test, body=body, orelse=orelse):
                text = f"if ({self.expression(test)}) {self.nested(body, indent)}"
                return text + (f" else {self.nested(orelse, indent)}" if orelse else "")
            case ast.For(
                target=ast.Name(id=i),
                iter=ast.Call(func=ast.Name("range"), args=[ast.Constant(value=int(n))]),
                body=body,
                orelse=[],
            ):
                self.truths[i] = False
                return f"for (int {i} = 0; {i} < {n}; ++{i}) {self.nested(body, indent)}"
        raise self.formula.refuse(s)

    def is_truth(self, e):
        match e:
            case ast.Compare() | ast.UnaryOp(op=ast.Not()) | ast.Constant():
                return True
            case ast.Name(id=name):
                return self.truths.get(name, False)
            case ast.BoolOp(values=values):
                return all(map(self.is_truth, values))
            case ast.IfExp(body=body, orelse=orelse):
                return self.is_truth(body) and self.is_truth(orelse)
        return False

    def expression(self, e):
        match e:
            case ast.Name(id=name) if name in self.truths:
                return name
            case ast.Constant(value=value):
                return str(value).lower()
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return f"pow({self.expression(left)}, {self.expression(right)})"
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
