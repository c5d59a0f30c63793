"""Caches the output of compilers in build/compiled, under a name that is a hash of all inputs.

A change of a source, an option or a compiler's version changes the name, so no file becomes wrong. `make clean` frees
the space. Several processes may write a file at once: each sees the whole file or none.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "compiled"


def stored(suffix: str, made_of: object, make: Callable[[Path], object]) -> Path:
    """The file with this suffix.

    make(path) writes it if it is missing. made_of: everything that its content depends on.
    """
    path = FOLDER / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}{suffix}"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            made = Path(folder) / path.name
            make(made)
            made.replace(path)
    return path
