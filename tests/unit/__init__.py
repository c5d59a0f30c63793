"""Unit tests: the reference, formulas, schedules, statistics, arguments, states and the command line."""
