"""LIBERO behind the environment protocol: settings, protocols, initial states, episodes, shared scenes, states."""

import itertools

import numpy as np
import pytest
from support.libero import BOWL, DRAWER, KNOB, MILK, STOVE, actions, assets, settings, write_demonstrations

from cso_jax.envs.libero import benchmark as libero
from cso_jax.envs.libero import environment as libero_environment
from cso_jax.envs.libero import simulator as libero_simulator
from cso_jax.envs.libero.files import SUITES, benchmark_states, task_sets
from cso_jax.envs.libero.protocols import PROTOCOLS, fixture_poses, horizon
from cso_jax.envs.libero.scenes import SceneShare
from cso_jax.envs.libero.settings import Settings
from cso_jax.envs.libero.simulator import Scene
from cso_jax.envs.libero.state import ENTITIES, GOAL_PARTS, STATE_DIM, entity_order, state_vector
from cso_jax.envs.protocol import EvalInit, InitState, TrainInit


@pytest.fixture(autouse=True)
def installed():
    assets()


@pytest.fixture(scope="module")
def share():
    """Scenes that the tests of this module use instead of the process's, compiled once."""
    made = SceneShare(5, settings())
    yield made
    made.capacity = 0


@pytest.fixture
def slots(monkeypatch, share):
    """Makes slots under given settings, on the scenes of this module."""
    monkeypatch.setattr(libero, "process_scenes", lambda *_: share)
    made = []

    def make(count: int = 1, **changes):
        options = {
            key: changes.pop(key)
            for key in ("protocol", "train_states", "datasets", "joint_noise", "physics")
            if key in changes
        }
        made.extend(libero.make_environments({**settings(**options), **changes}, count))
        return made[-count:]

    yield make
    for slot in made:
        slot.close()


def scene_of(slot) -> Scene:
    return slot.simulation.scene()


