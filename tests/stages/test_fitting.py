"""How the steps of a supervised stage are cut into calls."""

import pytest

from cso_jax.stages.fitting import spans


def cut(first, steps, every, length):
    return [(span.start, span.stop) for span in spans(first, steps, every, length)]


def test_calls_are_whole_or_single_and_cross_no_boundary():
    assert cut(0, 27, (20, 1000), 10) == [(0, 10), (10, 20), *((step, step + 1) for step in range(20, 27))]
    assert cut(0, 20, (5,), 10) == [(step, step + 1) for step in range(20)]
    assert cut(0, 3, (50,), 1) == [(0, 1), (1, 2), (2, 3)]
    assert cut(4, 4, (50,), 10) == []


@pytest.mark.parametrize("first", range(41))
def test_a_resumed_stage_takes_the_calls_that_the_uninterrupted_one_takes(first):
    """From wherever a checkpoint or a stop may have left it: at the end of a call."""
    whole = cut(0, 67, (20, 25), 10)
    if first in {start for start, _ in whole}:
        assert cut(first, 67, (20, 25), 10) == [call for call in whole if call[0] >= first]
