"""The live page: what is told comes out in order and bounded, images upright, and nobody else's page may read it."""

import http.client
import io
import json
import re
import shutil
import subprocess
import threading
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import served
from support.served import Seeker
from support.sockets import running

from cso_jax import envs
from cso_jax.envs import robot as robots
from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.runtime import simulated_robot
from cso_jax.runtime.control import ControlLoop, MonotonicClock, Settings
from cso_jax.runtime.driven import DrivenRobot
from cso_jax.runtime.manifest import Entry, Task
from cso_jax.runtime.operator import Operator
from cso_jax.runtime.robot_server import RobotServer
from cso_jax.runtime.schema import Commands, Schema
from cso_jax.runtime.view import View, ViewError, png

SETTINGS = envs.benchmark("fake").default_config()["env"]
FAKE = Path(__file__).parents[1] / "configs" / "fake.py"
NUMBER, KIND, WHEN, EPISODE, SEAM, VALUES = range(6)
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "cso_jax" / "runtime" / "view.html"


def state(view, since=0):
    return json.loads(view.state(since))


def every(view):
    """All samples that it has kept, answer by answer."""
    found, last, more = [], 0, True
    while more:
        answer = state(view, last)
        found, last, more = found + answer["samples"], answer["last"], answer["more"]
    return found


def values(view, kind="commanded"):
    return [sample[VALUES] for sample in every(view) if sample[KIND] == kind]


def get(view, path, **headers):
    """Status, type and body; `host` replaces the header."""
    connection = http.client.HTTPConnection("127.0.0.1", int(view.address.split(":")[2].strip("/")), timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest("GET", path, skip_host="host" in names)
    for name, value in names.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type"), answer.read()


def test_samples_come_out_in_order_once_and_as_json():
    view = View(served.manifest(), position_of=lambda seen: seen["joints"])
    view.episode("do thing 0")
    view.observe(served.observation(0.5), 9.99)
    for step in range(3):
        view.command(np.full(7, step, np.float32), 10 + step / 50, seam=step == 0)
    first = state(view)
    assert [sample[NUMBER] for sample in first["samples"]] == [1, 2, 3, 4]
    assert first["samples"][0] == [1, "measured", 9.99, 1, False, [0.5, 0, 0, 0, 0, 0, 0]]
    assert [sample[SEAM] for sample in first["samples"][1:]] == [True, False, False]
    assert first["joints"] == list(view._about.action.names) and first["task"] == "do thing 0"
    assert first["cameras"] == [["camera", 1]] and not first["more"]
    view.command(np.array([np.nan, np.inf, *[1 / 3] * 5]), 10.1, seam=True)
    later = state(view, first["last"])
    assert [sample[VALUES] for sample in later["samples"]] == [[None, None, *[0.333333] * 5]]
    assert state(view, later["last"])["samples"] == []
    assert len(state(view, 10**9)["samples"]) == 5  # of a page that is older than this program
    assert later["run"] == first["run"] != state(View(served.manifest()))["run"]


def test_it_keeps_a_window_and_answers_it_in_pieces():
    view = View(served.manifest(), window_s=10.0)
    for step in range(2000):
        view.command(np.zeros(7, np.float32), step / 50, seam=False)
    answer = state(view)
    assert len(answer["samples"]) == 400 and answer["more"] and answer["last"] == answer["samples"][-1][NUMBER]
    kept = every(view)
    assert [sample[NUMBER] for sample in kept] == list(range(1500, 2001))
    assert kept[0][WHEN] == pytest.approx(29.98, abs=0.011)
    for _ in range(30_000):
        view.command(np.zeros(7, np.float32), 41.0, seam=False)
    assert len(every(view)) == 20_000


def test_what_is_counted():
    view = View(served.manifest())
    for success in (True, False, True):
        view.episode("do thing 1")
        view.outcome(success)
    for milliseconds in range(1, 101):
        view.answer(milliseconds / 1000)
    view.watch("loop", lambda: {"stalls": 2, "skipped": 0})
    view.watch("link", lambda: {"lost": 1})
    view.watch("loop", lambda: {"stalls": 3})  # another loop: the one before counts on
    for step in range(2):
        view.command(np.zeros(7), float(step), seam=False)
        time.sleep(0.02)
    found = state(view)
    assert (found["episode"], found["successes"], found["failures"]) == (3, 2, 1)
    assert found["counts"] == {"stalls": 5, "skipped": 0, "lost": 1}
    assert found["latency_p50_s"] == pytest.approx(0.0505) and found["latency_p99_s"] == pytest.approx(0.099, abs=1e-3)
    assert 0 < found["rate_hz"] <= 50
    assert state(View(served.manifest()))["latency_p50_s"] is None


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [("upright", lambda i: i), ("flipped", lambda i: i[::-1]), ("rotated_180", lambda i: i[::-1, ::-1])],
)
def test_images_come_out_upright(orientation, turn):
    image = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    of = served.manifest(observation=(Entry("wrist/left", "image", (8, 10, 3), "uint8", orientation),))
    with View(of, port=0) as view:
        assert get(view, "/camera/wrist%2Fleft.png")[0] == 404  # none yet
        for seen in (turn(image), np.stack([turn(255 - image), turn(image)])):  # and a history's newest
            view.observe({"wrist/left": seen}, 1.0)
            status, kind, data = get(view, "/camera/wrist%2Fleft.png?n=1")
            assert (status, kind) == (200, "image/png")
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
        assert state(view)["cameras"] == [["wrist/left", 2]]


