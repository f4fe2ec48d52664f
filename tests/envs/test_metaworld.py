"""MetaWorld behind the environment protocol: exact replay, equality with its own step, episodes, pool, images."""

import weakref

import numpy as np
import pytest

from cso_jax.envs import gl
from cso_jax.envs.metaworld import benchmark as metaworld
from cso_jax.envs.metaworld import environment
from cso_jax.envs.metaworld.simulator import ML45_TEST, ML45_TRAIN, Simulator, SimulatorPool, task_names, task_sets
from cso_jax.envs.protocol import EvalInit, InitState, TrainInit

# One task of each kind of bookkeeping: own success rule, contact forces, scipy quaternions, two objects, moved bodies.
TASKS = ("stick-push-v3", "pick-place-v3", "hammer-v3", "window-open-v3", "basketball-v3")
STATE = {"name": "metaworld", "obs": "state"}

pytestmark = pytest.mark.filterwarnings("ignore:Constant")  # MetaWorld's policies ask for more than 1, then clipped


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


def stock_environment(task: str):
    """MetaWorld's own environment with a visible goal and a reset that follows `seed`."""
    from metaworld.env_dict import ENV_CLS_MAP

    env = ENV_CLS_MAP[task]()
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    env._set_task_called = True
    env.seeded_rand_vec = True
    env._freeze_rand_vec = False
    return env


def expert(task: str):
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[task]()


def solve(slot, init: InitState, limit: int = 300):
    """Drive a state slot with the task's expert, one step per chunk; all results, the reset's first."""
    policy = expert(init.task)
    results = [slot.reset(init)]
    while not results[-1].done and len(results) < limit:
        action = np.clip(policy.get_action(results[-1].observation["state"].astype(np.float64)), -1, 1)
        results.append(slot.step_chunk(action[None]))
    return results


def assert_same_as_stock(task: str, seed: int, steps: int) -> set[bool]:
    """Noisy expert steps, then 20 random ones, here and in MetaWorld itself; the values of success that occurred."""
    seen = set()
    simulator, stock, policy = Simulator(task), stock_environment(task), expert(task)
    noise = np.random.default_rng(seed)
    simulator.reset(seed + 1)
    simulator.step(np.ones(4, np.float32))
    simulator.reset(seed)
    stock.seed(seed)
    theirs, _ = stock.reset()
    for step in range(steps + 20):
        wanted = policy.get_action(theirs) + noise.normal(0, 0.1, 4) if step < steps else noise.uniform(-1, 1, 4)
        action = np.clip(wanted, -1, 1).astype(np.float32)
        theirs, _, _, _, info = stock.step(action)
        ours, success = simulator.step(action)
        if step == 0:  # the frame before the first one is MetaWorld's stale first observation
            ours[18:36] = theirs[18:36]
        np.testing.assert_array_equal(ours, theirs)
        assert success == bool(info["success"])
        seen.add(success)
    np.testing.assert_array_equal(simulator.data.qpos, stock.data.qpos)
    np.testing.assert_array_equal(simulator.data.qacc_warmstart, stock.data.qacc_warmstart)
    return seen


def test_task_sets_are_those_of_metaworld():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML45_V3

    assert tuple(ML45_V3["train"]) == ML45_TRAIN
    assert tuple(ML45_V3["test"]) == ML45_TEST
    assert set(task_names("MT50")) == set(ALL_V3_ENVIRONMENTS)
    assert (len(ML45_TRAIN), len(ML45_TEST)) == (45, 5)
    assert not set(ML45_TRAIN) & set(ML45_TEST)


def test_unknown_set_names_the_sets():
    with pytest.raises(ValueError, match="ML45-train, ML45-test, MT50"):
        task_names("ML10")
    assert set(task_sets()) == {"ML45-train", "ML45-test", "MT50"}


