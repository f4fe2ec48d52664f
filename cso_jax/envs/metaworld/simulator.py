"""MetaWorld's tasks, and one simulated task at a time: replayed exactly, stepped fast, kept for reuse.

`Simulator` wraps one MetaWorld environment object and gives the numbers that MetaWorld's own `reset` and `step` give,
bit for bit, in about half the time. One thing differs: the first observation shows the objects where they really are.
"""

import copy
import difflib
import functools
import math
import types
import warnings
from collections import OrderedDict
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from cso_jax.envs.gl import load_mujoco

# fmt: off
ML45_TRAIN = (
    "assembly-v3", "basketball-v3", "button-press-topdown-v3", "button-press-topdown-wall-v3", "button-press-v3",
    "button-press-wall-v3", "coffee-button-v3", "coffee-pull-v3", "coffee-push-v3", "dial-turn-v3", "disassemble-v3",
    "door-close-v3", "door-open-v3", "drawer-close-v3", "drawer-open-v3", "faucet-open-v3", "faucet-close-v3",
    "hammer-v3", "handle-press-side-v3", "handle-press-v3", "handle-pull-side-v3", "handle-pull-v3", "lever-pull-v3",
    "pick-place-wall-v3", "pick-out-of-hole-v3", "push-back-v3", "pick-place-v3", "plate-slide-v3",
    "plate-slide-side-v3", "plate-slide-back-v3", "plate-slide-back-side-v3", "peg-insert-side-v3",
    "peg-unplug-side-v3", "soccer-v3", "stick-push-v3", "stick-pull-v3", "push-wall-v3", "push-v3", "reach-wall-v3",
    "reach-v3", "shelf-place-v3", "sweep-into-v3", "sweep-v3", "window-open-v3", "window-close-v3",
)
# fmt: on
ML45_TEST = ("bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3")

Layout = tuple[np.ndarray, np.ndarray]
"""Positions of bodies `[*, 3]` and of sites `[*, 3]` in a model, metres."""

STATE_DIM = 39
ACTION_DIM = 4
_FRAME_DIM = 18
_STARTS = 8  # kept of each task: the episodes of a group begin alike, soon after one another


def task_sets() -> dict[str, tuple[str, ...]]:
    """The named sets of tasks: ML45-train (45 tasks), ML45-test (5) and MT50 (both)."""
    return {"ML45-train": ML45_TRAIN, "ML45-test": ML45_TEST, "MT50": (*ML45_TRAIN, *ML45_TEST)}


def task_names(which: str) -> tuple[str, ...]:
    """The tasks of one set of `task_sets`. Raises ValueError for an unknown set."""
    sets = task_sets()
    if which not in sets:
        raise ValueError(f"there is no task set {which!r}; there are {', '.join(sets)}")
    return sets[which]


class Start(NamedTuple):
    """Where an episode begins: all that a reset leaves, so that another simulator of the task can begin there too."""

    state: np.ndarray  # all that MuJoCo's next step depends on
    layout: Layout
    attributes: dict[str, Any]  # of the environment object
    observation: np.ndarray


class TaskModel:
    """The compiled model of one task (0.1 s, 22 MB), shared by all simulators of that task in a process.

    MetaWorld writes the layout of an episode into the model, as positions of bodies and sites. Whoever steps puts its
    own layout there first.
    """

    def __init__(self, task: str) -> None:
        """Raises ValueError for an unknown task, with near names."""
        self._class = _with_tips(_environment_class(task))
        self._compiled: Any = None
        self._untouched: Layout = (np.empty(0), np.empty(0))
        self._current: Layout | None = None  # what the model holds, None while that is being changed
        self._starts: OrderedDict[int, Start] = OrderedDict()

    def environment(self) -> Any:
        """A new MetaWorld environment object on this model, with its own simulation state."""
        env = self._class.__new__(self._class)
        env._initialize_simulation = lambda: self._initialize(env)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's remarks on MetaWorld's number types
            env.__init__()
        del env._initialize_simulation
        return env

    def restore(self) -> None:
        """Put the layout that the model was compiled with into it, to be changed."""
        self._write(self._untouched)
        self._current = None

    def use(self, layout: Layout) -> None:
        """Put a simulator's layout into the model."""
        if layout is not self._current:
            self._write(layout)
            self._current = layout

    def changed(self) -> Layout:
        """A copy of the layout that is in the model after it was changed."""
        self._current = self._compiled.body_pos.copy(), self._compiled.site_pos.copy()
        return self._current

    def start(self, seed: int) -> Start | None:
        """What a simulator's reset with this seed has left, if it is one of the last few."""
        if seed in self._starts:
            self._starts.move_to_end(seed)
        return self._starts.get(seed)

    def keep(self, seed: int, start: Start) -> None:
        """Keep a start, the oldest goes."""
        self._starts[seed] = start
        if len(self._starts) > _STARTS:
            self._starts.popitem(last=False)

    def _write(self, layout: Layout) -> None:
        self._compiled.body_pos[:], self._compiled.site_pos[:] = layout

    def _initialize(self, env: Any) -> tuple[Any, Any]:
        import mujoco

        if self._compiled is None:
            self._compiled, data = self._class._initialize_simulation(env)
            self._untouched = self.changed()
            return self._compiled, data
        self.restore()
        return self._compiled, mujoco.MjData(self._compiled)


