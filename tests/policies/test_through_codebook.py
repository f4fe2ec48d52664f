"""What acts through a codebook executes what the codebook gives back of the other policy's chunk, and draws nothing."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax.policies.interface import Sampling, Wants
from cso_jax.policies.through_codebook import ThroughCodebook, through_codebook


@dataclasses.dataclass(frozen=True)
class Direct:
    """Chunks `[B, 4, 1]` that count on from the observation."""

    wants = Wants(4)

    def chunks(self, variables, observation):
        return variables["scale"] * (observation["state"][:, None, :] + jnp.arange(4.0)[:, None])


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A codebook of the multiples of a step."""

    wants = Wants(4, target="skill")

    def tokenise(self, variables, chunks):
        return jnp.round(chunks[..., 0] / variables["step"]).astype(jnp.int32)

    def decode(self, variables, skills):
        return (skills * variables["step"])[..., None]


ROWS = {"state": np.array([[0.2], [5.4]], np.float32), "task": np.zeros(2, np.int32)}


@pytest.mark.parametrize(("step", "expected"), [(0.1, [[0.2, 1.2], [5.4, 6.4]]), (2.0, [[0, 2], [6, 6]])])
def test_actions_are_those_that_the_codebook_gives_back(step, expected):
    policy = ThroughCodebook(Direct(), Rounding())
    assert policy.wants == Direct.wants and hash(policy) == hash(ThroughCodebook(Direct(), Rounding()))
    decision = policy.decide(
        {"direct": {"scale": 1.0}, "codebook": {"step": step}}, ROWS, np.zeros((2, 2), np.uint32), np.zeros(2, int),
        sampling=Sampling(1.0, 5), execution_horizon=2,
    )  # fmt: skip
    np.testing.assert_allclose(decision.actions[..., 0], expected, atol=1e-5)
    assert decision.skill is None and decision.log_prob is None


def test_chunks_of_another_length_are_refused():
    with pytest.raises(AssertionError):
        through_codebook(Rounding(), {"step": 1.0}, jnp.zeros((2, 3, 1)))
