"""A covering sample has every pair of values, of every product, and little more."""

from itertools import combinations, product

import pytest

from tests.sampling import covering


def pairs(rows):
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", [(2, 2, 2), (2, 17, 3), (4, 3, 18), (2, 2, 2, 2, 2), (5, 1, 4, 3)])
def test_every_pair_of_values_occurs(sizes):
    rows = list(product(*map(range, sizes)))
    sample = [rows[k] for k in covering(rows)]
    assert pairs(sample) == pairs(rows)
    first, second, *_ = sorted(sizes, reverse=True)
    assert first * second <= len(sample) <= 1.5 * first * second + 2


def test_of_rows_that_are_left_out_nothing_is_wanted():
    rows = [row for row in product(range(3), repeat=3) if row[:2] != (0, 0)]
    assert pairs(rows[k] for k in covering(rows)) == pairs(rows)


@pytest.mark.parametrize("rows", [[], [()], [(1,), (2,), (3,)], list(product(range(3), range(4)))])
def test_of_one_or_two_parameters_nothing_is_left_out(rows):
    assert covering(rows) == list(range(len(rows)))
