"""The policy as the rollout loop calls it: a broken one is told from a sound one, whatever is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax import defaults
from cso_jax.envs import fake
from cso_jax.envs.protocol import ChunkFrame, EvalInit
from cso_jax.policies.agent import Agent
from cso_jax.policies.interface import Decision, Sampling, Wants
from cso_jax.policies.quest.policy import build
from cso_jax.rollout.actor import make_act
from cso_jax.rollout.episodes import EpisodeRequest, RolloutError
from cso_jax.rollout.pool import WorkerPool


@pytest.fixture(scope="module")
def parts():
    config = defaults.metaworld()
    config.autoencoder.chunk_length = 8
    for section in (config.autoencoder, config.prior):
        section.width, section.heads = 16, 2
    config.autoencoder.encoder_layers = config.autoencoder.decoder_layers = config.prior.layers = 1
    config.encoder.lowdim_width = 8
    spec = fake.spec({})
    policy = build(config, spec, num_tasks=3)
    return policy, policy.init(jax.random.key(0), spec)


def run(policy, variables, temperature, top_k):
    act = make_act(Agent(policy, variables, fake.DEFAULT_TASKS, Sampling(temperature, top_k), execution_horizon=4))
    requests = [EpisodeRequest(EvalInit("left", number), np.array([7, number], np.uint32)) for number in range(2)]
    with WorkerPool(fake.make_environments, {"horizon": 8}, workers=1, slots=2, log=lambda line: None) as pool:
        return pool.run(requests, act, keep_observations=False)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 5), (1.0, 0), (0.0, 0), (0.0, 5)])
@pytest.mark.parametrize("path", [("prior", "head", "bias"), ("encoder", "obs_proj", "kernel")])
def test_an_evaluation_of_a_broken_policy_ends_in_one_line(parts, temperature, top_k, path):
    policy, variables = parts
    assert len(run(policy, variables, temperature, top_k)) == 2
    broken = jax.tree.map(np.array, variables)
    part, module, name = path
    broken[part][module][name].flat[3] = np.nan
    with pytest.raises(RolloutError, match=r"log_prob are not finite for eval:left:0 at decision 0: its parameters"):
        run(policy, broken, temperature, top_k)


@dataclasses.dataclass(frozen=True)
class Resting:
    """Predicts chunks of zeros, and was shown a history of so many observations."""

    history: int

    @property
    def wants(self):
        return Wants(chunk_length=8, history=self.history)

    def decide(self, variables, observation, episode_keys, decision_index, *, sampling, execution_horizon):
        return Decision(jnp.zeros((len(observation["joints"]), execution_horizon, 2)))


@pytest.mark.parametrize("history", [1, 3])
def test_decisions_are_absolute_whatever_the_policy_predicts(history):
    frame = ChunkFrame("joints", scale=(2.0, 0.0), offset=(1.0, 0.0), spread=(0.5, 1.0))
    agent = Agent(Resting(history), {}, ("left",), Sampling(1.0, 0), execution_horizon=2, frame=frame)
    now = np.array([[0.5, 9], [1.0, 9]], np.float32)
    seen = now if history == 1 else np.stack([now - 1, now - 2, now], axis=1)
    decision = agent.decide({"joints": seen}, np.zeros((2, 2), np.uint32), np.zeros(2, np.int32), ("left", "left"))
    np.testing.assert_array_equal(decision.actions, [[[2, 0], [2, 0]], [[3, 0], [3, 0]]])
