"""LIBERO's images: robosuite's own pixels, faster profiles, videos, memory over many episodes."""

import contextlib
import itertools
import subprocess
import sys

import numpy as np
import psutil
import pytest
from support.libero import BOWL, KNOB, MILK, STOVE, actions, assets, settings

from cso_jax.envs import gl
from cso_jax.envs.libero import benchmark as libero
from cso_jax.envs.libero import environment as libero_environment
from cso_jax.envs.libero.culling import culled
from cso_jax.envs.libero.files import task_sets
from cso_jax.envs.libero.meshes import simplified
from cso_jax.envs.libero.scenes import SceneShare
from cso_jax.envs.libero.settings import Settings
from cso_jax.envs.libero.simulator import Scene
from cso_jax.envs.protocol import EvalInit, TrainInit

_STOCK = """
import os, sys, tempfile
import numpy as np
from cso_jax.envs.libero import files as libero_files
task, assets, out = sys.argv[1:]
root = libero_files.package_folder()
folder = tempfile.mkdtemp()
os.environ["LIBERO_CONFIG_PATH"] = folder
names = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "datasets": "", "assets": ""}
with open(folder + "/config.yaml", "w") as file:
    file.writelines(f"{name}: '{root / place}'\\n" for name, place in names.items())
import libero.libero
libero.libero._assets_path_cache = assets
from libero.libero.envs import OffScreenRenderEnv
env = OffScreenRenderEnv(bddl_file_name=str(libero_files.bddl_file(task)), camera_heights=128, camera_widths=128)
np.random.seed(0)
env.env.reset()
state = libero_files.benchmark_states(task)[3].copy()
if "stove" in task.lower() and "turn_on" in task:
    model = env.sim.model
    address = model.get_joint_qpos_addr(env.env.get_object("flat_stove_1").joints[0])
    state[1 + address] = 1.0
seen = env.set_init_state(state)
model = env.sim.model._model
np.savez(out, agentview=seen["agentview_image"], hand=seen["robot0_eye_in_hand_image"], state=state,
         body_pos=model.body_pos, body_quat=model.body_quat)
"""


@pytest.fixture(scope="module", autouse=True)
def drawing():
    folder = assets()
    if not any(gl.backend_works(name) for name in gl.BACKENDS):
        pytest.skip("no OpenGL library here draws without a display")
    with pytest.MonkeyPatch.context() as patch:
        if gl.gl_name() == "none":
            patch.setenv("MUJOCO_GL", next(name for name in gl.BACKENDS if gl.backend_works(name)))
        yield folder


def pixels(**options) -> dict:
    size = options.pop("image_size", 128)
    return {**settings(**options), "obs": "pixels", "image_size": size, "video_size": 96}