def flat(result) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in result.observation.values()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": "depth"}, "obs must be one of pixels, state, got 'depth'"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"cameras": ("corner2",)}, "cameras must be some of agentview, .*got corner2"),
        ({"cameras": ()}, "got none"),
        ({"libero": {"protocol": "own"}}, "libero.protocol must be one of settle, quest_compat, openpi"),
        ({"libero": {"physics": "own"}}, "libero.physics must be one of official, fast"),
        ({"libero": {"render": "slow"}}, "libero.render must be one of official, fast"),
        ({"libero": {"decimate": 600}}, "libero.render=fast"),
        ({"libero": {"scenes": 0}}, "libero.scenes must be at least 1"),
        ({"libero": {"train_states": "demonstrations"}}, "needs config.env.libero.datasets"),
        ({"libero": {"spread": (1.0, 1.0)}}, "libero.spread must be .. or 7 numbers above 0, got"),
        ({"libero": {"spread": (1.0,) * 6 + (0.0,)}}, "7 numbers above 0"),
        ({"libero": {"colour": 1}}, "takes assets, .*got colour"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        libero.spec({"name": "libero", **change})


def test_spec_of_state_and_pixels():
    state = libero.spec({"obs": "state"})
    assert state.lowdim == {"joint_states": 7, "gripper_states": 2, "ee_pos": 3, "state": STATE_DIM}
    pixels = libero.spec({"obs": "pixels", "image_size": 64, "libero": {"proprio": "joints_ee"}})
    assert pixels.images == {"agentview_rgb": (64, 64, 3), "eye_in_hand_rgb": (64, 64, 3)}
    assert pixels.lowdim == {"joint_states": 7, "gripper_states": 2, "ee_pos": 3}
    assert "ee_pos" not in libero.spec({}).lowdim
    hand = libero.spec({"obs": "pixels", "libero": {"proprio": "ee8"}})
    assert hand.lowdim == {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
    assert state.frame is None
    spread = (0.4, 0.4, 0.5, 0.1, 0.1, 0.1, 1.0)
    assert libero.spec({"obs": "state", "libero": {"spread": spread}}).frame.spread == spread
    assert pixels.action_dim == 7 and libero.sentence({}, MILK) == "pick up the milk and place it in the basket"


def test_horizons_are_those_of_the_protocols():
    tasks = [task_sets()[suite][0] for suite in SUITES]
    assert [horizon(PROTOCOLS["openpi"], task, 600) for task in tasks] == [220, 280, 300, 520, 400]
    assert [horizon(PROTOCOLS["openpi"], task, 250) for task in tasks] == [220, 250, 250, 250, 250]
    assert [horizon(PROTOCOLS["settle"], task, 700) for task in tasks] == [700] * 5
    assert [horizon(PROTOCOLS["quest_compat"], task, 700) for task in tasks] == [600] * 5


def test_settling_is_ten_no_op_steps_and_a_fresh_observation(slots):
    (slot,) = slots(protocol="settle")
    result = slot.reset(EvalInit(MILK, 3))
    assert (result.steps, result.success, result.done) == (0, False, False)
    settled = scene_of(slot).flat_state()
    scene = scene_of(slot)
    scene.reset_benchmark(3, 3)
    for _ in range(10):
        scene.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    np.testing.assert_array_equal(scene.flat_state(), settled)
    np.testing.assert_array_equal(result.observation["state"], state_vector(scene))
    np.testing.assert_array_equal(result.observation["joint_states"], scene.joint_states().astype(np.float32))
    assert np.abs(scene.gripper_states()).min() > 0.035


def test_quest_compat_shows_another_scene_and_does_not_settle(slots):
    (slot,) = slots(protocol="quest_compat")
    result = slot.reset(EvalInit(MILK, 53))
    scene = scene_of(slot)
    np.testing.assert_array_equal(scene.flat_state(), benchmark_states(MILK)[3])
    assert np.abs(result.observation["state"] - state_vector(scene)).max() > 0.005
    np.testing.assert_array_equal(flat(slot.reset(EvalInit(MILK, 53))), flat(result))


def test_train_starts_are_placements_and_never_benchmark_states(slots, monkeypatch):
    monkeypatch.setattr(libero_simulator, "benchmark_states", lambda task: pytest.fail("read the benchmark's states"))
    for protocol in PROTOCOLS:
        (slot,) = slots(protocol=protocol)
        starts = [flat(slot.reset(TrainInit(MILK, index))) for index in (0, 1, 50)]
        assert len({start.tobytes() for start in starts}) == 3


def test_joint_noise_moves_the_arm_of_train_starts_only(slots):
    (still,), (noisy,) = slots(protocol="quest_compat"), slots(protocol="quest_compat", joint_noise=0.02)
    joints = {}
    for name, slot in (("still", still), ("noisy", noisy), ("again", noisy)):
        slot.reset(TrainInit(MILK, 3))
        joints[name] = scene_of(slot).joint_states().copy()
    np.testing.assert_array_equal(joints["noisy"], joints["again"])
    assert 0.002 < np.abs(joints["noisy"] - joints["still"]).max() < 0.1
    for slot in (still, noisy):
        slot.reset(EvalInit(MILK, 3))
        np.testing.assert_array_equal(scene_of(slot).flat_state(), benchmark_states(MILK)[3])


def test_fast_physics_are_those_of_train_starts_only(slots):
    (slot,) = slots(physics="fast")
    for kind, exact in ((TrainInit, False), (EvalInit, True), (TrainInit, False)):
        slot.reset(kind(MILK, 3))
        assert scene_of(slot).arm.command.exact is exact


def test_eval_fixtures_follow_the_whole_index(slots):
    (slot,) = slots(protocol="quest_compat")
    cabinets, states = [], []
    for index in (3, 53):
        slot.reset(EvalInit(BOWL, index))
        cabinets.append(scene_of(slot).object_pose("wooden_cabinet_1")[0])
        states.append(scene_of(slot).flat_state())
    np.testing.assert_array_equal(*states)
    assert not np.array_equal(*cabinets)


def test_train_starts_can_come_from_demonstrations(slots, tmp_path):
    scene = Scene(BOWL, settings())
    states, models = [], []
    for seed in (11, 12):
        scene.reset_placement(seed)
        states.append(scene.flat_state())
        models.append(scene.object_pose("wooden_cabinet_1")[0])
    xml = f"<mujoco><worldbody><body name='wooden_cabinet_1_main' pos='{' '.join(map(str, models[0]))}'/></worldbody>"
    write_demonstrations(
        tmp_path / "libero_spatial", BOWL, [np.stack([state] * 3) for state in states], xml + "</mujoco>"
    )
    (slot,) = slots(protocol="quest_compat", train_states="demonstrations", datasets=str(tmp_path))
    for index in (0, 3):
        slot.reset(TrainInit(BOWL, index))
        np.testing.assert_array_equal(scene_of(slot).flat_state(), states[index % 2])
        np.testing.assert_array_equal(scene_of(slot).object_pose("wooden_cabinet_1")[0], models[0])
    slot.reset(EvalInit(BOWL, 0))
    np.testing.assert_array_equal(scene_of(slot).flat_state(), benchmark_states(BOWL)[0])
    scene.close()


def test_fixture_poses_are_those_of_bodies_in_the_world():
    poses = fixture_poses("<mujoco><worldbody><body name='a' pos='1 2 3'><body name='b'/></body></worldbody></mujoco>")
    assert list(poses) == ["a"]
    np.testing.assert_array_equal(poses["a"][0], [1, 2, 3])
    np.testing.assert_array_equal(poses["a"][1], [1, 0, 0, 0])
    assert fixture_poses("") == {}


def test_a_start_without_a_split_is_refused(slots):
    with pytest.raises(TypeError, match="TrainInit or an EvalInit"):
        slots()[0].reset(InitState(MILK, 0))
    with pytest.raises(ValueError, match="no task 'push-v3'"):
        slots()[0].reset(TrainInit("push-v3", 0))


@pytest.mark.parametrize("protocol", ["settle", "quest_compat"])
@pytest.mark.parametrize("kind", [TrainInit, EvalInit])
def test_an_initial_state_replays_bit_for_bit(slots, protocol, kind):
    (slot,) = slots(protocol=protocol)
    (fresh,) = libero.make_environments(settings(protocol=protocol), 1)
    fresh.simulation.scenes = SceneShare(1, settings())
    moves = actions("smooth", 16)

    def run(environment):
        results = [environment.reset(kind(DRAWER, 7)), environment.step_chunk(moves[:8]), environment.step_chunk(moves)]
        return np.concatenate([flat(result) for result in results])

    first = run(slot)
    slot.reset(TrainInit(DRAWER, 1))
    slot.step_chunk(actions("press", 9))
    np.testing.assert_array_equal(run(slot), first)
    np.testing.assert_array_equal(run(fresh), first)


def interleave(slots, inits, moves) -> list[list[np.ndarray]]:
    """Chunks of all slots in turn; per slot the observations and the state of the scene after each."""
    seen: list[list[np.ndarray]] = [[flat(slot.reset(init))] for slot, init in zip(slots, inits, strict=True)]
    for chunk in range(0, len(moves[0]), 8):
        for index, slot in enumerate(slots):
            if slot._running:
                seen[index].append(flat(slot.step_chunk(moves[index][chunk : chunk + 8])))
    return seen


def test_interleaved_slots_do_not_disturb_one_another(slots):
    inits = [EvalInit(DRAWER, 0), TrainInit(DRAWER, 0), EvalInit(STOVE, 1), EvalInit(DRAWER, 1), TrainInit(STOVE, 2)]
    moves = [
        actions(kind, 24, seed) for seed, kind in enumerate(itertools.islice(itertools.cycle(("press", "smooth")), 5))
    ]
    together = interleave(slots(5), inits, moves)
    for index, init in enumerate(inits):
        (alone,) = interleave(slots(1), [init], [moves[index]])
        for one, other in zip(together[index], alone, strict=True):
            np.testing.assert_array_equal(one, other)


def test_scenes_that_go_in_the_middle_of_an_episode_come_back_unchanged(slots, share, caplog):
    inits = [EvalInit(KNOB, 0), EvalInit(MILK, 0)]
    moves = [actions("smooth", 16, seed) for seed in range(2)]
    expected = interleave(slots(2), inits, moves)
    small = slots(2)
    cramped = SceneShare(1, settings())
    for slot in small:
        slot.simulation.scenes = cramped
    for one, other in zip(interleave(small, inits, moves), expected, strict=True):
        np.testing.assert_array_equal(np.stack(one), np.stack(other))
    assert len(cramped) == 1
    assert sum("config.env.libero.scenes=1" in record.message for record in caplog.records) == 1


def test_success_ends_the_episode_in_the_middle_of_a_chunk(slots):
    (slot,) = slots()
    slot.reset(TrainInit(KNOB, 0))
    assert not slot.step_chunk(np.zeros((2, 7))).done
    scene = scene_of(slot)
    scene.data.qpos[scene._joints["flat_stove_1"]] = 1.0
    result = slot.step_chunk(np.zeros((5, 7)))
    assert (result.steps, result.success, result.done) == (1, True, True)
    with pytest.raises(RuntimeError, match="no episode is under way"):
        slot.step_chunk(np.zeros((1, 7)))


def test_the_horizon_ends_the_episode_without_success(slots):
    (slot,) = slots(horizon=10)
    slot.reset(TrainInit(MILK, 0))
    first, second = slot.step_chunk(actions("random", 8)), slot.step_chunk(actions("random", 8))
    assert (first.steps, first.done, second.steps, second.done, second.success) == (8, False, 2, True, False)
    assert first.physics_s > 0 and first.frames == []


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        (np.array([[0, 0, np.nan, 0, 0, 0, 0]]), "not finite"),
        (np.zeros((3, 4)), r"\[E, 7\] with E > 0, got \[3, 4\]"),
        (np.zeros((0, 7)), "E > 0"),
    ],
)
def test_impossible_actions_are_refused_and_nothing_moves(slots, moves, message):
    (slot,) = slots()
    slot.reset(TrainInit(MILK, 0))
    before = scene_of(slot).flat_state()
    with pytest.raises(ValueError, match=message):
        slot.step_chunk(moves)
    np.testing.assert_array_equal(scene_of(slot).flat_state(), before)


