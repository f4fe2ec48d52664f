"""MetaWorld (v3 tasks): state or camera observations, exact replay of initial states, and a fast simulator step.

`Simulator` wraps one MetaWorld environment object and gives the numbers that MetaWorld's own `reset` and `step` give,
bit for bit, in less than half the time. A slot environment borrows a simulator of the right task for one episode at a
time from a pool that all slots of its process share.
"""

import copy
import dataclasses
import difflib
import functools
import logging
import math
import time
import types
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs.gl import RendererCache, configure_gl
from cso_jax.envs.protocol import INDEX_LIMIT, ChunkResult, Environment, EnvSpec, EvalInit, InitState, Observation
from cso_jax.envs.protocol import TrainInit

ML45_TEST = ("bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3")
ML45_TRAIN = tuple(
    f"{name}-v3"
    for name in (
        "assembly basketball button-press-topdown button-press-topdown-wall button-press button-press-wall "
        "coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-open drawer-close drawer-open "
        "faucet-open faucet-close hammer handle-press-side handle-press handle-pull-side handle-pull lever-pull "
        "pick-place-wall pick-out-of-hole push-back pick-place plate-slide plate-slide-side plate-slide-back "
        "plate-slide-back-side peg-insert-side peg-unplug-side soccer stick-push stick-pull push-wall push "
        "reach-wall reach shelf-place sweep-into sweep window-open window-close"
    ).split()
)
MAX_HORIZON = 500
"""MetaWorld raises an error at step 501."""

ACTION_DIM = 4
STATE_DIM = 39
HAND_DIM = 4
# A renderer weighs 30-80 MB: many tasks in one process would fill the memory, too few would be rebuilt all the time.
_MIN_RENDERERS = 16
_FRAME_DIM = 18

_logger = logging.getLogger(__name__)


def task_sets() -> dict[str, tuple[str, ...]]:
    """The named sets of tasks: ML45-train (45 tasks), ML45-test (5) and MT50 (both)."""
    return {"ML45-train": ML45_TRAIN, "ML45-test": ML45_TEST, "MT50": (*ML45_TRAIN, *ML45_TEST)}


def task_names(which: str) -> tuple[str, ...]:
    """The tasks of one set of `task_sets`. Raises ValueError for an unknown set."""
    sets = task_sets()
    if which not in sets:
        raise ValueError(f"there is no task set {which!r}; there are {', '.join(sets)}")
    return sets[which]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this module reads of `config.env`; sizes in pixels, horizon and video_every in simulator steps."""

    obs: str = "state"
    cameras: tuple[str, ...] = ("corner2",)
    image_size: int = 128
    horizon: int = MAX_HORIZON
    render: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"shadows": False, "reflections": False, "msaa": 0}
    )
    video_size: int = 128
    video_every: int = 4
    instance_cap: int = 96

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Settings":
        """Read a plain mapping; keys that mean nothing here are ignored. Raises ValueError for impossible values."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in settings.items() if key in known}
        if "cameras" in values:
            values["cameras"] = tuple(values["cameras"])
        made = cls(**values)
        if made.obs not in ("state", "pixels"):
            raise ValueError(f"obs must be 'state' or 'pixels', got {made.obs!r}")
        if not 1 <= made.horizon <= MAX_HORIZON:
            raise ValueError(f"horizon must be in [1, {MAX_HORIZON}] (MetaWorld's own limit), got {made.horizon}")
        if made.instance_cap < 1 or made.video_every < 1:
            raise ValueError(
                f"instance_cap and video_every must be at least 1, got {made.instance_cap} and {made.video_every}"
            )
        if not made.cameras:
            raise ValueError("cameras is empty: name at least one")
        return made


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes under `settings`; builds no simulator."""
    chosen = Settings.of(settings)
    if chosen.obs == "state":
        return EnvSpec({"state": STATE_DIM}, {}, ACTION_DIM)
    size = (chosen.image_size, chosen.image_size, 3)
    return EnvSpec({"hand": HAND_DIM}, dict.fromkeys(chosen.cameras, size), ACTION_DIM)


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images ("egl", "osmesa", ...), "none" for state observations.

    Raises RuntimeError if images are wanted and nothing can draw them.
    """
    return configure_gl("pixels") if Settings.of(settings).obs == "pixels" else "none"


def make_environments(settings: Mapping[str, Any], count: int) -> list[Environment]:
    """`count` slot environments for this process. They share their simulators, which are made when first needed."""
    chosen = Settings.of(settings)
    pool = process_pool(chosen.instance_cap)
    observer = Observer(chosen, slots=count)
    return [MetaWorldEnvironment(chosen, pool, observer) for _ in range(count)]