def assert_pixels_of_robosuite(task: str, folder, path) -> None:
    """Both cameras here and in robosuite's own off-screen environment, in another process, for the same state."""
    command = [sys.executable, "-W", "ignore", "-c", _STOCK, task, str(folder), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    with np.load(path) as stock:
        scene = Scene(task, settings())
        scene.reset_placement(0)
        scene.model.body_pos[:], scene.model.body_quat[:] = stock["body_pos"], stock["body_quat"]
        scene.set_flat_state(stock["state"])
        seen = libero_environment.Observer(Settings.of(pixels())).observe(scene)
        np.testing.assert_array_equal(seen["agentview_rgb"], stock["agentview"])
        np.testing.assert_array_equal(seen["eye_in_hand_rgb"], stock["hand"])
        assert np.ptp(seen["agentview_rgb"]) > 100
    scene.close()


def test_official_images_are_those_of_robosuite(drawing, tmp_path):
    assert_pixels_of_robosuite(KNOB, drawing, tmp_path / "stock.npz")


@pytest.mark.slow
@pytest.mark.parametrize("task", [BOWL, MILK, STOVE, "libero_goal", "libero_90"])
def test_official_images_are_those_of_robosuite_in_every_suite(drawing, tmp_path, task):
    assert_pixels_of_robosuite(task_sets().get(task, (task,))[-1], drawing, tmp_path / "stock.npz")


@pytest.mark.parametrize("proprio", ["joints_ee", "ee8"])
def test_observations_have_the_shapes_of_the_spec_and_videos_are_upright(proprio):
    chosen = pixels(proprio=proprio, image_size=64)
    (slot,) = libero.make_environments(chosen, 1)
    result = slot.reset(EvalInit(MILK, 0), record=True)
    shapes = libero.spec(chosen)
    seen = {key: value.shape for key, value in result.observation.items()}
    assert seen == {**{key: (size,) for key, size in shapes.lowdim.items()}, **shapes.images}
    assert [frame.shape for frame in result.frames] == [(96, 96, 3)]
    small = result.frames[0][::-1].astype(float).mean((1, 2))
    rows = result.observation["agentview_rgb"].astype(float).mean((1, 2))
    upright = np.interp(np.linspace(0, 1, 96), np.linspace(0, 1, 64), rows)
    assert np.corrcoef(small, upright)[0, 1] > 0.95 > np.corrcoef(small[::-1], upright)[0, 1]
    assert len(slot.step_chunk(np.zeros((8, 7))).frames) == 2
    slot.close()


@pytest.mark.parametrize("profile", ["official", "fast"])
@pytest.mark.parametrize("task", [BOWL, MILK])
def test_what_a_camera_cannot_see_makes_no_difference(monkeypatch, task, profile):
    scene = Scene(task, settings())
    observer = libero_environment.Observer(Settings.of(pixels(render=profile)))
    left_out = []
    for step, action in enumerate(np.repeat(actions("smooth", 24), 2, axis=0)):
        if step == 0:
            scene.reset_benchmark(0, 0)
        scene.step(action)
        if step % 12 == 11:
            light = observer.observe(scene)
            with culled(scene.model, scene.data, "robot0_eye_in_hand", reflections=profile == "official"):
                left_out.append((scene.model.geom_group == 5).sum())
            with monkeypatch.context() as patch:
                patch.setattr(libero_environment, "culled", lambda *args, **flags: contextlib.nullcontext())
                full = observer.observe(scene)
            for key, value in full.items():
                np.testing.assert_array_equal(light[key], value)
    assert min(left_out) > 5 and (scene.model.geom_group == 5).sum() == 0
    scene.close()


def test_slots_draw_their_own_episodes():
    one, other = libero.make_environments(pixels(render="fast"), 2)
    first = one.reset(EvalInit(MILK, 0))
    second = other.reset(EvalInit(MILK, 1))
    moves = actions("smooth", 8)
    together = one.step_chunk(moves), other.step_chunk(moves)
    one.reset(EvalInit(MILK, 0))
    alone = one.step_chunk(moves)
    assert not np.array_equal(first.observation["agentview_rgb"], second.observation["agentview_rgb"])
    for key, value in alone.observation.items():
        np.testing.assert_array_equal(together[0].observation[key], value)
    one.close()
    other.close()


def test_a_burner_that_glows_does_not_glow_in_the_next_episode():
    (slot,) = libero.make_environments(pixels(render="fast"), 1)
    first = slot.reset(TrainInit(KNOB, 0)).observation["agentview_rgb"]
    scene = slot.simulation.scene()
    scene.data.qpos[scene._joints["flat_stove_1"]] = 1.0
    lit = slot.step_chunk(np.zeros((1, 7))).observation["agentview_rgb"]
    assert np.abs(lit.astype(int) - first).max() > 50
    np.testing.assert_array_equal(slot.reset(TrainInit(KNOB, 0)).observation["agentview_rgb"], first)
    slot.close()


def test_a_run_from_state_films_what_a_scene_with_looks_shows():
    """Its own scenes have none; the burner that glows is among what the frame has to follow."""
    settings = pixels(render="fast") | {"video_size": 64, "video_every": 8}
    frames = []
    for obs in ("state", "pixels"):
        (slot,) = libero.make_environments(settings | {"obs": obs}, 1)
        slot.reset(TrainInit(KNOB, 0), record=True)
        scene = slot.simulation.scene()
        assert scene.looks == (obs == "pixels")
        scene.data.qpos[scene._joints["flat_stove_1"]] = 1.0
        frames.append(slot.step_chunk(np.tile([0.3, 0, -0.2, 0, 0, 0, 1.0], (8, 1))).frames[-1])
        slot.close()
    np.testing.assert_array_equal(*frames)
    assert frames[0].std() > 20


def test_a_run_from_state_films_more_tasks_than_it_keeps_scenes_with_looks():
    """In turn, by one process: none of them gets another one's state."""
    settings = pixels(render="fast") | {"obs": "state", "video_size": 48}
    tasks = (KNOB, MILK, BOWL)
    slots = libero.make_environments(settings, len(tasks))
    first = [slot.reset(EvalInit(task, 0), record=True).frames[0] for slot, task in zip(slots, tasks, strict=True)]
    again = [slot.reset(EvalInit(task, 0), record=True).frames[0] for slot, task in zip(slots, tasks, strict=True)]
    np.testing.assert_array_equal(first, again)
    assert all(np.abs(a.astype(int) - b).mean() > 5 for a, b in itertools.pairwise(first))
    for slot in slots:
        slot.close()


def test_fewer_triangles_leave_the_model_and_the_physics_alone():
    pytest.importorskip("meshoptimizer", reason="meshoptimizer is not installed")
    scene = Scene(MILK, settings())
    names = [name for name in dir(scene.model) if isinstance(getattr(scene.model, name), np.ndarray)]
    before = {name: getattr(scene.model, name).copy() for name in names}
    triangles = int(scene.model.mesh_facenum.sum())
    with simplified(scene.model, 600):
        assert scene.model.mesh_facenum.sum() < triangles / 4
        assert scene.model.mesh_facenum.max() <= 1200
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(scene.model, name), value, err_msg=name)
    scene.close()
    plain, light = (
        libero.make_environments(pixels(render="fast", decimate=triangles), 1)[0].reset(EvalInit(MILK, 0))
        for triangles in (0, 600)
    )
    for key in ("joint_states", "gripper_states"):
        np.testing.assert_array_equal(plain.observation[key], light.observation[key])
    difference = light.observation["agentview_rgb"].astype(float) - plain.observation["agentview_rgb"]
    assert 0 < np.abs(difference).mean() < 5


