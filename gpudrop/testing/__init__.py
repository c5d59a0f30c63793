"""Tools to test gpudrop: a reference in plain NumPy, the self-test, statistics, and a table of ulps."""
