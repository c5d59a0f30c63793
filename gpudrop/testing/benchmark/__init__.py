"""gpudrop bench, and what `python -m bench` of the repository shares with it: cases, contenders, checks and timing."""
