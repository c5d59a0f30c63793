"""Cases, contenders and the table of dropout_add and dropout_glu, each pass alone.

dropout_add has a bias. A contender without it shows what the bias costs. The checks compare windows of the results,
as those of `gpudrop.testing.benchmark.checks`. The gradient of the bias is compared with a sum over all rows.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.table import Table

import gpudrop
from bench.contenders import CONTENDERS as COMPARED
from bench.contenders import STREAMING_READY
from bench.family import second_input
from gpudrop.formulas.activations import find_activation
from gpudrop.testing import reference
from gpudrop.testing.benchmark import cases, checks, records
from gpudrop.testing.benchmark.checks import Wrong
from gpudrop.testing.benchmark.contenders import (
    OURS,
    OURS_READY,
    PLAIN,
    PLAIN_READY,
    SEED,
    TORCH,
    Contender,
    from_torch,
    only,
    passes,
    to_torch,
    torch_for,
)
from gpudrop.variants import FAMILY

SHAPES, QUICK_SHAPES = ((2**16, 256), (2**14, 1024)), ((2**12, 256),)
DTYPES = ("float32", "bfloat16")
NO_BIAS, PACKED, TWO_CALLS = "no bias out=", "packed out=", "dropout, addition"
COMPILED, BLOCKED = "torch.compile", "NumPy blocked"
CEILING, OF_NEW, WITHOUT, COST = "of the ceiling", "of it, new arrays", "of it, no bias", "time with bias / without"
OF_PACKED = "of it, packed"


class Group(NamedTuple):
    """Cases of one pass of a variant, their contenders, and the required figures by header of the table."""

    variant: str
    backward: bool
    activations: tuple[str, ...]
    contenders: tuple[str, ...]
    required: dict[str, float]


TRIADS, TORCH_PEERS = (PLAIN_READY, STREAMING_READY), ("PyTorch", COMPILED)
OF_ADD = (OURS, OURS_READY, NO_BIAS, *TRIADS, TWO_CALLS, *TORCH_PEERS, BLOCKED)
OF_GLU, OF_GLU_BACK = (OURS, OURS_READY, PACKED, *TRIADS), (OURS, OURS_READY, PACKED, PLAIN, PLAIN_READY)
GROUPS = (
    Group("dropout_add", False, ("identity", "relu"), OF_ADD, {CEILING: 0.88, f"x {TWO_CALLS}": 1.5, "x PyTorch": 8.0}),
    Group("dropout_add", True, ("identity", "relu", "gelu"), (OURS_READY, NO_BIAS, *TRIADS), {COST: 1.15}),
    Group("dropout_glu", False, ("identity",), OF_GLU, {CEILING: 0.88}),
    Group("dropout_glu", False, ("silu",), OF_GLU + TORCH_PEERS, {CEILING: 0.7}),
    Group("dropout_glu", True, ("identity",), OF_GLU_BACK, {CEILING: 0.75}),
    Group("dropout_glu", True, ("silu",), OF_GLU_BACK + TORCH_PEERS, {CEILING: 0.75}),
)


def group_of(variant, backward, activation):
    return next(group for group in GROUPS if group[:2] == (variant, backward) and activation in group.activations)


@dataclass(frozen=True)
class Case(cases.Case):
    """A case on matrices. The runner's arrays have one dimension, and the contenders here reshape them.

    Attributes
    ----------
    columns : int
        The number of columns, which is the size of the bias.
    """

    columns: int = 256

    @property
    def has_bias(self):
        return "bias" in FAMILY[self.variant].rows

    @property
    def reads_saved(self):
        """As for other cases, but without arrays of bits: they are at most 1/16 of the bytes of dy."""
        activation = find_activation(self.activation)
        return self.is_product or (activation.slope_of is not None and activation.slopes is None)


def neighbour_cases(threads, quick):
    """The cases of a run."""
    return [
        Case("neighbours", name, dtype, m * n, back, threads, variant=variant, forward=not back, columns=n)
        for variant, back, names, *_ in GROUPS
        for name in names
        for dtype in DTYPES
        for m, n in (QUICK_SHAPES if quick else SHAPES)
    ]


def of(case):
    """The contenders of a case."""
    return [CONTENDERS[name] for name in group_of(case.variant, case.backward, case.activation).contenders]


def operands(case, x, dy):
    """Matrices x, residual or value, and dy, and a bias."""
    x, dy = (array.reshape(-1, case.columns) for array in (x, dy))
    return x, second_input(x), dy, dy[0].copy()


# Contenders


def ours(case, x, dy, ready=False, bias=True, packed=False):
    """packed: whether one array contains a gate and its value."""
    x, second, dy, row = operands(case, x, dy)
    variant, (y, dx) = getattr(gpudrop, case.variant), (np.zeros_like(x), np.zeros_like(x)) if ready else (None, None)
    arrays = (np.concatenate([x, second], axis=-1), None) if packed else (x, second)
    options = {"activation": case.activation, "rng": gpudrop.Generator(SEED), "out": y}
    options |= {"bias": row} if bias and case.has_bias else {}
    out = (dx, np.zeros_like(x)) if ready and case.is_product else dx
    out = np.zeros_like(arrays[0]) if packed else out

    def forward():
        return (variant(*arrays, case.p, **options),)

    def gradients(backprop):
        found = backprop(dy, out=out)
        return np.split(found.dgate, 2, axis=-1) if packed else [gradient for gradient in found if gradient is not None]

    def vjp():
        y, backprop = variant.vjp(*arrays, case.p, **options)
        return y, lambda: tuple(gradients(backprop))

    return passes(case, forward, vjp)


def two_calls(case, x, dy):
    """dropout, then the addition of the residual. NumPy's addition has one thread, so gpudrop adds, without dropout."""
    x, residual, _, row = operands(case, x, dy)
    y, rng = np.zeros_like(x), gpudrop.Generator(SEED)

    def call():
        gpudrop.dropout(x, case.p, bias=row, activation=case.activation, rng=rng, out=y)
        return (gpudrop.dropout_add(y, residual, 0.0, out=y),)

    return call


