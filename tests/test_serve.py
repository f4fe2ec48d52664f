"""python -m cso_jax.serve: its options, its errors as one line, and that a signal ends it well."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import served

from cso_jax import serve
from cso_jax.runtime.client import PolicyClient, ServerGone

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: python -m cso_jax.serve ARTIFACT"),
        (["a", "b"], "usage: python -m cso_jax.serve ARTIFACT"),
        (["a", "--prot=1"], "no option --prot; there are --host"),
        (["a", "--port"], "--port needs a value"),
        (["a", "--port=x"], "--port is a number from 0 to 65535; got 'x'"),
        (["a", "--port", "70000"], "--port is a number"),
        (["a", "--window-ms=-1"], "--window-ms is a number"),
        (["a", "--images=bgr"], "--images is hwc"),
        (["a", "--rename=x"], "--rename is THEIRS=OURS"),
        (["a", "--dialect=ros"], "expected the dialect openpi or vla-eval"),
        (["a", "--host=0.0.0.0"], "there is no token"),
        (["a", "--token-file=nowhere"], "--token-file=nowhere cannot be read"),
        (["nowhere"], "nowhere is not there"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, monkeypatch, arguments, says):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    _with_policy(monkeypatch, served.FakePolicy())
    assert serve.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and said.count("\n") == 1


def _with_policy(monkeypatch, policy) -> None:
    """`cso_jax.runtime.artifact` as a module that loads this policy."""
    import types

    module = types.ModuleType("cso_jax.runtime.artifact")
    module.load = lambda path: policy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cso_jax.runtime.artifact", module)


def test_an_artifact_that_cannot_be_used_is_one_line(capsys, monkeypatch, tmp_path):
    def load(path):
        raise RuntimeError("manifest.json was changed or damaged")

    _with_policy(monkeypatch, served.FakePolicy())
    monkeypatch.setattr(sys.modules["cso_jax.runtime.artifact"], "load", load)
    assert serve.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: manifest.json was changed or damaged\n"


def test_the_options_reach_the_server(monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    arguments = ["a", "--host", "0.0.0.0", "--port=0", f"--token-file={token}", "--images=chw", "--rename=s=joints"]
    given = serve._parse([*arguments, "--seed=3", "--window-ms=5", "--max-clients=2", "--dialect=vla-eval"])
    options = given.options
    assert (options.host, options.port, options.token, options.seed) == ("0.0.0.0", 0, "secret", 3)
    assert (options.window_s, options.max_clients, options.dialect) == (0.005, 2, "vla-eval")
    assert options.reading.channels_first and options.reading.rename == {"s": "joints"}
    monkeypatch.setenv(serve.TOKEN, "other")
    assert serve._parse(["a"]).options.token == "other"


def test_a_name_that_the_policy_has_not_is_one_line(capsys, monkeypatch, tmp_path):
    _with_policy(monkeypatch, served.FakePolicy())
    assert serve.main([str(tmp_path), "--rename=s=state"]) == 1
    assert "no entry 'state'; the policy's are camera, joints" in capsys.readouterr().err


SERVED = """
import sys, types
sys.path.insert(0, "tests")
from support import served
module = types.ModuleType("cso_jax.runtime.artifact")
module.load = lambda path: served.FakePolicy()
sys.modules["cso_jax.runtime.artifact"] = module
from cso_jax import serve
sys.exit(serve.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(tmp_path, number):
    environment = {**os.environ, serve.TOKEN: "secret", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", SERVED, str(tmp_path), "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stderr
        line = ""
        while "serving arm at ws://127.0.0.1:" not in line:
            line = process.stderr.readline()
            assert line, "it has ended"
        port = int(line.partition("ws://127.0.0.1:")[2].split()[0])
        with PolicyClient("127.0.0.1", port, token="secret") as client:
            assert client.infer(served.observation(), task="task0").decision_index == 0
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait(30) == 0
            assert "all that was asked has been answered" in rest
            with pytest.raises(ServerGone):
                client.infer(served.observation(), timeout_s=0.1)
