"""gpudrop bench, and the parts that it shares with `python -m bench`: cases, contenders, checks and timing."""
