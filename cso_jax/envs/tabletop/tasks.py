"""The five tasks: what stands on the table and where, and when a stage counts as done (paper, Appendix C).

Predicates are pure functions of a `World`. Lengths are metres, speeds m/s.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from cso_jax.envs.protocol import InitState
from cso_jax.envs.tabletop.scene import (
    BOTTLE_CAP,
    BOTTLE_HEIGHT,
    BOTTLE_RADIUS,
    BOWL_FLOOR,
    BOWL_HEIGHT,
    BOWL_RADIUS,
    BOWL_WALL,
    BUTTON_BASE,
    BUTTON_TRAVEL,
    CUBE,
    PLATE_HEIGHT,
    PLATE_RADIUS,
)

GAP = 0.03
"""Free space between any two objects at the start: a finger fits in."""

HOLD = 5
"""Control steps in a row for which a stage must hold: what is let go of has come to rest."""

_UPRIGHT = 0.98  # cosine of the tilt, 11 degrees
_RESTING = 0.05
_NEAR = 0.008


@dataclasses.dataclass(frozen=True)
class World:
    """What a predicate sees: by object its position `[3]` (origin: a cube's middle, others' feet), the cosine of its
    tilt and its speed; the objects that the fingers touch; how far the button is down."""

    position: Mapping[str, np.ndarray]
    upright: Mapping[str, float]
    speed: Mapping[str, float]
    touched: frozenset[str] = frozenset()
    pressed: float = 0.0


Predicate = Callable[[World], bool]


@dataclasses.dataclass(frozen=True)
class Task:
    """`objects` in the order of the state observation: what is moved first, then where it goes. `stages` are done in
    that order, the last one is the task's success. `hold`: see HOLD. `horizon`: control steps at 20 Hz. `area`: lowest
    and highest x (away from the robot) and y (to its left) at which the middle of an object may lie at the start."""

    sentence: str
    objects: tuple[str, ...]
    stages: tuple[Predicate, ...]
    horizon: int
    hold: int = HOLD
    area: tuple[tuple[float, float], tuple[float, float]] = ((0.27, -0.13), (0.45, 0.13))


def stands_on(world: World, upper: str, lower: str, height: float, reach: float) -> bool:
    """`upper`, a cube, rests on `lower` without a finger's help: its middle `height` above and within `reach`."""
    offset = world.position[upper] - world.position[lower]
    return bool(
        np.linalg.norm(offset[:2]) < reach
        and abs(offset[2] - height) < _NEAR
        and world.speed[upper] < _RESTING
        and not {upper, lower} & world.touched
    )


def cube_on_cube(world: World) -> bool:
    """The yellow cube rests on the red one, which is on the table."""
    on_table = bool(world.position["red_cube"][2] < CUBE + _NEAR)
    return on_table and stands_on(world, "yellow_cube", "red_cube", 2 * CUBE, CUBE)


def cube_on_bottle(world: World) -> bool:
    """The red cube rests on the cap of the bottle, which stands."""
    standing = bool(world.upright["bottle"] > _UPRIGHT and world.position["bottle"][2] < _NEAR)
    return standing and stands_on(world, "red_cube", "bottle", BOTTLE_HEIGHT + CUBE, BOTTLE_CAP)


def in_bowl(world: World, cube: str) -> bool:
    """`cube` lies within the bowl, let go of, and the bowl stands upright."""
    offset = world.position[cube] - world.position["bowl"]
    return bool(
        np.linalg.norm(offset[:2]) < BOWL_RADIUS - CUBE / 2
        and BOWL_FLOOR < offset[2] < BOWL_HEIGHT
        and world.upright["bowl"] > _UPRIGHT
        and world.speed[cube] < _RESTING
        and cube not in world.touched
    )


def cube_in_bowl(world: World) -> bool:
    """The red cube lies in the bowl."""
    return in_bowl(world, "red_cube")


