"""All commands under one name: what it says of itself, and that a command gets its arguments."""

import subprocess
import sys

import pytest

from cso_jax import __main__ as commands


@pytest.mark.parametrize("arguments", [["--help"], ["help"], []])
def test_help_names_every_command(capsys, arguments):
    assert commands.main(arguments) == (0 if arguments else 1)
    said = capsys.readouterr().out
    assert all(f"cso-jax {name}" in said for name in commands.COMMANDS)


def test_an_unknown_command_is_one_line(capsys):
    assert commands.main(["trian"]) == 1
    assert capsys.readouterr().err == (
        "error: no command 'trian'; there are train, evaluate, export, serve, data, import-quest: cso-jax --help\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["train", "--config=nowhere.py"], 1, "no config file nowhere.py"),
        (["evaluate", "--workdir=nowhere"], 1, "nowhere is not the workdir of a run"),
        (["data", "infos"], 1, "no command 'infos'; there are info, download, language"),
        (["serve"], 1, "usage: python -m cso_jax.serve ARTIFACT"),
        (["import-quest", "one"], 1, "usage: python -m cso_jax.import_quest FILE.pth OUT"),
        (["train", "--help"], 0, "--config=configs/quickstart.py"),
    ],
)
def test_a_command_gets_its_arguments(capsys, arguments, status, said):
    assert commands.main(arguments) == status
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


def test_nothing_follows_an_error_line(tmp_path):
    script = """
import atexit, sys
from cso_jax.cli import fail, run_command
atexit.register(lambda: print("a library's complaint", file=sys.stderr))
run_command(lambda: fail(OSError("no space")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: no space\n")
