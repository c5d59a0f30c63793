"""Checks of arguments and saved states. A check returns the value as a Python type, or raises an error."""

import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpudrop.formulas.philox import BITS
from gpudrop.version import VERSION


def check_number(name: str, value: Any, rule: str = "") -> float:
    """value as a float, or a TypeError that names the argument. A value that overflows becomes infinite."""
    # float() would also accept text, and would take the real part of NumPy's complex numbers.
    text = isinstance(value, (str, bytes, bytearray, memoryview))
    text_or_complex = text or getattr(getattr(value, "dtype", None), "kind", None) in ("S", "U", "c")
    try:
        return float("text" if text_or_complex else value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number{rule}, got {value!r}") from None


def check_p(p: Any, name: str = "p") -> float:
    """p as a float, or a ValueError or TypeError that names the argument."""
    value = check_number(name, p, " between 0 and 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {p}")
    return value


def check_bits(bits: Any) -> int:
    """bits as an int, or a ValueError that lists the widths."""
    try:
        width = operator.index(bits)
    except TypeError:
        width = None
    if width not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")
    return width


SAVES = ("auto", "output", "bits")


def check_save(save: Any) -> str:
    """What the forward pass saves for the backward pass: one of `SAVES`."""
    if not isinstance(save, str) or save not in SAVES:
        raise ValueError(f"save must be one of {', '.join(SAVES)}, got {save!r}")
    return save


def check_truth(name: str, value: Any) -> bool:
    """value as a bool. It may be True, False, 1 or 0, also of NumPy and other libraries."""
    try:
        if value is True or value is False or (getattr(value, "ndim", 0) == 0 and value in (0, 1)):
            return bool(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be True or False, got {value!r}")


def check_integer(name: str, value: Any) -> int:
    """value as a Python int, or a TypeError that names the argument."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def check_count(name: str, value: Any) -> int:
    """value as a Python int of at least 1, or an error that names the argument."""
    number = check_integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {_shown(number)}")
    return number


def check_uint64(name: str, value: Any) -> int:
    """value as a Python int in [0, 2**64), or an error that names the argument."""
    number = check_integer(name, value)
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} must be between 0 and 2**64 - 1, got {_shown(number)}")
    return number


def _shown(number: int) -> str:
    """The number in an error; Python converts no integer of more than 4300 digits to decimal text."""
    return str(number) if number.bit_length() < 1000 else f"{number:#x}"[:20] + "..."


def check_keys(of: str, state: Mapping[str, Any], required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise an error unless a state has all required keys, and no others except the optional ones."""
    if not isinstance(state, Mapping):
        raise TypeError(f"the state of a {of} must be a dict, got {type(state).__name__}")
    if unknown := set(state).difference(required, optional):
        names = ", ".join(sorted(map(repr, unknown)))
        this = f"gpudrop {VERSION}"
        raise ValueError(f"the state of a {of} has {names}, which {this} doesn't know; it may be from a newer version")
    if not state.keys() >= set(required):
        keys, found = ", ".join(sorted(required)), ", ".join(map(str, state)) or "none"
        raise ValueError(f"the state of a {of} must have the keys {keys}, got {found}")


def check_writable(of: str, path: Path) -> None:
    """Raise an error unless a file can be opened for writing. An existing file is unchanged, and a new one is removed.

    Commands call it before they compute what they will write, because that takes long.
    """
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"the folder of the {of} must exist, got {path}")
    try:
        new = not path.exists()
        if new or path.is_file() or path.is_dir():  # opening and closing a pipe would end the input of its reader
            path.open("ab").close()
        if new:
            path.resolve().unlink()  # resolved, because a link without a target must remain
    except OSError as error:
        raise type(error)(f"the file of the {of} must be writable, got {path} ({error.strerror})") from None
