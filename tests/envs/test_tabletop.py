"""The tabletop behind the environment protocol: exact replay, safe commands, stages in order, images."""

import numpy as np
import pytest
from support.tabletop import BOTH_ARMS, STATE, needs_arm

from cso_jax.envs import gl
from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.envs.tabletop import benchmark
from cso_jax.envs.tabletop.robots import ROBOTS, VIPERX
from cso_jax.envs.tabletop.simulator import Simulator
from cso_jax.envs.tabletop.tasks import TASKS

pytestmark = needs_arm
HOME = VIPERX.action_of(np.array(VIPERX.home), 1.0).astype(np.float32)


@pytest.fixture
def slot():
    return benchmark.make_environments(STATE, 1)[0]


def still(count: int) -> np.ndarray:
    return np.tile(HOME, (count, 1))


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7)).astype(np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_an_initial_state_replays_bit_for_bit_on_a_used_and_on_a_fresh_environment(task, slot):
    init, actions = TrainInit(task, 5), random_actions(24)
    slot.reset(EvalInit(task, 1))
    slot.step_chunk(random_actions(17, seed=1))
    fresh = benchmark.make_environments(STATE, 1)[0]
    for used, new in zip(*([each.reset(init), each.step_chunk(actions)] for each in (slot, fresh)), strict=True):
        for key, value in used.observation.items():
            np.testing.assert_array_equal(value, new.observation[key])
        assert (used.success, used.stages) == (new.success, new.stages)


def test_observations_have_the_shapes_of_the_spec(slot):
    expected = {key: (size,) for key, size in benchmark.spec(STATE).lowdim.items()}
    for task in TASKS:
        for result in (slot.reset(TrainInit(task, 0)), slot.step_chunk(still(2))):
            assert {key: value.shape for key, value in result.observation.items()} == expected
            assert {value.dtype for value in result.observation.values()} == {np.dtype(np.float32)}


def test_the_state_holds_the_poses_of_the_tasks_objects(slot):
    state = slot.reset(TrainInit("cube-in-bowl", 2)).observation["state"]
    simulator = slot.simulation.simulator
    grip = simulator.grip()[0]
    for row, name in enumerate(TASKS["cube-in-bowl"].objects):
        place = simulator.pose(name)[0]
        np.testing.assert_allclose(state[3 + 10 * row : 9 + 10 * row], [*place, *(place - grip)], atol=1e-6)
    np.testing.assert_array_equal(state[23:], 0.0)


def test_proprioception_is_in_radians_and_a_share_of_the_opening(slot):
    seen = slot.reset(TrainInit("press-button", 0)).observation["proprio"]
    np.testing.assert_allclose(seen, [*VIPERX.home, 1.0], atol=2e-3)
    closing = still(20)
    closing[:, 6] = -1.0
    assert slot.step_chunk(closing).observation["proprio"][6] < 0.05


def test_objects_begin_at_rest_where_they_were_placed(slot):
    for task in TASKS:
        slot.reset(EvalInit(task, 0))
        world = slot.simulation.simulator.world()
        assert max(world.speed.values()) < 0.01 and min(world.upright.values()) > 0.999
        assert not world.touched


@pytest.mark.parametrize("name", BOTH_ARMS)
def test_no_command_moves_faster_or_farther_than_the_robot_may(name):
    simulator = Simulator("press-button", name, 20)
    simulator.reset(TrainInit("press-button", 0))
    limits = benchmark.robot_interface({**STATE, "robot": name}).limits
    before = simulator.command()
    for action in (np.full(7, 50.0), -np.ones(7), *random_actions(10)):
        for _ in range(3):
            simulator.step(action)
            now = simulator.command()
            assert np.all(np.abs(now - before)[:6] <= np.array(limits.velocity) / 20 + 1e-9)
            assert np.all(now[:6] >= limits.position_low) and np.all(now[:6] <= limits.position_high)
            before = now


@pytest.mark.parametrize("name", BOTH_ARMS)
def test_the_arm_goes_where_it_is_told(name):
    slot = benchmark.make_environments({**STATE, "robot": name}, 1)[0]
    slot.reset(TrainInit("press-button", 0))
    wanted = ROBOTS[name].home + np.array([0.2, -0.1, 0.1, 0.1, -0.2, 0.5])
    result = slot.step_chunk(np.tile(ROBOTS[name].action_of(wanted, 0.5), (30, 1)))
    np.testing.assert_allclose(result.observation["proprio"][:6], wanted, atol=0.01)


def put(slot, task: str, **places: tuple[float, float, float]) -> Simulator:
    slot.reset(TrainInit(task, 0))
    simulator = slot.simulation.simulator
    for name, place in places.items():
        simulator.place(name, np.array(place))
    return simulator


def test_what_is_placed_well_counts_after_it_has_rested(slot):
    put(slot, "cube-on-cube", red_cube=(0.4, 0.1, 0.02), yellow_cube=(0.41, 0.1, 0.0605))
    assert not slot.step_chunk(still(4)).success
    assert slot.step_chunk(still(8)).success


def test_what_falls_off_does_not_count(slot):
    put(slot, "cube-on-bottle", bottle=(0.4, 0.1, 0.0), red_cube=(0.4, 0.13, 0.0955))
    result = slot.step_chunk(still(20))
    assert (result.success, result.stages) == (False, (False,))


def test_a_horizon_is_the_tasks_own_unless_the_settings_are_shorter(slot):
    assert slot.simulation.horizon("press-button") < slot.simulation.horizon("sequential-placement") == 400
    slower = benchmark.make_environments({**STATE, "control_hz": 10}, 1)[0].simulation
    assert slower.horizon("sequential-placement") == 200
    assert benchmark.make_environments({**STATE, "horizon": 50}, 1)[0].simulation.horizon("press-button") == 50


PLATE = (0.40, -0.13, 0.0)


def stack(slot, *, cube, bowl):
    simulator = slot.simulation.simulator
    simulator.place("yellow_cube", np.array(cube))
    simulator.place("bowl", np.array(bowl))
    return slot.step_chunk(still(12))


def test_stages_are_latched_in_their_order(slot):
    put(slot, "sequential-placement", plate=PLATE)
    first = stack(slot, cube=(0.40, 0.13, 0.026), bowl=(0.40, 0.13, 0.0))
    assert (first.stages, first.success) == ((True, False), False)
    second = stack(slot, cube=(0.40, -0.13, 0.039), bowl=(0.40, -0.13, 0.0125))
    assert (second.stages, second.success) == ((True, True), True)


def test_an_empty_bowl_on_the_plate_does_not_count_and_filling_it_there_neither(slot):
    put(slot, "sequential-placement", plate=PLATE)
    empty = stack(slot, cube=(0.40, 0.13, 0.02), bowl=(0.40, -0.13, 0.0125))
    assert (empty.stages, empty.success) == ((False, False), False)
    filled = stack(slot, cube=(0.40, -0.13, 0.039), bowl=(0.40, -0.13, 0.0125))
    assert (filled.stages, filled.success) == ((False, False), False)


def test_a_reset_forgets_the_stages(slot):
    put(slot, "sequential-placement", plate=PLATE)
    assert stack(slot, cube=(0.40, 0.13, 0.026), bowl=(0.40, 0.13, 0.0)).stages == (True, False)
    assert slot.reset(TrainInit("sequential-placement", 0)).stages == (False, False)


@pytest.fixture(scope="module")
def drawing():
    if not any(gl.backend_works(name) for name in gl.BACKENDS):
        pytest.skip("no OpenGL library here draws without a display")
    with pytest.MonkeyPatch.context() as patch:
        if gl.gl_name() == "none":
            patch.setenv("MUJOCO_GL", next(name for name in gl.BACKENDS if gl.backend_works(name)))
        yield


def test_images_show_the_scene_and_have_the_shapes_of_the_spec(drawing):
    settings = {**STATE, "obs": "pixels", "image_size": 64}
    slot = benchmark.make_environments(settings, 1)[0]
    seen = slot.reset(TrainInit("cube-on-cube", 0), record=True)
    assert {key: value.shape for key, value in seen.observation.items()} == {
        "proprio": (7,), **benchmark.spec(settings).images}  # fmt: skip
    image = seen.observation["front"].astype(int)
    red = (image[..., 0] > 120) & (image[..., 1] < 60) & (image[..., 2] < 60)
    yellow = (image[..., 0] > 120) & (image[..., 1] > 90) & (image[..., 2] < 70)
    assert red.sum() > 5 and yellow.sum() > 5
    assert len(seen.frames) == 1
    other = slot.reset(TrainInit("cube-on-cube", 1)).observation
    assert all(not np.array_equal(seen.observation[camera], other[camera]) for camera in ("front", "wrist"))


def test_policies_predict_angles_from_where_the_joints_are():
    settings = benchmark.default_config()["env"]
    frame = benchmark.spec(settings).frame
    assert benchmark.spec(settings | {"chunks": "absolute"}).frame is None
    waist = np.array([[0.25, 0, 0, 0, 1, 0, 0.3]], np.float32)
    # The waist's commands go from -1 to 1 rad, 1.6 rad/s at 20 Hz: two steps at full speed are 0.16. The gripper stays.
    chunk = np.zeros((1, 1, 7), np.float32)
    chunk[0, 0, [0, 6]] = 0.41, -1.0
    relative = frame.relative(chunk, waist)
    np.testing.assert_allclose(relative[0, 0, [0, 6]], [1.0, -1.0], rtol=1e-5)
    np.testing.assert_allclose(frame.absolute(relative, waist), chunk, atol=1e-6)
