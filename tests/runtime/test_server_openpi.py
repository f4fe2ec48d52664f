"""The server over real sockets, as openpi's clients use it: answers, refusals, token, batches, shutdown."""

import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from support import served
from support.sockets import asked, openpi, raw, raw_array, received, running
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from cso_jax.runtime.manifest import Manifest
from cso_jax.runtime.requests import Reading
from cso_jax.runtime.server import Options
from cso_jax.runtime.wire import pack


def _request(first: float = 0.0, **more) -> dict:
    return served.observation(first) | {"prompt": "do thing 1"} | more


def test_the_metadata_comes_first_and_holds_the_manifest():
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server, X_Robot="left") as socket:
        assert policy.warm
        assert socket.metadata["protocol"] == "cso_jax.policy_server" and socket.metadata["protocol_version"] == 1
        assert Manifest.from_plain(socket.metadata["manifest"]) == policy.manifest
        assert socket.metadata["robot"] == "left"


def test_an_observation_is_answered_with_a_chunk_and_what_it_said():
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server) as socket:
        answer = asked(socket, _request(5.0, request_id=7, sent_at=1.5))
        assert answer["actions"].shape == (16, 7) and answer["actions"].dtype == np.float32
        assert answer["actions"][3, :4].tolist() == [3, 1, 0, 5]
        assert answer["request_id"] == 7 and answer["sent_at"] == 1.5
        assert answer["server_timing"]["infer_ms"] >= 0
        assert asked(socket, _request())["decision_index"] == 1
        assert asked(socket, _request())["server_timing"]["prev_total_ms"] > 0


def test_an_episode_is_new_at_connect_at_reset_and_for_another_number():
    with running(served.FakePolicy(), seed=0) as server, openpi(server) as socket:
        found = [
            (answer["episode"], answer["decision_index"])
            for answer in (
                asked(socket, _request()),
                asked(socket, _request(episode=0)),
                asked(socket, _request(reset=True)),
                asked(socket, _request(episode=5)),
                asked(socket, _request(episode=5)),
                asked(socket, _request(episode=5, reset=True)),
                asked(socket, _request()),
            )
        ]
        assert found == [(0, 0), (0, 1), (1, 0), (5, 0), (5, 1), (5, 0), (5, 1)]


BAD = {
    "text": ("hello", "malformed", "text frame"),
    "no msgpack": (b"\xc1", "malformed", "0xc1"),
    "a list": ([1], "malformed", "expected a map"),
    "bytes as keys": (raw({b"joints": 1}), "malformed", "text as keys"),
    "missing key": ({"camera": served.observation()["camera"]}, "missing_key", "found no 'joints'"),
    "unknown key": (_request(wrist=np.zeros(1, np.float32)), "unknown_key", "found 'wrist'"),
    "wrong shape": (_request() | {"joints": np.zeros(6, np.float32)}, "shape", "expected shape [7], found [6]"),
    "another size": (_request() | {"camera": np.zeros((9, 10, 3), np.uint8)}, "shape", "expected shape [8, 10, 3]"),
    "channels first": (_request() | {"camera": np.zeros((3, 8, 10), np.uint8)}, "channel_order", "--images=chw"),
    "image of floats": (_request() | {"camera": np.zeros((8, 10, 3), np.float32)}, "dtype", "not 0 to 1"),
    "whole numbers": (_request() | {"joints": np.zeros(7, np.int64)}, "dtype", "expected float32"),
    "a list for an array": (_request() | {"joints": [0.0] * 7}, "dtype", "expected an array"),
    "objects": (raw(_request() | {"joints": raw_array(b"\0" * 56, "|O", [7]), "camera": 0}), "malformed", "its type"),
    "short data": (raw({"joints": raw_array(b"\0" * 8, "<f4", [7])}), "malformed", "needs 28 bytes"),
    "NaN": (_request(float("nan")), "not_finite", "found nan at [0]"),
    "infinite": (_request(float("inf")), "not_finite", "found inf at [0]"),
    "overflow": (_request() | {"joints": np.full(7, 1e300)}, "not_finite", "found inf"),
    "gripper in mm": (_request() | {"joints": np.asarray([0.0] * 6 + [40], np.float32)}, "range", "near 0 to 0.08"),
    "unknown task": (_request(prompt="do thing 9"), "task", "do thing 0"),
    "two tasks": (_request(task="task0"), "task", "same task"),
    "task is a number": (_request(prompt=3), "task", "expected text"),
    "request_id": (_request(request_id=[1]), "malformed", "request_id"),
    "deadline": (_request(deadline_ms=-1), "malformed", "deadline_ms"),
    "episode": (_request(episode="x"), "malformed", "episode"),
    "reset": (_request(reset=1), "malformed", "reset"),
}


