"""Schedules follow the papers' curves. They are values: comparable, hashable, saved and restored."""

import pickle

import pytest

from gpudrop import schedules
from gpudrop.schedules import Schedule
from gpudrop.testing import reference

STEPS = [0, 1, 2, 7, 49, 50, 51, 99, 100, 101, 1000, 10**12]


@pytest.mark.parametrize(
    ("made", "want"),
    [
        (schedules.linear(0.1, 0.6, 100), lambda step: reference.linear(step, 0.1, 0.6, 100)),
        (schedules.cosine(0.6, 0.1, 100), lambda step: reference.cosine(step, 0.6, 0.1, 100)),
        (schedules.curriculum(0.5, 100), lambda step: reference.curriculum(step, 0.5, 100)),
        (schedules.early(0.3, 50), lambda step: reference.early(step, 0.3, 50)),
        (schedules.early(0.3, 50, decay=True), lambda step: reference.early(step, 0.3, 50, decay=True)),
        (schedules.late(0.3, 50), lambda step: reference.late(step, 0.3, 50)),
        (schedules.constant(0.3), lambda step: 0.3),
    ],
)
def test_curves(made, want):
    for step in STEPS:
        assert made(step) == pytest.approx(want(step), rel=1e-12, abs=1e-12)
        assert 0 <= made(step) <= 1


def test_the_end_is_reached_exactly():
    for first, last in ((0.7, 0.1), (0.1, 0.7), (0.3, 0.3), (0, 1)):
        for make in (schedules.linear, schedules.cosine):
            assert make(first, last, 10)(0) == first
            assert make(first, last, 10)(10) == make(first, last, 10)(11) == last


def test_a_schedule_is_a_value():
    one = schedules.cosine(0, 0.5, 100)
    assert one == schedules.cosine(0, 0.5, 100) != schedules.cosine(0, 0.5, 101)
    assert len({one, schedules.cosine(0, 0.5, 100)}) == 1
    assert Schedule(**one.state_dict()) == pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.last = 1


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            "unknown curve 'cubic'; known: cosine, exponential, jump, linear",
            lambda: Schedule(0, 1, 5, "cubic"),
        ),
        (ValueError, "steps must be at least 1, got 0", lambda: schedules.linear(0, 1, 0)),
        (ValueError, "steps must be at least 1, got -3", lambda: schedules.linear(0, 1, -3)),
        (TypeError, "steps must be an integer, got 1.5", lambda: schedules.linear(0, 1, 1.5)),
        (ValueError, "first must be finite and not negative, got -0.1", lambda: schedules.linear(-0.1, 1, 5)),
        (TypeError, "last must be a number, got 'a'", lambda: schedules.linear(0, "a", 5)),
        (ValueError, "step must be between 0", lambda: schedules.constant(0.5)(-1)),
    ],
)
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()
