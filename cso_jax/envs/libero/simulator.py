"""One LIBERO task, compiled once: exact placements and benchmark states, fast stepping, LIBERO's own success rule."""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import hashlib
import pdb
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cso_jax.envs.gl import load_mujoco
from cso_jax.envs.libero import pro
from cso_jax.envs.libero.assets import assets_folder
from cso_jax.envs.libero.control import Arm, Command
from cso_jax.envs.libero.files import STATES_PER_TASK, bddl_file, benchmark_states
from cso_jax.envs.libero.meshes import without_looks
from cso_jax.envs.libero.package import problem_classes

_TRIES = 50


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that a `Scene` needs to go on bit for bit: MuJoCo's state, fixture poses, controller and gripper."""

    state: np.ndarray
    body_pos: np.ndarray
    body_quat: np.ndarray
    command: Command


class Scene:
    """One task of LIBERO in this process, for one episode at a time.

    Positions are metres in the world frame, with the robot's base fixed in it; angles are radians.
    """

    def __init__(self, task: str, settings: Mapping[str, Any] | None = None) -> None:
        """Compile `task`, reading `settings["libero"]`: "assets", "variant" and "pro", and "looks".

        Without looks (False), meshes and textures that have no part in the physics are left out: the same bits of
        physics from a tenth of the time and memory, and nothing to draw.

        Raises ValueError for an unknown task, FileNotFoundError without assets, ModuleNotFoundError without LIBERO.
        """
        mujoco = load_mujoco()
        libero = dict((settings or {}).get("libero", {}))
        variant, files = libero.get("variant", ""), None
        if variant:
            files = pro.folder(libero.get("pro", ""))
        description = pro.description(files, task, variant) if files else bddl_file(task)
        self._states = (
            functools.partial(pro.states, files, task, variant) if files else functools.partial(benchmark_states, task)
        )
        self.task = task
        self._mujoco = mujoco
        self._classes = problem_classes(assets_folder(libero.get("assets", "")))
        if variant:
            pro.add_objects()
        self.looks = bool(libero.get("looks", True))
        self.env = self._build(str(description))
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        self.env.visualize({name: False for name in self.env._visualizations})
        self._site_rgba = self.model.site_rgba.copy()
        parsed = self.env.parsed_problem
        self.goal: tuple[tuple[str, ...], ...] = tuple(tuple(part) for part in parsed["goal_state"])
        self.objects: tuple[str, ...] = tuple(self.env.objects_dict)
        self.fixtures: tuple[str, ...] = tuple(self.env.fixtures_dict)
        self._joints = self._joint_addresses()
        self.arm = Arm(self.env.robots[0], self.model, self.data)
        self.base = self.data.body(self.env.robots[0].robot_model.root_body).xpos.copy()
        self._state_kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._state_size = mujoco.mj_stateSize(self.model, self._state_kind)
        _return_free_memory()

    def reset_placement(self, seed: int, purpose: str = "placement") -> None:
        """A fresh placement of objects and fixtures from the task's regions, the robot at rest.

        A function of the task, `seed` and `purpose` alone: each purpose has placements of its own.
        Raises RuntimeError if LIBERO's samplers find no room.
        """
        name = hashlib.sha256(f"{purpose}:{self.task}".encode()).digest()
        words = np.random.SeedSequence([int.from_bytes(name[:8], "little"), seed]).generate_state(8)
        with _seeded(words):
            for _ in range(_TRIES):
                self._clear()
                if self._sample():
                    self._mujoco.mj_forward(self.model, self.data)
                    return
        raise RuntimeError(f"LIBERO found no room for all objects of {self.task} in {_TRIES} tries (seed {seed})")

    def reset_benchmark(self, state_index: int, fixture_seed: int) -> None:
        """Benchmark state `state_index` (modulo 50), or the variant's, with fixture poses drawn from `fixture_seed`.

        The files hold no fixture poses: LIBERO draws them in the reset that comes first.
        """
        self.reset_state(self._states()[state_index % STATES_PER_TASK], fixture_seed)

    def reset_state(
        self,
        state: np.ndarray,
        fixture_seed: int,
        fixtures: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """A recorded state `[1 + nq + nv]` in LIBERO's layout, with fixture poses drawn from `fixture_seed`.

        `fixtures` are known poses, by the name of the root body: position `[3]` and quaternion `[4]`, w first; names
        that are no fixture of this scene are ignored. Raises ValueError for a state of another size.
        """
        self.reset_placement(fixture_seed, "fixtures")
        self._clear(keep_fixtures=True)
        for fixture in self.env.fixtures_dict.values():
            if fixtures and fixture.root_body in fixtures:
                index = self.env.obj_body_id[fixture.name]
                self.model.body_pos[index], self.model.body_quat[index] = fixtures[fixture.root_body]
        self.set_flat_state(state)

    def shake_arm(self, seed: int, std: float) -> None:
        """Move each arm joint by Normal(0, `std`) rad, a function of the task and `seed` alone."""
        name = hashlib.sha256(f"arm:{self.task}".encode()).digest()
        generator = np.random.default_rng([int.from_bytes(name[:8], "little"), seed])
        self.arm.shake(generator.normal(0.0, std, 7))
        self._mujoco.mj_forward(self.model, self.data)

    def set_flat_state(self, state: np.ndarray) -> None:
        """Put a state in LIBERO's layout (see `flat_state`) into the simulation. Raises ValueError for another size."""
        data, wanted = self.data, 1 + self.model.nq + self.model.nv
        if state.shape != (wanted,):
            raise ValueError(f"{self.task} has states of {wanted} numbers, got {list(state.shape)}")
        data.time = state[0]
        data.qpos[:] = state[1 : 1 + self.model.nq]
        data.qvel[:] = state[1 + self.model.nq :]
        self._mujoco.mj_forward(self.model, data)

    def hasten(self) -> None:
        """Compute steps in half the time from here to the next reset: the same equations, not robosuite's bits."""
        self.arm.command = dataclasses.replace(self.arm.command, exact=False)

    def step(self, action: np.ndarray) -> bool:
        """Execute `action` `[7]`, clipped to [-1, 1], for one control step of 50 ms; whether the goal holds now."""
        self.arm.step(np.asarray(action, np.float64))
        success = self.success()
        # The physics leaves the poses of one simulator step (2 ms) ago. LIBERO judges success on those, and so do we;
        # robosuite also shows them to the policy, while we show the present ones.
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_comPos(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)
        return success

    def success(self) -> bool:
        """Whether the task's goal holds, by LIBERO's own rule."""
        return bool(self.env._check_success())

    def holds(self, predicate: str, *names: str) -> bool:
        """Whether one of LIBERO's predicates ("on", "in", "open", "close", "turnon", ...) holds for these names."""
        return bool(self.env._eval_predicate([predicate, *names]))

    def snapshot(self) -> Snapshot:
        """Everything needed to go on from here bit for bit."""
        state = np.empty(self._state_size)
        self._mujoco.mj_getState(self.model, self.data, state, self._state_kind)
        return Snapshot(
            state,
            self.model.body_pos.copy(),
            self.model.body_quat.copy(),
            self.arm.command,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a `snapshot` of this scene."""
        self.model.body_pos[:] = snapshot.body_pos
        self.model.body_quat[:] = snapshot.body_quat
        self.arm.command = snapshot.command
        self._mujoco.mj_setState(self.model, self.data, snapshot.state, self._state_kind)
        self._mujoco.mj_forward(self.model, self.data)
        # mj_forward has moved the solver's starting point.
        self._mujoco.mj_setState(self.model, self.data, snapshot.state, self._state_kind)

    def update_visuals(self) -> None:
        """Make what LIBERO shows by colour (the glowing burner of a stove) follow the state, before an image."""
        self.env._post_process()

    def object_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position `[3]` and rotation matrix `[3, 3]` of an object, a fixture or a region with a site.

        Raises KeyError for another name.
        """
        if name in self.env.obj_body_id:
            body = self.env.obj_body_id[name]
            return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()
        site = self.data.site(name)
        return site.xpos.copy(), site.xmat.reshape(3, 3).copy()

    def joint_values(self, name: str) -> np.ndarray:
        """Values of the joints `[J]` of a fixture, or of the part of it that a region (such as a drawer) belongs to.

        Empty for what has no joints, such as a movable object.
        """
        return self.data.qpos[self._joints.get(name, np.empty(0, int))]

    def owner_of(self, name: str) -> str:
        """The object or fixture that a region belongs to (a table, for a region of the table); itself for others."""
        regions = self.env.parsed_problem["regions"]
        return str(regions[name]["target"]) if name in regions else name

    def joint_value(self, name: str) -> float:
        """The value of the only joint of a fixture or region. Raises ValueError if it has none, or several."""
        values = self.joint_values(name)
        if len(values) != 1:
            raise ValueError(f"{name} has {len(values)} joints: ask for joint_values")
        return float(values[0])

    def hand_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position `[3]` and rotation matrix `[3, 3]` of the grip site."""
        return self.data.site_xpos[self.arm.site].copy(), self.data.site_xmat[self.arm.site].reshape(3, 3).copy()

    def hand_axis_angle(self) -> np.ndarray:
        """Rotation of the hand `[3]`, axis times angle in rad, the angle in [0, 2 pi): `ee_ori` of LIBERO's data.

        That of the hand's body, by robosuite's formula (`quat2axisangle`): the gripper's site is turned against it.
        """
        w, *axis = self.data.body(self.env.robots[0].robot_model.eef_name).xquat
        length = np.linalg.norm(axis)
        return np.array(axis) * (2.0 * np.arccos(np.clip(w, -1.0, 1.0)) / length) if length > 1e-9 else np.zeros(3)

    def joint_states(self) -> np.ndarray:
        """Angles of the arm's joints `[7]`."""
        return self.arm.joint_states()

    def gripper_states(self) -> np.ndarray:
        """Positions of the two fingers `[2]`; both are 0.04 m from the middle (one negative) when fully open."""
        return self.arm.gripper_states()

    def flat_state(self) -> np.ndarray:
        """LIBERO's own layout of a state, float64 `[1 + nq + nv]`: time, positions, velocities."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def close(self) -> None:
        """Free the scene's memory now: LIBERO's objects refer to each other."""
        self.env.__dict__.clear()
        del self.env, self.model, self.data, self.arm
        _return_free_memory()

    def _build(self, description: str) -> Any:
        from libero.libero.envs.bddl_utils import get_problem_info
        from robosuite.controllers import load_controller_config

        made = self._classes[get_problem_info(description)["problem_name"]]
        env = made.__new__(made)
        # The constructor places everything at once; what the model was compiled with has to be kept before that.
        env._reset_internal = lambda: self._first_reset(env)
        if not self.looks:
            env._initialize_sim = lambda: made._initialize_sim(env, without_looks(env.model.get_xml()))
        with _seeded(np.array([0])):
            env.__init__(
                description,
                robots=["Panda"],
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                hard_reset=False,
            )
        del env._reset_internal
        env.__dict__.pop("_initialize_sim", None)
        return env

    def _first_reset(self, env: Any) -> None:
        model = env.sim.model._model
        self._body_pos, self._body_quat = model.body_pos.copy(), model.body_quat.copy()
        env.deterministic_reset = True  # everything but the placement, which the first reset of the scene does
        type(env)._reset_internal(env)
        env.deterministic_reset = False

    def _clear(self, *, keep_fixtures: bool = False) -> None:
        """Everything as compiled, the arm at rest, no solver state left."""
        self.model.site_rgba[:] = self._site_rgba
        if not keep_fixtures:
            self.model.body_pos[:], self.model.body_quat[:] = self._body_pos, self._body_quat
        self._mujoco.mj_resetData(self.model, self.data)
        self.arm.reset()

    def _sample(self) -> bool:
        from robosuite.utils.errors import RandomizationError

        env = self.env
        for sampler in env.object_property_initializers:
            env.object_states_dict[sampler.name].set_joint(sampler.sample())
        self._mujoco.mj_step1(self.model, self.data)  # regions on fixtures are placed by where their sites are
        try:
            with _no_debugger(RandomizationError("no room")):
                placed = env.placement_initializer.sample()
                placed = env.conditional_placement_initializer.sample(env.sim, placed)
                placed = env.conditional_placement_on_objects_initializer.sample(placed)
        except RandomizationError:
            return False
        for position, quaternion, body in placed.values():
            if body.name in env.fixtures_dict:
                index = env.obj_body_id[body.name]
                self.model.body_pos[index], self.model.body_quat[index] = position, quaternion
            else:
                address = self.model.joint(body.joints[-1]).qposadr[0]
                self.data.qpos[address : address + 7] = (*position, *quaternion)
        return True

    def _joint_addresses(self) -> dict[str, np.ndarray]:
        env = self.env
        places = {name: env.get_object(name).joints for name in (*env.fixtures_dict, *env.object_sites_dict)}
        return {
            name: np.array([self.model.joint(joint).qposadr[0] for joint in joints or ()], int)
            for name, joints in places.items()
        }


@contextlib.contextmanager
def _seeded(words: np.ndarray) -> Iterator[None]:
    # LIBERO's samplers use NumPy's global generator.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(words)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@contextlib.contextmanager
def _no_debugger(error: Exception) -> Iterator[None]:
    # One of LIBERO's samplers starts a debugger when it finds no room, which would wait for a terminal for ever.
    def give_up(*, header: str | None = None) -> None:
        raise error

    before = pdb.set_trace
    pdb.set_trace = give_up
    try:
        yield
    finally:
        pdb.set_trace = before


def _return_free_memory() -> None:
    # Compiling leaves 100-200 MB of freed memory with the C library, which keeps it unless asked.
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