@pytest.fixture(scope="module")
def shared():
    """One server and one connection for all bad requests: each must leave it in order."""
    with running(served.FakePolicy()) as server, openpi(server) as socket:
        yield socket


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_one_line_and_the_connection_kept(shared, name):
    request, reason, says = BAD[name]
    found = asked(shared, request)
    assert isinstance(found, str) and found.startswith(f"refused ({reason}") and says in found and "\n" not in found
    assert asked(shared, _request(2.0))["actions"][0, 3] == 2.0


def test_a_refusal_names_its_request(shared):
    assert asked(shared, _request(request_id="a-7") | {"joints": 1}).startswith("refused (dtype, request a-7): ")


def test_a_refused_request_changes_nothing():
    with running(served.FakePolicy(), seed=1) as server, openpi(server) as socket:
        before = asked(socket, _request())
        asked(socket, _request(float("nan"), reset=True))
        asked(socket, _request(prompt="nothing", episode=9))
        after = asked(socket, _request())
        assert (before["episode"], after["episode"], after["decision_index"]) == (0, 0, 1)


def test_no_task_among_several_is_refused_with_the_list():
    with running(served.FakePolicy()) as server, openpi(server) as socket:
        found = asked(socket, served.observation())
        assert found.startswith("refused (task") and "task1" in found


def test_channels_first_only_by_option():
    with running(served.FakePolicy(), reading=Reading(channels_first=True)) as server, openpi(server) as socket:
        picture = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)
        asked(socket, _request() | {"camera": np.ascontiguousarray(picture.transpose(2, 0, 1))})
        np.testing.assert_array_equal(server.server.policy.calls[0]["observation"]["camera"][0], picture)
        assert "without --images=chw" in asked(socket, _request())


def test_names_of_other_clients():
    """Nested images go by their own names, other keys by --rename."""
    rename = Reading(rename={"observation/state": "joints"})
    with running(served.FakePolicy(), reading=rename) as server, openpi(server) as socket:
        given = served.observation(4.0)
        request = {"images": {"camera": given["camera"]}, "observation/state": given["joints"].astype(np.float64)}
        assert asked(socket, request | {"prompt": "task0"})["actions"][0, 3] == 4.0


def test_a_history_is_kept_here_or_sent():
    policy = served.FakePolicy(served.manifest(history=3))
    with running(policy) as server, openpi(server) as socket:
        asked(socket, _request(1.0))
        asked(socket, _request(2.0))
        own = {name: np.stack([value] * 3) for name, value in served.observation(7.0).items()}
        asked(socket, own | {"prompt": "task0"})
        seen = [call["observation"]["joints"][0, :, 0].tolist() for call in policy.calls]
        assert seen == [[1, 1, 1], [1, 1, 2], [7, 7, 7]]
        mixed = own | {"camera": served.observation()["camera"], "prompt": "task0"}
        assert asked(socket, mixed).startswith("refused (shape")


def test_a_frame_beyond_the_bound_ends_that_connection_only():
    with running(served.FakePolicy()) as server, openpi(server) as socket, openpi(server) as other:
        with pytest.raises(ConnectionClosed) as closed:
            asked(socket, b"\0" * 2**20)
        assert closed.value.rcvd.code == 1009
        assert asked(other, _request())["decision_index"] == 0


