"""How an episode of LIBERO starts and when it ends: the evaluation protocols in use, as data.

| protocol     | steps per episode                                    | before the first decision                   |
|--------------|------------------------------------------------------|---------------------------------------------|
| settle       | `config.env.horizon` (600)                           | 10 no-op steps, then a fresh observation    |
| quest_compat | 600                                                  | nothing; an observation of another scene    |
| openpi       | spatial 220, object 280, goal 300, 10: 520, 90: 400  | 10 no-op steps, then a fresh observation    |

A no-op leaves the hand where it is and opens the gripper: six zeros and -1. No-op steps do not count as steps of the
episode. "settle" takes the horizon of the configuration; the others never run longer than theirs.

QueST and RIPT reset the simulator, execute five zero actions, keep that observation, and only then set the initial
state: the first chunk of actions is planned for a scene that is not there. "quest_compat" repeats this, to compare with
their figures.
"""

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping

import numpy as np

from cso_jax.envs.libero.control import ACTION_DIM
from cso_jax.envs.libero.files import demonstration_start, suite_of
from cso_jax.envs.libero.simulator import Scene
from cso_jax.envs.protocol import EvalInit, InitState, Observation, TrainInit

NO_OP = np.array([0.0] * (ACTION_DIM - 1) + [-1.0])
"""The hand stays, the gripper opens."""

_STALE_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Protocol:
    """`horizons` by suite (empty: the configuration's), `wait` no-op steps, and whether the first observation is the
    one from before the initial state was set."""

    wait: int
    stale_first_observation: bool = False
    horizons: Mapping[str, int] = dataclasses.field(default_factory=dict)


_OPENPI = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}

PROTOCOLS = {
    "settle": Protocol(wait=10),
    "quest_compat": Protocol(wait=0, stale_first_observation=True, horizons=dict.fromkeys(_OPENPI, 600)),
    "openpi": Protocol(wait=10, horizons=_OPENPI),
}


@dataclasses.dataclass(frozen=True)
class Start:
    """Where episodes start: the protocol, and what a train initial state means.

    `train_states`: "placements" (drawn from the task's regions) or "demonstrations" (first recorded states of the files
    in the folder `datasets`). In placements each joint of the arm is Normal(0, `joint_noise`) rad off its rest pose:
    LIBERO's own reset has none, the benchmark's states about 0.02. With `physics` "fast", episodes from train states
    are not robosuite's to the bit (`Scene.hasten`).
    """

    protocol: Protocol
    train_states: str
    datasets: str
    joint_noise: float = 0.0
    physics: str = "official"

    def begin(self, scene: Scene, init: InitState, observe: Callable[[Scene], Observation]) -> Observation | None:
        """Put `init` into the scene; the protocol's first observation if that is not one of the scene as it is now.

        Raises TypeError for an initial state that is neither train nor eval, FileNotFoundError or ValueError if
        demonstrations are needed and cannot be read.
        """
        first = None
        if self.protocol.stale_first_observation:
            scene.reset_placement(init.index, f"{init.split}: before")
            for _ in range(_STALE_STEPS):
                scene.step(np.zeros(ACTION_DIM))
            first = observe(scene)
        self._place(scene, init)
        for _ in range(self.protocol.wait):
            scene.step(NO_OP)
        return first

    def _place(self, scene: Scene, init: InitState) -> None:
        if isinstance(init, EvalInit):
            scene.reset_benchmark(init.index, init.index)
        elif not isinstance(init, TrainInit):
            raise TypeError(f"an initial state is a TrainInit or an EvalInit, got {init!r}")
        elif self.train_states == "placements":
            scene.reset_placement(init.index)
            if self.joint_noise:
                scene.shake_arm(init.index, self.joint_noise)
        else:
            state, model = demonstration_start(self.datasets, init.task, init.index)
            scene.reset_state(state, init.index, fixture_poses(model))
        if isinstance(init, TrainInit) and self.physics == "fast":
            scene.hasten()


def horizon(protocol: Protocol, task: str, wanted: int) -> int:
    """Steps after which an episode of `task` ends. Raises ValueError for an unknown task."""
    return min(wanted, protocol.horizons.get(suite_of(task), wanted))


def fixture_poses(model: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Positions `[3]` and quaternions `[4]` of the bodies directly in the world of a MuJoCo XML model ("": none)."""
    world = ElementTree.fromstring(model).find("worldbody") if model else None
    poses = {}
    for body in world.findall("body") if world is not None else ():
        position, quaternion = body.get("pos", "0 0 0"), body.get("quat", "1 0 0 0")
        poses[body.get("name", "")] = np.array(position.split(), float), np.array(quaternion.split(), float)
    return poses
