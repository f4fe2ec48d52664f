"""A policy behind a server, evaluated: the episodes of the same policy in this process, and servers that fail."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest
from support.cascade import CONFIG
from support.sockets import running
from websockets.asyncio.server import serve

from cso_jax import evaluate, export, main
from cso_jax.files import read_jsonl
from cso_jax.runtime import remote
from cso_jax.runtime.remote import Remote, RemoteActor, RemoteError
from cso_jax.runtime.wire import pack, unpack


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A finished run of behaviour cloning on the environment without a simulator, and its artifact."""
    folder = tmp_path_factory.mktemp("cloned")
    workdir, artifact = folder / "run", folder / "artifact"
    assert main.main([f"--config={CONFIG}", f"--workdir={workdir}", "--config.policy.name=bc",
                      "--config.policy.chunk_length=8", "--config.imitation.steps=12"]) == 0  # fmt: skip
    assert export.main([str(workdir), str(artifact)]) == 0
    return workdir, artifact


@pytest.mark.parametrize("dialect", ["openpi", "vla-eval"])
def test_remote_evaluation_is_the_evaluation_in_this_process(cloned, tmp_path, dialect, capsys):
    from cso_jax.runtime import artifact

    workdir, folder = cloned
    with running(artifact.load(folder), dialect=dialect, max_clients=64) as server:
        arguments = [f"--config={CONFIG}", f"--policy={server.url}", f"--dialect={dialect}", f"--workdir={tmp_path}"]
        own = ["--config.policy.name=bc", "--config.policy.chunk_length=8"]
        assert evaluate.main([*arguments, *own]) == 0
    there = read_jsonl(tmp_path / "evaluation_remote.jsonl")
    here = [row for row in read_jsonl(workdir / "episodes.jsonl") if row["stage"] == "imitation"]

    def outcomes(rows):
        return {(row["task"], row["init"]): (row["success"], row["steps"]) for row in rows}

    assert len(here) == 12 and outcomes(there) == outcomes(here)
    assert len({row["success"] for row in here}) == 2  # else it would not tell one policy from another
    assert {row["dialect"] for row in there} == {dialect} and all(row["server"] for row in there)
    with running(artifact.load(folder), dialect=dialect) as server:  # another address: these rows are not its own
        assert evaluate.main([*arguments[:1], f"--policy={server.url}", *arguments[2:], *own]) == 1
    assert "holds episodes with policy" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- somebody else's server


@contextlib.contextmanager
def foreign(answer):
    """An independent server in openpi's dialect: metadata, then `answer(request)` for each request."""
    seen, started = [], threading.Event()

    async def talk(socket):
        await socket.send(pack({"name": "pi0"}))
        async for frame in socket:
            request = unpack(frame)
            seen.append(request)
            reply = answer(request)
            if reply is None:
                await socket.close()
                return
            await socket.send(reply if isinstance(reply, str) else pack(reply))

    async def run():
        async with serve(talk, "127.0.0.1", 0) as server:
            loop.port = server.sockets[0].getsockname()[1]
            started.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"ws://127.0.0.1:{loop.port}", seen
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def acted(url, *, rows=2, **values):
    actor = RemoteActor(Remote(url, timeout_s=5.0, patience_s=0.5, **values), {"a": "do a"}, episodes=4, action_dim=7)
    observations = {
        "agentview_rgb": np.arange(rows * 8 * 8 * 3, dtype=np.uint8).reshape(rows, 8, 8, 3),
        "eye_in_hand_rgb": np.zeros((rows, 8, 8, 3), np.uint8),
        "ee_pos": np.full((rows, 3), 1.0, np.float32),
        "ee_ori": np.full((rows, 3), 2.0, np.float32),
        "gripper_states": np.full((rows, 2), 3.0, np.float32),
    }
    keys = np.array([[0, number % 2] for number in range(rows)], np.uint32)
    try:
        return actor(observations, keys, np.zeros(rows, int), ("a",) * rows)[0]
    finally:
        actor.close()