class Simulator:
    """One MetaWorld environment object with a visible goal, reset exactly and stepped fast.

    Observations are float64 `[39]`: 18 numbers of this step, the same 18 of the step before, the goal's position.
    """

    def __init__(self, task: str, shared: TaskModel | None = None) -> None:
        """A simulator of `task`, on the model of the others where given.

        Raises ValueError for an unknown task, with near names.
        """
        self.task = task
        self.shared = TaskModel(task) if shared is None else shared
        self._mujoco = load_mujoco()
        self._env = _prepare(self.shared.environment())
        self.model, self.data = self._env.model, self._env.data
        space = self._env.sawyer_observation_space
        self._low, self._high = space.low, space.high
        self._hand = self.data.body("hand").xpos
        self._fingers = self.data.body("rightclaw").xpos, self.data.body("leftclaw").xpos
        self._tips = self.data.site("rightEndEffector").xpos, self.data.site("leftEndEffector").xpos
        self._pads = self.data.geom("leftpad_geom").id, self.data.geom("rightpad_geom").id
        self._replace_slow_methods()
        self._attributes = dict(self._env.__dict__)
        self._layout: Layout | None = None

    def reset(self, seed: int) -> np.ndarray:
        """Start over from the initial state of `seed`; the same bits whatever happened before. Returns `[39]`.

        A state that a simulator of this task has lately begun with is copied, which spares the 250 steps in which
        MetaWorld brings the hand into place: 0.1 ms instead of 4.
        """
        self._restore()
        start = self.shared.start(seed)
        if start is None:
            observation = self._begin(seed)
            start = self._taken(observation)
            if start is not None:
                self.shared.keep(seed, start)
            return observation
        self._env.__dict__.update({name: copy.deepcopy(value) for name, value in start.attributes.items()})
        self._layout = start.layout
        self.shared.use(start.layout)
        self._mujoco.mj_resetData(self.model, self.data)
        self._mujoco.mj_setState(self.model, self.data, start.state, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._place()
        return start.observation.copy()

    def _begin(self, seed: int) -> np.ndarray:
        from gymnasium.utils import seeding

        env = self._env
        env.np_random, _ = seeding.np_random(seed)
        # MetaWorld resets twice: the first pass draws a layout whose body positions the second one starts from, and
        # simulates the hand for 250 steps which are then thrown away. Only that simulation is left out here.
        env._reset_hand = self._hand_where_it_is
        self._mujoco.mj_resetData(self.model, self.data)
        self._mujoco.mj_forward(self.model, self.data)
        env.reset_model()
        env._reset_hand = self._reset_hand
        self._mujoco.mj_resetData(self.model, self.data)
        observation = env.reset_model()
        # Many tasks move an object or the goal's marker last of all, so that MetaWorld's own first image (in 29 tasks)
        # and first state (in 6) show the layout that was thrown away, up to 0.3 m off.
        self._place()
        self._layout = self.shared.changed()
        env._prev_obs = self._frame()
        observation[:_FRAME_DIM] = observation[_FRAME_DIM : 2 * _FRAME_DIM] = env._prev_obs
        return observation

    def _taken(self, observation: np.ndarray) -> Start | None:
        """What `_begin` has left; None in tasks that keep a window on the simulator's own memory."""
        attributes = {}
        for name, value in self._env.__dict__.items():
            if value is self._attributes.get(name) or isinstance(value, types.MethodType):
                continue  # the simulator's own
            if isinstance(value, np.ndarray) and not _owned(value):
                return None
            attributes[name] = copy.deepcopy(value)
        which = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(self.model, which))
        self._mujoco.mj_getState(self.model, self.data, state, which)
        assert self._layout is not None
        return Start(state, self._layout, attributes, observation.copy())

    def _place(self) -> None:
        """Everything where the positions of the joints put it, cameras too; the solver's starting point stays."""
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_comPos(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Execute `action` (float32 `[4]` within [-1, 1]). Returns the observation `[39]` and whether this is success.

        Does what `SawyerXYZEnv.step` does, without its checks and bookkeeping. The final `mj_forward` has to stay:
        it sets the solver's starting point for the next step.
        """
        env, data = self._env, self.data
        if self._layout is None:
            raise RuntimeError("reset the simulator before its first step")
        self.shared.use(self._layout)
        target = data.mocap_pos + action[:3] * env.action_scale
        data.mocap_pos[:] = np.minimum(np.maximum(target, env.mocap_low), env.mocap_high)
        data.mocap_quat[:] = (1.0, 0.0, 1.0, 0.0)
        data.ctrl[0] = action[3]
        data.ctrl[1] = -action[3]
        self._mujoco.mj_step(self.model, data, nstep=env.frame_skip)
        env.curr_path_length += 1
        self._mujoco.mj_forward(self.model, data)
        observation = np.minimum(np.maximum(env._get_obs(), self._low), self._high)
        _, info = env.evaluate_state(observation, action)
        return observation, bool(info["success"])

    def close(self) -> None:
        """Free the simulator's memory now: its environment and it refer to each other."""
        self._attributes.clear()
        self._env.__dict__.clear()
        del self._env, self.model, self.data, self.shared

    def _replace_slow_methods(self) -> None:
        env = self._env
        env.tips = self._tips
        env._get_obs = self._observation
        env._get_curr_obs_combined_no_goal = self._frame
        env._reset_hand = self._reset_hand
        env.touching_object = self._touching
        # Looking a name up takes longer than what is done with what it names, which stays where it is.
        env.get_body_com = functools.cache(env.get_body_com)
        sites = functools.cache(lambda name: self.data.site(name).xpos)
        env._get_site_pos = lambda name: sites(name).copy()
        # These shape the reward, on which no task's success depends; half of the time of a step for some tasks.
        env._gripper_caging_reward = lambda *args, **kwargs: 0.0
        env.compute_reward = _bound(env, "compute_reward", reward_utils=_NoShaping)
        if "Rotation" in type(env)._get_quat_objects.__code__.co_names:
            env._get_quat_objects = _bound(env, "_get_quat_objects", Rotation=_Rotation)

    def _restore(self) -> None:
        attributes = self._env.__dict__
        attributes.clear()
        for name, value in self._attributes.items():
            attributes[name] = _fresh(value)
        self.shared.restore()

    def _observation(self) -> np.ndarray:
        env = self._env
        observation = np.empty(STATE_DIM)
        observation[:_FRAME_DIM] = frame = self._frame()
        observation[_FRAME_DIM : 2 * _FRAME_DIM] = env._prev_obs
        observation[2 * _FRAME_DIM :] = env._get_pos_goal()
        env._prev_obs = frame
        return observation

    def _frame(self) -> np.ndarray:
        env = self._env
        frame = np.zeros(_FRAME_DIM)
        frame[:3] = self._hand
        apart = self._fingers[0] - self._fingers[1]
        frame[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        positions, quaternions = env._get_pos_objects(), env._get_quat_objects()
        for index in range(len(positions) // 3):
            start = 4 + 7 * index
            frame[start : start + 3] = positions[3 * index : 3 * index + 3]
            frame[start + 3 : start + 7] = quaternions[4 * index : 4 * index + 4]
        return frame

    def _reset_hand(self, steps: int = 50) -> None:
        env, data = self._env, self.data
        data.mocap_pos[:] = env.hand_init_pos
        data.mocap_quat[:] = (1.0, 0.0, 1.0, 0.0)
        data.ctrl[:] = (-1.0, 1.0)
        self._mujoco.mj_step(self.model, data, nstep=steps * env.frame_skip)
        self._hand_where_it_is()

    def _hand_where_it_is(self, steps: int = 50) -> None:
        del steps
        self._env.init_tcp = (self._tips[0] + self._tips[1]) / 2.0

    def _touching(self, geom: int) -> bool:
        contact = self.data.contact
        pairs, rows = contact.geom, contact.efc_address
        of_object = (pairs == geom).any(axis=1)
        for pad in self._pads:
            touching = of_object & (pairs == pad).any(axis=1)
            if not sum(self.data.efc_force[rows[touching]]) > 0:
                return False
        return True


class SimulatorPool:
    """The idle simulators of a process, by task; above `capacity` in all, the least recently used idle one goes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_use = 0
        self._idle: OrderedDict[int, Simulator] = OrderedDict()
        self._models: WeakValueDictionary[str, TaskModel] = WeakValueDictionary()

    def __len__(self) -> int:
        """Simulators alive, idle and in use."""
        return self.in_use + len(self._idle)

    def acquire(self, task: str) -> Simulator:
        """A simulator of `task` that nobody else uses. Raises ValueError for an unknown task."""
        for key in reversed(self._idle):
            if self._idle[key].task == task:
                self.in_use += 1
                return self._idle.pop(key)
        self._evict(self.capacity - 1)
        simulator = Simulator(task, self._models.get(task))
        self._models[task] = simulator.shared
        self.in_use += 1
        return simulator

    def release(self, simulator: Simulator) -> None:
        """Give a simulator back."""
        self.in_use -= 1
        self._idle[id(simulator)] = simulator
        self._evict(self.capacity)

    def _evict(self, limit: int) -> None:
        while self._idle and len(self) > limit:
            self._idle.popitem(last=False)[1].close()


def _bound(env: Any, name: str, **names: Any) -> types.MethodType:
    """A method of an environment with other things behind some names of its module."""
    method = getattr(type(env), name)
    code = types.FunctionType(
        method.__code__, {**method.__globals__, **names}, name, method.__defaults__, method.__closure__
    )
    return types.MethodType(code, env)


def _with_tips(kind: type) -> Any:
    """A class of environments that looks for the tips of the fingers in its `tips`, which is to be set."""
    return type(kind.__name__, (kind,), {"tcp_center": property(lambda env: (env.tips[0] + env.tips[1]) / 2.0)})


class _NoShaping:
    """In place of MetaWorld's `reward_utils`."""

    @staticmethod
    def tolerance(*args: Any, **kwargs: Any) -> float:
        return 0.0

    hamacher_product = rect_prism_tolerance = tolerance


class _Rotation:
    """As much of scipy's Rotation as MetaWorld's observations use; same formula, same bits, a twentieth of the time."""

    def __init__(self, quaternion: np.ndarray) -> None:
        self._quaternion = quaternion

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "_Rotation":
        m = matrix.tolist()
        trace = m[0][0] + m[1][1] + m[2][2]
        candidates = [m[0][0], m[1][1], m[2][2], trace]
        i = candidates.index(max(candidates))
        if i == 3:
            quaternion = [m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1], 1 + trace]
        else:
            j, k = (i + 1) % 3, (i + 2) % 3
            quaternion = [0.0, 0.0, 0.0, m[k][j] - m[j][k]]
            quaternion[i] = 1 - trace + 2 * m[i][i]
            quaternion[j] = m[j][i] + m[i][j]
            quaternion[k] = m[k][i] + m[i][k]
        x, y, z, w = quaternion
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        return cls(np.array([x / norm, y / norm, z / norm, w / norm]))

    def as_quat(self) -> np.ndarray:
        return self._quaternion


def _environment_class(task: str) -> Any:
    if task not in task_names("MT50"):
        near = difflib.get_close_matches(task, task_names("MT50"), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; the names end in -v3"
        raise ValueError(f"MetaWorld has no task {task!r}{hint}")
    load_mujoco()
    from metaworld.env_dict import ENV_CLS_MAP

    classes: dict[str, Any] = ENV_CLS_MAP
    return classes[task]


def _prepare(env: Any) -> Any:
    env._partially_observable = False
    # Cached while the goal was hidden: it would clip the goal to zero in every step but not in the reset.
    env.__dict__.pop("sawyer_observation_space", None)
    env._set_task_called = True
    env.seeded_rand_vec = True
    env._freeze_rand_vec = False
    return env


def _owned(array: np.ndarray) -> bool:
    """Whether an array lies in memory of NumPy's, its own or another array's."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return bool(base.flags.owndata)


def _fresh(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy() if value.flags.owndata else value  # a view shows the simulator's own memory
    return copy.deepcopy(value) if type(value) in (dict, list) else value
