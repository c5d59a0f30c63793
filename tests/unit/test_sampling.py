"""A covering sample of any product contains every pair of values, and few rows more than that needs."""

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


def test_pairs_that_occur_in_no_row_are_not_required():
    rows = [row for row in product(range(3), repeat=3) if row[:2] != (0, 0)]
    assert pairs(rows[k] for k in covering(rows)) == pairs(rows)


@pytest.mark.parametrize("rows", [[], [()], [(1,), (2,), (3,)], list(product(range(3), range(4)))])
def test_all_rows_of_one_or_two_parameters_are_taken(rows):
    assert covering(rows) == list(range(len(rows)))
