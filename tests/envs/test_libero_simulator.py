"""One LIBERO task: equality with robosuite's own step, exact replay, snapshots, predicates, no side effects."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.libero import (
    BOWL,
    DRAWER,
    KNOB,
    MILK,
    STOVE,
    actions,
    assets,
    fingerprint,
    run,
    settings,
    stock_environment,
    whole,
)

from cso_jax.envs.libero.files import benchmark_states, task_sets
from cso_jax.envs.libero.simulator import Scene


@pytest.fixture(scope="module")
def scenes():
    """Scenes by task, compiled once for this module."""
    made: dict[str, Scene] = {}

    def get(task: str) -> Scene:
        if task not in made:
            made[task] = Scene(task, settings())
        return made[task]

    yield get
    for scene in made.values():
        scene.close()


def assert_same_as_stock(scene: Scene, kinds: tuple[str, ...], steps: int = 60) -> None:
    """The same start and actions here and in robosuite: the same bits, the same success at every step."""
    stock = stock_environment(scene.task)
    for seed, kind in enumerate(kinds):
        np.random.seed(seed)  # noqa: NPY002 - LIBERO's own reset uses it
        stock.reset()
        scene.reset_benchmark(seed, seed)
        model, data = stock.sim.model._model, stock.sim.data._data
        model.body_pos[:], model.body_quat[:] = scene.model.body_pos, scene.model.body_quat
        stock.sim.set_state_from_flattened(scene.flat_state())
        data.qacc_warmstart[:] = 0
        stock.sim.forward()
        for action in actions(kind, steps, seed):
            _, _, done, _ = stock.step(action)
            assert scene.step(action) == bool(done)
        np.testing.assert_array_equal(scene.data.qpos, data.qpos)
        np.testing.assert_array_equal(scene.data.qvel, data.qvel)
        np.testing.assert_array_equal(scene.data.ctrl, data.ctrl)
        np.testing.assert_array_equal(scene.data.qacc_warmstart, data.qacc_warmstart)
    stock.close()


@pytest.mark.parametrize("task", [MILK, STOVE])
def test_step_is_that_of_robosuite(scenes, task):
    assert_same_as_stock(scenes(task), ("random", "press", "smooth"))


@pytest.mark.parametrize(("kind", "steps"), [("random", 60), ("press", 20), ("smooth", 60)])
def test_fast_steps_are_robosuites_up_to_the_solvers_tolerance_until_the_next_reset(scenes, kind, steps):
    scene, moves = scenes(MILK), actions(kind, steps)
    ends = []
    for hasten in (False, True):
        scene.reset_placement(4)
        if hasten:
            scene.hasten()
        for action in moves:
            scene.step(action)
        ends.append(scene.data.qpos.copy())
    assert not np.array_equal(*ends)
    np.testing.assert_allclose(ends[1], ends[0], atol=2e-6)
    scene.restore(scene.snapshot())
    assert not scene.arm.command.exact
    scene.reset_placement(4)
    assert scene.arm.command.exact


def test_fast_torques_are_those_of_robosuites_matrices(scenes):
    scenes(MILK)  # robosuite can be imported once LIBERO was
    from robosuite.utils.control_utils import nullspace_torques, opspace_matrices

    from cso_jax.envs.libero.compiled import opspace_torques

    generator = np.random.default_rng(3)
    root = generator.normal(size=(7, 7))
    mass, jacobian = root @ root.T + np.eye(7), generator.normal(size=(6, 7))
    force, torque, bent, speeds = (generator.normal(size=size) for size in (3, 3, 7, 7))
    _, linear, angular, nullspace = opspace_matrices(mass, jacobian, jacobian[:3].copy(), jacobian[3:].copy())
    wanted = jacobian.T @ np.concatenate([linear @ force, angular @ torque])
    posture = nullspace_torques(mass, nullspace, bent, np.zeros(7), speeds)
    torques, pull = opspace_torques(mass, jacobian, force, torque, bent, speeds)
    np.testing.assert_allclose(torques, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pull, posture, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"])
@pytest.mark.parametrize("index", [0, 4, 8])
def test_step_is_that_of_robosuite_in_every_suite(suite, index):
    assets()
    tasks = task_sets()[suite]
    scene = Scene(tasks[index * len(tasks) // 10], settings())
    assert_same_as_stock(scene, ("random", "press", "smooth", "press"))
    scene.close()


def assert_the_looks_make_no_difference(task: str) -> None:
    """The same bits of physics from a scene without looks, with every geom in its place."""
    bare, full = (Scene(task, {"libero": {"assets": str(assets()), "looks": looks}}) for looks in (False, True))
    assert fingerprint(bare) == fingerprint(full)
    assert bare.model.ngeom == full.model.ngeom and bare.model.ntexdata < full.model.ntexdata / 5
    assert [bare.model.geom(i).name for i in range(bare.model.ngeom)] == [
        full.model.geom(i).name for i in range(full.model.ngeom)
    ]
    bare.close()
    full.close()


@pytest.mark.parametrize("task", [BOWL, STOVE])
def test_physics_is_the_same_without_looks(task):
    assert_the_looks_make_no_difference(task)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"])
@pytest.mark.parametrize("index", [0, 3, 6, 9])
def test_physics_is_the_same_without_looks_in_every_suite(suite, index):
    assets()
    tasks = task_sets()[suite]
    assert_the_looks_make_no_difference(tasks[index * len(tasks) // 10])


@pytest.mark.parametrize("task", [BOWL, DRAWER])
def test_a_reset_replays_bit_for_bit_whatever_ran_before(scenes, task):
    used, fresh, moves = scenes(task), Scene(task, settings()), actions("smooth", 12)
    for reset in (lambda scene: scene.reset_placement(7), lambda scene: scene.reset_benchmark(7, 7)):
        used.reset_placement(1)
        run(used, actions("press", 5))
        used.model.site_rgba[:] = 0.5
        np.random.seed(123)  # noqa: NPY002
        reset(used)
        reset(fresh)
        np.testing.assert_array_equal(whole(used), whole(fresh))
        np.testing.assert_array_equal(run(used, moves), run(fresh, moves))
    fresh.close()


def test_a_reset_leaves_the_global_random_generator_alone(scenes):
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    scenes(BOWL).reset_placement(0)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_seeds_and_purposes_place_objects_and_fixtures_differently(scenes):
    scene = scenes(BOWL)
    seen = []
    for seed, purpose in ((0, "placement"), (1, "placement"), (0, "other")):
        scene.reset_placement(seed, purpose)
        seen.append((scene.object_pose("plate_1")[0], scene.object_pose("wooden_cabinet_1")[0]))
    for kind in range(2):
        assert not np.array_equal(seen[0][kind], seen[1][kind])
        assert not np.array_equal(seen[0][kind], seen[2][kind])


def test_a_benchmark_state_is_that_of_the_file_with_fixtures_of_the_seed(scenes):
    scene = scenes(BOWL)
    cabinets = []
    for seed in (3, 53):
        scene.reset_benchmark(seed, seed)
        np.testing.assert_array_equal(scene.flat_state(), benchmark_states(BOWL)[3])
        cabinets.append(scene.object_pose("wooden_cabinet_1")[0])
    assert not np.array_equal(*cabinets)
    assert np.abs(cabinets[0] - cabinets[1]).max() < 0.05


def test_a_state_of_another_size_is_refused(scenes):
    with pytest.raises(ValueError, match=r"has states of \d+ numbers, got \[3\]"):
        scenes(BOWL).set_flat_state(np.zeros(3))


@pytest.mark.parametrize("steps", [0, 9])
def test_a_snapshot_goes_on_bit_for_bit(scenes, steps):
    scene, moves = scenes(DRAWER), actions("press", 20)
    scene.reset_placement(4)
    run(scene, moves[:steps])
    snapshot = scene.snapshot()
    expected = run(scene, moves[steps:])
    scene.reset_benchmark(2, 9)
    run(scene, actions("random", 4))
    scene.restore(snapshot)
    np.testing.assert_array_equal(scene.hand_pose()[0], scene.data.site_xpos[scene.arm.site])
    np.testing.assert_array_equal(run(scene, moves[steps:]), expected)


def test_the_hand_is_turned_as_robosuite_says(scenes):
    from robosuite.utils import transform_utils

    scene = scenes(MILK)
    stock = stock_environment(MILK)
    stock.reset()
    scene.reset_benchmark(0, 0)
    for action in actions("smooth", 5):
        scene.step(action)
        stock.sim.set_state_from_flattened(scene.flat_state())
        stock.sim.forward()
        seen = stock._get_observations(force_update=True)
        expected = transform_utils.quat2axisangle(seen["robot0_eef_quat"])
        np.testing.assert_allclose(scene.hand_axis_angle(), expected, atol=1e-6)
    stock.close()


def test_poses_are_the_present_ones_after_a_step_and_after_a_restore(scenes):
    scene = scenes(MILK)
    scene.reset_placement(0)
    run(scene, actions("smooth", 6))
    before = scene.hand_pose(), scene.object_pose("milk_1")
    scene.restore(scene.snapshot())
    after = scene.hand_pose(), scene.object_pose("milk_1")
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_names_goal_and_joints(scenes):
    scene = scenes(DRAWER)
    scene.reset_placement(0)
    assert scene.goal == (("in", "akita_black_bowl_1", "white_cabinet_1_top_region"),)
    assert "akita_black_bowl_1" in scene.objects and "white_cabinet_1" in scene.fixtures
    assert len(scene.joint_values("white_cabinet_1")) == 3
    assert len(scene.joint_values("akita_black_bowl_1")) == 0
    with pytest.raises(ValueError, match="3 joints"):
        scene.joint_value("white_cabinet_1")
    assert scene.joint_value("white_cabinet_1_top_region") < -0.1 and scene.holds("open", "white_cabinet_1_top_region")
    assert scene.owner_of("white_cabinet_1_top_region") == "white_cabinet_1"


def test_the_goal_holds_when_the_knob_is_turned(scenes):
    scene = scenes(KNOB)
    scene.reset_placement(0)
    assert scene.goal == (("turnon", "flat_stove_1"),)
    assert not scene.step(np.zeros(7)) and not scene.success()
    scene.data.qpos[scene._joints["flat_stove_1"]] = 1.0
    assert scene.step(np.zeros(7)) and scene.success() and scene.holds("turnon", "flat_stove_1")
    scene.update_visuals()
    lit = scene.model.site_rgba.copy()
    scene.reset_placement(0)
    scene.update_visuals()
    assert not np.array_equal(scene.model.site_rgba, lit)


def test_actions_are_clipped_and_the_gripper_closes(scenes):
    scene = scenes(MILK)
    closing = np.array([9.0, 0, 0, 0, 0, 0, 5.0])
    results = []
    for action in (closing, np.clip(closing, -1, 1)):
        scene.reset_placement(0)
        results.append(run(scene, [action] * 8))
    np.testing.assert_array_equal(*results)
    assert np.abs(scene.gripper_states()).max() < 0.005


def test_placing_that_never_succeeds_ends_with_an_error(scenes, monkeypatch):
    from robosuite.utils.errors import RandomizationError

    scene = scenes(BOWL)

    def fail():
        raise RandomizationError("no room")

    def debug():
        import pdb  # as one of LIBERO's samplers does

        pdb.set_trace()

    for reaction in (fail, debug):
        monkeypatch.setattr(scene.env.placement_initializer, "sample", reaction)
        with pytest.raises(RuntimeError, match=r"no room for all objects of .* in 50 tries"):
            scene.reset_placement(0)


def test_another_process_starts_and_goes_on_with_the_same_bits(scenes):
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from support.libero import fingerprint, settings
from cso_jax.envs.libero.simulator import Scene
sys.stdout.write(fingerprint(Scene({BOWL!r}, settings())))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == fingerprint(scenes(BOWL))


def test_a_scene_asks_nothing_writes_nothing_at_home_and_loads_no_opengl(tmp_path):
    code = f"""
import os, sys
from cso_jax.envs.libero.simulator import Scene
scene = Scene({MILK!r}, {settings()!r})
scene.reset_placement(0)
loaded = open("/proc/self/maps").read()
assert not any(name in loaded for name in ("libEGL", "libOSMesa")), "OpenGL was loaded"
assert not {{"jax", "torch"}} & set(sys.modules)
assert "MUJOCO_GL" not in os.environ and "LIBERO_CONFIG_PATH" not in os.environ
"""
    kept = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "LIBERO_CONFIG_PATH")}
    environment = {**kept, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} <= {".cache", ".config"}  # matplotlib's, which LIBERO imports
