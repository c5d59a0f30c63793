"""Where PyInstaller finds the hook for this package, by an entry point in pyproject.toml."""

from pathlib import Path


def hook_dirs() -> list[str]:
    return [str(Path(__file__).parent)]
