"""What all tests share: two CPU devices, OpenGL settings that do not leak, and one finished run with its programs."""

import os

import jax
import pytest

# So that sharding can be compared with a single device.
jax.config.update("jax_num_cpu_devices", 2)

OPENGL = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "__EGL_VENDOR_LIBRARY_FILENAMES")


def _opengl_as_before():
    before = {name: os.environ.get(name) for name in OPENGL}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True, scope="module")
def opengl_as_before_the_module():
    """Choosing a backend and loading it set environment variables: the next module decides for itself."""
    yield from _opengl_as_before()


@pytest.fixture(autouse=True)
def opengl_as_before_the_test():
    """As for modules, whose fixtures hold for all of their tests."""
    yield from _opengl_as_before()


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory, worker_id):
    """A folder of this test session, the same one in all of pytest-xdist's processes."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session", autouse=True)
def compiled(session_folder):
    """A folder of compiled programs that all processes of this session share, and no other session."""
    folder = session_folder / "compiled"
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


@pytest.fixture(scope="session")
def run_environment(compiled):
    """The environment of whole runs: all of them share their compiled programs."""
    from support import cascade  # and with it orbax, which most tests do without

    return cascade.environment(compiled)


@pytest.fixture(scope="session")
def finished(session_folder, run_environment):
    """A run of tests/configs/fake.py that nothing interrupted: to read, and to go on from in a copy."""
    from support import cascade

    return cascade.made_once(session_folder / "finished", lambda folder: cascade.finish(folder, run_environment))
