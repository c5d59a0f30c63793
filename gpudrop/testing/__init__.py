"""What gpudrop is tested by: its reference in plain NumPy, its self-test, statistics, and the table of ulps."""
