"""The arm's controller: robosuite's OSC_POSE and Panda gripper, to the bit, without its bookkeeping.

robosuite computes the whole forward dynamics up to three times per simulator step and updates its observables 25 times
per action. Here one control step is 25 times `mj_step1 -> torques -> mj_step2`, plus what the result depends on:
robosuite solves the contacts twice with the torques of the step before, and where the solver starts decides the last
bits of where it ends. Contacts multiply such differences: without those two solves (0.4 to 1 ms per action) positions
are 1e-7 off after 60 quiet steps and 1e-5 off when the gripper presses onto something.
"""

import dataclasses
from typing import Any

import numpy as np

SUBSTEPS = 25
"""Simulator steps of 2 ms per action, which makes 20 Hz."""

ACTION_DIM = 7
"""Translation (1 is 5 cm), rotation (axis times angle, 1 is 0.5 rad), gripper (positive closes, negative opens)."""

_SCALE = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])
_STIFFNESS = 150.0
_DAMPING = 2 * np.sqrt(_STIFFNESS)
_FINGERS = np.array([-1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Command:
    """What the controller remembers between actions.

    `goal_rotation` `[3, 3]` holds until an action turns the hand; `fingers` `[2]` is the opening commanded so far;
    `fresh`: no action was executed since the reset.
    """

    goal_rotation: np.ndarray
    fingers: np.ndarray
    fresh: bool


@dataclasses.dataclass(frozen=True)
class Kinematics:
    """The hand's `position` `[3]`, `rotation` `[3, 3]`, `velocity` and `turning` `[3]`, and its Jacobians `[3, 7]`,
    stacked `[6, 7]`; the arm's inertia matrix `mass` `[7, 7]`, joint `angles` `[7]` and `speeds` `[7]`."""

    position: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    turning: np.ndarray
    jacobian: np.ndarray
    translational: np.ndarray
    rotational: np.ndarray
    mass: np.ndarray
    angles: np.ndarray
    speeds: np.ndarray


class Arm:
    """Drives the arm and the gripper of one simulation. `command` is all that it remembers between actions."""

    def __init__(self, robot: Any, model: Any, data: Any) -> None:
        """Take indices and gains from a robosuite `robot` that has been reset once; `model` and `data` are MuJoCo's."""
        import mujoco
        from robosuite.utils import control_utils

        self._mujoco, self._math = mujoco, control_utils
        self._model, self._data = model, data
        self._qpos = np.array(robot._ref_joint_pos_indexes)
        self._dofs = np.array(robot._ref_joint_vel_indexes)
        self._motors = np.array(robot._ref_joint_actuator_indexes)
        self._finger_qpos = np.array(robot._ref_gripper_joint_pos_indexes)
        self._finger_motors = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._low, self._high = model.actuator_ctrlrange[self._motors].T.copy()
        low, high = model.actuator_ctrlrange[self._finger_motors].T
        self._finger_bias, self._finger_weight = 0.5 * (high + low), 0.5 * (high - low)
        self._finger_speed = robot.gripper.speed
        self._rest = np.array(robot.init_qpos, np.float64)
        self._finger_rest = np.array(robot.gripper.init_qpos)
        self.site = int(robot.eef_site_id)
        self._translational, self._rotational = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._mass = np.zeros((model.nv, model.nv))
        self._at_rest = self._kinematics_at_rest()
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
        model, data, mujoco = self._model, self._data, self._mujoco
        delta = np.clip(action[:6], -1.0, 1.0) * _SCALE
        stroke = self._finger_speed * np.sign(action[6]) * _FINGERS
        fingers, goal_rotation = self.command.fingers, self.command.goal_rotation
        for substep in range(SUBSTEPS):
            mujoco.mj_step1(model, data)
            mujoco.mj_fwdActuation(model, data)
            mujoco.mj_fwdAcceleration(model, data)
            mujoco.mj_fwdConstraint(model, data)
            stale = self.command.fresh and substep == 0
            if not stale:
                mujoco.mj_fwdConstraint(model, data)
            # robosuite's controller looks at the arm when it is made, and not again before the first action.
            now = self._at_rest if stale else self._kinematics(data)
            if substep == 0:
                target = now.position + delta[:3]
                if delta[3:].any():  # otherwise the rotation commanded before stays the goal
                    goal_rotation = self._math.set_goal_orientation(delta[3:], now.rotation)
            torques = self._torques(now, target, goal_rotation, data.qfrc_bias[self._dofs])
            data.ctrl[self._motors] = np.minimum(np.maximum(torques, self._low), self._high)
            fingers = np.minimum(np.maximum(fingers + stroke, -1.0), 1.0)
            data.ctrl[self._finger_motors] = self._finger_bias + self._finger_weight * fingers
            mujoco.mj_step2(model, data)
        self.command = Command(goal_rotation, fingers, False)

    def _torques(
        self, now: Kinematics, target: np.ndarray, goal_rotation: np.ndarray, gravity: np.ndarray
    ) -> np.ndarray:
        rules = self._math
        force = (target - now.position) * _STIFFNESS + -now.velocity * _DAMPING
        torque = rules.orientation_error(goal_rotation, now.rotation) * _STIFFNESS + -now.turning * _DAMPING
        _, inertia, rotational_inertia, nullspace = rules.opspace_matrices(
            now.mass, now.jacobian, now.translational, now.rotational
        )
        wrench = np.concatenate([np.dot(inertia, force), np.dot(rotational_inertia, torque)])
        torques = np.dot(now.jacobian.T, wrench) + gravity
        return torques + rules.nullspace_torques(now.mass, nullspace, self._rest, now.angles, now.speeds)

    def _kinematics(self, data: Any) -> Kinematics:
        translational, rotational = self._translational, self._rotational
        self._mujoco.mj_jacSite(self._model, data, translational, rotational, self.site)
        self._mujoco.mj_fullM(self._model, self._mass, data.qM)
        arm_translational, arm_rotational = translational[:, self._dofs], rotational[:, self._dofs]
        return Kinematics(
            data.site_xpos[self.site].copy(),
            data.site_xmat[self.site].reshape(3, 3).copy(),
            np.dot(translational, data.qvel),
            np.dot(rotational, data.qvel),
            np.concatenate([arm_translational, arm_rotational]),
            arm_translational,
            arm_rotational,
            self._mass[self._dofs, :][:, self._dofs],
            data.qpos[self._qpos],
            data.qvel[self._dofs],
        )

    def _kinematics_at_rest(self) -> Kinematics:
        data = self._mujoco.MjData(self._model)
        data.qpos[self._qpos] = self._rest
        self._mujoco.mj_forward(self._model, data)
        return self._kinematics(data)

    def joint_states(self) -> np.ndarray:
        """Angles of the seven joints `[7]`, radians."""
        return self._data.qpos[self._qpos]

    def gripper_states(self) -> np.ndarray:
        """Positions of the two fingers `[2]`, metres."""
        return self._data.qpos[self._finger_qpos]
