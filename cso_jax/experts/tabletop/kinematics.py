"""Inverse kinematics of the arm: damped least squares on MuJoCo's Jacobians, away from the simulation's own state."""

from typing import Any

import numpy as np

from cso_jax.envs.gl import load_mujoco
from cso_jax.envs.tabletop.arms import GRIP_SITE
from cso_jax.envs.tabletop.robots import Robot

_DAMPING = 0.003
_STILL = 1e-5  # rad per round: no better posture is near
_ROUNDS = 40
_METRES, _RADIANS = 1e-4, 1e-3  # near enough
_LONGEST = 0.3  # rad per round
_TURN_WEIGHT = 0.05  # m/rad: where both cannot be had, a hand that leans is better than one that is elsewhere


def pointing_down(yaw: float) -> np.ndarray:
    """Rotation `[3, 3]` of the grip site with the fingers down, opening along the horizontal direction yaw + 90°."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[0.0, -sine, cosine], [0.0, cosine, sine], [-1.0, 0.0, 0.0]])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle `[3]` (rad, below pi) of a rotation `[3, 3]`."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco = load_mujoco()
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_of(vector: np.ndarray) -> np.ndarray:
    """The rotation `[3, 3]` about `vector` `[3]` by its length in rad."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return np.eye(3)
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco = load_mujoco()
    mujoco.mju_axisAngle2Quat(quaternion, vector / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


class Kinematics:
    """Poses of the grip site for joint angles, and back."""

    def __init__(self, model: Any, robot: Robot) -> None:
        self._mujoco = load_mujoco()
        self._model = model
        self._data = self._mujoco.MjData(model)
        self._addresses = np.array([model.jnt_qposadr[model.joint(name).id] for name in robot.joints])
        self._columns = np.array([model.jnt_dofadr[model.joint(name).id] for name in robot.joints])
        self._lower, self._upper = np.array(robot.lower), np.array(robot.upper)
        self._site = model.site(GRIP_SITE).id

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position `[3]` and rotation `[3, 3]` of the grip site at joint angles `[6]`."""
        self._data.qpos[self._addresses] = joints
        self._mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        return self._data.site_xpos[self._site].copy(), rotation.copy()

    def solve(self, start: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """Joint angles `[6]` within their limits that bring the grip site nearest to a pose, sought from `start`."""
        joints = start.copy()
        for _ in range(_ROUNDS):
            here, facing = self.pose(joints)
            shift, turn = position - here, rotation_vector(rotation @ facing.T)
            if np.linalg.norm(shift) < _METRES and np.linalg.norm(turn) < _RADIANS:
                break
            jacobian, error = self._weighted(shift, turn)
            step = damped_step(jacobian, error)
            # A joint at its limit cannot do its part: the others are asked to do without it.
            stuck = ((joints <= self._lower) & (step < 0)) | ((joints >= self._upper) & (step > 0))
            if stuck.any():
                step = damped_step(np.where(stuck, 0.0, jacobian), error)
            longest = float(np.abs(step).max())
            if longest < _STILL:
                break
            joints = np.clip(joints + step * min(1.0, _LONGEST / longest), self._lower, self._upper)
        return joints

    def _weighted(self, shift: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Jacobian `[6, 6]` and error `[6]` at the joints that were posed last, turns times their weight."""
        self._mujoco.mj_comPos(self._model, self._data)
        linear, angular = np.empty((3, self._model.nv)), np.empty((3, self._model.nv))
        self._mujoco.mj_jacSite(self._model, self._data, linear, angular, self._site)
        jacobian = np.concatenate([linear[:, self._columns], _TURN_WEIGHT * angular[:, self._columns]])
        return jacobian, np.concatenate([shift, _TURN_WEIGHT * turn])


def damped_step(jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
    """The step `[6]` of damped least squares towards no error, for a Jacobian `[6, 6]` and an error `[6]`."""
    damped = jacobian @ jacobian.T + _DAMPING**2 * np.eye(len(jacobian))
    return jacobian.T @ np.linalg.solve(damped, error)
