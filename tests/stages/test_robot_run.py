"""A whole run whose episodes are all executed by a robot behind a socket."""

import dataclasses
from pathlib import Path

from support import cascade

from cso_jax import config as configs
from cso_jax import envs
from cso_jax.files import read_jsonl
from cso_jax.runtime.robot_server import RobotServer
from cso_jax.runtime.simulated_robot import schema_of

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "configs" / "robot.py"


class Staged:
    """An environment whose tasks have two stages: something was executed; it is done."""

    def __init__(self, environment):
        self._environment = environment

    def reset(self, init, *, record=False):
        return dataclasses.replace(self._environment.reset(init, record=record), stages=(False, False))

    def step_chunk(self, actions):
        result = self._environment.step_chunk(actions)
        return dataclasses.replace(result, stages=(True, result.success))

    def close(self):
        self._environment.close()


def test_the_cascade_runs_on_a_robot(tmp_path, finished, run_environment):
    settings = envs.benchmark("fake").default_config()["env"]
    (tmp_path / "robot.json").write_text(schema_of(settings).to_json())
    (environment,) = envs.make_environments(settings, 1)
    with RobotServer(schema_of(settings), Staged(environment), port=0) as server:
        done = cascade.run(
            tmp_path / "run", run_environment, f"env.schema={tmp_path / 'robot.json'}",
            f"env.robots=('ws://127.0.0.1:{server.port}',)", f"demos.folder={finished / 'demos'}", config=CONFIG,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "run" / "episodes.jsonl")
    assert {row["stage"] for row in rows} == {"imitation", "rsft", "spo"} and len(rows) == 3 * 3 * 4
    assert all(row["stages"] == [True, row["success"]] for row in rows)
    # The demonstrations and the networks are those of the run in the simulator, and so are its initial states.
    here, there = (
        {row["init"]: row["success"] for row in read_jsonl(place / "episodes.jsonl") if row["stage"] == "imitation"}
        for place in (tmp_path / "run", finished)
    )
    assert here.keys() == there.keys() and sum(here.values()) == sum(there.values())


def test_a_robot_that_is_not_there_ends_the_run_with_one_line(tmp_path, finished, run_environment):
    settings = envs.benchmark("fake").default_config()["env"]
    (tmp_path / "robot.json").write_text(schema_of(settings).to_json())
    done = cascade.run(
        tmp_path / "run", run_environment, f"env.schema={tmp_path / 'robot.json'}", "env.robots=('ws://127.0.0.1:9',)",
        f"demos.folder={finished / 'demos'}", "codebook.steps=2", "imitation.steps=2", "env.connect_s=0.1",
        config=CONFIG,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no robot is free" in done.stderr.strip().splitlines()[-1]


def test_the_config_to_start_from_fits_the_simulated_arm(tmp_path):
    arm = configs.load(ROOT / "configs" / "tabletop_state.py")
    (tmp_path / "robot.json").write_text(schema_of(arm.env.to_dict()).to_json())
    config = configs.load(ROOT / envs.benchmark("robot").EXAMPLE, [("env.schema", str(tmp_path / "robot.json"))])
    there, here = envs.spec(arm.env.to_dict()), envs.spec(config.env.to_dict())
    assert there.lowdim == here.lowdim and there.action_dim == here.action_dim
    assert there.frame == here.frame
    assert envs.task_names(config.env.to_dict()) == ("cube-on-cube",)
