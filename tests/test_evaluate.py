"""The evaluation command's arguments, and the expected errors as one line."""

import errno
from pathlib import Path

import pytest

from cso_jax import config as configs
from cso_jax import defaults, evaluate, main


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(defaults.metaworld()))
    (tmp_path / "checkpoints" / "imitation" / "20").mkdir(parents=True)
    return tmp_path


def test_defaults_to_the_newest_stage(workdir):
    assert evaluate._parse([f"--workdir={workdir}"]) == (workdir, "imitation", 0)
    (workdir / "checkpoints" / "spo").mkdir()  # begun, nothing saved
    assert evaluate._parse([f"--workdir={workdir}"])[1] == "imitation"
    (workdir / "checkpoints" / "spo" / "3").mkdir()
    assert evaluate._parse([f"--workdir={workdir}", "--episodes=7"]) == (workdir, "spo", 7)


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
    assert main.supervised(config, tmp_path / "run", work) == 1
    message = capsys.readouterr().err
    assert "cannot write to" in message and "No space left" in message
    assert "nothing that was saved is lost" in message


def test_unexpected_errors_keep_their_traceback(tmp_path):
    def work(_stop):
        raise RuntimeError("a bug")

    config = defaults.metaworld()
    config.env.obs = "state"
    with pytest.raises(RuntimeError, match="a bug"):
        main.supervised(config, tmp_path / "run", work)


def test_no_opengl_names_the_packages(tmp_path, capsys, monkeypatch):
    from cso_jax.envs import gl

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "backend_works", lambda name: False)
    assert main.supervised(defaults.metaworld(), tmp_path / "run", lambda stop: None) == 1
    message = capsys.readouterr().err
    assert "libegl1" in message and "libosmesa6" in message


def test_missing_libero_assets_are_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("libero")
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    from cso_jax.envs import libero_files

    monkeypatch.setattr(libero_files.Path, "home", lambda: tmp_path)
    configuration = Path(__file__).parents[1] / "configs" / "libero_object_state.py"
    status = main.main([f"--config={configuration}", f"--workdir={tmp_path / 'run'}"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert status == 1 and len(errors) == 1
    assert "LIBERO_ASSETS" in errors[0] and "config.env.libero.assets" in errors[0]
