"""LIBERO in the worker pool: many episodes over many tasks, some workers killed; no hang, no leak, nothing lost."""

import multiprocessing
import os
import signal

import numpy as np
import psutil
import pytest

from cso_jax import defaults, envs
from cso_jax.envs.libero.assets import assets_folder
from cso_jax.envs.protocol import TrainInit
from cso_jax.rollout.episodes import EpisodeRequest
from cso_jax.rollout.pool import WorkerPool

EPISODES, TASKS, KILL_EVERY = 200, 10, 50


def act(observations, keys, decision_index, tasks):
    generators = [np.random.default_rng([*key, index]) for key, index in zip(keys, decision_index, strict=True)]
    return np.stack([generator.uniform(-1, 1, (8, 7)).astype(np.float32) for generator in generators]), {}


def settings_of(**changes):
    config = defaults.libero()
    try:
        assets_folder("")
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(str(error).splitlines()[0])
    settings = config.env.to_dict() | {"tasks": ("libero_object",), "obs": "state", "horizon": 24} | changes
    return settings


def requests_of(settings, episodes):
    tasks = envs.task_names(settings)
    return [
        EpisodeRequest(TrainInit(tasks[number % len(tasks)], number), np.array([7, number], np.uint32))
        for number in range(episodes)
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_soak(obs):
    settings = settings_of(obs=obs, image_size=64)
    requests = requests_of(settings, EPISODES)
    assert len({request.init.task for request in requests}) == TASKS
    done, memory = [], []

    def on_episode(_, record):
        done.append(record)
        children = [child for child in multiprocessing.active_children() if child.is_alive()]
        memory.append(sum(psutil.Process(child.pid).memory_info().rss for child in children))
        if len(done) % KILL_EVERY == 0 and len(done) < EPISODES:
            os.kill(children[len(done) // KILL_EVERY % len(children)].pid, signal.SIGKILL)

    events = []
    with WorkerPool(envs.make_environments, settings, workers=2, slots=3, max_attempts=5, log=events.append) as pool:
        records = pool.run(requests, act, keep_observations=False, on_episode=on_episode)
    assert len(records) == EPISODES
    assert pool.restarts == EPISODES // KILL_EVERY - 1, events
    assert max(memory[-40:]) < 1.3 * max(memory[40:80]), [value >> 20 for value in memory[::10]]


@pytest.mark.slow
def test_records_do_not_depend_on_workers_and_slots():
    settings = settings_of()
    requests = requests_of(settings, 12)
    runs = []
    for workers, slots in ((1, 1), (2, 4)):
        with WorkerPool(envs.make_environments, settings, workers=workers, slots=slots, batch_size=4) as pool:
            runs.append(pool.run(requests, act, keep_observations=True))
    for alone, together in zip(*runs, strict=True):
        assert alone.steps == together.steps
        for name, values in alone.observations.items():
            np.testing.assert_array_equal(values, together.observations[name])
