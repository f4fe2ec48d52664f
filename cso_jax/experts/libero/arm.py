"""The arm as an expert sees it: what is where in the scene, and motions that yield one action per control step.

A motion is a generator: it looks at the scene, yields the next action `[7]` (OSC_POSE deltas and the gripper), is
resumed after the simulator has taken it, and returns when it has got there. So every motion is closed-loop.
"""

import dataclasses
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np

from cso_jax.experts.libero.geometry import (
    Boxes,
    HeightField,
    body_tree,
    boxes_of,
    colliding_geoms,
    height_field,
    overlap,
    rotation_about,
    rotation_vector,
)

Motion = Generator[np.ndarray, None, bool]
"""Yields actions `[7]`; returns whether it reached what it was for."""

OPEN, CLOSED = -1.0, 1.0
FULL_OPENING = 0.04
"""How far one finger travels: the pads are twice that apart."""

FINGERTIP = 0.010
"""How far the fingers reach beyond the grip site."""
PALM = 0.031
"""How far the palm stands back from the grip site."""

_METRES_PER_ACTION, _RADIANS_PER_ACTION = 0.05, 0.5
_NEAR_REACH, _BEST_REACH, _RELAXED_REACH, _EASY_REACH = 0.42, 0.55, 0.6, 0.72
_WRIST, _MOST_LEAN = 0.2, 0.4
_PATIENCE = 6
_EITHER_WAY = 2.6  # radians: almost half a turn, of which one way may run into the wrist's stop
_REACH = np.array([[-0.95, -0.75], [0.65, 0.75]])


@dataclasses.dataclass(frozen=True)
class Style:
    """What varies between demonstrations of one task: drawn once per episode, constant within it."""

    speed: float
    hover: float
    turn: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> "Style":
        """Speed as a share of the fastest, extra metres of travel height, and the turn of the wrist it likes best."""
        return cls(
            speed=float(generator.uniform(0.9, 1.0)),
            hover=float(generator.uniform(0.0, 0.03)),
            turn=float(generator.uniform(-0.15, 0.15)),
        )


def hand_boxes(opening: float) -> Boxes:
    """The Panda hand in the frame of its grip site: two fingers `opening` from the middle each, palm and wrist.

    The fingers open along x and point along z.
    """
    inner = opening
    spans = [
        ((inner, -0.0105, -0.012), (inner + 0.015, 0.0105, FINGERTIP)),
        ((inner, -0.0105, -0.046), (inner + 0.026, 0.0105, -0.012)),
        ((-inner - 0.015, -0.0105, -0.012), (-inner, 0.0105, FINGERTIP)),
        ((-inner - 0.026, -0.0105, -0.046), (-inner, 0.0105, -0.012)),
        ((-0.102, -0.022, -0.085), (0.102, 0.022, -PALM)),
        ((-0.105, -0.033, -0.125), (0.105, 0.033, -0.085)),
        ((-0.056, -0.056, -0.285), (0.056, 0.056, -0.125)),
    ]
    low, high = np.array([span[0] for span in spans]), np.array([span[1] for span in spans])
    return Boxes((low + high) / 2, np.tile(np.eye(3), (len(spans), 1, 1)), (high - low) / 2)


