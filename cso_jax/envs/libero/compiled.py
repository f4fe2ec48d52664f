"""The controller's inner loop as machine code: numba, which robosuite brings, and MuJoCo's routines by their addresses.

In Python the loop costs as much as the physics that it drives. The arithmetic is that of robosuite's controller and of
its own compiled functions, operation by operation and in the same memory layouts, so results are the same bits. What
MuJoCo calls a fatal error (none is known to happen while stepping) ends the process instead of raising.

Compiling takes seconds, so what was compiled is kept between processes, which numba does for functions at the top level
of a module only. This module imports robosuite: `package.problem_classes` is who imports it first.

Letters: V degrees of freedom of the scene. Matrices of the arm are in Fortran's order, as NumPy's indexing leaves them.
"""

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np
from llvmlite import binding
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

_REST_STIFFNESS = 10.0
_TINY = 1e-12


class Views(NamedTuple):
    """Arrays that are MuJoCo's own memory, for as long as its data lives, and indices into them."""

    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    bias: np.ndarray
    inertia: np.ndarray
    site_position: np.ndarray
    site_rotation: np.ndarray
    site: int
    joints: np.ndarray
    dofs: np.ndarray
    motors: np.ndarray
    finger_motors: np.ndarray


class Gains(NamedTuple):
    """Constants of the controller."""

    stiffness: float
    damping: float
    rest: np.ndarray
    low: np.ndarray
    high: np.ndarray
    finger_bias: np.ndarray
    finger_weight: np.ndarray


class Seen(NamedTuple):
    """What the controller sees of the arm, and room for its computation.

    The hand's `position` `[3]`, `rotation` `[3, 3]`, `velocity` and `turning` `[3]`, and its Jacobians `[3, 7]`,
    stacked `[6, 7]`; the arm's inertia matrix `mass` `[7, 7]`, joint `angles` `[7]` and `speeds` `[7]`. The last three
    are of all degrees of freedom: `[3, V]`, `[3, V]`, `[V, V]`.
    """

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
    all_translational: np.ndarray
    all_rotational: np.ndarray
    all_mass: np.ndarray


def views(data: Any, site: int, joints: Any, dofs: Any, motors: Any, finger_motors: Any) -> Views:
    """What the controller reads and writes of `data` (mujoco.MjData): the arm's site and its indices."""
    return Views(
        data.qpos, data.qvel, data.ctrl, data.qfrc_bias, data.qM, data.site_xpos[site],
        data.site_xmat[site].reshape(3, 3), site, joints, dofs, motors, finger_motors,
    )  # fmt: skip


def room(dofs: int) -> Seen:
    """An empty `Seen` for a scene of `dofs` degrees of freedom."""

    def fortran(*shape: int) -> np.ndarray:
        return np.zeros(shape, order="F")

    return Seen(
        np.zeros(3), np.zeros((3, 3)), np.zeros(3), np.zeros(3),
        fortran(6, 7), fortran(3, 7), fortran(3, 7), fortran(7, 7), np.zeros(7), np.zeros(7),
        np.zeros((3, dofs)), np.zeros((3, dofs)), np.zeros((dofs, dofs)),
    )  # fmt: skip


def _routine(name: str, arguments: int) -> Any:
    """A routine of the library that MuJoCo's bindings have loaded, which takes pointers and integers only."""
    (library,) = Path(mujoco.__file__).parent.glob("libmujoco*")
    address = ctypes.cast(getattr(ctypes.CDLL(str(library)), name), ctypes.c_void_p).value
    binding.add_symbol(f"cso_jax_{name}", address)
    return numba.types.ExternalFunction(f"cso_jax_{name}", numba.void(*[numba.intp] * arguments))


_step1 = _routine("mj_step1", 2)
_step2 = _routine("mj_step2", 2)
_actuation = _routine("mj_fwdActuation", 2)
_acceleration = _routine("mj_fwdAcceleration", 2)
_solve_contacts = _routine("mj_fwdConstraint", 2)
_full_mass = _routine("mj_fullM", 3)
_site_jacobian = _routine("mj_jacSite", 5)


@numba.njit(cache=True)
def look(model, data, views, seen):  # type: ignore[no-untyped-def]
    """What the controller needs of the arm, into `seen`, after `mj_step1`; `model` and `data` are addresses."""
    moves, turns, mass = seen.all_translational, seen.all_rotational, seen.all_mass
    _site_jacobian(model, data, moves.ctypes.data, turns.ctypes.data, views.site)
    _full_mass(model, mass.ctypes.data, views.inertia.ctypes.data)
    seen.position[:] = views.site_position
    seen.rotation[:] = views.site_rotation
    seen.velocity[:] = np.dot(moves, views.qvel)
    seen.turning[:] = np.dot(turns, views.qvel)
    for column in range(7):
        dof = views.dofs[column]
        for row in range(3):
            seen.translational[row, column] = seen.jacobian[row, column] = moves[row, dof]
            seen.rotational[row, column] = seen.jacobian[row + 3, column] = turns[row, dof]
        for row in range(7):
            seen.mass[row, column] = mass[views.dofs[row], dof]
        seen.angles[column] = views.qpos[views.joints[column]]
        seen.speeds[column] = views.qvel[dof]