def test_an_image_of_any_memory_layout_is_encoded():
    image = np.random.default_rng(1).integers(0, 256, (3, 5, 7), np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), image)


def test_the_page_and_what_is_not_there():
    with View(served.manifest(), port=0) as view:
        status, kind, page = get(view, "/")
        assert (status, kind) == (200, "text/html; charset=utf-8") and page == PAGE.read_bytes()
        assert get(view, "/state.json?since=0")[:2] == (200, "application/json")
        assert get(view, "/camera/other.png")[::2] == (404, b"no camera 'other': the page lists those there are\n")
        assert get(view, "/camera/../view.html")[0] == get(view, "/view.html")[0] == 404
        for since in ("-1", "x", "9" * 40):
            assert get(view, f"/state.json?since={since}")[0] == 400
        address = view.address
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=5)


@pytest.mark.parametrize("path", ["/", "/state.json", "/camera/camera.png"])
def test_another_web_page_may_not_read_it(path):
    with View(served.manifest(), port=0) as view:
        view.observe(served.observation(), 1.0)
        own = view.address.removeprefix("http://").strip("/")
        for host in (own, "localhost:9999", "[::1]:80"):  # other ports: those of a tunnel
            assert get(view, path, host=host)[0] == 200
            assert get(view, path, host=host, Origin=f"http://{host}")[0] == 200
        for host in ("elsewhere.example:8090", "127.0.0.1.elsewhere.example", "", "[", "0.0.0.0"):
            assert get(view, path, host=host)[0] == 403
        for origin in ("http://elsewhere.example", "null", "http://localhost:1", f"https://{own}"):
            assert get(view, path, Origin=origin)[0] == 403
        assert get(view, path, Sec_Fetch_Site="same-origin")[0] == 200
        assert get(view, path, Sec_Fetch_Site="cross-site")[0] == (200 if path == "/" else 403)  # a link to it is none


def test_a_port_in_use_is_one_line():
    with View(served.manifest(), port=0) as view:
        port = int(view.address.split(":")[2].strip("/"))
        with pytest.raises(ViewError, match=rf"port {port}: Address already in use; choose another \(--view=PORT\)"):
            View(served.manifest(), port=port).__enter__()
    with pytest.raises(ViewError, match=r"port 99999: .*choose another"):
        View(served.manifest(), port=99_999).__enter__()


def test_a_position_that_cannot_be_read_leaves_the_commands():
    view = View(served.manifest(), position_of=lambda seen: seen["missing"])
    view.observe(served.observation(), 1.0)
    view.command(np.zeros(7), 1.0, seam=True)
    assert [sample[KIND] for sample in every(view)] == ["commanded"] and state(view)["cameras"] == [["camera", 1]]


