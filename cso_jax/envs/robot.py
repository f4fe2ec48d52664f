"""Robots behind sockets as a benchmark: evaluation, R-SFT and SPO run on them through the same rollout loop.

A robot's program serves it (`runtime.robot_server`); each worker takes one of `config.env.robots` and keeps it. What
the robot sees and is told, and its tasks, stand in the file `config.env.schema`, which that program writes. There are
no scripted experts: demonstrations are files (`config.data = "stored"`).

Two things are not as in a simulator. An initial state is what whoever lays the scene makes of its name, unless the
schema says that it is reproducible. And an episode that the operator takes back, or whose connection is lost, is begun
again: `config.rollout.max_attempts` times.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cso_jax.envs.protocol import ChunkResult, Environment, EnvSpec, InitState, JointLimits, RobotInterface
from cso_jax.files import expanded
from cso_jax.rules import at_least_one, one_of
from cso_jax.runtime.schema import FORMAT, VERSION, Schema, SchemaError

EXAMPLE = "configs/robot.py"
NEUTRAL = ("robots", "token_file", "answer_s")
SMOKE: dict[str, Any] = {}
SMOKE_TASKS: tuple[str, ...] = ()
EVALUATION_STATES: int | None = None


class RobotError(RuntimeError):
    """A robot that could not do what it was asked; the episode is begun again."""


class WrongRobot(RobotError):
    """The robot is not the one of the config; nothing is gained by another attempt."""

    fatal = True


def default_config() -> dict[str, Any]:
    """Two robots' worth of nothing: schema and addresses are the user's."""
    env = {
        "name": "robot",
        "tasks": ("all",),
        "obs": "pixels",  # or "state", for a robot without cameras
        "schema": "",  # the file that says what the robot is
        "robots": ("ws://127.0.0.1:9000",),  # one per worker
        "token_file": "",
        "answer_s": 900.0,  # for a scene to be laid, or a chunk to be executed
        "horizon": 400,  # actions per episode at most
    }
    rollout = {"workers": 1, "slots": 1, "step_timeout_s": 1000.0, "start_timeout_s": 1000.0, "max_attempts": 5}
    return {"env": env, "rollout": rollout}


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the values of `config.env`, one line each."""
    found = one_of("env.obs", settings["obs"], ("pixels", "state")) + at_least_one("env.horizon", settings["horizon"])
    if settings.get("history", 1) > 1:
        found.append("config.env.history is 1 for robots: they are looked at once per decision")
    if not settings["schema"]:
        found.append("config.env.schema is empty: it names the file that the robot's program wrote about it")
    if not settings["robots"] or not all(str(url).startswith(("ws://", "wss://")) for url in settings["robots"]):
        found.append(f"config.env.robots holds addresses such as ws://127.0.0.1:9000; got {settings['robots']}")
    if not found and _file(settings).is_file():
        try:
            images = bool(spec(settings).images)
        except SchemaError as error:
            return [str(error)]
        if images != (settings["obs"] == "pixels"):
            found.append(f"config.env.obs is {settings['obs']}, but the schema has {'' if images else 'no '}cameras")
    return found


def needs_gl(settings: Mapping[str, Any]) -> bool:
    """Cameras are real, or drawn elsewhere."""
    return False


def require_files(settings: Mapping[str, Any]) -> None:
    """Raises FileNotFoundError where the schema is not there."""
    _schema(_file(settings))


def task_sets() -> dict[str, tuple[str, ...]]:
    """None: tasks are the schema's, which is not known here."""
    return {}


def tasks_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The schema's tasks."""
    return tuple(task.name for task in _schema(_file(settings)).tasks)