def test_what_a_libero_policy_is_sent():
    with foreign(lambda request: {"actions": np.full((10, 7), 0.5)}) as (url, seen):
        actions = acted(url, mapping="libero", execute=4, invert_gripper=True)
    assert actions.shape == (2, 4, 7) and (actions[..., :6] == 0.5).all() and (actions[..., 6] == -0.5).all()
    assert len(seen) == 2 and {request["prompt"] for request in seen} == {"do a"}
    np.testing.assert_array_equal(seen[0]["observation/state"], [1, 1, 1, 2, 2, 2, 3, 3])
    assert seen[0]["observation/image"].shape == (224, 224, 3)
    # Turned by 180 degrees: the last pixel comes first.
    pixels = np.arange(2 * 192, dtype=np.uint8).reshape(2, 8, 8, 3)
    assert {tuple(r["observation/image"][0, 0]) for r in seen} == {tuple(image[-1, -1]) for image in pixels}


def test_an_episode_has_its_own_connection_until_it_ends():
    with foreign(lambda request: {"actions": np.zeros((5, 7))}) as (url, _):
        actor = RemoteActor(Remote(url), {"a": "do a"}, episodes=4, action_dim=7)
        keys = np.array([[0, 0], [0, 1]], np.uint32)
        row = {"x": np.zeros((2, 2), np.float32)}
        actor(row, keys, np.zeros(2, int), ("a", "a"))
        first, second = (link for link, _ in actor._links.values())
        actor(row, keys, np.ones(2, int), ("a", "a"))
        assert [link for link, _ in actor._links.values()] == [first, second] and first is not second
        actor.ended(keys[0])
        assert [link for link, _ in actor._links.values()] == [second]
        with pytest.raises(RemoteError, match="goes on that was not begun here"):
            actor(row, keys, np.ones(2, int), ("a", "a"))
        actor(row, keys, np.zeros(2, int), ("a", "a"))  # run again from its beginning
        actor.close()


def test_an_image_keeps_its_proportions():
    found = remote.padded(np.full((4, 8, 3), 200, np.uint8), 16)
    assert (found[4:12] == 200).all() and not found[:4].any() and not found[12:].any()


def test_rows_that_are_padding_are_not_asked_for():
    with foreign(lambda request: {"actions": np.zeros((5, 7))}) as (url, seen):
        assert acted(url, mapping="libero", rows=4).shape == (4, 5, 7)
        assert len(seen) == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda request: {"actions": np.zeros((3, 7))}, r"expected at least 5 actions of 7 numbers, found \[3, 7\]"),
        (lambda request: {"actions": np.zeros((5, 6))}, r"found \[5, 6\]"),
        (lambda request: {"actions": np.full((5, 7), np.nan)}, "numbers that are not finite"),
        (lambda request: {"actions": "none"}, "expected an array of actions, found str"),
        (lambda request: {}, "expected an array of actions, found NoneType"),
        (lambda request: "Traceback: shapes (3,) and (4,)", "the server refused: Traceback"),
        (lambda request: None, "the connection was lost in an episode"),
    ],
)
def test_a_server_that_answers_something_else_is_one_line(answer, says):
    with foreign(answer) as (url, _), pytest.raises(RemoteError, match=says) as caught:
        acted(url, mapping="libero", rows=1)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_or_never_answers():
    with pytest.raises(RemoteError, match=r"ws://127\.0\.0\.1:9: no policy server"):
        acted("ws://127.0.0.1:9")
    with pytest.raises(RemoteError, match="expected ws://HOST:PORT"):
        acted("http://x")
    waiting = threading.Event()

    def late(request):
        waiting.wait(2)
        return {"actions": np.zeros((5, 7))}

    with foreign(late) as (url, _):
        actor = RemoteActor(Remote(url, timeout_s=0.2, patience_s=0.5), {"a": "do a"}, episodes=1, action_dim=7)
        with pytest.raises(RemoteError, match=r"no answer within 0\.2 s"):
            actor({"x": np.zeros((1, 2))}, np.zeros((1, 2), np.uint32), np.zeros(1, int), ("a",))
        waiting.set()
        actor.close()


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--workdir=", "--workdir is missing"),
        ("--dialect=ros", "--dialect must be one of openpi, vla-eval; got 'ros'"),
        ("--execute=many", "--execute must be a whole number; got 'many'"),
        ("--stage=spo", "unknown option --stage"),
    ],
)
def test_options_that_make_no_sense(argument, says, capsys):
    assert evaluate.main(["--policy=ws://x", f"--config={CONFIG}", "--workdir=w", argument]) == 1
    assert says in capsys.readouterr().err
