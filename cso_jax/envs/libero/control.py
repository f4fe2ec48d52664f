"""The arm's controller: robosuite's OSC_POSE and Panda gripper, to the bit, without its bookkeeping.

robosuite computes the whole forward dynamics up to three times per simulator step and updates its observables 25 times
per action. Here one control step is 25 times `mj_step1 -> torques -> mj_step2`, compiled as one loop (`compiled`), plus
what the result depends on: robosuite solves the contacts twice with the torques of the step before, and where the
solver starts decides the last bits of where it ends. Contacts multiply such differences: without those two solves (0.4
to 1 ms per action) positions are 1e-7 off after 60 quiet steps and 1e-5 off when the gripper presses onto something,
far more after longer pressing. Where that is no matter, a `Command` that is not `exact` leaves them out.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cso_jax.envs.libero.compiled import Seen

SUBSTEPS = 25
"""Simulator steps of 2 ms per action, which makes 20 Hz."""

ACTION_DIM = 7
"""Translation (1 is 5 cm), rotation (axis times angle, 1 is 0.5 rad), gripper (positive closes, negative opens)."""

_SCALE = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
_STIFFNESS = 150.0
_DAMPING = 2 * float(np.sqrt(_STIFFNESS))
_FINGERS = np.array([-1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Command:
    """What the controller remembers between actions.

    `goal_rotation` `[3, 3]` holds until an action turns the hand; `fingers` `[2]` is the opening commanded so far;
    `fresh`: no action was executed since the reset; `exact`: steps are robosuite's to the bit.
    """

    goal_rotation: np.ndarray
    fingers: np.ndarray
    fresh: bool
    exact: bool = True


class Arm:
    """Drives the arm and the gripper of one simulation. `command` is all that it remembers between actions."""

    def __init__(self, robot: Any, model: Any, data: Any) -> None:
        """Take indices and gains from a robosuite `robot` that has been reset once; `model` and `data` are MuJoCo's."""
        import mujoco
        from robosuite.utils import control_utils

        from cso_jax.envs.libero import compiled

        self._compiled, self._mujoco, self._goal_rotation = compiled, mujoco, control_utils.set_goal_orientation
        self._model, self._data = model, data
        self._qpos = np.array(robot._ref_joint_pos_indexes)
        self._finger_qpos = np.array(robot._ref_gripper_joint_pos_indexes)
        self._finger_speed = robot.gripper.speed
        self._rest = np.array(robot.init_qpos, np.float64)
        self._finger_rest = np.array(robot.gripper.init_qpos)
        self.site = int(robot.eef_site_id)
        dofs, motors = np.array(robot._ref_joint_vel_indexes), np.array(robot._ref_joint_actuator_indexes)
        finger_motors = np.array(robot._ref_joint_gripper_actuator_indexes)
        indices = (self.site, self._qpos, dofs, motors, finger_motors)
        self._views = compiled.views(data, *indices)
        low, high = model.actuator_ctrlrange[motors].T.copy()
        shut, wide = model.actuator_ctrlrange[finger_motors].T
        self._gains = compiled.Gains(
            _STIFFNESS, _DAMPING, self._rest, low, high, 0.5 * (wide + shut), 0.5 * (wide - shut)
        )
        self._seen = compiled.room(model.nv)
        self._at_rest = self._seen_at_rest(indices)
        self.command = Command(self._at_rest.rotation, np.zeros(2), True)

    def reset(self) -> None:
        """Put the joints into robosuite's rest pose and forget what was commanded before."""
        self._data.qpos[self._qpos] = self._rest
        self._data.qpos[self._finger_qpos] = self._finger_rest
        self.command = Command(self._at_rest.rotation, np.zeros(2), True)

    def shake(self, offsets: np.ndarray) -> None:
        """Add `offsets` `[7]` in rad to the arm's joints."""
        self._data.qpos[self._qpos] += offsets

    def step(self, action: np.ndarray) -> None:
        """Execute `action` float64 `[7]`, clipped to [-1, 1], for one control step.

        As in robosuite, positions and contacts in MjData are afterwards those before the last simulator step.
        """
        delta = np.clip(action[:6], -1.0, 1.0) * _SCALE
        stroke = self._finger_speed * np.sign(action[6]) * _FINGERS
        fingers, goal_rotation = self.command.fingers.copy(), self.command.goal_rotation
        model, data, seen = self._model._address, self._data._address, self._seen
        exact = self.command.exact
        self._compiled.prepare(model, data, self._views, seen, 2 - self.command.fresh if exact else 0)
        if self.command.fresh:
            # robosuite's controller looks at the arm when it is made, and not again before the first action.
            for place, value in zip(seen, self._at_rest, strict=True):
                place[:] = value
        if delta[3:].any():  # otherwise the rotation commanded before stays the goal
            goal_rotation = self._goal_rotation(delta[3:], seen.rotation)
        target = seen.position + delta[:3]
        views, gains = self._views, self._gains
        self._compiled.drive(model, data, views, gains, seen, target, goal_rotation, stroke, fingers, SUBSTEPS, exact)
        self.command = Command(goal_rotation, fingers, False, exact)

    def _seen_at_rest(self, indices: tuple[Any, ...]) -> "Seen":
        compiled = self._compiled
        data = self._mujoco.MjData(self._model)
        data.qpos[self._qpos] = self._rest
        self._mujoco.mj_forward(self._model, data)
        seen = compiled.room(self._model.nv)
        compiled.prepare(self._model._address, data._address, compiled.views(data, *indices), seen, 1)
        return seen

    def joint_states(self) -> np.ndarray:
        """Angles of the seven joints `[7]`, radians."""
        return self._data.qpos[self._qpos]

    def gripper_states(self) -> np.ndarray:
        """Positions of the two fingers `[2]`, metres."""
        return self._data.qpos[self._finger_qpos]