def test_it_costs_the_loop_little_and_is_safe_from_any_thread():
    view, stop = View(served.manifest(), position_of=lambda seen: seen["joints"]), threading.Event()

    def look():
        while not stop.is_set():
            state(view)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    seen, action = served.observation(), np.zeros(7, np.float32)
    for step in range(300):
        view.observe(seen, step / 50)
        view.command(action, step / 50, seam=False)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(every(view)) == 600
    began = time.perf_counter()
    for step in range(1000):
        view.command(action, 6 + step / 50, seam=False)
    assert time.perf_counter() - began < 0.5  # 0.5 ms each, a hundred times what it is: machines are busy


# ------------------------------------------------------------------------------------------------------- who tells it


def test_the_control_loop_tells_each_command_and_seam():
    clock, of = served.SimulatedClock(), served.manifest()
    arm, view = served.FakeRobot(clock), View(of, position_of=lambda seen: seen["joints"], window_s=100.0)
    planner = served.SimulatedPlanner(clock, (0.1,))
    loop = ControlLoop(
        arm, of, None, position_of=lambda seen: np.zeros(7), settings=Settings(watchdog_s=60.0), clock=clock,
        planner=planner, view=view,
    )  # fmt: skip
    report = loop.run(seconds=4)
    commands = [sample for sample in every(view) if sample[KIND] == "commanded"]
    assert len(commands) == report.commands == 195
    np.testing.assert_allclose([one[WHEN] - 100 for one in commands], [at for at, _ in arm.commands], atol=1e-3)
    np.testing.assert_allclose([one[VALUES] for one in commands], [action for _, action in arm.commands], rtol=1e-5)
    seams = [index for index, one in enumerate(commands) if one[SEAM]]
    assert len(seams) == report.seams + 1 and seams[0] == 0
    measured = [sample for sample in every(view) if sample[KIND] == "measured"]
    assert len(measured) == report.requests
    assert measured[3][VALUES][0] == pytest.approx(measured[3][WHEN] - 100, rel=1e-5)
    found = state(view)
    assert found["latency_p50_s"] == pytest.approx(0.1) and found["counts"]["stalls"] == 0
    assert found["cameras"] == [["camera", report.requests]]


def test_a_driven_robot_tells_what_was_allowed():
    of, operator = served.manifest(), Operator()
    action = of.action
    commands = Commands(action.names, action.low, action.high, action.units, 200.0)
    schema = Schema("arm", of.observation, commands, (Task("lift", "lift it"),), of.limits, reproducible=False)
    view, arm = View(schema, position_of=lambda seen: seen["joints"]), served.FakeRobot(MonotonicClock(), rate_hz=200.0)
    environment = DrivenRobot(arm, schema, operator, position_of=lambda seen: np.zeros(7), ready_s=20.0, view=view)
    threading.Timer(0.05, operator.press, ["ready"]).start()
    environment.reset(TrainInit("lift", 4))
    environment.step_chunk(np.ones((3, 7), np.float32))
    operator.press("success")
    environment.step_chunk(np.zeros((3, 7), np.float32))
    np.testing.assert_allclose(values(view), [action for _, action in arm.commands], rtol=1e-5)
    assert [sample[SEAM] for sample in every(view) if sample[KIND] == "commanded"] == [True, False, False, True]
    found = state(view)
    assert (found["task"], found["episode"], found["successes"], found["failures"]) == ("lift it", 1, 1, 0)
    assert found["counts"]["commands changed: step"] >= 3 and len(values(view, "measured")) == 3


def test_a_simulator_that_training_drives_tells(tmp_path):
    schema = simulated_robot.schema_of(SETTINGS)
    (environment,) = envs.make_environments(SETTINGS, 1)
    view = View(schema)
    with RobotServer(schema, simulated_robot.Watched(environment, view, SETTINGS), port=0) as server:
        file = tmp_path / "robot.json"
        file.write_text(schema.to_json())
        settings = robots.default_config()["env"] | {
            "obs": "state", "schema": str(file), "robots": (f"ws://127.0.0.1:{server.port}",), "answer_s": 20.0,
        }  # fmt: skip
        remote = robots.RemoteEnvironment(settings)
        sent, result = [], remote.reset(EvalInit("left", 3))
        while not result.done:
            way = result.observation["state"][2:] - result.observation["state"][:2]
            actions = np.tile(np.clip(way / 0.06, -1, 1), (4, 1)).astype(np.float32)
            result = remote.step_chunk(actions)
            sent += list(actions[: result.steps])
        remote.close()
    np.testing.assert_allclose(values(view), sent, rtol=1e-5)
    found = state(view)
    assert (found["task"], found["successes"], found["failures"]) == ("go left", 1, 0)
    kept = every(view)
    np.testing.assert_allclose([one[WHEN] for one in kept], np.arange(len(kept)) / 20, atol=1e-9)


