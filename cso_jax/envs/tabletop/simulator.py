"""One task in MuJoCo: its initial states, its control steps, what it looks like to a predicate and to a policy."""

import functools
from typing import Any

import numpy as np

from cso_jax.envs.gl import load_mujoco
from cso_jax.envs.protocol import InitState
from cso_jax.envs.tabletop.arms import GRIP_SITE
from cso_jax.envs.tabletop.robots import ROBOTS
from cso_jax.envs.tabletop.scene import CUBE, scene_xml
from cso_jax.envs.tabletop.settings import PHYSICS_HZ, RAMP
from cso_jax.envs.tabletop.tasks import World, placements, task_named

MOST_OBJECTS = 3
POSE_DIM = 10  # position, the same seen from the grip site, quaternion
STATE_DIM = 3 + MOST_OBJECTS * POSE_DIM
_SETTLE_S = 0.1


@functools.cache
def model_of(task: str, robot: str) -> Any:
    """The compiled scene of a task, shared by all of this process. Raises FileNotFoundError without the arm's files."""
    return load_mujoco().MjModel.from_xml_string(scene_xml(task_named(task).objects, robot))


class Simulator:
    """A task and the state that it is in. One control step is 1 / `control_hz` seconds."""

    def __init__(self, task: str, robot: str, control_hz: int) -> None:
        """`robot` is a name of ROBOTS. Raises ValueError for an unknown task, FileNotFoundError without the arm."""
        self._mujoco = load_mujoco()
        self.task = task
        self.definition = task_named(task)
        self.robot = ROBOTS[robot]
        self.model = model_of(task, robot)
        self.data = self._mujoco.MjData(self.model)
        self._substeps = PHYSICS_HZ // control_hz // RAMP
        self._reach = np.array(self.robot.speed) / control_hz
        self._finger_reach = self.robot.finger_speed / control_hz
        model = self.model
        self.joint_addresses = np.array([model.jnt_qposadr[model.joint(name).id] for name in self.robot.joints])
        self._fingers = [int(model.jnt_qposadr[model.joint(name).id]) for name in self.robot.fingers]
        self._pads = {model.geom(f"{side}_pad").id for side in ("left", "right")}
        self._site = model.site(GRIP_SITE).id
        self._bodies = {name: model.body(name).id for name in self.definition.objects}
        self._owner = self._owners()
        self._counts = [0] * len(self.definition.stages)
        self._done = [False] * len(self.definition.stages)

    @property
    def stages(self) -> tuple[bool, ...]:
        """Which stages have been done in this episode, in order."""
        return tuple(self._done)

    def reset(self, init: InitState) -> None:
        """Put `init` in: the arm at home, the objects in their places, at rest. The same bits every time."""
        data = self.data
        self._mujoco.mj_resetData(self.model, data)
        fingers = np.array([1.0, self.robot.mirror]) * self.robot.open
        data.qpos[self.joint_addresses] = self.robot.home
        data.qpos[self._fingers] = fingers
        data.ctrl[:] = [*self.robot.home, *fingers]
        for name, (spot, turn) in placements(init).items():
            self.place(name, np.array([*spot, CUBE if "cube" in name else 0.0]), turn)
        self._mujoco.mj_step(self.model, data, round(_SETTLE_S * PHYSICS_HZ))
        self._mujoco.mj_forward(self.model, data)
        self._counts = [0] * len(self._counts)
        self._done = [False] * len(self._done)

    def place(self, name: str, position: np.ndarray, turn: float = 0.0) -> None:
        """Put an object's origin to `position` `[3]`, turned about the vertical by `turn` rad, at rest."""
        start = self.model.jnt_qposadr[self.model.joint(name).id]
        self.data.qpos[start : start + 7] = [*position, np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)]
        speed = self.model.jnt_dofadr[self.model.joint(name).id]
        self.data.qvel[speed : speed + 6] = 0.0

    def step(self, action: np.ndarray) -> bool:
        """One control step under an action `[7]`; whether the task's last stage is done now.

        The commands move towards the action's, each as far as its speed allows, and reach the motors in equal parts.
        """
        before = self.data.ctrl.copy()
        joints = before[:6] + np.clip(self.robot.joints_of(action) - before[:6], -self._reach, self._reach)
        finger = self.robot.finger_command(self.robot.opening_of(action))
        finger = before[6] + np.clip(finger - before[6], -self._finger_reach, self._finger_reach)
        after = np.array([*joints, finger, self.robot.mirror * finger])
        for part in range(1, RAMP + 1):
            self.data.ctrl[:] = before + (after - before) * (part / RAMP)
            self._mujoco.mj_step(self.model, self.data, self._substeps)
        # Positions of bodies and sites are those before the last physics step until they are computed anew.
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)
        self._count()
        return self._done[-1]

    def _count(self) -> None:
        world = self.world()
        for index, stage in enumerate(self.definition.stages):
            ready = index == 0 or self._done[index - 1]
            self._counts[index] = self._counts[index] + 1 if ready and stage(world) else 0
            self._done[index] |= self._counts[index] >= self.definition.hold

    def world(self) -> World:
        """What the predicates see."""
        data = self.data
        speeds = {name: self.model.jnt_dofadr[self.model.joint(name).id] for name in self._bodies}
        pressed = data.joint("button_travel").qpos[0] if "button" in self._bodies else 0.0
        return World(
            position={name: data.xpos[body].copy() for name, body in self._bodies.items()},
            upright={name: float(data.xmat[body][8]) for name, body in self._bodies.items()},
            speed={name: float(np.linalg.norm(data.qvel[start : start + 3])) for name, start in speeds.items()},
            touched=self.touched(),
            pressed=float(pressed),
        )

    def touched(self) -> frozenset[str]:
        """The objects that a finger touches."""
        names = set()
        for one, other in self.data.contact.geom[: self.data.ncon].tolist():
            if one in self._pads:
                names.add(self._owner[other])
            elif other in self._pads:
                names.add(self._owner[one])
        return frozenset(names - {""})

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position `[3]` and rotation `[3, 3]` of an object."""
        body = self._bodies[name]
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def grip(self) -> tuple[np.ndarray, np.ndarray]:
        """Position `[3]` and rotation `[3, 3]` of the grip site: x along the fingers, y the way they open."""
        return self.data.site_xpos[self._site].copy(), self.data.site_xmat[self._site].reshape(3, 3).copy()

    def joints(self) -> np.ndarray:
        """Measured joint angles `[6]`, rad."""
        return self.data.qpos[self.joint_addresses].copy()

    def opening(self) -> float:
        """Measured opening of the gripper in [0, 1]."""
        first, second = self.data.qpos[self._fingers]
        return self.robot.opening_measured(first, second)

    def command(self) -> np.ndarray:
        """The commands in force: six joints (rad) and a finger's position (m), `[7]`."""
        return self.data.ctrl[:7].copy()

    def proprio(self) -> np.ndarray:
        """float32 `[7]`: joint angles in rad, opening in [0, 1]."""
        return np.append(self.joints(), self.opening()).astype(np.float32)

    def state(self) -> np.ndarray:
        """float32 `[33]`: the grip site `[3]`, then for each object of the task its position, its position minus the
        grip site's, its quaternion (w >= 0); zeros where the task has fewer objects than three."""
        grip = self.data.site_xpos[self._site]
        state = np.zeros(STATE_DIM, np.float64)
        state[:3] = grip
        for row, body in enumerate(self._bodies.values()):
            position, quaternion = self.data.xpos[body], self.data.xquat[body]
            start = 3 + row * POSE_DIM
            signed = quaternion if quaternion[0] >= 0 else -quaternion
            state[start : start + POSE_DIM] = [*position, *(position - grip), *signed]
        return state.astype(np.float32)

    def _owners(self) -> list[str]:
        """The object that each geom belongs to, "" for the arm and the table."""
        of_body = {body: name for name, body in self._bodies.items()}
        return [of_body.get(int(self.model.body_rootid[body]), "") for body in self.model.geom_bodyid]