def test_demonstrations_start_like_episodes(slots):
    (slot,) = slots(protocol="settle")
    slot.reset(TrainInit(MILK, 4))
    expected = scene_of(slot).flat_state()
    scene = scene_of(slot)
    libero_environment.start_of_training(Settings.of(settings()), scene, TrainInit(MILK, 4))
    np.testing.assert_array_equal(scene.flat_state(), expected)
    with pytest.raises(TypeError, match="train initial states only"):
        libero_environment.start_of_training(Settings.of(settings()), scene, EvalInit(MILK, 4))


def test_the_state_vector_is_what_it_says(slots):
    (slot,) = slots()
    state = slot.reset(EvalInit(STOVE, 0)).observation["state"]
    scene = scene_of(slot)
    assert state.shape == (STATE_DIM,) and state.dtype == np.float32
    hand = scene.hand_pose()[0]
    # The first part of the goal is to turn on the stove, the second to put the moka pot onto it.
    knob, pot = state[:28], state[28:56]
    assert knob[0] == 1 and knob[14] == 0 and state[56] == 0
    position = scene.object_pose("moka_pot_1")[0]
    np.testing.assert_allclose(pot[1:4], position - scene.base, atol=1e-6)
    np.testing.assert_allclose(pot[4:7], position - hand, atol=1e-6)
    target = scene.object_pose("flat_stove_1_cook_region")[0]
    np.testing.assert_allclose(pot[21:24], target - position, atol=1e-6)
    assert entity_order(scene)[:2] == ("flat_stove_1", "moka_pot_1")
    present = state[84 : 84 + 13 * ENTITIES : 13]
    assert present.sum() == len(entity_order(scene)) == 3
    scene.data.qpos[scene._joints["flat_stove_1"]] = 0.7
    assert np.isclose(state_vector(scene)[13], 0.7)


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_every_task_resets_steps_and_has_a_state_vector(suite):
    for task in task_sets()[suite]:
        scene = Scene(task, settings())
        scene.reset_placement(0)
        scene.reset_benchmark(49, 49)
        for action in actions("smooth", 10):
            assert scene.step(action) is False
        assert np.isfinite(state_vector(scene)).all()
        assert len(scene.goal) <= GOAL_PARTS
        known = (*scene.objects, *scene.fixtures)
        assert all(scene.owner_of(name) in known or "table" in name or "floor" in name for name in scene.goal[0][1:])
        scene.close()