class _Looker:
    """Looks at the page of a simulated robot while it runs, as a browser would."""

    def __init__(self, monkeypatch) -> None:
        self.states: list[dict] = []
        said = simulated_robot.telemetry.log

        def log(text):
            said(text)
            if text.startswith("watch it at "):
                self.address = text.removeprefix("watch it at ")
                self.get("state.json")

        monkeypatch.setattr(simulated_robot.telemetry, "log", log)
        closed = View.__exit__

        def leave(view, *why):
            self.states.append(json.loads(self.get("state.json")))
            closed(view, *why)

        monkeypatch.setattr(View, "__exit__", leave)

    def get(self, path):
        return urllib.request.urlopen(self.address + path, timeout=10).read()


@pytest.mark.parametrize("mode", ["--realtime=false", "--realtime=true"])
def test_a_simulated_robot_shows_its_episodes(monkeypatch, mode):
    looker = _Looker(monkeypatch)
    options = ["--episodes=1", "--seed=3", "--view=0", mode]
    with running(Seeker()) as server:
        assert simulated_robot.main([f"--config={FAKE}", f"--server=ws://127.0.0.1:{server.port}", *options]) == 0
    (last,) = looker.states
    assert (last["episode"], last["successes"], last["failures"], last["task"]) == (3, 3, 0, "go up")
    assert last["name"] == "seeker" and last["joints"] == ["x", "y"] and last["latency_p50_s"] > 0
    commands = [sample for sample in last["samples"] if sample[KIND] == "commanded"]
    assert {sample[EPISODE] for sample in commands} == {1, 2, 3} and commands[0][SEAM]
    assert any(not sample[SEAM] for sample in commands)
    assert last["counts"]["answers lost"] == 0 and ("stalls" in last["counts"]) == (mode == "--realtime=true")


def test_a_simulated_robot_serves_with_a_page(monkeypatch):
    handlers: list = []
    monkeypatch.setattr(simulated_robot.signal, "signal", lambda _, handler: handlers.append(handler))
    said = simulated_robot.telemetry.log

    def stop(text):
        said(text)
        if "waits at" in text:
            handlers[0]()

    monkeypatch.setattr(simulated_robot.telemetry, "log", stop)
    looker = _Looker(monkeypatch)
    assert simulated_robot.main([f"--config={FAKE}", "--serve=0", "--view=0"]) == 0
    assert looker.states[0]["name"] == "simulated fake" and looker.states[0]["joints"] == ["x", "y"]


def test_its_option(capsys):
    command = [f"--config={FAKE}", "--server=ws://127.0.0.1:1"]
    assert simulated_robot._read([*command, "--view"])[0]["view"] == "8090"
    assert simulated_robot._read(["--view", *command])[0]["view"] == "8090"
    assert simulated_robot._read([*command, "--view", "9"])[0]["view"] == "9"
    assert "view" not in simulated_robot._read(command)[0]
    assert simulated_robot.main([*command, "--view=here"]) == 1
    assert "--view is a whole number; got 'here'" in capsys.readouterr().err
    with View(served.manifest(), port=0) as view, running(Seeker()) as server:
        port = view.address.split(":")[2].strip("/")
        taken = [f"--config={FAKE}", f"--server=ws://127.0.0.1:{server.port}", f"--view={port}"]
        assert simulated_robot.main(taken) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: the live page cannot have port") and len(said) == 1


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_is_packaged_and_needs_nothing_from_elsewhere():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cso_jax"]
    assert str(PAGE.relative_to(ROOT / "cso_jax")) in data
    text = PAGE.read_text()
    assert not re.findall(r"https?://|@import|<script[^>]+src|<link[^>]+stylesheet", text)
    assert "innerHTML" not in text  # names of joints and tasks are text, whatever is in them


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_its_script_is_one(tmp_path):
    (script,) = re.findall(r"<script>\n(.*?)</script>", PAGE.read_text(), flags=re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    done = subprocess.run(["node", "--check", str(tmp_path / "page.js")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
