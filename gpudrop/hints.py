"""Hints in errors about unknown names: the nearest known name, or the equivalent of another library's name."""

from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

ARGUMENTS = {
    "rate": "p", "prob": "p", "drop_prob": "p", "dropout_rate": "p", "noise_shape": "mask_shape", "train": "training",
    "seed": "rng", "key": "rng", "generator": "rng", "random_state": "rng", "nonlinearity": "activation",
    "keep": "keep_prob", "keep_rate": "keep_prob",
}  # fmt: skip
"""Names of arguments in other libraries, and the names in gpudrop."""

ACTIVATIONS = {
    "linear": "identity",
    "none": "identity",
    "swish": "silu",
    "logistic": "sigmoid",
    "gelu_new": "gelu_tanh",
}
"""The same for activations."""


def nearest(name: Any, known: Iterable[str], meant: Mapping[str, str]) -> str | None:
    """The known name that was probably meant, or None."""
    known = list(known)
    if not isinstance(name, str):
        return None
    name = name.lower().strip()
    if meant.get(name) in known:
        return meant[name]
    import difflib  # imported only when an error is made

    return next(iter(difflib.get_close_matches(name, known, 1)), None)


def hint(name: Any, known: Iterable[str], meant: Mapping[str, str]) -> str:
    """The end of an error message about a name: a question, or an empty string."""
    near = nearest(name, known, meant)
    return f"; did you mean {near!r}?" if near else ""


def hint_of_argument(name: str, value: Any, known: Iterable[str]) -> str:
    """The same for an argument of a function. A function has p, and a layer has keep_prob as well."""
    known = list(known)
    if "p" in known and nearest(name, [*known, "keep_prob"], ARGUMENTS) == "keep_prob":
        exact = isinstance(value, Real) and 0 <= float(value) <= 1
        return f"; p is the probability of dropping, so pass p={f'{1 - float(value):.7g}' if exact else f'1 - {name}'}"
    return hint(name, known, ARGUMENTS)


def unexpected(function: str, arguments: Mapping[str, Any], known: Collection[str]) -> TypeError:
    """The error for unexpected keyword arguments, in Python's words. It names the first of them."""
    name = next(name for name in arguments if name not in known)
    hint = hint_of_argument(name, arguments[name], known)
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


def name_of(of: type) -> str:
    """A class's name with its module, for an error message: several libraries have a Generator."""
    return of.__qualname__ if of.__module__ == "builtins" else f"{of.__module__}.{of.__qualname__}"
