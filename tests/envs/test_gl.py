"""Choosing an OpenGL backend: the user's choice wins, state runs touch nothing, a missing library is one clear line."""

import subprocess
import sys

import pytest

from cso_jax.envs import gl


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    for name in ("MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM", "__EGL_VENDOR_LIBRARY_FILENAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gl, "backend_problem", lambda name: pytest.fail(f"tried {name}"))
    return monkeypatch


def test_the_users_choice_is_kept_untried(unset):
    unset.setenv("MUJOCO_GL", "GLFW")
    assert gl.configure_gl("pixels") == "glfw"
    assert gl.os.environ["MUJOCO_GL"] == "GLFW"


def test_state_runs_try_and_set_nothing(unset):
    assert gl.configure_gl("state") == "none"
    assert gl.os.environ["MUJOCO_GL"] == ""


@pytest.mark.parametrize(("working", "expected"), [({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa")])
def test_the_first_backend_that_works_is_chosen(unset, working, expected):
    unset.setattr(gl, "backend_problem", lambda name: "" if name in working else "broken")
    assert gl.configure_gl("pixels") == expected == gl.gl_name()


def test_nothing_that_works_names_the_packages_on_one_line(unset):
    unset.setattr(gl, "backend_problem", lambda name: f"no {name}")
    with pytest.raises(RuntimeError, match=r"egl: no egl; osmesa: no osmesa.*libegl1.*libosmesa6") as caught:
        gl.configure_gl("pixels")
    assert "\n" not in str(caught.value)
    assert gl.os.environ["MUJOCO_GL"] == ""


def test_a_probe_that_dies_means_no(monkeypatch):
    monkeypatch.setattr(gl, "_PROBE", "import os; os.abort()")
    assert "-6" in gl.backend_problem.__wrapped__("egl")


def test_a_probe_that_hangs_means_no(monkeypatch):
    monkeypatch.setattr(gl, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(gl, "_PROBE_TIMEOUT_S", 0.2)
    assert "no answer within 0.2 s" in gl.backend_problem.__wrapped__("egl")


def test_a_backend_that_does_not_exist_does_not_work():
    assert not gl.backend_works("nonsense")


def test_a_state_run_loads_no_opengl_library():
    code = """
import numpy as np
from cso_jax.envs.metaworld import benchmark as metaworld
from cso_jax.envs.protocol import TrainInit
slot = metaworld.make_environments({"obs": "state"}, 1)[0]
slot.reset(TrainInit("reach-v3", 0))
slot.step_chunk(np.zeros((2, 4)))
import sys
loaded = open("/proc/self/maps").read()
assert not any(name in loaded for name in ("libGL", "libEGL", "libOSMesa")), "OpenGL was loaded"
assert "jax" not in sys.modules
"""
    environment = {key: value for key, value in gl.os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


STATE_RUN = """
import multiprocessing, os
import numpy as np
from cso_jax.envs.gl import require_gl
from cso_jax.envs.metaworld import benchmark as metaworld
from cso_jax.envs.protocol import TrainInit
from cso_jax.experts import collect_demo

def episode():
    slot = metaworld.make_environments({"name": "metaworld", "obs": "state"}, 1)[0]
    slot.reset(TrainInit("reach-v3", 0))
    slot.step_chunk(np.zeros((2, 4)))
    collect_demo({"name": "metaworld", "obs": "state"}, TrainInit("reach-v3", 0), noise=0, extra_steps=0, seed=0)

if __name__ == "__main__":
    before = os.environ["MUJOCO_GL"]
    require_gl("state")
    episode()
    worker = multiprocessing.get_context("spawn").Process(target=episode)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert os.environ["MUJOCO_GL"] == before
"""


@pytest.mark.parametrize("name", ["osmesa", "glx", "foo", "egl"])
def test_no_mujoco_gl_stops_a_state_run(tmp_path, name):
    file = tmp_path / "state_run.py"
    file.write_text(STATE_RUN)
    environment = {**gl.os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": "nonsense", "MUJOCO_EGL_DEVICE_ID": "99"}
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_no_backend_says_what_is_set_and_what_to_do(unset):
    unset.setenv("MUJOCO_GL", "foo")
    for ask in (gl.configure_gl, gl.require_gl):
        with pytest.raises(RuntimeError, match=r"MUJOCO_GL=foo .*unset it .*egl, osmesa or glfw"):
            ask("pixels")


def test_a_chosen_backend_that_draws_nothing_gives_its_reason(unset):
    unset.setenv("MUJOCO_GL", "osmesa")
    unset.setattr(gl, "backend_problem", lambda name: f"no {name} here")
    with pytest.raises(RuntimeError, match="MUJOCO_GL=osmesa is set, but draws nothing: no osmesa here; unset it"):
        gl.require_gl("pixels")


def test_a_chosen_backend_that_works_is_kept(unset):
    unset.setenv("MUJOCO_GL", "glx")
    unset.setattr(gl, "backend_problem", lambda name: "" if name == "glx" else pytest.fail(f"tried {name}"))
    assert gl.require_gl("pixels") == "glx"


@pytest.mark.parametrize("name", ["foo", "osmesa"])
def test_videos_of_a_state_run_fall_back_to_what_works(unset, name):
    unset.setenv("MUJOCO_GL", name)
    unset.setattr(gl, "backend_problem", lambda name: "" if name == "egl" else "broken")
    assert gl.require_gl("pixels", fall_back=True) == "egl"


def test_drawing_that_is_turned_off_stays_off(unset):
    unset.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(RuntimeError, match="MUJOCO_GL=disabled turns drawing off"):
        gl.require_gl("pixels", fall_back=True)


@pytest.mark.parametrize(("variable", "value"), [("MUJOCO_EGL_DEVICE_ID", "99"), ("PYOPENGL_PLATFORM", "nonsense")])
def test_a_wrong_setting_is_named_with_the_reason_of_the_probe(monkeypatch, variable, value):
    """As the real probe tells it; osmesa, where it is installed, does without the EGL device."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(gl, "backend_problem", gl.backend_problem.__wrapped__)
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=egl is set.* but draws nothing") as caught:
        gl.require_gl("pixels")
    message = str(caught.value)
    if "library was not found" in message or "libEGL" in message:
        pytest.skip("there is no EGL here whose reason could be quoted")
    assert f"{variable}={value}" in message
    assert message.count(variable) == 2  # ours, and the reason's own words
    assert "libegl1" not in message and len(message) < 290
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "BACKENDS", ("egl",))
    with pytest.raises(RuntimeError, match=f"egl: .*correct or unset {variable}={value}") as caught:
        gl.configure_gl("pixels")
    assert "install" not in str(caught.value)


def test_the_renderer_cache_closes_the_least_recently_used(monkeypatch):
    closed = []

    class Fake:
        def __init__(self, model, size, **flags):
            self.model = model

        def close(self):
            closed.append(self.model)

    monkeypatch.setattr(gl, "SceneRenderer", Fake)
    cache = gl.RendererCache(2, 64, {"shadows": False, "reflections": False, "msaa": 0})
    first = cache.get("a", "model a")
    cache.get("b", "model b")
    assert cache.get("a", "another object of model a") is first
    cache.get("c", "model c")
    assert closed == ["model b"]
    cache.close()
    assert sorted(closed) == ["model a", "model b", "model c"]
