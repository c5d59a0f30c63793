"""Samples of the products of parameters, in which every value of one meets every value of each other one.

Most faults that depend on parameters depend on one or two of them: Kuhn, Wallace and Gallo, "Software fault
interactions and implications for software testing", IEEE Transactions on Software Engineering 30 (2004).
"""

from itertools import combinations

import pytest


def covering(rows):
    """The numbers of rows in which each pair of values of two columns occurs that occurs in any row.

    Greedy: the row with the most pairs that are missing comes next, of several the last: of backends, the last ones
    compile their kernels in the least time. A product of two columns, all of whose rows are such pairs, stays whole.
    """
    pairs = [set(combinations(enumerate(row), 2)) or {row} for row in rows]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(reversed(range(len(rows))), key=lambda k: len(pairs[k] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)


def few(values, *chosen):
    """Values of a parameter, of which those that are not among the chosen are for slow tests. Tuples are of several."""

    def slow(value):
        return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)

    return [value if value in chosen else slow(value) for value in values]
