"""A simulator behind the policy server: same initial states, disturbances that show, and readable refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.served import Seeker
from support.sockets import running

from cso_jax.envs.protocol import RobotInterface
from cso_jax.runtime import simulated_robot

FAKE = Path(__file__).parents[1] / "configs" / "fake.py"


def robot(server, *options):
    return simulated_robot.main([f"--config={FAKE}", f"--server=ws://127.0.0.1:{server.port}", *options])


@pytest.mark.parametrize("mode", ["--realtime=false", "--realtime=true"])
def test_it_counts_the_successes_of_the_runs_own_states(tmp_path, capsys, mode):
    out = tmp_path / "rows.jsonl"
    with running(Seeker()) as server:
        assert robot(server, "--episodes=2", "--seed=3", f"--out={out}", mode) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["init"] for row in rows] == [
        f"eval:{task}:{30_000_000 + number}" for number in range(2) for task in ("left", "right", "up")
    ]
    assert all(row["success"] and 0 < row["steps"] < 40 for row in rows)
    said = capsys.readouterr().out
    assert "success 100.0 %, 95 % interval 61.0 to 100.0, n = 6; 0 answers lost" in said
    assert ("control:" in said) == (mode == "--realtime=true")


def test_lost_answers_are_bridged_and_all_lost_means_no_success(capsys):
    with running(Seeker()) as server:
        assert robot(server, "--episodes=1", "--drop=0.3") == 0
        assert "success 100.0 %" in capsys.readouterr().out
        assert robot(server, "--episodes=1", "--drop=1") == 0
        assert "success 0.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (Seeker(size=5), (), "reads {'state': (5,)} and commands 2 numbers, this robot gives {'state': (4,)}"),
        (Seeker(tasks=("left",)), (), "has no task 'right'"),
        (Seeker(), ("--drop=2",), "--drop is a number from 0 to 1"),
        (Seeker(), ("--episodes=few",), "--episodes is a whole number"),
        (Seeker(), ("--speed=2",), "no option --speed"),
        (Seeker(), ("--token-file=nowhere",), "--token-file=nowhere cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_line(capsys, policy, options, message):
    with running(policy) as server:
        assert robot(server, *options) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and message in said


def test_an_arm_gets_back_what_the_export_made_of_its_actions():
    interface = RobotInterface(("joint", "gripper"), (-0.5, 0.0), (1.5, 1.0), "rad, opening", 20.0, scaled=True)
    own = np.array([[-1.0, 1.0], [0.5, 0.0]], np.float32)
    physical = np.array([[-0.5, 1.0], [1.0, 0.5]])
    np.testing.assert_allclose(simulated_robot.environment_actions(physical, interface), own, atol=1e-6)
