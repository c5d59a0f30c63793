"""Values from nvidia-smi. They are read here because the package itself starts no program."""

import subprocess


def smi(bus):
    """The values that nvidia-smi reports for a GPU, or None if it fails."""
    keys = "driver_version,clocks.max.sm,clocks.max.memory,ecc.mode.current,power.limit"
    command = ["nvidia-smi", f"--id={bus}", f"--query-gpu={keys}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(keys.split(","), (value.strip() for value in answer.split(",")), strict=False))
