"""Python programs in processes of their own."""

import os
import subprocess
import sys

# What is started in the background may be told to ignore interrupts, and so would what it starts.
HEEDS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def run(code, *arguments, clean=True, **environment):
    """Run code as a program that has to end well, and soon; clean: without a word on stderr."""
    command = [sys.executable, "-c", HEEDS + code, *map(str, arguments)]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    if clean:
        assert done.stderr == ""
    return done
