"""The loop of an episode that every environment shares, and what a benchmark's module offers."""

import importlib

import numpy as np
import pytest

from cso_jax import envs
from cso_jax.envs import fake
from cso_jax.envs.protocol import Benchmark, InitState, TrainInit
from cso_jax.envs.slot import Slot

INIT = TrainInit("right", 0)


class Counter:
    """A simulation whose state is the number of its step; it is solved at `success_at`."""

    def __init__(self, *, success_at=None, horizon=20, first=None):
        self.success_at, self.limit, self.first = success_at, horizon, first
        self.step_number = 0
        self.looked: list[int] = []
        self.filmed: list[int] = []
        self.ends = 0

    def horizon(self, task):
        return self.limit

    def begin(self, init):
        self.step_number = 0
        return self.first

    def step(self, action):
        self.step_number += 1
        return self.step_number == self.success_at

    def observe(self):
        self.looked.append(self.step_number)
        return {"state": np.array([self.step_number], np.float32)}

    def frame(self):
        self.filmed.append(self.step_number)
        return np.full((1, 1, 3), self.step_number, np.uint8)

    def end(self):
        self.ends += 1


def slot_on(simulation, **options):
    return Slot(simulation, **{"action_dim": 2, "video_every": 4, **options})


def moves(count):
    return np.zeros((count, 2), np.float32)


def seen(result):
    return result.observation["state"][..., 0].tolist()


@pytest.mark.parametrize("name", envs.BENCHMARKS)
def test_every_benchmark_offers_what_the_protocol_lists(name):
    module = importlib.import_module(envs.BENCHMARKS[name])
    assert isinstance(module, Benchmark)
    assert module.default_config()["env"]["name"] == name
    assert (module.problems(module.default_config()["env"]) == []) == (name != "robot")  # a robot is the user's
    assert envs.factory({"name": name}) is module.make_environments


def test_a_chunk_is_looked_at_once():
    simulation = Counter()
    slot = slot_on(simulation)
    results = [slot.reset(INIT), slot.step_chunk(moves(8)), slot.step_chunk(moves(5))]
    assert [seen(result) for result in results] == [0, 8, 13]
    assert simulation.looked == [0, 8, 13] and simulation.filmed == []
    assert [(result.steps, result.done) for result in results] == [(0, False), (8, False), (5, False)]


@pytest.mark.parametrize(
    ("options", "steps", "success"), [({"success_at": 11}, 3, True), ({"horizon": 10}, 2, False)], ids=str
)
def test_success_or_the_horizon_ends_an_episode_within_a_chunk(options, steps, success):
    simulation = Counter(**options)
    slot = slot_on(simulation)
    slot.reset(INIT)
    slot.step_chunk(moves(8))
    ends = simulation.ends
    result = slot.step_chunk(moves(8))
    assert (result.steps, result.success, result.done, seen(result)) == (steps, success, True, 8 + steps)
    assert simulation.ends == ends + 1
    with pytest.raises(RuntimeError, match="no episode is under way"):
        slot.step_chunk(moves(1))


@pytest.mark.parametrize(("last_frame", "expected"), [(True, [0, 4, 8, 10]), (False, [0, 4, 8])])
def test_a_video_has_a_frame_every_few_steps_and_may_have_the_last(last_frame, expected):
    slot = slot_on(Counter(horizon=10), last_frame=last_frame)
    results = [slot.reset(INIT, record=True), slot.step_chunk(moves(6)), slot.step_chunk(moves(6))]
    assert [int(frame[0, 0, 0]) for result in results for frame in result.frames] == expected


def test_what_begins_another_way_is_shown_first():
    slot = slot_on(Counter(first={"state": np.array([-1.0], np.float32)}))
    assert [seen(slot.reset(INIT)), seen(slot.step_chunk(moves(2)))] == [-1, 2]


def test_impossible_calls_are_refused():
    slot = slot_on(Counter())
    with pytest.raises(RuntimeError, match="never reset"):
        slot.step_chunk(moves(1))
    with pytest.raises(TypeError, match="TrainInit or an EvalInit"):
        slot.reset(InitState("right", 0))
    slot.reset(INIT)
    for actions, message in ((np.zeros((3, 4)), r"\[E, 2\] with E > 0, got \[3, 4\]"), (moves(0), "E > 0"),
                             (np.full((1, 2), np.nan), "not finite")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            slot.step_chunk(actions)


def test_a_history_holds_the_last_steps_oldest_first():
    simulation = Counter()
    slot = slot_on(simulation, history=3)
    assert seen(slot.reset(INIT)) == [0, 0, 0]
    assert seen(slot.step_chunk(moves(1))) == [0, 0, 1]
    assert seen(slot.step_chunk(moves(1))) == [0, 1, 2]
    assert seen(slot.step_chunk(moves(8))) == [8, 9, 10]
    assert simulation.looked == [0, 1, 2, 8, 9, 10]
    assert seen(slot.step_chunk(moves(2))) == [10, 11, 12]
    assert seen(slot.reset(INIT)) == [0, 0, 0]


def test_a_history_ends_at_the_horizon_and_with_success():
    slot = slot_on(Counter(horizon=10), history=3)
    slot.reset(INIT)
    slot.step_chunk(moves(8))
    assert seen(slot.step_chunk(moves(8))) == [8, 9, 10]
    slot = slot_on(Counter(success_at=11), history=3)
    slot.reset(INIT)
    slot.step_chunk(moves(8))
    assert seen(slot.step_chunk(moves(8)))[-1] == 11


def test_the_history_of_the_fake_environment():
    """Each entry a stack of what single steps show; nothing else about the episode differs."""
    settings = {"obs": "pixels", "image_size": 16}
    (plain,), (stacked,) = fake.make_environments(settings, 1), fake.make_environments({**settings, "history": 2}, 1)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (8, 2)).astype(np.float32)
    single = [plain.reset(INIT), *(plain.step_chunk(action[None]) for action in actions)]
    first, second = stacked.reset(INIT), stacked.step_chunk(actions)
    assert first.observation["camera"].shape == (2, 16, 16, 3) and second.observation["state"].shape == (2, 4)
    for result, pair in ((first, (single[0], single[0])), (second, (single[-2], single[-1]))):
        for key, value in result.observation.items():
            np.testing.assert_array_equal(value, np.stack([one.observation[key] for one in pair]))
    assert fake.problems({"history": 0}) == ["config.env.history must be at least 1, got 0"]
