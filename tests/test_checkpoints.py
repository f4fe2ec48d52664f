"""Checkpoints: bit-equal round trip, fallback from a damaged one, refusal of another architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cso_jax import learner
from cso_jax.checkpoints import CheckpointError, Checkpoints


def learner_state(width=4):
    optimiser, _ = learner.make_optimiser(
        learning_rate=1e-3, final_learning_rate=1e-4, steps=10, warmup_steps=2, weight_decay=1e-4, clip_norm=1.0
    )
    variables = {
        "prior": {"dense": {"kernel": jax.random.normal(jax.random.key(0), (3, width)), "bias": jnp.zeros(width)}},
        "encoder": {"dense": {"kernel": jnp.ones((2, 2))}},
        "batch_stats": {},
    }
    state = learner.start(variables, ("prior",), optimiser)
    gradients = jax.tree.map(jnp.ones_like, state.trainable)
    updates, opt_state = optimiser.update(gradients, state.opt_state, state.trainable)
    return state.replace(step=state.step + 1, trainable=optax.apply_updates(state.trainable, updates),
                         opt_state=opt_state)  # fmt: skip


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)
        assert np.asarray(left).dtype == np.asarray(right).dtype


def test_round_trip(tmp_path):
    state = learner_state()
    checkpoints = Checkpoints(tmp_path / "spo")
    assert checkpoints.restore_latest(state) is None
    checkpoints.save(3, state, {"frontier": {"reach-v3": [1.0, 2.0]}})
    step, restored, meta = Checkpoints(tmp_path / "spo").restore_latest(state)
    assert step == 3 and meta == {"frontier": {"reach-v3": [1.0, 2.0]}}
    assert_equal(restored, state)
    raw = checkpoints.restore_latest(None)[1]
    np.testing.assert_array_equal(raw["trainable"]["prior"]["dense"]["kernel"],
                                  state.trainable["prior"]["dense"]["kernel"])  # fmt: skip


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "spo", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": np.full(3, step)})
    assert checkpoints.steps() == [2, 3]


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_checkpoint_falls_back(tmp_path, capsys, damage):
    state = learner_state()
    checkpoints = Checkpoints(tmp_path / "spo")
    checkpoints.save(1, state)
    checkpoints.save(2, state)
    checkpoints.close()
    for file in sorted((tmp_path / "spo" / "2").rglob("*")):
        if file.is_file():
            if damage == "remove":
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    step, restored, _ = Checkpoints(tmp_path / "spo").restore_latest(state)
    assert step == 1
    assert_equal(restored, state)
    assert "cannot be read" in capsys.readouterr().err
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_other_architecture_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "spo")
    checkpoints.save(1, learner_state(width=4))
    with pytest.raises(CheckpointError, match=r"another architecture.*bias: shape \(4,\), expected \(8,\)"):
        checkpoints.restore_latest(learner_state(width=8))
    assert checkpoints.steps() == [1]


@pytest.mark.parametrize("name", ["job[3]", "a\\b", "x*y?", "s3:", "plain"])
def test_any_folder_name_can_be_read_back(tmp_path, name):
    state = learner_state()
    checkpoints = Checkpoints(tmp_path / name / "spo")
    checkpoints.save(1, state)
    checkpoints.close()
    again = Checkpoints(tmp_path / name / "spo")
    step, restored, _ = again.restore_latest(state)
    assert step == 1
    assert_equal(restored, state)
    assert [path.name for path in (tmp_path / name / "spo").iterdir()] == ["1"]


@pytest.mark.parametrize("fault", ["unreadable", "different"])
def test_a_first_save_that_does_not_read_back_is_said_at_once(tmp_path, monkeypatch, fault):
    checkpoints = Checkpoints(tmp_path / "spo")

    def read(step):
        if fault == "unreadable":
            raise ValueError("NOT_FOUND: no metadata\nand forty more lines")
        return {"a": np.zeros(3)}, {}

    monkeypatch.setattr(checkpoints, "_read", read)
    with pytest.raises(CheckpointError, match=r"read back.*another --workdir") as raised:
        checkpoints.save(1, {"a": np.ones(3)})
    assert "\n" not in str(raised.value)
