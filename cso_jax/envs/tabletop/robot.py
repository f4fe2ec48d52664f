"""The arm's joints: limits, speeds, units, and how an action names a posture.

An action `[7]` in [-1, 1] is an absolute command: six joint angles and the opening of the gripper, each linear between
the limits of its command (-1 the lower one, 1 the upper one; gripper: -1 closed, 1 open). A joint's command may not
leave its limits nor move faster than its speed allows, so any action is safe for the motors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
ACTION_DIM = len(JOINTS) + 1
PROPRIO_DIM = len(JOINTS) + 1

# Command limits, rad. They lie within the arm's own (vx300s_left.xml) and enclose the table's workspace: over the whole
# turn of the waist an error of 0.01 in an action would be 15 mm at the fingertips, here it is 5 mm.
LOWER = np.array([-1.0, -0.8, -1.0, -0.6, 0.4, -1.8])
UPPER = np.array([1.0, 1.0, 1.2, 0.6, 2.2, 1.8])

MAX_SPEED = np.array([1.6, 1.6, 1.6, 2.4, 2.4, 2.4])
"""rad/s of a command; the ViperX-300's data sheet allows 3.14 without load."""

FINGER_CLOSED, FINGER_OPEN = 0.021, 0.057
"""Position of one finger, m, as the arm's model limits it; the other one mirrors it."""
FINGER_PUSH = 0.012
"""What a closed gripper commands: below the limit, so that the fingers press on thin things too."""
FINGER_ZERO = 0.0224
"""Position of one finger at which the pads meet."""
FINGER_SPEED = 0.12

HOME = np.array([0.0, -0.33, 0.33, 0.0, 1.57, 0.0])
"""Where every episode begins, rad: the hand points down, high over the near edge of the workspace; gripper open."""


def joints_of(action: np.ndarray) -> np.ndarray:
    """Commanded joint angles `[6]` rad of an action `[7]`, clipped to the limits."""
    return LOWER + (np.clip(np.asarray(action[:6], np.float64), -1.0, 1.0) + 1.0) / 2.0 * (UPPER - LOWER)


def opening_of(action: np.ndarray) -> float:
    """Commanded opening in [0, 1] of an action `[7]`: 0 closed, 1 open."""
    return (float(np.clip(action[6], -1.0, 1.0)) + 1.0) / 2.0


def action_of(joints: np.ndarray, opening: float) -> np.ndarray:
    """The action float64 `[7]` that commands joint angles `[6]` rad and an opening in [0, 1]; may leave [-1, 1]."""
    return np.append((joints - LOWER) / (UPPER - LOWER) * 2.0 - 1.0, opening * 2.0 - 1.0)


def finger_command(opening: float) -> float:
    """Commanded position (m) of one finger for an opening in [0, 1]."""
    return FINGER_PUSH + opening * (FINGER_OPEN - FINGER_PUSH)


def opening_measured(left: float, right: float) -> float:
    """Opening in [0, 1] of the fingers at `left` > 0 > `right`, m."""
    return float(np.clip(((left - right) / 2.0 - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED), 0.0, 1.0))


def opening_for(gap: float) -> float:
    """The commanded opening in [0, 1] that leaves `gap` metres between the pads."""
    return float(np.clip((gap / 2.0 + FINGER_ZERO - FINGER_PUSH) / (FINGER_OPEN - FINGER_PUSH), 0.0, 1.0))


def robot_limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a robot's driver must know to execute this benchmark's actions, as plain lists and numbers.

    `settings` is the dictionary of `config.env`. Commands are absolute positions at `control_hz`; the action of joint i
    is linear from -1 at `position_lower[i]` to 1 at `position_upper[i]`; the gripper is its opening, 0 closed, 1 open.
    """
    return {
        "robot": "ViperX-300 6DOF",
        "joint_names": [*JOINTS, "gripper"],
        "units": ["rad"] * len(JOINTS) + ["opening"],
        "position_lower": [*LOWER.tolist(), 0.0],
        "position_upper": [*UPPER.tolist(), 1.0],
        "velocity_limit": [*MAX_SPEED.tolist(), FINGER_SPEED / (FINGER_OPEN - FINGER_PUSH)],
        "velocity_units": ["rad/s"] * len(JOINTS) + ["opening/s"],
        "home": [*HOME.tolist(), 1.0],
        "control_hz": int(settings["control_hz"]),
    }