@numba.njit(cache=True)
def prepare(model, data, views, seen, solves):  # type: ignore[no-untyped-def]
    """Everything of a simulator step that comes before the torques, and a look at the arm into `seen`.

    The contacts are solved `solves` times, from where the next solution then starts.
    """
    _step1(model, data)
    if solves > 0:
        _actuation(model, data)
        _acceleration(model, data)
    for _ in range(solves):
        _solve_contacts(model, data)
    look(model, data, views, seen)


@numba.njit(cache=True)
def drive(model, data, views, gains, seen, target, goal, stroke, fingers, count, exact):  # type: ignore[no-untyped-def]
    """From what `prepare` has seen: torques and the rest of the step, then `count` - 1 more steps.

    `target` `[3]` and `goal` `[3, 3]` are where the hand should be; `fingers` `[2]` is moved by `stroke` in each step.
    `exact`: robosuite's bits, else the same equations without what costs most: two more solutions of the contacts, and
    pseudo-inverses.
    """
    for step in range(count):
        if step > 0:
            prepare(model, data, views, seen, 2 if exact else 0)
        force = (target - seen.position) * gains.stiffness + -seen.velocity * gains.damping
        torque = orientation_error(goal, seen.rotation) * gains.stiffness + -seen.turning * gains.damping
        if exact:
            _, inertia, rotational_inertia, nullspace = opspace_matrices(
                seen.mass, seen.jacobian, seen.translational, seen.rotational
            )
            wrench = np.concatenate((np.dot(inertia, force), np.dot(rotational_inertia, torque)))
            torques = np.dot(seen.jacobian.T, wrench)
            posture = nullspace_torques(seen.mass, nullspace, gains.rest, seen.angles, seen.speeds)
        else:
            torques, posture = opspace_torques(
                seen.mass, seen.jacobian, force, torque, gains.rest - seen.angles, seen.speeds
            )
        for joint in range(7):
            wanted = torques[joint] + views.bias[views.dofs[joint]] + posture[joint]
            views.ctrl[views.motors[joint]] = min(max(wanted, gains.low[joint]), gains.high[joint])
        for finger in range(2):
            fingers[finger] = min(max(fingers[finger] + stroke[finger], -1.0), 1.0)
            opening = gains.finger_bias[finger] + gains.finger_weight[finger] * fingers[finger]
            views.ctrl[views.finger_motors[finger]] = opening
        _step2(model, data)


@numba.njit(cache=True)
def opspace_torques(mass, jacobian, force, torque, bent, speeds):  # type: ignore[no-untyped-def]
    """Joint torques `[7]` of a force and a torque `[3]` at the hand, and those that pull the elbow back to its rest.

    As robosuite's `opspace_matrices` and `nullspace_torques` with Cholesky factors in place of pseudo-inverses: with
    inertia A = J M^-1 J^T of the hand, J^T [A_pos^-1 force, A_ori^-1 torque] and (1 - J^T A^-1 J M^-1) M (10 `bent` -
    2 sqrt(10) `speeds`). `mass` `[7, 7]`, `jacobian` `[6, 7]`, `bent` and `speeds` `[7]`.
    """
    lower = _cholesky(mass)
    back = np.empty((6, 7))
    for row in range(6):
        back[row] = jacobian[row]
        _solve(lower, back[row])
    hand = np.dot(back, jacobian.T)
    wrench = np.concatenate((force, torque))
    _solve(_cholesky(hand[:3, :3]), wrench[:3])
    _solve(_cholesky(hand[3:, 3:]), wrench[3:])
    pull = np.dot(mass, _REST_STIFFNESS * bent - 2.0 * np.sqrt(_REST_STIFFNESS) * speeds)
    felt = np.dot(back, pull)
    _solve(_cholesky(hand), felt)
    return np.dot(jacobian.T, wrench), pull - np.dot(jacobian.T, felt)


@numba.njit(cache=True)
def _cholesky(matrix):  # type: ignore[no-untyped-def]
    """The lower factor of a small symmetric matrix; a stretched arm's is singular to the last bits, no more."""
    size = matrix.shape[0]
    lower = np.zeros((size, size))
    for row in range(size):
        for column in range(row + 1):
            rest = matrix[row, column]
            for k in range(column):
                rest -= lower[row, k] * lower[column, k]
            lower[row, column] = np.sqrt(max(rest, _TINY)) if row == column else rest / lower[column, column]
    return lower


@numba.njit(cache=True)
def _solve(lower, vector):  # type: ignore[no-untyped-def]
    """Replace `vector` by the solution x of `lower` `lower`^T x = `vector`."""
    size = len(vector)
    for row in range(size):
        for k in range(row):
            vector[row] -= lower[row, k] * vector[k]
        vector[row] /= lower[row, row]
    for row in range(size - 1, -1, -1):
        for k in range(row + 1, size):
            vector[row] -= lower[k, row] * vector[k]
        vector[row] /= lower[row, row]
