"""The table of noises. A noise defines an element's random value and the effect of that value, as one scalar formula.

A noise's value is a formula (see `gpudrop.formulas`) of five numbers: the random value of the element, the
scalars scale and shift of the call, z = activation(x), and the element of a second array (zoneout's previous
state, or a residual). The random value is one of

    keep      field > limit, a boolean: is the element kept?
    field     the field itself, a uniform integer, as a real number
    normal    a normal deviate, `philox.normal`
    None      nothing: the value depends on no random bits
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpudrop.checks import check_bits, check_number, check_p

ALPHA_PRIME = -1.7580993408473766
"""The limit of SELU at -infinity, -scale * alpha. Alpha dropout replaces dropped elements by it."""


class Scalars(NamedTuple):
    """The scalars that kernels take, computed from the noise's strength: see `kernels.spec.Draw`."""

    limit: int = 0
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, eq=False)
class Noise:
    """One row of the table.

    Attributes
    ----------
    name : str
    value : function
        The formula: y of (drawn, scale, shift, z, other).
    drawn : {"keep", "field", "normal", None}
        The kind of the random value, which is value's first argument.
    scalars : function
        Returns the Scalars for (p, bits), or None if nothing needs to be drawn and y = z.
    check : function
        Returns the strength as a float, or raises an error that names it. Most strengths are probabilities.
    gradient : Noise, optional
        The noise that maps dy to dz with the same scalars. None if value is linear in z and maps dy itself.
    second_input : str, optional
        The name of a second array that value reads.
    second : Noise, optional
        The noise that maps dy to the gradient of that array. With PLAIN the gradient is dy itself.
    off : Noise, optional
        The noise without random values, where scalars returns None. None means PLAIN.
    zeroes : bool
        Whether y is 0 where an element is dropped, and z times a positive number elsewhere. Then a backward pass can
        use the sign of y instead of the sign of z and the mask.
    """

    name: str
    value: Callable[..., Any]
    drawn: str | None = None
    scalars: Callable[[float, int], Scalars | None] = lambda p, bits: Scalars()
    check: Callable[[float], float] = check_p
    gradient: "Noise | None" = None
    second_input: str | None = None
    second: "Noise | None" = None
    off: "Noise | None" = None
    zeroes: bool = False

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names of the gradients that a kernel computes."""
        computed = self.second_input is not None and self.second is not PLAIN
        return ("dx", f"d{self.second_input}") if computed else ("dx",)

    def check_bits(self, bits: Any) -> int:
        """Random bits per element as an int, or a ValueError."""
        bits = check_bits(bits)
        if self.drawn == "normal" and bits != 32:
            raise ValueError(f"bits must be 32, because a normal deviate needs 32 random bits, got {bits}")
        return bits


@dataclass(frozen=True)
class Quantized:
    """A probability of dropping, rounded to a multiple of 2**-bits.

    Attributes
    ----------
    threshold : int
        From 0 to 2**bits. An element is dropped if its field is below the threshold.
    scale : float
        The factor of kept elements: 1 / (1 - effective_p), or 0 if nothing is kept.
    effective_p : float
        The rounded probability: threshold / 2**bits.
    """

    threshold: int
    scale: float
    effective_p: float


def quantize(p: float, bits: int = 16) -> Quantized:
    """Round a probability of dropping to the nearest one that `bits` random bits can express.

    Parameters
    ----------
    p : float
        The probability of dropping an element, from 0 to 1.
    bits : {8, 16, 32}
        Random bits per element. The rounded probability is within 2**-(bits + 1) of p.

    Returns
    -------
    Quantized
        threshold = floor(p * 2**bits + 0.5), scale = 2**bits / (2**bits - threshold), effective_p.
        The scale is computed from the rounded probability, so dropout does not change the expected value.

    Raises
    ------
    ValueError
        If p is not between 0 and 1, or bits is not 8, 16 or 32.
    TypeError
        If p is not a real number.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.quantize(0.1, bits=8)
    Quantized(threshold=26, scale=1.1130434782608696, effective_p=0.1015625)
    """
    p, bits = check_p(p), check_bits(bits)
    steps = 2**bits
    threshold = int(p * steps)
    # floor(p * steps + 0.5) without the sum, whose rounding is wrong for the p just below half a step.
    threshold += p * steps - threshold >= 0.5
    kept = steps - threshold
    return Quantized(threshold, steps / kept if kept else 0.0, threshold / steps)


def same(r: bool, scale, shift, z, other):
    return z


def scaled(r: bool, scale, shift, z, other):
    return z * scale


def kept(r: bool, scale, shift, z, other):
    return z * scale if r else 0


def dropped(r: bool, scale, shift, z, other):
    return 0 if r else z * scale


def alpha(r: bool, scale, shift, z, other):
    return (z if r else ALPHA_PRIME) * scale + shift


def multiplied(r, scale, shift, z, other):
    return z * (scale * r + shift)


def added(r, scale, shift, z, other):
    return z + scale * r


def kept_or_other(r: bool, scale, shift, z, other):
    return z if r else other


def other_part(r: bool, scale, shift, z, other):
    return z * shift


def mixed(r: bool, scale, shift, z, other):
    # With p = 1 the scale is 0, and an infinite z must not change the result.
    return (z * scale if scale > 0 else 0) + other * shift


def total(r: bool, scale, shift, z, other):
    return other + z


def other_and_kept(r: bool, scale, shift, z, other):
    return other + z * scale if r else other


def truth(r: bool, scale, shift, z, other):
    return 1 if r else 0


def itself(r, scale, shift, z, other):
    return r


def _dropout(p, bits):
    quantized = quantize(p, bits)
    return Scalars(quantized.threshold - 1, quantized.scale) if quantized.threshold else None


def _alpha(p, bits):
    """Klambauer et al.: the affine map that restores mean 0 and variance 1. With p = 1 every result is 0."""
    quantized = quantize(p, bits)
    if not quantized.threshold:
        return None
    p = quantized.effective_p
    scale = 1 / math.sqrt((1 - p) * (1 + p * ALPHA_PRIME**2)) if p < 1 else 0.0
    return Scalars(quantized.threshold - 1, scale, -scale * p * ALPHA_PRIME)


def _zoneout(p, bits):
    scalars = _dropout(p, bits)
    return scalars and scalars._replace(scale=1.0)


def _expected_zoneout(p, bits):
    p = quantize(p, bits).effective_p
    return Scalars(scale=1 - p, shift=p) if p else None


def _gaussian(p, bits):
    return Scalars(scale=math.sqrt(p / (1 - p)), shift=1.0) if p else None


def _uniform(p, bits):
    """1 + h * (2 * u - 1) for u = (field + 1/2) / 2**bits, as one multiplication and one sum."""
    h = math.sqrt(3 * p / (1 - p))
    return Scalars(scale=2 * h / 2**bits, shift=1 - h + h / 2**bits) if p else None


def _additive(std, bits):
    return Scalars(scale=std) if std else None


def _check_below_1(p):
    value = check_p(p)
    if value == 1:
        raise ValueError("p must be below 1, got 1: the variance p / (1 - p) would be infinite")
    return value


def _check_std(std):
    value = check_number("std", std)
    if not 0 <= value < math.inf:
        raise ValueError(f"std must be finite and not negative, got {std}")
    return value


# For prediction: the noise of training has already checked the strength.
PLAIN = Noise("plain", same, check=float, zeroes=True)
SCALED = Noise("scaled", scaled)
DROPOUT = Noise("dropout", kept, "keep", _dropout, zeroes=True)
DROPPED = Noise("dropped", dropped, "keep")
ALPHA = Noise("alpha", alpha, "keep", _alpha, gradient=DROPOUT)
GAUSSIAN = Noise("gaussian", multiplied, "normal", _gaussian, _check_below_1)
UNIFORM = Noise("uniform", multiplied, "field", _uniform, _check_below_1)
ADDITIVE = Noise("additive", added, "normal", _additive, _check_std, gradient=PLAIN)
ZONEOUT = Noise("zoneout", kept_or_other, "keep", _zoneout, gradient=DROPOUT, second_input="previous", second=DROPPED)
EXPECTED_ZONEOUT = Noise(
    "expected_zoneout",
    mixed,
    scalars=_expected_zoneout,
    gradient=SCALED,
    second_input="previous",
    second=Noise("other_part", other_part),
)
SUM = Noise("sum", total, check=float, gradient=PLAIN, second_input="residual", second=PLAIN)
ADD = Noise("add", other_and_kept, "keep", _dropout, gradient=DROPOUT, second_input="residual", second=PLAIN, off=SUM)

DRAWN: dict[str | None, Noise] = {
    "keep": Noise("mask", truth, "keep"),
    "field": Noise("fields", itself, "field"),
    "normal": Noise("normals", itself, "normal"),
}
"""The noises that return the random value itself."""
