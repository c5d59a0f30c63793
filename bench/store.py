"""What compilers have made, kept in build/compiled under a name that says what it was made of.

A change of a source, an option or a compiler's version changes the name, so a file never has to be thrown away but for
its size: `make clean` does that. Several processes may make a file at once; each sees it whole or not at all.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "compiled"


def stored(suffix: str, made_of: object, make: Callable[[Path], object]) -> Path:
    """The file with this suffix, which make(path) writes unless it is there; made_of: everything that it depends on."""
    path = FOLDER / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}{suffix}"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            made = Path(folder) / path.name
            make(made)
            made.replace(path)
    return path