def pointing_down(yaw: float) -> np.ndarray:
    """Rotation `[3, 3]` of a hand that points down and opens along the horizontal direction `yaw`."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, sine, 0.0], [sine, -cosine, 0.0], [0.0, 0.0, -1.0]])


class Arm:
    """One episode's view of a `Scene` and of the arm in it."""

    def __init__(self, scene: Any, style: Style) -> None:
        self.scene = scene
        self.style = style
        self.grip = OPEN
        self._model, self._data = scene.model, scene.data
        bodies = scene.env.obj_body_id
        self._geoms = {name: colliding_geoms(self._model, body_tree(self._model, bodies[name])) for name in bodies}
        roots = [body for body in range(1, self._model.nbody) if self._model.body_parentid[body] == 0]
        robot = [body for body in roots if self._model.body(body).name.startswith(("robot0", "mount0", "gripper0"))]
        parts = [part for root in robot for part in body_tree(self._model, root)]
        self._robot = set(colliding_geoms(self._model, parts))
        self._solid = colliding_geoms(self._model, range(self._model.nbody))
        self._fingers = [self._model.actuator(f"gripper0_gripper_finger_joint{side}").id for side in (1, 2)]
        self._finger_geoms = [
            {self._model.geom(f"gripper0_finger{side}{part}_collision").id for part in ("", "_pad")} for side in (1, 2)
        ]
        self._base = self._data.body("robot0_base").xpos[:2].copy()

    # Where things are

    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Position `[3]` of the grip site and rotation `[3, 3]` of the hand."""
        return self.scene.hand_pose()

    def opening(self) -> float:
        """How far the fingers are from the middle, on average."""
        return float(np.abs(self.scene.gripper_states()).mean())

    def touching(self, name: str) -> int:
        """How many of the two fingers touch the object `name`."""
        thing = set(self._geoms[name])
        pairs = self._data.contact.geom[: self._data.ncon]
        return sum(
            any((a in finger and b in thing) or (b in finger and a in thing) for a, b in pairs.tolist())
            for finger in self._finger_geoms
        )

    def boxes(self, name: str) -> Boxes:
        """Collision boxes of an object or a fixture."""
        return boxes_of(self._model, self._data, self._geoms[name])

    def boxes_of(self, geoms: Sequence[int]) -> Boxes:
        """Collision boxes of these geoms."""
        return boxes_of(self._model, self._data, geoms)

    def obstacles(self, *ignored: str) -> HeightField:
        """Height field of everything but the robot and the objects `ignored`."""
        return height_field(self.surroundings(*ignored), _REACH[0], _REACH[1], floor=0.0)

    def surroundings(self, *ignored: str, geoms: Iterable[int] = ()) -> Boxes:
        """Collision boxes of everything but the robot, the objects `ignored`, and single `geoms`."""
        left_out = self._robot.union(geoms, *(self._geoms[name] for name in ignored))
        return self.boxes_of([geom for geom in self._solid if geom not in left_out])

    def neutral_yaw(self, place: np.ndarray) -> float:
        """Opening direction at which the wrist is least turned when the hand is over `place` `[>= 2]`."""
        offset = place[:2] - self._base
        return float(np.arctan2(offset[1], offset[0])) + np.pi / 2

    def stretch(self, place: np.ndarray) -> float:
        """How far (metres) `place` `[>= 2]` lies beyond what a hand that points down reaches easily."""
        return max(0.0, float(np.linalg.norm(place[:2] - self._base)) - _EASY_REACH)

    def cramped(self, place: np.ndarray) -> float:
        """How far (metres) `place` `[>= 2]` is from the distance at which the arm works best."""
        return abs(float(np.linalg.norm(place[:2] - self._base)) - _BEST_REACH)

    def leaning(self, rotation: np.ndarray, place: np.ndarray, *, inwards: bool = True) -> np.ndarray:
        """`rotation` with the fingers leant outwards if the wrist could not follow so far out, or inwards if too near.

        What is flat cannot be taken hold of with a hand that leans: without `inwards` only the far side counts.
        """
        away = place[:2] - self._base
        distance = float(np.linalg.norm(away))
        excess = max(0.0, distance - _EASY_REACH) - inwards * max(0.0, _NEAR_REACH - distance)
        angle = float(np.arcsin(np.clip(excess / _WRIST, -_MOST_LEAN, _MOST_LEAN)))
        return rotation_about(np.array([away[1], -away[0], 0.0]) / distance, angle) @ rotation

    def comfortable(self, yaw: float, place: np.ndarray) -> float:
        """The same grasp as `yaw` (a half turn changes nothing), turned least from the neutral one over `place`."""
        return yaw - np.pi * round((yaw - self.neutral_yaw(place)) / np.pi)

    # Motions

    def act(self, position: np.ndarray, rotation: np.ndarray, speed: float = 1.0) -> np.ndarray:
        """The action `[7]` that goes straight towards a pose of the hand, and moves the fingers as `self.grip` says."""
        here, facing = self.hand()
        shift = (position - here) / _METRES_PER_ACTION
        turn = rotation_vector(rotation @ facing.T)
        if np.linalg.norm(turn) > _EITHER_WAY:
            turn = rotation_vector(pointing_down(self.neutral_yaw(here)) @ facing.T)
        turn /= _RADIANS_PER_ACTION
        limit = self.style.speed * speed
        # Each axis for itself: what is off to the side is put right before the way down is over.
        shift = np.clip(shift, -limit, limit)
        turn *= min(1.0, limit / max(np.abs(turn).max(), 1e-9))
        return np.concatenate([shift, turn, [self._finger_action()]])

    def reach(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        *,
        tolerance: float = 0.006,
        angle: float = 0.06,
        speed: float = 1.0,
        limit: int = 80,
    ) -> Motion:
        """Go straight to a pose; True once within `tolerance` metres and `angle` radians of it.

        False after `limit` steps, or when the hand gets no nearer any more: something is in the way, or it is too far.
        """
        best, patience = np.inf, _PATIENCE
        for _ in range(limit):
            here, facing = self.hand()
            distance = float(np.linalg.norm(position - here))
            off = float(np.linalg.norm(rotation_vector(rotation @ facing.T)))
            if distance < tolerance and off < angle:
                return True
            left = distance + 0.1 * off
            patience = _PATIENCE if left < best - 0.001 else patience - 1
            best = min(best, left)
            if patience == 0:
                return False
            yield self.act(position, rotation, speed)
        return False

    def travel(
        self, position: np.ndarray, rotation: np.ndarray, field: HeightField, held: Boxes | None = None
    ) -> Motion:
        """Go to `position` over everything in `field`: up, across, and down to it. `held` is in the hand's frame."""
        yield from self.cross(position, rotation, field, held)
        return (yield from self.reach(position, rotation))

    def cross(
        self, position: np.ndarray, rotation: np.ndarray, field: HeightField, held: Boxes | None = None
    ) -> Motion:
        """`travel` without the way down."""
        here, facing = self.hand()
        height = max(here[2], position[2], self._safe_height(here, position, field, held))
        if here[2] < height - 0.02:
            yield from self.reach(np.array([*here[:2], height]), facing, tolerance=0.025, angle=1.0)
        above = np.array([*position[:2], height])
        return (yield from self.reach(above, rotation, tolerance=0.02, angle=0.15, limit=120))

    def relax(self) -> Motion:
        """Point down again, higher and not far out.

        A hand that has leant far over leaves the arm twisted or its elbow stretched, from where it may not come away.
        """
        here, _ = self.hand()
        away = here[:2] - self._base
        distance = float(np.linalg.norm(away))
        place = np.array([*(self._base + min(distance, _RELAXED_REACH) / distance * away), here[2] + 0.08])
        rotation = pointing_down(self.neutral_yaw(place))
        return (yield from self.reach(place, rotation, tolerance=0.03, angle=0.15, limit=40))

    def _safe_height(self, here: np.ndarray, there: np.ndarray, field: HeightField, held: Boxes | None) -> float:
        """Height of the grip site at which fingers, palm and the thing in the hand clear everything on the way."""
        spans = [(0.045, FINGERTIP), (0.11, -PALM)]
        if held is not None:
            low, high = held.moved(np.zeros(3), self.hand()[1]).bounds()
            spans.append((float(np.abs(np.concatenate([low[:2], high[:2]])).max()) + 0.02, -float(low[2])))
        highest = -np.inf
        for share in np.linspace(0.0, 1.0, 12):
            spot = here[:2] + share * (there[:2] - here[:2])
            for margin, below in spans:
                highest = max(highest, field.highest(spot - margin, spot + margin) + below)
        return highest + 0.02 + self.style.hover

    def wait_for_rest(self, limit: int = 12) -> Motion:
        """Keep still until no object moves any more (fresh placements fall or are pushed out of the floor)."""
        starts = [int(self._model.body_dofadr[self.scene.env.obj_body_id[name]]) for name in self.scene.objects]
        here, facing = self.hand()
        for _ in range(limit):
            yield self.act(here, facing)  # even things that are about to be pushed out of the floor start at rest
            if max(np.abs(self._data.qvel[start : start + 3]).max() for start in starts) < 0.03:
                return True
        return False

    def squeeze(self, limit: int = 16) -> Motion:
        """Close the fingers where the hand is, until they push against something or against each other."""
        self.grip = CLOSED
        here, facing = self.hand()
        for _ in range(limit):
            last = self.opening()
            yield self.act(here, facing)
            command = float(np.abs(self._data.ctrl[self._fingers]).mean())
            pushing = command < 1e-6 or command < self.opening() - 0.008
            if pushing and last - self.opening() < 0.0002:
                return True
        return False

    def release(self, name: str, limit: int = 10) -> Motion:
        """Open the fingers where the hand is, until they no longer touch the object `name`.

        They open fully, or only a little if they would run into something on the way or on the way up.
        """
        here, facing = self.hand()
        start = self.opening()
        shapes = self.surroundings()
        rises = [here + np.array([0.0, 0.0, height]) for height in (0.0, 0.03, 0.06)]
        blocked = any(overlap(hand_boxes(FULL_OPENING).moved(spot, facing), shapes, -0.002) for spot in rises)
        self.grip = start + 0.016 if blocked and start < 0.02 else OPEN
        for _ in range(limit):
            yield self.act(here, facing)
            if self.opening() > start + 0.006 and self.touching(name) == 0:
                return True
        return False

    def hold(self, steps: int) -> Motion:
        """Keep the hand where it is now for `steps` steps."""
        here, facing = self.hand()
        for _ in range(steps):
            yield self.act(here, facing)
        return True

    def _finger_action(self) -> float:
        if abs(self.grip) == 1.0:
            return self.grip
        # Any other value is an opening in metres; the command moves by 5 mm a step.
        command = float(np.abs(self._data.ctrl[self._fingers]).mean())
        return 0.0 if abs(command - self.grip) < 0.004 else float(np.sign(command - self.grip))
