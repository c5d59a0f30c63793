"""Parts by themselves: the reference, formulas, schedules, statistics, arguments and states, the command line."""