def test_a_missing_library_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "meshoptimizer", None)
    with pytest.raises(ModuleNotFoundError, match="pip install meshoptimizer"), simplified(None, 600):
        pass


@pytest.mark.slow
def test_memory_stays_flat_over_two_hundred_episodes(monkeypatch, capsys):
    """Ten tasks in turn, four episodes each, with five scenes allowed: scenes and renderers come and go."""
    share = SceneShare(5, settings())
    monkeypatch.setattr(libero, "process_scenes", lambda *_: share)
    slots = libero.make_environments(pixels(render="fast", scenes=5), 2)
    tasks = [task_sets()[suite][index] for suite in ("libero_object", "libero_10") for index in range(5)]
    resident = []
    for episode in range(200):
        for slot in slots:
            slot.reset(TrainInit(tasks[episode // 4 % 10], episode))
        for slot in slots:
            slot.step_chunk(actions("smooth", 2, episode))
        resident.append(psutil.Process().memory_info().rss / 2**20)
    with capsys.disabled():
        sys.stdout.write(
            f"\nresident MB at episodes 20, 100, 200: {[round(resident[n - 1]) for n in (20, 100, 200)]}\n"
        )
    assert max(resident[160:]) < 1.1 * max(resident[40:80])  # the last round through all tasks and the second one


def test_renderers_of_one_process_do_not_draw_into_one_another():
    import mujoco

    colours = ("1 0 0 1", "0 1 0 1")
    inside = "<light pos='0 0 3'/><camera name='top' pos='0 0 1'/><geom size='.3' rgba='{}'/>"
    xml = f"<mujoco><worldbody>{inside}</worldbody></mujoco>"
    models = [mujoco.MjModel.from_xml_string(xml.format(colour)) for colour in colours]
    datas = [mujoco.MjData(model) for model in models]
    for model, data in zip(models, datas, strict=True):
        mujoco.mj_forward(model, data)
    kinds = [(0, 4), (1, 0), (1, 4), (0, 0)]  # model and multisampling
    plain = {"shadows": False, "reflections": False}
    alone = []
    for which, msaa in kinds:
        renderer = gl.SceneRenderer(models[which], 32, msaa=msaa, **plain)
        alone.append(renderer.render(models[which], datas[which], "top", 32))
        renderer.close()
    renderers = [gl.SceneRenderer(models[which], 32, msaa=msaa, **plain) for which, msaa in kinds]
    for _ in range(2):
        for renderer, (which, _), image in zip(renderers, kinds, alone, strict=True):
            np.testing.assert_array_equal(renderer.render(models[which], datas[which], "top", 32), image)
    renderers.pop().close()
    np.testing.assert_array_equal(renderers[0].render(models[0], datas[0], "top", 32), alone[0])
    for renderer in renderers:
        renderer.close()
