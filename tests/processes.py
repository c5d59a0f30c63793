"""Runs Python programs in separate processes."""

import os
import subprocess
import sys

# A background process may be set to ignore SIGINT, and its children inherit that. So restore Python's own handler.
RESTORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def run(code, *arguments, clean=True, **environment):
    """Run code as a program. It must succeed within a time limit and, if `clean`, write nothing to stderr."""
    command = [sys.executable, "-c", RESTORE_SIGINT + code, *map(str, arguments)]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    if clean:
        assert done.stderr == ""
    return done
