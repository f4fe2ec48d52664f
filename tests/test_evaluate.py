"""The evaluation command's arguments, and the expected errors as one line."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from cso_jax import cli, defaults, evaluate, main
from cso_jax import config as configs
from cso_jax.stages import table

FAKE = Path(__file__).parent / "configs" / "fake.py"


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(defaults.metaworld()))
    (tmp_path / "checkpoints" / "imitation" / "20").mkdir(parents=True)
    return tmp_path


def test_defaults_to_the_newest_stage(workdir):
    assert evaluate._parse([f"--workdir={workdir}"]) == (workdir, "imitation", 0, "")
    (workdir / "checkpoints" / "spo").mkdir()  # begun, nothing saved
    assert evaluate._parse([f"--workdir={workdir}"])[1] == "imitation"
    (workdir / "checkpoints" / "spo" / "3").mkdir()
    assert evaluate._parse([f"--workdir={workdir}", "--episodes=7"]) == (workdir, "spo", 7, "")
    assert evaluate._parse([f"--workdir={workdir}", "--protocol=openpi"]) == (workdir, "spo", 0, "openpi")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage=spo"], "no policy of stage 'spo'; it has imitation"),
        (["--episodes=many"], "--episodes is a number"),
        (["--epochs=3"], "usage:"),
    ],
)
def test_bad_arguments(workdir, capsys, arguments, message):
    assert evaluate.main([f"--workdir={workdir}", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_not_a_workdir(tmp_path, capsys):
    assert evaluate.main([f"--workdir={tmp_path}"]) == 1
    assert "it has no config.json" in capsys.readouterr().err


def test_stored_config_is_the_config():
    config = defaults.metaworld()
    assert configs.flatten(configs.from_json(configs.to_json(config))) == configs.flatten(config)


def test_checkpoints_that_orbax_did_not_finish_are_none(workdir):
    """Orbax writes into such folders, and a killed process leaves them."""
    for name in ("7.orbax-checkpoint-tmp-1700000000", "7.orbax-checkpoint-tmp"):
        (workdir / "checkpoints" / "spo" / name).mkdir(parents=True)
    (workdir / "checkpoints" / "rsft").mkdir()
    (workdir / "checkpoints" / "rsft" / "9").write_text("a file")
    assert evaluate._parse([f"--workdir={workdir}"])[1] == "imitation"
    assert table.found_outputs("spo", workdir) == table.found_outputs("rsft", workdir) == []
    (workdir / "checkpoints" / "spo" / "7").mkdir()
    assert len(table.found_outputs("spo", workdir)) == 1


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_config_is_one_line_that_names_the_file(workdir, capsys, content):
    (workdir / "config.json").write_bytes(content)
    assert evaluate.main([f"--workdir={workdir}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {workdir}/config.json: ")


def test_the_home_folder_may_be_written_as_a_tilde(workdir, monkeypatch, capsys):
    """The shell leaves --workdir=~/runs as it is."""
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert evaluate._parse([f"--workdir=~/{workdir.name}"])[0] == workdir
    assert cli.folder_of("~/runs") == workdir.parent / "runs"
    assert main.main(["--config=~/nothing.py"]) == 1
    assert f"no config file {workdir.parent}/nothing.py" in capsys.readouterr().err
    assert main.main([f"--config={FAKE}", "--workdir=~nobody-of-that-name/runs"]) == 1
    assert "--workdir=~nobody-of-that-name/runs: no such home folder" in capsys.readouterr().err


def state_config():
    config = defaults.metaworld()
    config.env.obs = "state"
    return config


def test_a_thread_may_run_it(tmp_path):
    """Only the main thread can be told of signals."""
    statuses, stops = [], []
    thread = threading.Thread(target=lambda: statuses.append(cli.supervised(state_config(), tmp_path, stops.append)))
    thread.start()
    thread.join()
    assert statuses == [0] and not stops[0].is_set()


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    """As a process: JAX chooses its platform once."""
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("CUDA is there")
    command = [sys.executable, "-m", "cso_jax.main", f"--config={FAKE}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        command, cwd=FAKE.parents[2], env=os.environ | {"JAX_PLATFORMS": "cuda"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=cuda, and JAX finds no such device here")


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "x" * 300])
def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    assert cli.supervised(state_config(), tmp_path / place, pytest.fail) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write to ") and "--workdir" in line


def test_no_line_of_an_error_is_long_and_each_is_marked(tmp_path, capsys):
    long = "the beginning " + "x" * 500 + " what to do"
    details = tmp_path / "errors.log"
    assert cli.fail(ValueError(f"{long}\n\n  config.a: 1 in the workdir, 2 now\n"), details) == 1
    *_, first, second = capsys.readouterr().err.splitlines()
    assert len(first) == cli.LONGEST_LINE < 300
    assert first.startswith("error: the beginning xxx") and first.endswith("xxx what to do")
    assert second == "error:   config.a: 1 in the workdir, 2 now"
    assert long in details.read_text()


def test_a_short_error_leaves_no_file_and_an_empty_one_has_a_name(tmp_path, capsys):
    cli.fail(ValueError("short"), tmp_path / "errors.log")
    cli.fail(KeyError())
    assert capsys.readouterr().err == "error: short\nerror: KeyError\n"
    assert not (tmp_path / "errors.log").exists()


def test_the_error_is_the_last_line_and_libraries_speak_in_a_file(tmp_path, capsys):
    def work(_stop):
        logging.getLogger("absl").warning("a remark of orbax")
        raise configs.ConfigError("what is wrong")

    assert cli.supervised(state_config(), tmp_path, work) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: what is wrong"
    assert not any("orbax" in line for line in lines)
    assert "a remark of orbax" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("WriteAsync failed: ENOSPC: No space left on device [tensorstore]"),
    ],
)
def test_full_disk_is_one_line(tmp_path, capsys, error):
    def work(_stop):
        raise error

    config = defaults.metaworld()
    config.env.obs = "state"
    assert cli.supervised(config, tmp_path / "run", work) == 1
    message = capsys.readouterr().err
    assert "cannot write to" in message and "No space left" in message
    assert "nothing that was saved is lost" in message


def test_unexpected_errors_keep_their_traceback(tmp_path):
    def work(_stop):
        raise RuntimeError("a bug")

    config = defaults.metaworld()
    config.env.obs = "state"
    with pytest.raises(RuntimeError, match="a bug"):
        cli.supervised(config, tmp_path / "run", work)


def test_what_breaks_by_a_signal_is_a_stop(tmp_path, capfd):
    def work(_stop):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("a library was interrupted")

    config = defaults.metaworld()
    config.env.name = "fake"
    assert cli.supervised(config, tmp_path / "run", work) == 130
    message = capfd.readouterr().err
    assert "run the same command to go on" in message and "Traceback" not in message
    assert "a library was interrupted" in (tmp_path / "run" / "errors.log").read_text()


def test_a_drawing_probe_that_got_the_signal_too_is_no_error(tmp_path, capfd, monkeypatch):
    from cso_jax.envs import gl

    def probe(_obs):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("no OpenGL")

    monkeypatch.setattr(gl, "require_gl", probe)
    assert cli.supervised(defaults.metaworld(), tmp_path / "run", lambda stop: None) == 143
    assert "error:" not in capfd.readouterr().err


def test_an_error_is_one_line_where_its_details_cannot_be_written(tmp_path, capsys):
    from cso_jax.rollout.episodes import RolloutError

    def work(_stop):
        (tmp_path / "run" / "errors.log").mkdir()
        error = RolloutError("an episode failed")
        error.add_note("Traceback of the worker")
        raise error

    config = defaults.metaworld()
    config.env.name = "fake"
    assert cli.supervised(config, tmp_path / "run", work) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: an episode failed"


def test_no_opengl_names_the_packages(tmp_path, capsys, monkeypatch):
    from cso_jax.envs import gl

    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"):  # what drew in this process sets some
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gl, "backend_problem", lambda name: "broken")
    assert cli.supervised(defaults.metaworld(), tmp_path / "run", lambda stop: None) == 1
    message = capsys.readouterr().err
    assert "libegl1" in message and "libosmesa6" in message


def test_missing_libero_assets_are_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("libero")
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    monkeypatch.setattr("cso_jax.envs.libero.assets._PACKAGE", "a_package_that_nobody_has")
    monkeypatch.setenv("HOME", str(tmp_path))
    configuration = Path(__file__).parents[1] / "configs" / "libero_object_state.py"
    status = main.main([f"--config={configuration}", f"--workdir={tmp_path / 'run'}"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert status == 1 and len(errors) == 1
    assert "LIBERO_ASSETS" in errors[0] and "config.env.libero.assets" in errors[0]