def seed_of(init: InitState) -> int:
    """The MetaWorld seed of an initial state; the two splits have disjoint ranges. Raises TypeError for other types."""
    if isinstance(init, TrainInit):
        return init.index
    if isinstance(init, EvalInit):
        return init.index + INDEX_LIMIT
    raise TypeError(f"an initial state is a TrainInit or an EvalInit, got {init!r}")


class Simulator:
    """One MetaWorld environment object with a visible goal, reset exactly and stepped fast.

    Observations are float64 `[39]`: 18 numbers of this step, the same 18 of the step before, the goal's position.
    """

    def __init__(self, task: str) -> None:
        """Build the environment of `task` (0.2 s, 4 MB). Raises ValueError for an unknown task, with near names."""
        import mujoco

        self.task = task
        self._mujoco = mujoco
        self._env = _build(task)
        self.model, self.data = self._env.model, self._env.data
        space = self._env.sawyer_observation_space
        self._low, self._high = space.low, space.high
        self._hand = self.data.body("hand").xpos
        self._fingers = self.data.body("rightclaw").xpos, self.data.body("leftclaw").xpos
        self._tips = self.data.site("rightEndEffector").xpos, self.data.site("leftEndEffector").xpos
        self._pads = self.data.geom("leftpad_geom").id, self.data.geom("rightpad_geom").id
        self._replace_slow_methods()
        self._attributes = dict(self._env.__dict__)
        self._positions = self.model.body_pos.copy(), self.model.site_pos.copy()

    def reset(self, seed: int) -> np.ndarray:
        """Start over from the initial state of `seed`; the same bits whatever happened before. Returns `[39]`."""
        from gymnasium.utils import seeding

        env = self._env
        self._restore()
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
        env._prev_obs = observation[:_FRAME_DIM].copy()
        observation[_FRAME_DIM : 2 * _FRAME_DIM] = env._prev_obs
        return observation

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Execute `action` (float32 `[4]` within [-1, 1]). Returns the observation `[39]` and whether this is success.

        Does what `SawyerXYZEnv.step` does, without its checks and bookkeeping. The final `mj_forward` has to stay:
        it sets the solver's starting point for the next step.
        """
        env, data = self._env, self.data
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

    def _replace_slow_methods(self) -> None:
        env = self._env
        env._get_curr_obs_combined_no_goal = self._frame
        env._reset_hand = self._reset_hand
        env.touching_object = self._touching
        # Shapes the reward, on which no task's success depends; half of the time of a step for some tasks.
        env._gripper_caging_reward = lambda *args, **kwargs: 0.0
        method = type(env)._get_quat_objects
        if "Rotation" in method.__code__.co_names:
            light = types.FunctionType(method.__code__, {**method.__globals__, "Rotation": _Rotation})
            env._get_quat_objects = types.MethodType(light, env)

    def _restore(self) -> None:
        attributes = self._env.__dict__
        attributes.clear()
        for name, value in self._attributes.items():
            attributes[name] = _fresh(value)
        self.model.body_pos[:], self.model.site_pos[:] = self._positions

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
        simulator = Simulator(task)
        self.in_use += 1
        return simulator

    def release(self, simulator: Simulator) -> None:
        """Give a simulator back."""
        self.in_use -= 1
        self._idle[id(simulator)] = simulator
        self._evict(self.capacity)

    def _evict(self, limit: int) -> None:
        while self._idle and len(self) > limit:
            self._idle.popitem(last=False)


@functools.cache
def process_pool(capacity: int) -> SimulatorPool:
    """The pool that everything in this process with the same `capacity` shares."""
    return SimulatorPool(capacity)


class Observer:
    """Turns a simulator's state into what the policy sees, and into video frames."""

    def __init__(self, settings: Settings, *, slots: int) -> None:
        """Raises RuntimeError if camera images are wanted and nothing can draw them."""
        configure_gl(settings.obs)
        self._settings = settings
        self._slots = slots

    def observe(self, simulator: Simulator, observation: np.ndarray) -> Observation:
        """The policy's observation for MetaWorld's `[39]`, with cameras drawn now if they are part of it."""
        if self._settings.obs == "state":
            return {"state": observation.astype(np.float32)}
        images = {name: self._draw(simulator, name, self._settings.image_size) for name in self._settings.cameras}
        return {"hand": observation[:HAND_DIM].astype(np.float32), **images}

    def frame(self, simulator: Simulator) -> np.ndarray | None:
        """A video frame `[V, V, 3]` uint8, None if this machine cannot draw (state runs go on without videos)."""
        if self._settings.obs == "state" and not _can_draw():
            return None
        return self._draw(simulator, self._settings.cameras[0], self._settings.video_size)

    def _draw(self, simulator: Simulator, camera: str, size: int) -> np.ndarray:
        largest = max(self._settings.image_size, self._settings.video_size)
        renderers = _process_renderers(largest, tuple(sorted(self._settings.render.items())))
        renderers.capacity = max(renderers.capacity, self._slots)
        drawer = renderers.get(simulator.task, simulator.model)
        return drawer.render(simulator.model, simulator.data, camera, size)


