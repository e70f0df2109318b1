"""Parameters of notebooks: in range, of the right kind, rising; each refusal names the parameter."""

import pytest

from mmstudy.core import parameters

GIVEN = {"my_steps": 3, "my_rate": 0.5, "my_widths": [2, 4, 8], "my_shares": [0.5, 1.0]}


def test_what_is_in_range_passes():
    parameters.ranges(GIVEN, "my", steps=(1, 10), rate=(0.0, 1.0))
    parameters.rising(GIVEN, "my", widths=(1, 10), shares=(0.0, 1.0))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"my_steps": 0}, ValueError, "my_steps must be at least 1 and at most 10; got 0"),
        ({"my_steps": 2.0}, TypeError, "my_steps must be a whole number; got 2.0"),
        ({"my_rate": 0}, ValueError, "my_rate must be a finite number > 0 and at most 1; got 0"),
        ({"my_rate": "fast"}, TypeError, "my_rate must be a number; got 'fast'"),
    ],
)
def test_what_is_out_of_range_is_named(given, error, said):
    with pytest.raises(error, match=said):
        parameters.ranges(GIVEN | given, "my", steps=(1, 10), rate=(0.0, 1.0))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"my_widths": 4}, TypeError, "my_widths must be a list; got 4"),
        ({"my_widths": []}, ValueError, "my_widths must not be empty"),
        ({"my_widths": [2, 11]}, ValueError, r"my_widths\[1\] must be at least 1 and at most 10; got 11"),
        ({"my_widths": [4, 2]}, ValueError, "my_widths must be numbers that rise"),
        ({"my_shares": [0.5, 0.5]}, ValueError, "my_shares must be numbers that rise"),
        ({"my_shares": [0.5, 1.5]}, ValueError, r"my_shares\[1\] must be a finite number > 0 and at most 1"),
    ],
)
def test_a_list_that_does_not_rise_is_named(given, error, said):
    with pytest.raises(error, match=said):
        parameters.rising(GIVEN | given, "my", widths=(1, 10), shares=(0.0, 1.0))
