"""How the steps of a supervised stage are cut into calls."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax.checkpoints import Checkpoints
from cso_jax.learner import LearnerState
from cso_jax.stages.fitting import Validation, spans


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


def follow(folder, losses, *, first=0, keep_best, rows=()):
    """What is left of states whose parameter is their step, with these validation losses after 10, 20, ... steps."""
    run = types.SimpleNamespace(
        checkpoints=lambda stage: Checkpoints(folder / stage),
        metrics=types.SimpleNamespace(rows=lambda stage: list(rows)),
    )
    followed = Validation(run, "imitation", first=first, every=10, keep_best=keep_best)
    for step, loss in losses.items():
        state = LearnerState(jnp.asarray(step), {"prior": jnp.full(2, float(step))}, {}, ())
        followed.see(loss, step, state)
    chosen = followed.chosen(state)
    followed.close(finished=True)
    assert int(chosen.step) == step
    return float(np.asarray(chosen.trainable["prior"])[0])


def test_a_validation_loss_that_rises_is_said_once_and_the_lowest_kept_if_asked_for(tmp_path, capsys):
    losses = {10: 2.0, 20: 1.0, 30: 1.05, 40: 1.2, 50: 1.4}
    assert follow(tmp_path, losses, keep_best=False) == 50
    said = capsys.readouterr().err
    assert said.count("the validation loss has risen from 1 after 20 steps to 1.2 after 40") == 1
    assert "config.imitation.keep=best" in said
    assert follow(tmp_path, losses, keep_best=True) == 20
    assert not (tmp_path / "imitation_best").exists()
    assert follow(tmp_path, {10: 2.0, 20: 1.95, 30: 2.0}, keep_best=False) == 30
    assert "has risen" not in capsys.readouterr().err.partition("keeps the state")[2]


def test_a_stop_between_two_rows_and_leftovers_choose_nothing(tmp_path):
    assert follow(tmp_path, {10: 2.0, 15: 0.5, 20: 1.0}, keep_best=True) == 20
    leftover = Checkpoints(tmp_path / "imitation_best")
    leftover.save(90, {"step": np.int32(90), "trainable": {"prior": np.zeros(2)}, "fixed": {}, "opt_state": ()})
    leftover.close()
    assert follow(tmp_path, {10: 2.0, 20: 1.0}, keep_best=True) == 20
