"""The client: it connects, asks, gives up in time, comes back, and says in one line what is wrong."""

import socket as sockets
import threading
import time

import numpy as np
import pytest
from support import served
from support.sockets import running
from websockets.sync.server import serve

from cso_jax.runtime.client import AnswerLate, ClientError, Mismatch, PolicyClient, Refused, ServerGone
from cso_jax.runtime.requests import PROTOCOL
from cso_jax.runtime.wire import pack


def _client(server, **options) -> PolicyClient:
    return PolicyClient("127.0.0.1", server.port, **{"timeout_s": 10.0, "connect_s": 5.0, **options})


def test_it_asks_and_knows_the_manifest():
    policy = served.FakePolicy()
    with running(policy) as server, _client(server) as client:
        assert client.manifest == policy.manifest
        answer = client.infer(served.observation(3.0), task="do thing 1")
        assert answer.actions.shape == (16, 7) and answer.actions[0, 1] == 1 and answer.actions[0, 3] == 3
        assert answer.round_trip_s >= answer.policy_s >= 0
        assert client.infer(served.observation()).actions[0, 1] == 1  # the task is kept
        again = client.infer(served.observation(), reset=True)
        assert (answer.episode, again.episode, again.decision_index) == (0, 1, 0)
        client.reset()
        assert client.infer(served.observation()).episode == 2


def test_a_refusal_is_an_exception_and_the_next_request_works():
    with running(served.FakePolicy()) as server, _client(server) as client:
        with pytest.raises(Refused, match="expected shape") as refused:
            client.infer({"camera": np.zeros((8, 10, 3), np.uint8), "joints": np.zeros(6, np.float32)}, task="task0")
        assert refused.value.reason == "shape"
        with pytest.raises(ClientError, match="cannot be sent"):
            client.infer({"camera": object()})
        assert client.infer(served.observation()).decision_index == 0


def test_an_answer_that_is_late_is_given_up_and_dropped_when_it_comes():
    policy = served.FakePolicy()
    with running(policy) as server, _client(server) as client:
        policy.gate.clear()
        with pytest.raises(AnswerLate, match="no answer"):
            client.infer(served.observation(1.0), task="task0", timeout_s=0.05)
        policy.gate.set()
        assert client.infer(served.observation(2.0)).actions[0, 3] == 2


def test_a_server_that_is_gone_mid_episode_is_an_exception_and_found_again():
    policy = served.FakePolicy()
    with running(policy) as server:
        port = server.port
        client = _client(server)
        client.infer(served.observation(), task="do thing 1")
    with pytest.raises(ServerGone, match="the next request connects"):
        client.infer(served.observation())
    with pytest.raises(ServerGone, match="no policy server"):
        client.infer(served.observation(), timeout_s=0.2)
    with running(served.FakePolicy(), port=port):
        answer = client.infer(served.observation())
        assert answer.actions[0, 1] == 1 and answer.decision_index == 0  # its task came along
    client.close()


def test_it_waits_for_a_server_that_comes_later():
    with sockets.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found: list = []
    client = PolicyClient("127.0.0.1", port, connect_s=20)
    thread = threading.Thread(target=lambda: found.append(client.infer(served.observation(), task="task0")))
    thread.start()
    time.sleep(0.2)
    with running(served.FakePolicy(), port=port):
        thread.join(20)
        client.close()
    assert found and found[0].actions.shape == (16, 7)


def test_another_policy_after_a_restart_is_noticed():
    with running(served.FakePolicy()) as server:
        port = server.port
        client = _client(server)
        client.infer(served.observation(), task="task0")
    other = served.FakePolicy(served.manifest(name="another"))
    with running(other, port=port):
        with pytest.raises(ServerGone):
            client.infer(served.observation())
        with pytest.raises(Mismatch, match="another"):
            client.infer(served.observation())
    client.close()


def test_token_and_robot_are_refused_readably():
    with running(served.FakePolicy(), token="secret") as server:
        with pytest.raises(Refused, match="send the server's token") as refused:
            _client(server, token="wrong").connect()
        assert refused.value.reason == "unauthorized"
        with _client(server, token="secret", robot="left"):
            with pytest.raises(Refused, match="has a client already"):
                _client(server, token="secret", robot="left").connect()
            with _client(server, token="secret", robot="left", take_over=True) as second:
                assert second.infer(served.observation(), task="task0").decision_index == 0


@pytest.mark.parametrize("greeting", [pack({"reset_pose": [0.0]}), pack({"protocol": PROTOCOL}), b"\xc1"])
def test_a_server_of_another_kind_is_a_mismatch(greeting):
    """openpi's own server, for one: it sends metadata without a protocol."""

    def handler(socket):
        socket.send(greeting)
        socket.recv()

    with serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(Mismatch, match="expected"):
            PolicyClient("127.0.0.1", server.socket.getsockname()[1], connect_s=5).connect()
        server.shutdown()
        thread.join()


def test_answers_that_are_no_actions_are_a_mismatch():
    greeting = {"protocol": "cso_jax.policy_server", "protocol_version": 1, "manifest": served.manifest().to_plain()}
    answers = iter([{"actions": np.zeros((3, 7), np.float32)}, {"actions": np.full((16, 7), np.nan, np.float32)}, {}])

    def handler(socket):
        socket.send(pack(greeting))
        for number, answer in enumerate(answers, 1):
            socket.recv()
            socket.send(pack(answer | {"request_id": number}))
        socket.recv()

    with serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with PolicyClient("127.0.0.1", server.socket.getsockname()[1], connect_s=5) as client:
            for _ in range(3):
                with pytest.raises(Mismatch, match="expected finite actions"):
                    client.infer(served.observation())
        server.shutdown()
        thread.join()


def test_the_time_of_day_may_jump(monkeypatch):
    with running(served.FakePolicy()) as server, _client(server) as client:
        jumps = iter([1e9, 0.0, 2e9, -1.0] * 50)
        monkeypatch.setattr(time, "time", lambda: next(jumps))
        for _ in range(3):
            assert 0 <= client.infer(served.observation(), task="task0").round_trip_s < 10


@pytest.mark.parametrize(("host", "port", "url"), [("::1", 80, "ws://[::1]:80"), ("wss://a.b", None, "wss://a.b")])
def test_addresses(host, port, url):
    assert PolicyClient(host, port).url == url
