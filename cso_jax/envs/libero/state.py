"""The state observation of LIBERO: one vector of fixed size for all 130 tasks, for policies that need no camera.

`STATE_DIM` float32 numbers, in this order. Positions are metres from the robot's base, along the world's axes; a
rotation is the first two columns of its matrix; joint values are radians (doors, knobs) or metres (drawers). What does
not exist is zero.

- `GOAL_PARTS` goal parts, in the goal's order, of 28 numbers each:
    - what has to move (an object, or the fixture or drawer that has to be opened, closed or turned): present 1,
      position 3, position relative to the hand 3, rotation 6, joint value 1;
    - where it has to go (an object or region; absent for open, close, turn on and off): present 1, position 3,
      position relative to the hand 3, position relative to what has to move 3, rotation 3 (its first column), joint
      value 1.
- `ENTITIES` objects and fixtures, those named by the goal first (for a region, what it belongs to), the others in the
  order of the task's description: present 1, position 3, rotation 6, joint values 3.
- The hand: rotation 6.

Joint angles, fingers and the hand's position are observations of their own.
"""

import numpy as np

from cso_jax.envs.libero.simulator import Scene

GOAL_PARTS = 3
"""The most predicates that a goal of the 130 tasks has."""

ENTITIES = 8
"""The most objects and fixtures that a scene of the 130 tasks has, tables aside."""

_JOINTS = 3
_PART_DIM = 28
_ENTITY_DIM = 10 + _JOINTS
STATE_DIM = GOAL_PARTS * _PART_DIM + ENTITIES * _ENTITY_DIM + 6


def state_vector(scene: Scene) -> np.ndarray:
    """The state of a scene, float32 `[STATE_DIM]`. Raises ValueError for a scene with more than fits."""
    entities = entity_order(scene)
    if len(scene.goal) > GOAL_PARTS or len(entities) > ENTITIES:
        raise ValueError(
            f"{scene.task} has {len(scene.goal)} goal parts and {len(entities)} entities: the state observation "
            f"takes {GOAL_PARTS} and {ENTITIES}"
        )
    state = np.zeros(STATE_DIM, np.float32)
    for index, part in enumerate(scene.goal):
        start = index * _PART_DIM
        state[start : start + _PART_DIM] = _goal_part(scene, part[1:])
    for index, name in enumerate(entities):
        start = GOAL_PARTS * _PART_DIM + index * _ENTITY_DIM
        state[start : start + _ENTITY_DIM] = _entity(scene, name)
    state[-6:] = _columns(scene.hand_pose()[1])
    return state


def entity_order(scene: Scene) -> tuple[str, ...]:
    """Objects and fixtures of a scene: those of the goal first, then the others in the description's order."""
    known = (*scene.objects, *scene.fixtures)
    named = [scene.owner_of(name) for part in scene.goal for name in part[1:]]
    return tuple(dict.fromkeys([*(name for name in named if name in known), *known]))


def _goal_part(scene: Scene, names: tuple[str, ...]) -> np.ndarray:
    hand, _ = scene.hand_pose()
    position, rotation = scene.object_pose(names[0])
    subject = [[1.0], position - scene.base, position - hand, _columns(rotation), _joints(scene, names[0], 1)]
    if len(names) == 1:
        return np.concatenate([*subject, np.zeros(_PART_DIM - 14)])
    place, place_rotation = scene.object_pose(names[1])
    relative = [place - scene.base, place - hand, place - position]
    return np.concatenate([*subject, [1.0], *relative, place_rotation[:, 0], _joints(scene, names[1], 1)])


def _entity(scene: Scene, name: str) -> np.ndarray:
    position, rotation = scene.object_pose(name)
    return np.concatenate([[1.0], position - scene.base, _columns(rotation), _joints(scene, name, _JOINTS)])


def _columns(rotation: np.ndarray) -> np.ndarray:
    return rotation[:, :2].T.reshape(6)


def _joints(scene: Scene, name: str, count: int) -> np.ndarray:
    values = np.zeros(count)
    found = scene.joint_values(name)[:count]
    values[: len(found)] = found
    return values