def test_a_policy_that_fails_is_told_and_the_server_goes_on():
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server) as socket:
        policy.error = RuntimeError("out of memory\nand more")
        found = asked(socket, _request(request_id=1))
        assert found.startswith("refused (policy, request 1)") and "out of memory" in found and "\n" not in found
        policy.error = None
        assert asked(socket, _request())["actions"].shape == (16, 7)


def _status(server, path, **headers) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_token_is_asked_for_and_pages_tell_what_they_may():
    with running(served.FakePolicy(), token="secret") as server:
        assert _status(server, "/healthz") == (200, "OK\n")
        assert _status(server, "/metrics")[0] == 401
        for header in ("", "Api-Key wrong", "Basic secret", "secret", "Bearer  ", "Api-Key secre\u00e9"):
            with pytest.raises(InvalidStatus) as refused, openpi(server, Authorization=header):
                pass
            assert refused.value.response.status_code == 401
        for header in ("Api-Key secret", "Bearer secret", "bearer secret"):
            with openpi(server, Authorization=header) as socket:
                assert asked(socket, _request())["decision_index"] == 0
        with connect(f"ws://any:secret@127.0.0.1:{server.port}", compression=None) as socket:
            socket.recv(10)
        with pytest.raises(InvalidStatus), connect(f"ws://secret:any@127.0.0.1:{server.port}"):
            pass
        status, text = _status(server, "/metrics", Authorization="Bearer secret")
        assert status == 200 and "cso_jax_requests_total 3" in text
        assert 'cso_jax_refusals_total{reason="unauthorized"} 8' in text
        assert 'cso_jax_batches_total{rows="1",padded="1"} 3' in text
        assert 'cso_jax_request_seconds{quantile="0.99"}' in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.3", "", "robot.local"])
def test_other_machines_need_a_token(host):
    with pytest.raises(ValueError, match="there is no token"):
        Options(host=host)
    Options(host=host, token="secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_this_machine_does_not(host):
    Options(host=host)


def test_a_web_page_is_refused():
    with running(served.FakePolicy()) as server:
        page = openpi(server, Origin="http://example.org")
        with pytest.raises(InvalidStatus) as refused, page:
            pass
    assert refused.value.response.status_code == 403


def test_one_client_per_robot_unless_it_takes_over():
    with running(served.FakePolicy()) as server, openpi(server, X_Robot="left", X_Client="a") as first:
        with openpi(server, X_Robot="right") as other:
            assert asked(other, _request())["decision_index"] == 0
        with pytest.raises(InvalidStatus) as refused, openpi(server, X_Robot="left"):
            pass
        assert refused.value.response.status_code == 409
        assert "has a client already" in refused.value.response.body.decode()
        with openpi(server, X_Robot="left", X_Take_Over="1") as second:
            assert asked(second, _request())["decision_index"] == 0
            with pytest.raises(ConnectionClosed) as closed:
                first.recv(10)
            assert closed.value.rcvd.code == 1008 and "taken over" in closed.value.rcvd.reason


def test_a_program_that_comes_back_has_its_robot_again():
    with running(served.FakePolicy()) as server, openpi(server, X_Robot="left", X_Client="a") as lost:
        with openpi(server, X_Robot="left", X_Client="a") as again:
            assert asked(again, _request())["decision_index"] == 0
        with pytest.raises(ConnectionClosed) as closed:
            lost.recv(10)
        assert closed.value.rcvd.code == 1008


def test_full_is_refused():
    with running(served.FakePolicy(), max_clients=1) as server, openpi(server):
        with pytest.raises(InvalidStatus) as refused, openpi(server):
            pass
        assert refused.value.response.status_code == 503


def test_robots_that_ask_together_share_one_call():
    """The policy is busy while three ask: one call with three rows, padded to four."""
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server) as busy:
        policy.gate.clear()
        busy.send(pack(_request()))
        assert policy.running.acquire(timeout=10)
        sockets = []
        for number in range(3):
            context = openpi(server)
            sockets.append((context, context.__enter__()))
            sockets[-1][1].send(pack(_request(float(number), task=None)))
        _wait(lambda: server.server.metrics.requests == 4)
        assert _status(server, "/healthz")[0] == 200  # the event loop is not in the policy's hands
        policy.gate.set()
        answers = [received(socket) for _, socket in sockets]
        assert [answer["actions"][0, 3] for answer in answers] == [0, 1, 2]
        for context, _ in sockets:
            context.__exit__(None, None, None)
        assert [len(call["task"]) for call in policy.calls] == [1, 4]
        assert server.server.metrics.batches[3, 4] == 1