def test_unknown_task_names_the_nearest():
    slot = metaworld.make_environments(STATE, 1)[0]
    with pytest.raises(ValueError, match=r"no task 'push-v2'; did you mean .*push-v3"):
        slot.reset(TrainInit("push-v2", 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": "depth"}, "obs must be"),
        ({"horizon": 501}, r"horizon must be in \[1, 500\]"),
        ({"horizon": 0}, "horizon"),
        ({"video_every": 0}, "video_every"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"cameras": ()}, "cameras is empty"),
        ({"render": {"shadow": True}}, "render takes shadows, reflections, msaa"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        metaworld.spec({**STATE, **change})


def test_spec_of_state_and_pixels():
    assert metaworld.spec(STATE).lowdim == {"state": 39}
    pixels = metaworld.spec({"obs": "pixels", "cameras": ["corner2", "corner"], "image_size": 64})
    assert pixels.lowdim == {"hand": 4}
    assert pixels.images == {"corner2": (64, 64, 3), "corner": (64, 64, 3)}
    assert pixels.action_dim == 4


@pytest.mark.parametrize("task", TASKS)
def test_step_is_that_of_metaworld(task):
    assert assert_same_as_stock(task, seed=3, steps=120) == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("task", task_names("MT50"))
@pytest.mark.parametrize("seed", [0, 2**30 + 7])
def test_step_is_that_of_metaworld_in_every_task(task, seed):
    assert_same_as_stock(task, seed, steps=200)


@pytest.mark.parametrize("task", TASKS)
def test_an_initial_state_replays_bit_for_bit(task):
    slot, fresh = metaworld.make_environments(STATE, 2)
    actions = random_actions(24)

    def run(environment, init):
        results = [environment.reset(init), environment.step_chunk(actions[:16]), environment.step_chunk(actions[16:])]
        return np.stack([result.observation["state"] for result in results])

    first = run(slot, TrainInit(task, 11))
    other = run(slot, EvalInit(task, 11))
    run(slot, TrainInit("reach-v3", 0))  # another task uses the slot in between
    np.testing.assert_array_equal(run(slot, TrainInit(task, 11)), first)
    slot.reset(TrainInit(task, 12))  # keeps the used simulator busy, so that the other slot builds its own
    np.testing.assert_array_equal(run(fresh, TrainInit(task, 11)), first)
    assert not np.array_equal(other[0], first[0])
    slot.close()
    fresh.close()


@pytest.mark.parametrize("between", [(), range(1, 20)], ids=["copied", "simulated"])
def test_nothing_left_behind_in_a_simulator_survives_a_reset(between):
    simulator = Simulator("push-v3")
    first = simulator.reset(0)
    for seed in between:
        simulator.reset(seed)
    simulator.model.body_pos += 0.05
    simulator.model.site_pos += 0.05
    simulator._env.init_config["hand_init_pos"] += 0.05
    simulator._env.goal = simulator._env.goal + 1
    simulator._env.hand_init_pos = np.zeros(3)
    simulator._env.left_behind = True
    np.testing.assert_array_equal(simulator.reset(0), first)
    assert not hasattr(simulator._env, "left_behind")


@pytest.mark.parametrize("task", TASKS)
def test_a_copied_start_is_the_simulated_one_bit_for_bit(task):
    assert_copied_start_is_the_same(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", task_names("MT50"))
def test_a_copied_start_is_the_same_in_every_task(task):
    assert_copied_start_is_the_same(task)


def assert_copied_start_is_the_same(task: str) -> None:
    """An episode simulated from nothing, and from what a simulator before it has left, after another episode."""
    first, alone = Simulator(task), Simulator(task)
    second = Simulator(task, first.shared)
    first.reset(7)
    second.reset(8)
    policy = expert(task)
    for _ in range(5):
        first.step(np.ones(4, np.float32))
        second.step(-np.ones(4, np.float32))
    state = alone.reset(7)
    np.testing.assert_array_equal(second.reset(7), state)
    np.testing.assert_array_equal(second.data.cam_xpos, alone.data.cam_xpos)
    for _ in range(80):
        action = np.clip(policy.get_action(state), -1, 1).astype(np.float32)
        state, success = alone.step(action)
        copied, copied_success = second.step(action)
        np.testing.assert_array_equal(copied, state)
        assert copied_success == success
    for name in ("qpos", "qvel", "qacc_warmstart", "site_xpos", "xquat"):
        np.testing.assert_array_equal(getattr(second.data, name), getattr(alone.data, name))


def test_a_group_simulates_its_start_once_and_old_starts_go(monkeypatch):
    simulated = []
    begin = Simulator._begin
    monkeypatch.setattr(Simulator, "_begin", lambda self, seed: simulated.append(seed) or begin(self, seed))
    simulators = [Simulator("reach-v3")]
    simulators.append(Simulator("reach-v3", simulators[0].shared))
    for seed in (0, 0, 1, 0, 1):
        for simulator in simulators:
            simulator.reset(seed)
    assert simulated == [0, 1]
    for seed in range(2, 12):
        simulators[0].reset(seed)
    simulators[1].reset(0)
    assert simulated == [*range(12), 0]


@pytest.mark.parametrize("task", TASKS)
def test_simulators_that_share_a_model_do_not_disturb_one_another(task):
    assert_sharing_changes_nothing(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", task_names("MT50"))
def test_simulators_of_every_task_can_share_a_model(task):
    assert_sharing_changes_nothing(task)


def assert_sharing_changes_nothing(task: str) -> None:
    """Two interleaved episodes on one model, one of them restarted half-way, against the same episode alone."""
    alone, one = Simulator(task), Simulator(task)
    other = Simulator(task, one.shared)
    assert other.model is one.model
    policy = expert(task)
    state = alone.reset(1)
    np.testing.assert_array_equal(one.reset(1), state)
    other.reset(2)
    for step in range(60):
        action = np.clip(policy.get_action(state), -1, 1).astype(np.float32)
        state, success = alone.step(action)
        other.step(-action)
        if step == 30:
            other.reset(3)
            Simulator(task, one.shared)
        shared, shared_success = one.step(action)
        np.testing.assert_array_equal(shared, state)
        assert shared_success == success
    np.testing.assert_array_equal(one.data.site_xpos, alone.data.site_xpos)


@pytest.mark.slow
@pytest.mark.parametrize("task", task_names("MT50"))
def test_every_task_replays_after_ten_other_episodes(task):
    simulator, fresh = Simulator(task), Simulator(task)
    actions = random_actions(40)
    for seed in range(10):
        simulator.reset(seed)
        for action in actions:
            simulator.step(action)
    np.testing.assert_array_equal(simulator.reset(99), fresh.reset(99))
    for action in actions:
        np.testing.assert_array_equal(simulator.step(action)[0], fresh.step(action)[0])


@pytest.mark.parametrize("task", ["reach-v3", "push-v3", "basketball-v3"])
def test_the_goal_is_visible_and_the_splits_differ(task):
    slot = metaworld.make_environments(STATE, 1)[0]
    goals = {}
    for init in (TrainInit(task, 5), EvalInit(task, 5)):
        before = slot.reset(init).observation["state"][36:]
        after = slot.step_chunk(random_actions(1)).observation["state"][36:]
        np.testing.assert_array_equal(before, after)
        assert np.abs(before).max() > 0.01
        goals[init.split] = before
    slot.close()
    assert not np.array_equal(goals["train"], goals["eval"])


def test_splits_have_disjoint_seeds_and_names_without_a_split_are_refused():
    assert environment.seed_of(TrainInit("push-v3", 2**30 - 1)) < environment.seed_of(EvalInit("push-v3", 0))
    with pytest.raises(TypeError, match="TrainInit or an EvalInit"):
        metaworld.make_environments(STATE, 1)[0].reset(InitState("push-v3", 0))


@pytest.mark.parametrize("task", ["window-open-v3", "lever-pull-v3", "dial-turn-v3"])
def test_the_first_state_shows_the_objects_where_they_are(task):
    simulator = Simulator(task)
    first = simulator.reset(1)
    second, _ = simulator.step(np.zeros(4, np.float32))
    assert np.abs(first[4:7] - second[4:7]).max() < 0.01
    np.testing.assert_array_equal(second[18:36], first[:18])


def test_success_ends_the_episode_and_returns_the_simulator():
    slot = metaworld.make_environments({**STATE, "instance_cap": 7}, 1)[0]
    pool = environment.process_pool(7)
    results = solve(slot, TrainInit("reach-v3", 0))
    assert results[0].steps == 0 and not results[0].done
    assert results[-1].success and results[-1].done
    assert not any(result.success or result.done for result in results[:-1])
    assert (pool.in_use, len(pool)) == (0, 1)
    with pytest.raises(RuntimeError, match="no episode is under way"):
        slot.step_chunk(random_actions(1))


def test_a_chunk_stops_at_success():
    slot = metaworld.make_environments(STATE, 1)[0]
    policy = expert("reach-v3")
    simulator = Simulator("reach-v3")
    state, actions, success = simulator.reset(4), [], False
    while not success:
        actions.append(np.clip(policy.get_action(state), -1, 1).astype(np.float32))
        state, success = simulator.step(actions[-1])
    slot.reset(TrainInit("reach-v3", 4))
    result = slot.step_chunk(np.stack([*actions, *random_actions(10)]))
    assert (result.steps, result.success, result.done) == (len(actions), True, True)
    np.testing.assert_array_equal(result.observation["state"], state.astype(np.float32))


def test_the_horizon_ends_the_episode_without_success():
    slot = metaworld.make_environments({**STATE, "horizon": 10}, 1)[0]
    slot.reset(TrainInit("push-v3", 0))
    first, second = slot.step_chunk(random_actions(8)), slot.step_chunk(random_actions(8))
    assert (first.steps, first.done) == (8, False)
    assert (second.steps, second.done, second.success) == (2, True, False)
    assert first.physics_s > 0


def test_five_hundred_steps_are_possible():
    slot = metaworld.make_environments(STATE, 1)[0]
    slot.reset(TrainInit("push-v3", 0))
    result = slot.step_chunk(np.zeros((600, 4), np.float32))
    assert (result.steps, result.done) == (500, True)


def test_actions_are_clipped():
    a, b = metaworld.make_environments(STATE, 2)
    a.reset(TrainInit("push-v3", 0))
    b.reset(TrainInit("push-v3", 0))
    wild = 3 * random_actions(8)
    left, right = a.step_chunk(wild), b.step_chunk(np.clip(wild, -1, 1))
    np.testing.assert_array_equal(left.observation["state"], right.observation["state"])
    a.close()
    b.close()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([[0, 0, np.nan, 0]]), "not finite"),
        (np.zeros((3, 7)), r"\[E, 4\] with E > 0, got \[3, 7\]"),
        (np.zeros((0, 4)), "E > 0"),
    ],
)
def test_impossible_actions_are_refused_and_nothing_moves(actions, message):
    slot = metaworld.make_environments(STATE, 1)[0]
    slot.reset(TrainInit("reach-v3", 0))
    with pytest.raises(ValueError, match=message):
        slot.step_chunk(actions)
    assert slot.step_chunk(random_actions(2)).steps == 2
    slot.close()


def test_the_pool_reuses_and_evicts_the_oldest_idle():
    pool = SimulatorPool(2)
    reach, push = pool.acquire("reach-v3"), pool.acquire("push-v3")
    pool.release(reach)
    pool.release(push)
    assert pool.acquire("push-v3") is push
    pool.release(push)
    pool.release(pool.acquire("door-open-v3"))  # reach was idle for longest
    assert len(pool) == 2
    assert pool.acquire("push-v3") is push
    assert pool.acquire("reach-v3") is not reach
    assert (pool.in_use, len(pool)) == (2, 2)


def test_a_model_goes_with_its_last_simulator():
    pool = SimulatorPool(2)
    first, second = pool.acquire("reach-v3"), pool.acquire("reach-v3")
    assert first.shared is second.shared
    model = weakref.ref(first.shared)
    for simulator in (first, second):
        pool.release(simulator)
    for task in ("push-v3", "door-open-v3"):
        pool.release(pool.acquire(task))
    assert model() is None


def test_a_step_before_the_first_reset_is_refused():
    with pytest.raises(RuntimeError, match="reset the simulator"):
        Simulator("reach-v3").step(np.zeros(4, np.float32))


def test_more_slots_than_the_cap_still_work():
    pool = SimulatorPool(1)
    held = [pool.acquire("reach-v3") for _ in range(2)]
    assert len({id(simulator) for simulator in held}) == 2
    for simulator in held:
        pool.release(simulator)
    assert (pool.in_use, len(pool)) == (0, 1)


@pytest.fixture(scope="module")
def drawing():
    if not any(gl.backend_works(name) for name in gl.BACKENDS):
        pytest.skip("no OpenGL library here draws without a display")
    with pytest.MonkeyPatch.context() as patch:
        if gl.gl_name() == "none":
            patch.setenv("MUJOCO_GL", next(name for name in gl.BACKENDS if gl.backend_works(name)))
        yield


PIXELS = {"name": "metaworld", "obs": "pixels", "image_size": 64, "video_size": 64}


def test_pixel_observations_have_the_shapes_of_the_spec(drawing):
    settings = {**PIXELS, "cameras": ("corner2", "gripperPOV")}
    slot = metaworld.make_environments(settings, 1)[0]
    for result in (slot.reset(TrainInit("push-v3", 0)), slot.step_chunk(random_actions(4))):
        shapes = metaworld.spec(settings)
        assert {key: value.shape for key, value in result.observation.items()} == {"hand": (4,), **shapes.images}
        assert result.observation["corner2"].dtype == np.uint8
        assert result.observation["corner2"].std() > 10
        assert result.render_s > 0
        assert result.frames == []
    slot.close()


def test_images_are_drawn_once_per_chunk(drawing, monkeypatch):
    slot = metaworld.make_environments(PIXELS, 1)[0]
    drawn = []
    original = gl.SceneRenderer.render
    monkeypatch.setattr(gl.SceneRenderer, "render", lambda self, *a: drawn.append(1) or original(self, *a))
    slot.reset(TrainInit("push-v3", 0))
    slot.step_chunk(random_actions(8))
    slot.close()
    assert len(drawn) == 2


def test_the_first_image_shows_the_goal_of_this_episode(drawing):
    slot = metaworld.make_environments(PIXELS, 1)[0]
    still = np.zeros((1, 4), np.float32)
    first = slot.reset(TrainInit("plate-slide-v3", 3)).observation["corner2"]
    second = slot.step_chunk(still).observation["corner2"]
    other = slot.reset(TrainInit("plate-slide-v3", 4)).observation["corner2"]
    slot.close()

    def differing(left, right):
        return int((np.abs(left.astype(int) - right).max(axis=-1) > 40).sum())

    assert differing(first, second) < differing(first, other) / 4


def test_slots_with_different_tasks_draw_their_own(drawing):
    a, b = metaworld.make_environments(PIXELS, 2)
    alone = a.reset(TrainInit("push-v3", 0)).observation["corner2"]
    b.reset(TrainInit("door-open-v3", 0))
    again = a.reset(TrainInit("push-v3", 0)).observation["corner2"]
    a.close()
    b.close()
    np.testing.assert_array_equal(alone, again)


def test_the_robot_stands_upright(drawing):
    slot = metaworld.make_environments(PIXELS, 1)[0]
    image = slot.reset(TrainInit("reach-v3", 0)).observation["corner2"].astype(int)
    slot.close()
    red = (image[..., 0] > 90) & (image[..., 1] < 60) & (image[..., 2] < 60)
    grey_wall = image[:8].std(axis=(0, 1)).max()
    assert red.sum() > 50
    assert grey_wall < 5  # the plain wall is at the top, the floor and the table legs at the bottom


def test_shadows_change_the_image(drawing):
    images = []
    for shadows in (False, True):
        render = {"shadows": shadows, "reflections": False, "msaa": 0}
        slot = metaworld.make_environments({**PIXELS, "render": render}, 1)[0]
        images.append(slot.reset(TrainInit("reach-v3", 0)).observation["corner2"].astype(int))
        slot.close()
    assert np.abs(images[0] - images[1]).max() > 20


@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_recording_keeps_every_fourth_frame_and_the_last(drawing, obs):
    slot = metaworld.make_environments({**PIXELS, "obs": obs, "horizon": 10, "video_size": 48}, 1)[0]
    results = [slot.reset(TrainInit("push-v3", 0), record=True)]
    results += [slot.step_chunk(random_actions(8)), slot.step_chunk(random_actions(8))]
    assert [len(result.frames) for result in results] == [1, 2, 1]
    assert results[-1].frames[0].shape == (48, 48, 3)


def test_an_unknown_camera_lists_those_there_are(drawing):
    slot = metaworld.make_environments({**PIXELS, "cameras": ("corner9",)}, 1)[0]
    with pytest.raises(ValueError, match=r"corner9.*corner2"):
        slot.reset(TrainInit("push-v3", 0))
    slot.close()


def test_state_runs_record_no_video_where_nothing_draws(monkeypatch):
    monkeypatch.setattr(environment, "can_draw", lambda: False)
    slot = metaworld.make_environments(STATE, 1)[0]
    assert slot.reset(TrainInit("push-v3", 0), record=True).frames == []
    slot.close()