def numpy_blocked(case, x, dy):
    """The fastest NumPy code that we know, as that of `bench.contenders`: blocks of rows that fit in the L2 cache."""
    only(case, ("identity", "relu"), ("float32",))
    x, residual, _, row = operands(case, x, dy)
    bits, scale, zero = np.random.SFC64(SEED), np.float32(1 / (1 - case.p)), np.float32(0)
    threshold, height = np.uint16(round(case.p * 2**16)), max(1, 2**14 // case.columns)

    def call():
        y = np.empty_like(x)
        for start in range(0, len(x), height):
            t = y[start : start + height]
            keep = bits.random_raw(-(-t.size // 4)).view(np.uint16)[: t.size].reshape(t.shape) >= threshold
            np.add(x[start : start + height], row, out=t)
            if case.activation == "relu":
                np.maximum(t, zero, out=t)
            t *= scale
            t *= keep
            t += residual[start : start + height]
        return (y,)

    return call


TORCHS = {
    "dropout_add": lambda F, act, p, x, residual, bias: residual + F.dropout(act(F, x + bias), p),
    "dropout_glu": lambda F, act, p, gate, value: F.dropout(act(F, gate) * value, p),
}
"""The functions in usual PyTorch code."""


def pytorch(case, x, dy, compiled=False):
    torch = torch_for(case)
    x, second, dy, row = (to_torch(torch, array) for array in operands(case, x, dy))
    inputs = (x, second, row) if case.has_bias else (x, second)
    function = functools.partial(TORCHS[case.variant], torch.nn.functional, TORCH[case.activation], case.p)
    if compiled:
        torch._dynamo.reset()
        torch._functorch.config.donated_buffer = False  # the backward pass runs more than once
        function = torch.compile(function, dynamic=False, fullgraph=True)
    if not case.backward:
        return lambda: (function(*inputs),)
    y = function(*(array.requires_grad_() for array in inputs))
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


# Checks


def check(case, x, dy, results, bias=True, mask=True, tolerances=checks.OURS):
    """Compare with the reference's formulas and the contract's mask; mask=False allows any mask."""
    x, second, dy, row = operands(case, x, dy)
    row = row.astype(np.float64) if bias and case.has_bias else None
    wanted = case.forward + 2 * case.backward
    sums = results[wanted:]
    if len(results) != wanted + (case.backward and row is not None):
        raise Wrong(f"it returned {len(results)} arrays")
    for result, shape in zip(results, [x.shape] * wanted + [x.shape[1:]] * len(sums), strict=True):
        if (result.shape, result.dtype) != (shape, x.dtype):
            raise Wrong(f"it returned an array of {result.dtype} and shape {result.shape}")
        if not np.isfinite(result).all():
            raise Wrong("the result is not finite")
    arrays, tolerance = (x, second, dy), tolerances[case.dtype]
    for rows in checks.windows(len(x), max(1, checks.WINDOW // case.columns)):
        parts = [result[rows].astype(np.float64) for result in results[:wanted]]
        _values(case, rows, parts, _outcomes(case, arrays, row, rows), mask, tolerance)
    for found in sums:
        _sums(case, arrays, row, found.astype(np.float64), tolerance)


def _outcomes(case, arrays, row, rows):
    """The results in some rows: for each array its values where elements are kept, and where they are dropped."""
    x, second, dy = (array[rows].astype(np.float64) for array in arrays)
    value, slope = reference.ACTIVATIONS[case.activation]
    scale, z = reference.quantize(case.p, case.bits)[1], x if row is None else x + row
    if case.is_product:
        y, gradients = (value(z) * second * scale, 0 * z), [(dy * second * slope(z) * scale, 0 * z)]
        gradients += [(dy * value(z) * scale, 0 * z)]
    else:
        y, gradients = (second + value(z) * scale, second), [(dy * slope(z) * scale, 0 * z), (dy, dy)]
    return [y] * case.forward + gradients * case.backward


@functools.lru_cache(maxsize=1)  # all cases of a run have this mask
def _whole_mask(size, p, bits):
    return reference.keep_mask(size, p, SEED, 0, bits)


def _mask(case, rows):
    lo, hi = rows.start * case.columns, rows.stop * case.columns
    return reference.keep_mask(hi - lo, case.p, SEED, 0, case.bits, lo).reshape(-1, case.columns)


def _values(case, rows, parts, outcomes, mask, tolerance):
    limits = [tolerance * (1 + np.abs(kept) + np.abs(dropped)) for kept, dropped in outcomes]
    if mask:
        keep = _mask(case, rows)
    else:
        both = list(zip(parts, outcomes, limits, strict=True))
        far_from = [sum(np.abs(part - pair[i]) / limit for part, pair, limit in both) for i in (0, 1)]
        keep = far_from[0] < far_from[1]
        known = np.any([np.abs(kept - dropped) > 8 * limit for _, (kept, dropped), limit in both], axis=0)
        checks.count(case, keep[known].sum(), known.sum())
    for k, (part, (kept, dropped), limit) in enumerate(zip(parts, outcomes, limits, strict=True)):
        want = np.where(keep, kept, dropped)
        far = np.abs(part - want) > limit
        if far.any():
            i, j = map(int, np.argwhere(far)[0])
            raise Wrong(f"result {k}[{rows.start + i}, {j}] is {part[i, j]:.6g}, not {want[i, j]:.6g}")


def _sums(case, arrays, row, found, tolerance):
    """Check the gradient of the bias: the sums of dx, which are not rounded before."""
    keep, height = _whole_mask(case.size, case.p, case.bits), max(1, checks.WINDOW // case.columns)
    keep = keep.reshape(-1, case.columns)
    sums = sizes = 0
    for start in range(0, len(keep), height):
        rows = slice(start, start + height)
        dx = np.where(keep[rows], *_outcomes(case, arrays, row, rows)[0])
        sums, sizes = sums + dx.sum(axis=0), sizes + np.abs(dx).sum(axis=0)
    far = np.abs(found - sums) > tolerance * (1 + np.abs(sums)) + 1e-6 * sizes
    if far.any():
        j = int(np.argmax(far))
        raise Wrong(f"dbias[{j}] is {found[j]:.6g}, not {sums[j]:.6g}")


_of_peers = functools.partial(check, mask=False, tolerances=checks.PEERS)
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, ours, check),
        Contender(OURS_READY, functools.partial(ours, ready=True), check),
        Contender(NO_BIAS, functools.partial(ours, ready=True, bias=False), functools.partial(check, bias=False)),
        Contender(PACKED, functools.partial(ours, ready=True, packed=True), check),
        *(COMPARED[name] for name in (PLAIN, PLAIN_READY, STREAMING_READY)),
        Contender(TWO_CALLS, two_calls, functools.partial(check, tolerances=checks.PEERS)),
        Contender("PyTorch", pytorch, _of_peers, from_torch),
        Contender(COMPILED, functools.partial(pytorch, compiled=True), _of_peers, from_torch),
        Contender(BLOCKED, numpy_blocked, _of_peers),
    )
}


# The table

TITLE = (
    "dropout_add with a bias, and dropout_glu: GB/s with out=, in bytes that must move; x is the speed of gpudrop over "
    "the peer's;\nNumPy runs on one thread; in parentheses: a requirement that is met; after < or >: one that is missed"
)
OVER = {TWO_CALLS: OURS_READY, "PyTorch": OURS, COMPILED: OURS, BLOCKED: OURS}
"""Peer -> the contender of gpudrop that it is compared with. New arrays are compared with new arrays."""


def _over_ceiling(name, row):
    """The speed of a contender with out= over that of the faster ceiling."""
    return min(filter(None, (records.share(row, name, ceiling) for ceiling in TRIADS)), default=None)


FIGURES = {
    CEILING: functools.partial(_over_ceiling, OURS_READY),
    WITHOUT: functools.partial(_over_ceiling, NO_BIAS),
    OF_PACKED: functools.partial(_over_ceiling, PACKED),
    OF_NEW: lambda row: records.share(row, OURS, PLAIN),
    COST: lambda row: records.ratio(row, NO_BIAS, OURS_READY),
    **{f"x {peer}": functools.partial(records.ratio, mine=own, other=peer) for peer, own in OVER.items()},
}
"""Header -> the figure of a row of the record, or None"""


def tables(record):
    """The table of a record."""
    table = Table("case", "shape", "GB/s", *FIGURES, title=TITLE, padding=(0, 0))
    for column in table.columns[:2]:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in record["cases"]:
        required = group_of(row["variant"], row["backward"], row["activation"]).required
        speed = row["results"].get(OURS_READY, {}).get("bytes_per_second")
        speed = f"{speed / 1e9:.3g}" if speed else records.untimed(row, OURS_READY)
        cells = [_cell(header, figure(row), required.get(header)) for header, figure in FIGURES.items()]
        table.add_row(*records.case_words(row), speed, *cells)
    yield table


def _cell(header, figure, required):
    if figure is None:
        return "-"
    shown = f"{figure:.3g}" if header[:2] == "x " else f"{figure:.2f}"
    if required is None:
        return shown
    met = figure <= required if header == COST else figure >= required
    return f"{shown} ({required:g})" if met else f"{shown} {'<>'[figure > required]} {required:g}"
