"""The tests, by subject; CONTRIBUTING.md says how they run."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
