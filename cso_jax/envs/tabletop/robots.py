"""The arms: joints, limits, speeds, units, and how an action names a posture.

An action `[7]` in [-1, 1] is an absolute command: six joint angles and the opening of the gripper, each linear between
the limits of its command (-1 the lower one, 1 the upper one; gripper: -1 closed, 1 open). A joint's command may not
leave its limits nor move faster than its speed allows, so any action is safe for the motors.

Command limits lie within the arm's own and enclose the workspace: over the whole turn of a waist an error of 0.01 in an
action would be 15 mm at the fingertips, here it is 5 mm.
"""

import dataclasses

import numpy as np

JOINT_COUNT = 6
ACTION_DIM = JOINT_COUNT + 1
PROPRIO_DIM = JOINT_COUNT + 1


@dataclasses.dataclass(frozen=True)
class Robot:
    """One arm with a parallel gripper. Angles in rad, speeds in rad/s, fingers in metres.

    `joints` are the names of its model, from the base on; `lower`, `upper` bound their commands, `speed` how fast these
    move. `gains` are N m/rad and the most that the motor gives, N m. `home` is where every episode begins: the hand
    points down, high over the near edge of the workspace, open. `fingers` are the joints of the finger on the left and
    of the other one, which is at `mirror` times the position of the first. A finger's position is `closed` to `open`,
    and the pads would meet at `zero`; a closed gripper commands `push`, below that, to press on thin things too.
    """

    title: str
    joints: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    speed: tuple[float, ...]
    gains: tuple[tuple[float, float], ...]
    home: tuple[float, ...]
    fingers: tuple[str, str]
    mirror: float
    closed: float
    open: float
    zero: float
    push: float
    finger_speed: float = 0.12

    def joints_of(self, action: np.ndarray) -> np.ndarray:
        """Commanded joint angles `[6]` rad of an action `[7]`, clipped to the limits."""
        lower, upper = np.array(self.lower), np.array(self.upper)
        share = (np.clip(np.asarray(action[:JOINT_COUNT], np.float64), -1.0, 1.0) + 1.0) / 2.0
        return lower + share * (upper - lower)

    def opening_of(self, action: np.ndarray) -> float:
        """Commanded opening in [0, 1] of an action `[7]`: 0 closed, 1 open."""
        return (float(np.clip(action[JOINT_COUNT], -1.0, 1.0)) + 1.0) / 2.0

    def action_of(self, joints: np.ndarray, opening: float) -> np.ndarray:
        """The action float64 `[7]` that commands joint angles `[6]` rad and an opening in [0, 1]; may leave [-1, 1]."""
        lower, upper = np.array(self.lower), np.array(self.upper)
        return np.append((joints - lower) / (upper - lower) * 2.0 - 1.0, opening * 2.0 - 1.0)

    def finger_command(self, opening: float) -> float:
        """Commanded position (m) of the first finger for an opening in [0, 1]."""
        return self.push + opening * (self.open - self.push)

    def opening_measured(self, first: float, second: float) -> float:
        """Opening in [0, 1] of fingers at these positions (m) of their joints."""
        position = (first + self.mirror * second) / 2.0
        return float(np.clip((position - self.closed) / (self.open - self.closed), 0.0, 1.0))

    def opening_for(self, gap: float) -> float:
        """The commanded opening in [0, 1] that leaves `gap` metres between the pads."""
        return float(np.clip((gap / 2.0 + self.zero - self.push) / (self.open - self.push), 0.0, 1.0))


VIPERX = Robot(
    title="ViperX-300 6DOF",
    joints=("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
    lower=(-1.0, -0.8, -1.0, -0.6, 0.4, -1.8),
    upper=(1.0, 1.0, 1.2, 0.6, 2.2, 1.8),
    speed=(1.6, 1.6, 1.6, 2.4, 2.4, 2.4),  # the data sheet allows 3.14 without load
    gains=((800, 150), (1600, 300), (800, 100), (200, 50), (200, 50), (100, 50)),  # gym-aloha's, a stiffer wrist
    home=(0.0, -0.33, 0.33, 0.0, 1.57, 0.0),
    fingers=("left_finger", "right_finger"),
    mirror=-1.0,
    closed=0.021,
    open=0.057,
    zero=0.0224,
    push=0.012,
)

PIPER = Robot(
    title="AgileX Piper",
    joints=("joint1", "joint2", "joint3", "joint4", "joint5", "joint6"),
    lower=(-1.0, 0.8, -2.9, -0.6, 0.0, -1.7),
    upper=(1.0, 2.6, -0.3, 0.6, 1.3, 1.7),
    speed=(1.6, 1.6, 1.6, 2.4, 2.4, 2.4),
    gains=((800, 100), (1600, 100), (800, 100), (200, 50), (200, 50), (100, 50)),
    home=(0.0, 1.5, -1.2, 0.0, 1.27, 0.0),
    fingers=("joint8", "joint7"),
    mirror=1.0,
    closed=0.0,
    open=0.04,
    zero=0.0,
    push=-0.009,
)

ROBOTS = {"viperx": VIPERX, "piper": PIPER}
"""The arms by their name in `config.env.robot`."""
