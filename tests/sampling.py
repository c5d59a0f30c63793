"""Samples of products of parameters, in which every pair of values of two parameters occurs.

Most faults that depend on parameters depend on one or two of them: Kuhn, Wallace and Gallo, "Software fault
interactions and implications for software testing", IEEE Transactions on Software Engineering 30 (2004).
"""

from itertools import combinations

import pytest


def covering(rows):
    """The indices of rows that together contain every pair of values of two columns that occurs in any row.

    The algorithm is greedy. It takes the row with the most missing pairs and, among equal rows, the last one: the last
    backends compile their kernels in the least time. In a product of two columns every row is such a pair, so all rows
    are taken.
    """
    pairs = [set(combinations(enumerate(row), 2)) or {row} for row in rows]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(reversed(range(len(rows))), key=lambda k: len(pairs[k] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return sorted(chosen)


def few(values, *chosen):
    """Values of a parameter. All but the chosen ones are marked as slow. A tuple sets several parameters."""

    def slow(value):
        return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)

    return [value if value in chosen else slow(value) for value in values]
