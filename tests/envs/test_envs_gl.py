"""Choosing an OpenGL backend: the user's choice wins, state runs touch nothing, a missing library is one clear line."""

import subprocess
import sys

import pytest

from cso_jax.envs import gl


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "backend_works", lambda name: pytest.fail(f"tried {name}"))
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
    unset.setattr(gl, "backend_works", lambda name: name in working)
    assert gl.configure_gl("pixels") == expected == gl.gl_name()


def test_nothing_that_works_names_the_packages_on_one_line(unset):
    unset.setattr(gl, "backend_works", lambda name: False)
    with pytest.raises(RuntimeError, match=r"libegl1.*libosmesa6") as caught:
        gl.configure_gl("pixels")
    assert "\n" not in str(caught.value)
    assert gl.os.environ["MUJOCO_GL"] == ""


def test_a_probe_that_dies_means_no(monkeypatch):
    monkeypatch.setattr(gl, "_PROBE", "import os; os.abort()")
    assert not gl.backend_works.__wrapped__("egl")


def test_a_probe_that_hangs_means_no(monkeypatch):
    monkeypatch.setattr(gl, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(gl, "_PROBE_TIMEOUT_S", 0.2)
    assert not gl.backend_works.__wrapped__("egl")


def test_a_backend_that_does_not_exist_does_not_work():
    assert not gl.backend_works("nonsense")


def test_a_state_run_loads_no_opengl_library():
    code = """
import numpy as np
from cso_jax.envs import metaworld
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