def button_pressed(world: World) -> bool:
    """The button is down by at least three quarters of its travel."""
    return world.pressed > 0.75 * BUTTON_TRAVEL


def bowl_on_plate(world: World) -> bool:
    """The bowl stands on the plate, its middle over the plate's inner part."""
    offset = world.position["bowl"] - world.position["plate"]
    return bool(
        np.linalg.norm(offset[:2]) < PLATE_RADIUS / 2
        and abs(offset[2] - PLATE_HEIGHT) < _NEAR
        and world.upright["bowl"] > _UPRIGHT
    )


def cube_then_bowl(world: World) -> bool:
    """Stage 1 of Sequential Placement: the yellow cube lies in the bowl, and the bowl is not on the plate yet."""
    return in_bowl(world, "yellow_cube") and not bowl_on_plate(world)


def full_bowl_on_plate(world: World) -> bool:
    """Stage 2 of Sequential Placement: the bowl stands on the plate, let go of, with the yellow cube in it."""
    let_go = "bowl" not in world.touched and world.speed["bowl"] < _RESTING
    return let_go and bowl_on_plate(world) and in_bowl(world, "yellow_cube")


TASKS: dict[str, Task] = {
    "cube-on-cube": Task("stack the yellow cube on the red cube", ("yellow_cube", "red_cube"), (cube_on_cube,), 200),
    "cube-in-bowl": Task("put the red cube into the bowl", ("red_cube", "bowl"), (cube_in_bowl,), 200),
    "press-button": Task("press the red button", ("button",), (button_pressed,), 100, hold=1),
    "cube-on-bottle": Task("balance the red cube on the bottle", ("red_cube", "bottle"), (cube_on_bottle,), 200),
    "sequential-placement": Task(
        "put the yellow cube into the bowl, then the bowl onto the plate",
        ("yellow_cube", "bowl", "plate"),
        (cube_then_bowl, full_bowl_on_plate),
        400,
        area=((0.26, -0.18), (0.44, 0.18)),  # more room: plate and bowl side by side
    ),
}

RADII = {
    "red_cube": CUBE * np.sqrt(2),
    "yellow_cube": CUBE * np.sqrt(2),
    "bowl": BOWL_RADIUS + BOWL_WALL,
    "plate": PLATE_RADIUS,
    "bottle": BOTTLE_RADIUS,
    "button": BUTTON_BASE * np.sqrt(2),
}
_TURN = {"red_cube": 0.5, "yellow_cube": 0.5, "button": 0.3}
_MOST_DRAWS = 10_000


def placements(init: InitState) -> dict[str, tuple[np.ndarray, float]]:
    """Position `[2]` (m) and turn (rad) of every object of an initial state: no two overlap, splits share no draw.

    Raises ValueError for an unknown task.
    """
    task = task_named(init.task)
    generator = np.random.default_rng([init.split == "eval", init.index, *init.task.encode()])
    low, high = np.array(task.area)
    for _ in range(_MOST_DRAWS):
        spots = generator.uniform(low, high, (len(task.objects), 2))
        turns = generator.uniform(-1.0, 1.0, len(task.objects))
        if _apart(task.objects, spots):
            return {
                name: (spot, float(turn * _TURN.get(name, 0.0)))
                for name, spot, turn in zip(task.objects, spots, turns, strict=True)
            }
    raise RuntimeError(f"no placement of {', '.join(task.objects)} without overlap in {_MOST_DRAWS} draws")


def _apart(names: tuple[str, ...], spots: np.ndarray) -> bool:
    return all(
        np.linalg.norm(spots[one] - spots[other]) > RADII[names[one]] + RADII[names[other]] + GAP
        for one in range(len(names))
        for other in range(one)
    )


def task_named(name: str) -> Task:
    """The task of that name. Raises ValueError, naming those there are."""
    if name not in TASKS:
        raise ValueError(f"tabletop has no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]
