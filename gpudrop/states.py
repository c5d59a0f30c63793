"""What a saved state must have, told by one function: a state of a newer version is refused, not half understood."""

from collections.abc import Iterable, Mapping
from typing import Any


def check_keys(of: str, state: Mapping[str, Any], required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """An error unless a state of so and so has all the required keys, and no others but the optional ones."""
    if not isinstance(state, Mapping):
        raise TypeError(f"the state of a {of} must be a dict, got {type(state).__name__}")
    if unknown := set(state).difference(required, optional):
        names = ", ".join(sorted(map(repr, unknown)))
        raise ValueError(f"the state of a {of} has {names}, which {_this()} doesn't know; it may be of a newer version")
    if not state.keys() >= set(required):
        keys, found = ", ".join(sorted(required)), ", ".join(map(str, state)) or "none"
        raise ValueError(f"the state of a {of} has the keys {keys}, got {found}")


def _this() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"gpudrop {version('gpudrop')}"
    except PackageNotFoundError:  # its files without an installation
        return "this gpudrop"
