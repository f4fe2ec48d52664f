"""The server as vla-eval's clients use it: hello, episodes, one action per observation, errors that keep the line."""

import contextlib

import msgpack
import numpy as np
import pytest
from support import served
from support.sockets import running
from websockets.sync.client import connect

from cso_jax.runtime.wire import pack, unpack


class Client:
    """Messages by hand, as vla-eval 0.8.0 writes them."""

    def __init__(self, socket) -> None:
        self.socket, self.seq = socket, 0

    def send(self, kind: str, payload) -> int:
        self.seq += 1
        message = {"type": kind, "payload": payload, "seq": self.seq, "timestamp": 0.0}
        self.socket.send(pack(message, "vla-eval"))
        return self.seq

    def ask(self, kind: str, payload) -> dict:
        seq = self.send(kind, payload)
        message = unpack(self.socket.recv(10), "vla-eval")
        assert message["seq"] == seq and isinstance(message["timestamp"], float)
        return message


@contextlib.contextmanager
def _connected(policy, **options):
    with running(policy, dialect="vla-eval", **options) as server, connect(server.url, compression=None) as socket:
        yield Client(socket)


def _observation(first: float = 0.0) -> dict:
    given = served.observation(first)
    return {
        "images": {"camera": given["camera"]},
        "task_description": "do thing 1",
        "joints": given["joints"].astype(np.float64),
        "controller_states": np.zeros(3),
    }


def test_hello_says_protocol_and_schema():
    with _connected(served.FakePolicy()) as client:
        reply = client.ask("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        assert reply["type"] == "hello" and reply["payload"]["protocol_version"] == 1
        assert reply["payload"]["action_spec"]["action"]["dims"] == 7
        assert reply["payload"]["observation_spec"]["camera"]["format"] == "rgb_hwc_uint8"
        assert reply["payload"]["cso_jax"]["manifest"]["name"] == "arm"


def test_one_action_per_observation_and_one_call_per_horizon():
    policy = served.FakePolicy()
    with _connected(policy) as client:
        client.send("episode_start", {"task": {"name": "whatever"}})
        actions = [client.ask("observation", _observation(float(step)))["payload"]["actions"] for step in range(9)]
        assert [action.shape for action in actions] == [(7,)] * 9
        assert [action[0] for action in actions] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
        assert [call["observation"]["joints"][0, 0] for call in policy.calls] == [0, 8]
        assert actions[8][1] == 1 and actions[8][2] == 1


def test_a_new_episode_drops_the_rest_of_the_chunk():
    policy = served.FakePolicy()
    with _connected(policy, seed=0) as client:
        client.ask("observation", _observation())
        client.send("episode_end", {"metrics": {"success": True}})
        client.send("episode_start", {"task": {"name": "task0"}})
        payload = {key: value for key, value in _observation().items() if key != "task_description"}
        action = client.ask("observation", payload)["payload"]["actions"]
        assert action[:3].tolist() == [0, 0, 0]
        assert (policy.calls[0]["keys"] != policy.calls[1]["keys"]).any()


def test_an_answer_of_the_episode_before_is_not_executed():
    policy = served.FakePolicy()
    with _connected(policy) as client:
        policy.gate.clear()
        seq = client.send("observation", _observation())
        assert policy.running.acquire(timeout=10)
        client.send("episode_start", {})
        later = client.send("observation", _observation())
        policy.gate.set()
        first, second = (unpack(client.socket.recv(10), "vla-eval") for _ in range(2))
        assert (first["type"], first["seq"], first["payload"]["reason"]) == ("error", seq, "superseded")
        assert (second["type"], second["seq"]) == ("action", later)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"\xc1", "malformed"),
        (msgpack.packb([1]), "expected a message"),
        (msgpack.packb({"type": "run", "payload": {}, "seq": 1}), "expected a type"),
        (msgpack.packb({"type": "observation", "payload": [], "seq": 1}), "expected a type"),
        (pack({"type": "observation", "payload": {"joints": 1}, "seq": 1}, "vla-eval"), "found no 'camera'"),
        (
            pack({"type": "observation", "payload": _observation(float("nan")), "seq": 1}, "vla-eval"),
            "expected finite numbers",
        ),
        (
            pack({"type": "observation", "payload": _observation() | {"task_description": "?"}, "seq": 1}, "vla-eval"),
            "do thing 0",
        ),
    ],
)
def test_a_bad_message_is_an_error_and_the_connection_kept(frame, says):
    with _connected(served.FakePolicy()) as client:
        client.socket.send(frame)
        message = unpack(client.socket.recv(10), "vla-eval")
        assert message["type"] == "error" and says in message["payload"]["error"]
        assert client.ask("observation", _observation())["type"] == "action"
