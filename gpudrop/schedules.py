"""Schedules: p as a function of the training step, for layers.

A Schedule is immutable: set the attribute `step` of a layer in the training loop.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpudrop.checks import check_count, check_keys, check_number, check_uint64

# The fraction of the way from first to last, as a function of progress = step / steps, which is at least 0.
CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: min(progress, 1),
    "cosine": lambda progress: (1 - math.cos(math.pi * min(progress, 1))) / 2,
    "exponential": lambda progress: -math.expm1(-10 * progress),
    "jump": lambda progress: float(progress >= 1),
}


@dataclass(frozen=True)
class Schedule:
    """p as a function of the step: call it with a step. The functions of this module create the usual ones.

    Parameters
    ----------
    first, last : float
        p at step 0 and at the end, each at least 0. The function or layer that uses p checks the upper limit.
    steps : int
        The number of steps from first to last, at least 1.
    curve : {"linear", "cosine", "exponential", "jump"}
        The way from first to last. "exponential" never reaches last: at `steps` a fraction of
        exp(-10) = 5e-5 of the way remains. "jump" is first before `steps`, and last from then on.

    Examples
    --------
    >>> from gpudrop.schedules import Schedule
    >>> p = Schedule(0.0, 0.5, 10, "linear")
    >>> p(0), p(5), p(10), p(99)
    (0.0, 0.25, 0.5, 0.5)
    """

    first: float
    last: float
    steps: int = 1
    curve: str = "linear"

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            value = check_number(name, getattr(self, name))
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "steps", check_uint64("steps", check_count("steps", self.steps)))
        if self.curve not in list(CURVES):  # the name may be of a type that is not hashable
            raise ValueError(f"unknown curve {self.curve!r}; known: {', '.join(sorted(CURVES))}")

    def __call__(self, step: int) -> float:
        """p at a step, counted from 0."""
        way = CURVES[self.curve](check_uint64("step", step) / self.steps)
        return (1 - way) * self.first + way * self.last

    def state_dict(self) -> dict[str, Any]:
        """The state as a dict with the keys "first", "last", "steps" and "curve", for ``Schedule(**state)``."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Schedule":
        """The schedule with this state."""
        check_keys("schedule", state, ("first", "last"), optional=[field.name for field in fields(cls)])
        return cls(**state)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(vars(self.from_state_dict(state)))


def constant(p: float) -> Schedule:
    """The same p at every step.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.schedules.constant(0.1)(1000)
    0.1
    """
    return Schedule(p, p)


def linear(first: float, last: float, steps: int) -> Schedule:
    """From first to last along a straight line.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.schedules.linear(0.5, 0.0, 4)(1)
    0.375
    """
    return Schedule(first, last, steps)


def cosine(first: float, last: float, steps: int) -> Schedule:
    """From first to last along half a cosine, slow at both ends.

    Examples
    --------
    >>> import gpudrop
    >>> gpudrop.schedules.cosine(0.5, 0, 4)(4)
    0.0
    """
    return Schedule(first, last, steps, "cosine")


def curriculum(p: float, steps: int) -> Schedule:
    """From 0 towards p, fast at first: p * (1 - exp(-10 * step / steps)).

    Source: Morerio, Cavazza, Volpi, Vidal and Murino, "Curriculum dropout", ICCV 2017, with gamma = 10 / steps.

    Examples
    --------
    >>> import gpudrop
    >>> schedule = gpudrop.schedules.curriculum(0.5, 100)
    >>> schedule(0), round(schedule(10), 3), round(schedule(100), 3)
    (0.0, 0.316, 0.5)
    """
    return Schedule(0, p, steps, "exponential")


def early(p: float, steps: int, decay: bool = False) -> Schedule:
    """p for the first steps and 0 afterwards, against underfitting; with decay, falling linearly to 0.

    Source: Liu, Xu, Jin, Shen and Darrell, "Dropout reduces underfitting", ICML 2023.

    Examples
    --------
    >>> import gpudrop
    >>> schedule = gpudrop.schedules.early(0.1, 50)
    >>> schedule(49), schedule(50)
    (0.1, 0.0)
    """
    return Schedule(p, 0, steps, "linear" if decay else "jump")


def late(p: float, steps: int) -> Schedule:
    """0 for the first steps and p afterwards, against overfitting.

    Source: as for `early`.

    Examples
    --------
    >>> import gpudrop
    >>> schedule = gpudrop.schedules.late(0.1, 50)
    >>> schedule(49), schedule(50)
    (0.0, 0.1)
    """
    return Schedule(0, p, steps, "jump")