def _wait(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("not within ten seconds")


def test_the_newest_observation_wins_and_the_older_is_told():
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server) as socket:
        policy.gate.clear()
        socket.send(pack(_request(1.0, request_id=1)))
        assert policy.running.acquire(timeout=10)
        for number in (2, 3, 4):
            socket.send(pack(_request(float(number), request_id=number)))
        assert [received(socket)[:40] for _ in range(2)] == [
            "refused (superseded, request 2): a newer",
            "refused (superseded, request 3): a newer",
        ]
        policy.gate.set()
        first, last = received(socket), received(socket)
        assert (first["request_id"], last["request_id"]) == (1, 4)
        assert last["decision_index"] == 1 and last["actions"][0, 3] == 4
        assert server.server.metrics.refusals["superseded"] == 2


def test_an_answer_after_its_deadline_is_a_refusal():
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server) as socket:
        policy.gate.clear()
        threading.Timer(0.05, policy.gate.set).start()
        assert asked(socket, _request(request_id=1, deadline_ms=1)).startswith("refused (deadline, request 1)")
        assert asked(socket, _request(deadline_ms=60_000))["actions"].shape == (16, 7)


def test_a_deadline_that_passes_while_waiting_costs_no_call():
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server) as socket:
        policy.gate.clear()
        socket.send(pack(_request(request_id=1)))
        assert policy.running.acquire(timeout=10)
        socket.send(pack(_request(request_id=2, deadline_ms=1)))
        _wait(lambda: server.server.metrics.requests == 2)
        time.sleep(0.01)
        policy.gate.set()
        assert received(socket)["request_id"] == 1
        assert received(socket).startswith("refused (deadline, request 2)")
        assert len(policy.calls) == 1


def test_a_client_that_goes_leaves_nothing_behind():
    policy = served.FakePolicy()
    with running(policy) as server:
        policy.gate.clear()
        with openpi(server, X_Robot="left") as socket:
            socket.send(pack(_request()))
            assert policy.running.acquire(timeout=10)
            socket.send(pack(_request()))
        _wait(lambda: server.server.metrics.connections == 0)
        policy.gate.set()
        with openpi(server, X_Robot="left") as socket:
            assert asked(socket, _request())["decision_index"] == 0
        assert len(policy.calls) == 2


def test_shutdown_finishes_the_running_call_and_says_that_it_goes():
    policy = served.FakePolicy()
    with running(policy) as server, openpi(server) as socket:
        policy.gate.clear()
        socket.send(pack(_request(request_id=1)))
        assert policy.running.acquire(timeout=10)
        server.stop(wait=False)
        _wait(lambda: server.server._hub.draining)
        socket.send(pack(_request(request_id=2)))
        assert received(socket).startswith("refused (shutting_down, request 2)")
        threading.Timer(0.05, policy.gate.set).start()
        assert received(socket)["request_id"] == 1
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(10)
        assert closed.value.rcvd.code == 1001


def test_a_taken_port_is_an_os_error():
    with running(served.FakePolicy()) as server:
        port = server.port
        with pytest.raises(OSError), running(served.FakePolicy(), port=port):
            pass


def test_a_policy_that_does_not_run_is_one_line():
    policy = served.FakePolicy()

    def warm_up():
        raise RuntimeError("no memory")

    policy.warm_up = warm_up
    with pytest.raises(ValueError, match=r"does not run here .RuntimeError: no memory"), running(policy):
        pass


@pytest.mark.parametrize("options", [{"dialect": "ros"}, {"token": "two words"}, {"token": "line\n"}])
def test_options_that_cannot_be(options):
    with pytest.raises(ValueError, match="expected"):
        Options(**options)
