"""Ray's actors beside the local pool: the same records, whoever dies meanwhile, and one line where they cannot run."""

import time

import jax
import numpy as np
import pytest

from cso_jax import defaults
from cso_jax.envs import fake
from cso_jax.envs.protocol import TrainInit
from cso_jax.policies.agent import Agent
from cso_jax.policies.interface import Sampling
from cso_jax.policies.quest.policy import build
from cso_jax.rollout.actor import make_act
from cso_jax.rollout.episodes import EpisodeRequest, Interrupted, RolloutError
from cso_jax.rollout.pool import WorkerPool
from cso_jax.rollout.ray_engine import RayRunner

ray = pytest.importorskip("ray")

SLOTS = 2
SETTINGS = {"horizon": 24}
OPTIONS = {"step_timeout_s": 60.0, "start_timeout_s": 60.0, "max_attempts": 3, "recycle_after_episodes": 0}


@pytest.fixture(scope="module")
def act():
    config = defaults.metaworld()
    config.autoencoder.chunk_length = 8
    for section in (config.autoencoder, config.prior):
        section.width, section.heads = 16, 2
    config.autoencoder.encoder_layers = config.autoencoder.decoder_layers = config.prior.layers = 1
    config.encoder.lowdim_width = 8
    spec = fake.spec({})
    policy = build(config, spec, num_tasks=3)
    variables = policy.init(jax.random.key(0), spec)
    agent = Agent(policy, variables, fake.DEFAULT_TASKS, Sampling(1.0, 5), execution_horizon=4)
    return make_act(agent, keep=("skill",))


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def requests(count=10):
    return [
        EpisodeRequest(TrainInit(fake.DEFAULT_TASKS[i % 3], i), np.array([7, i], np.uint32), tag=i)
        for i in range(count)
    ]


def runner(lines=None, **changes):
    options = {"address": "", "actors": 2, "cpus": 1, "gpus": 0.0, "slots": SLOTS, "settings": SETTINGS}
    options |= changes
    return RayRunner(
        fake.make_environments,
        options.pop("settings"),
        pool_options=OPTIONS,
        start_timeout_s=240.0,
        max_attempts=3,
        log=(lambda line: None) if lines is None else lines.append,
        **options,
    )


@pytest.fixture(scope="module")
def reference(act):
    with WorkerPool(fake.make_environments, SETTINGS, workers=1, slots=SLOTS) as pool:
        return pool.run(requests(), act, keep_observations=True)


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a.request.tag, a.success, a.steps) == (b.request.tag, b.success, b.steps)
        np.testing.assert_array_equal(a.actions, b.actions)
        assert a.decisions.keys() == b.decisions.keys() and a.observations.keys() == b.observations.keys()
        for name in a.decisions:
            np.testing.assert_array_equal(a.decisions[name], b.decisions[name])
        for name in a.observations:
            np.testing.assert_array_equal(a.observations[name], b.observations[name])


def test_records_are_those_of_the_local_pool_and_another_agent_is_noticed(cluster, act, reference):
    one = runner()
    seen = []
    found = one.run(requests(), act, keep_observations=True, on_episode=lambda place, record: seen.append(place))
    same(found, reference)
    assert sorted(seen) == list(range(10))
    assert one.stats.episodes == 10 and one.stats.physics_s > 0
    changed = jax.tree.map(lambda leaf: leaf + 0.1, act.agent.variables)
    other = make_act(Agent(**{**vars(act.agent), "variables": changed}), keep=("skill",))
    again = one.run(requests(4), other, keep_observations=True)
    assert any((a.actions != b.actions).any() for a, b in zip(again, reference, strict=False))
    same(one.run(requests(), act, keep_observations=True), reference)
    one.close()
    one.close()
    with pytest.raises(RuntimeError, match="closed"):
        one.run(requests(), act, keep_observations=True)


def test_an_actor_that_dies_is_replaced_and_a_stopped_runner_goes_on(cluster, act, reference):
    lines = []
    one = runner(lines)

    def kill(place, record):
        if not lines:
            ray.kill(one._hosts[0].handle)
            lines.append("killed")

    same(one.run(requests(), act, keep_observations=True, on_episode=kill), reference)
    assert one.restarts >= 1 and any("a rollout actor is gone" in line for line in lines)
    begun = time.monotonic()
    with pytest.raises(Interrupted, match="of 400 episodes unfinished"):
        one.run(requests(400), act, keep_observations=False, stop=lambda: time.monotonic() > begun + 1.0)
    same(one.run(requests(), act, keep_observations=True), reference)
    one.close()


def test_what_it_cannot_do_is_one_line(cluster, act):
    one = runner(actors=3)
    with pytest.raises(RolloutError, match=r"room for 2 actors of config.rollout.ray.cpus = 1 CPUs, .* asks for 3"):
        one.run(requests(), act, keep_observations=False)
    one.close()
    one = runner()
    with pytest.raises(RolloutError, match="engine=ray runs the policies of this library"):
        one.run(requests(), lambda *arguments: None, keep_observations=False)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, act.agent.variables)
    other = make_act(Agent(**{**vars(act.agent), "variables": broken}))
    with pytest.raises(RolloutError, match=r"are not finite for train:.* its parameters are broken"):
        one.run(requests(), other, keep_observations=False)
    one.close()


def test_no_cluster_is_one_line(act, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    one = runner(address="127.0.0.1:1")
    with pytest.raises(RolloutError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        one.run(requests(), act, keep_observations=False)


@pytest.mark.slow
def test_a_machine_that_is_lost_costs_nothing_but_time(act):
    """Two nodes with a raylet each; the second is killed while its actors run."""
    from ray.cluster_utils import Cluster

    with WorkerPool(fake.make_environments, SETTINGS, workers=1, slots=SLOTS) as pool:
        expected = pool.run(requests(80), act, keep_observations=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    third = None
    lines = []
    one = runner(lines, address=cluster.address)
    try:

        def lose(place, record):
            nonlocal third
            if third is None:
                third = cluster.add_node(num_cpus=1)
                cluster.remove_node(second, allow_graceful=False)

        same(one.run(requests(80), act, keep_observations=True, on_episode=lose), expected)
        assert one.restarts >= 1 and any("a rollout actor is gone" in line for line in lines)
    finally:
        one.close()
        cluster.shutdown()