class MetaWorldEnvironment:
    """One slot: runs one episode at a time on a simulator borrowed from the pool."""

    def __init__(self, settings: Settings, pool: SimulatorPool, observer: Observer) -> None:
        self._settings = settings
        self._pool = pool
        self._observer = observer
        self._simulator: Simulator | None = None
        self._record = False
        self._step = 0

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Start an episode from `init`. Raises ValueError for an unknown task, TypeError for a nameless init type."""
        seed = seed_of(init)
        self.close()
        self._simulator = self._pool.acquire(init.task)
        self._record = record
        self._step = 0
        start = time.perf_counter()
        observation = self._simulator.reset(seed)
        return self._result(observation, False, False, 0, time.perf_counter() - start, [], 0.0)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` `[E, 4]`, clipped to [-1, 1], until they are used up, success, or the horizon.

        Raises ValueError for another shape or numbers that are not finite (then nothing was executed), RuntimeError
        if no episode is under way.
        """
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            raise ValueError(f"actions must have shape [E, {ACTION_DIM}] with E > 0, got {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold numbers that are not finite")
        if self._simulator is None:
            raise RuntimeError("no episode is under way: it has ended, or was never reset")
        start = time.perf_counter()
        success = done = False
        frames: list[np.ndarray] = []
        drawing, taken = 0.0, 0
        for action in np.clip(actions, -1.0, 1.0):
            observation, success = self._simulator.step(action)
            taken += 1
            self._step += 1
            done = success or self._step >= self._settings.horizon
            if self._record and not done and self._step % self._settings.video_every == 0:
                drawing += self._film(frames)
            if done:
                break
        physics = time.perf_counter() - start - drawing
        return self._result(observation, success, done, taken, physics, frames, drawing)

    def close(self) -> None:
        """End the episode under way, if any, and give its simulator back."""
        if self._simulator is not None:
            self._pool.release(self._simulator)
            self._simulator = None

    def _result(
        self,
        observation: np.ndarray,
        success: bool,
        done: bool,
        steps: int,
        physics_s: float,
        frames: list[np.ndarray],
        drawing: float,
    ) -> ChunkResult:
        assert self._simulator is not None
        start = time.perf_counter()
        seen = self._observer.observe(self._simulator, observation)
        drawing += time.perf_counter() - start
        if self._record and (done or steps == 0):
            drawing += self._film(frames)
        if done:
            self.close()
        return ChunkResult(seen, success, done, steps, physics_s, drawing, frames)

    def _film(self, frames: list[np.ndarray]) -> float:
        assert self._simulator is not None
        start = time.perf_counter()
        frame = self._observer.frame(self._simulator)
        if frame is not None:
            frames.append(frame)
        return time.perf_counter() - start


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


def _build(task: str) -> Any:
    if task not in task_names("MT50"):
        near = difflib.get_close_matches(task, task_names("MT50"), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; the names end in -v3"
        raise ValueError(f"MetaWorld has no task {task!r}{hint}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's remarks on MetaWorld's number types
        from metaworld.env_dict import ENV_CLS_MAP

        env = ENV_CLS_MAP[task]()
    env._partially_observable = False
    # Cached while the goal was hidden: it would clip the goal to zero in every step but not in the reset.
    env.__dict__.pop("sawyer_observation_space", None)
    env._set_task_called = True
    env.seeded_rand_vec = True
    env._freeze_rand_vec = False
    return env


def _fresh(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy() if value.flags.owndata else value  # a view shows the simulator's own memory
    return copy.deepcopy(value) if type(value) in (dict, list) else value


@functools.cache
def _process_renderers(size: int, flags: tuple[tuple[str, Any], ...]) -> RendererCache:
    return RendererCache(_MIN_RENDERERS, size, dict(flags))


@functools.cache
def _can_draw() -> bool:
    try:
        configure_gl("pixels")
    except RuntimeError as error:
        _logger.warning("no videos: %s", error)
        return False
    return True
