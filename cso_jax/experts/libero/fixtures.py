"""What an expert does with the moving parts of fixtures: open and close drawers and doors, turn knobs."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from cso_jax.experts.libero.arm import CLOSED, FINGERTIP, FULL_OPENING, OPEN, Arm, Motion, hand_boxes, pointing_down
from cso_jax.experts.libero.geometry import (
    Boxes,
    body_tree,
    clearance,
    colliding_geoms,
    overlap,
    rotation_about,
    rotation_vector,
)

_SLIDE = 2
_UP = np.array([0.0, 0.0, 1.0])
_BAR_OPENING = 0.028
_ACROSS = 0.8  # cosine
_GAPS = ((0.001, 0.05), (0.005, 0.0))  # metres around the hand, and the radians that a narrow one costs
_PATIENCE = 25
_BELOW = 0.012  # metres of a pushing finger beyond the middle of what it pushes, so that it does not slip over that
_KNOB_LEVER, _KNOB_LEAD, _KNOB_STEPS = 0.038, 0.07, 100


@dataclasses.dataclass(frozen=True)
class Part:
    """A moving part: its joint as an axis through `anchor` (turning) or along `axis` (sliding), and its shapes.

    `opening` is the sign of the joint value's change that opens it, or turns it on.
    """

    name: str
    slides: bool
    anchor: np.ndarray
    axis: np.ndarray
    value: float
    opening: float
    shut: float
    contents: tuple[str, ...]
    geoms: tuple[int, ...]
    boxes: Boxes

    def carried(self, point: np.ndarray, change: float) -> np.ndarray:
        """Where a `point` `[3]` of the part is after the joint value has changed by `change`."""
        if self.slides:
            return point + change * self.axis
        return self.anchor + rotation_about(self.axis, change) @ (point - self.anchor)

    def turned(self, rotation: np.ndarray, change: float) -> np.ndarray:
        """A hand that goes with the part, after the joint value has changed by `change`."""
        return rotation if self.slides else rotation_about(self.axis, change) @ rotation

    def outwards(self, point: np.ndarray) -> np.ndarray:
        """The direction `[3]` in which `point` moves when the part opens."""
        step = self.carried(point, 0.01 * self.opening) - point
        return step / np.linalg.norm(step)


def part_of(arm: Arm, name: str) -> Part:
    """The moving part that the region or fixture `name` stands for. Raises ValueError if it has no single joint."""
    env, model, data = arm.scene.env, arm.scene.model, arm.scene.data
    joints = env.object_sites_dict[name].joints if name in env.object_sites_dict else env.get_object(name).joints
    if not joints or len(joints) != 1:
        raise ValueError(f"{name} has {len(joints or ())} joints: an expert moves parts with exactly one")
    owner = env.object_sites_dict[name].parent_name if name in env.object_sites_dict else name
    ranges = env.get_object(owner).object_properties["articulation"]
    wanted = ranges.get("default_open_ranges") or ranges.get("default_turnon_ranges")
    shut = ranges.get("default_close_ranges") or ranges.get("default_turnoff_ranges")
    joint = model.joint(joints[0])
    geoms = colliding_geoms(model, body_tree(model, int(joint.bodyid[0])))
    return Part(
        joints[0],
        int(joint.type[0]) == _SLIDE,
        data.xanchor[joint.id].copy(),
        data.xaxis[joint.id].copy(),
        float(data.qpos[joint.qposadr[0]]),
        float(np.sign(np.mean(wanted) - np.mean(shut))),
        float(np.mean(shut)),
        tuple(thing for thing in arm.scene.objects if name != owner and arm.scene.holds("in", thing, name)),
        tuple(geoms),
        arm.boxes_of(geoms),
    )


@dataclasses.dataclass(frozen=True)
class _Handle:
    """A bar to take hold of: its middle, the direction it runs in, half its length, and the way out."""

    middle: np.ndarray
    along: np.ndarray
    half: float
    outwards: np.ndarray


def _front(part: Part) -> np.ndarray:
    """The direction `[3]` that the front looks in: a drawer's way out, or what the panel of a door stands across."""
    outwards = part.outwards(part.boxes.centres.mean(0))
    panel = int(np.argmax(np.prod(part.boxes.halves, 1) / part.boxes.halves.min(1)))
    normal = part.boxes.axes[panel][:, int(np.argmin(part.boxes.halves[panel]))]
    if part.slides or abs(normal @ outwards) < _ACROSS:
        return outwards
    return np.sign(normal @ outwards) * normal


def _handle(part: Part) -> _Handle:
    reach = (part.boxes.corners() @ _front(part)).max(1)
    boxes = part.boxes.only(np.flatnonzero(reach > reach.max() - 0.004))
    longest = int(np.argmax(boxes.halves.max(1)))
    axis = int(np.argmax(boxes.halves[longest]))
    along = boxes.axes[longest][:, axis]
    along = np.round(along[2]) * _UP if abs(along[2]) > 0.9 else along
    middle = boxes.centres[longest]
    return _Handle(middle, along, float(boxes.halves[longest, axis]), part.outwards(middle))


def _approaches(handle: _Handle) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hand rotations `[3, 3]` and places `[3]` at which the fingers have the bar between them, steepest first."""
    upright = abs(handle.along[2]) > 0.9
    heights = np.linspace(0.9, 0.2, 4) * handle.half if upright else np.zeros(1)
    for pitch in np.radians([80, 65, 50, 35, 20, 12, 6, 0]):
        forward = -handle.outwards * np.cos(pitch) - _UP * np.sin(pitch)
        across = np.cross(handle.along, forward)
        across /= np.linalg.norm(across)
        for roll in np.radians([0, 30, -30, 45, -45, 60, -60, 180, 210, 150, 225, 135, 240, 120]):
            closing = rotation_about(forward, roll) @ across
            for height in heights:
                rotation = np.stack([closing, np.cross(forward, closing), forward], 1)
                yield rotation, handle.middle + height * _UP - 0.003 * forward


def _grip_handle(arm: Arm, handle: _Handle, opening: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The free approach that turns the hand least and leaves room around it: rotation and place."""
    shapes = arm.surroundings()
    hand = hand_boxes(opening)
    best, least = None, np.inf
    for rotation, place in _approaches(handle):
        nominal = pointing_down(arm.neutral_yaw(place))
        turn = float(np.linalg.norm(rotation_vector(rotation @ nominal.T)))
        for gap, narrow in _GAPS:
            if turn + narrow > least - 0.02:
                continue
            if overlap(hand.moved(place, rotation), shapes, gap):
                break
            best, least = (rotation, place), turn + narrow
    return best


def open_part(arm: Arm, name: str) -> Motion:
    """Pull the drawer or door `name` open by its handle; True if it is open then."""
    part = part_of(arm, name)
    handle = _handle(part)
    # A learner cannot imitate fingers that are held half open: robosuite takes the sign of a gripper command alone.
    wide = _grip_handle(arm, handle, FULL_OPENING)
    found = wide or _grip_handle(arm, handle, _BAR_OPENING)
    if found is None:
        return False
    rotation, place = found
    arm.grip = OPEN if wide else _BAR_OPENING
    away = place - 0.07 * rotation[:, 2]
    yield from arm.travel(away, rotation, arm.obstacles())
    yield from arm.reach(place, rotation, tolerance=0.005)
    yield from arm.squeeze()
    yield from follow(arm, name, "open", place, rotation, part.opening)
    here, facing = arm.hand()
    arm.grip = OPEN
    yield from arm.hold(5)
    yield from arm.reach(here - 0.06 * facing[:, 2], facing, tolerance=0.02, limit=20)
    yield from arm.relax()
    return bool(arm.scene.holds("open", name))


def follow(
    arm: Arm,
    name: str,
    predicate: str,
    place: np.ndarray,
    rotation: np.ndarray,
    sign: float,
    limit: int = 150,
) -> Motion:
    """Move the hand along with the part `name`, from `place` where it stands now, until `predicate` holds."""
    start = part_of(arm, name)
    lead, step = (0.06, 0.001) if start.slides else (0.25, 0.005)
    best, patience = -np.inf, _PATIENCE
    for _ in range(limit):
        if arm.scene.holds(predicate, name):
            return True
        moved = sign * (part_of(arm, name).value - start.value)
        patience = _PATIENCE if moved > best + step else patience - 1
        best = max(best, moved)
        if patience == 0:
            return False
        change = sign * (moved + lead)
        yield arm.act(start.carried(place, change), start.turned(rotation, change))
    return False


def close_part(arm: Arm, name: str) -> Motion:
    """Push the drawer or door `name` shut with closed fingers against its handle; True if it is shut then."""
    part = part_of(arm, name)
    handle = _handle(part)
    loose = arm.scene.objects
    found = _push_handle(arm, part, handle, part.contents) or _push_handle(arm, part, handle, loose)
    if found is None:
        return False
    rotation, place = found
    arm.grip = CLOSED
    away = place + 0.03 * handle.outwards - 0.03 * rotation[:, 2]
    yield from arm.travel(away, rotation, arm.obstacles())
    done = yield from follow(arm, name, "close", place, rotation, -part.opening)
    here, facing = arm.hand()
    yield from arm.reach(here + 0.04 * handle.outwards + 0.06 * _UP, facing, tolerance=0.02, limit=20)
    yield from arm.relax()
    return bool(done)


def _push_handle(arm: Arm, part: Part, handle: _Handle, ignored: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Rotation and place of a closed hand that can push the part all the way, turned least, near the handle.

    Objects `ignored` may be pushed aside.
    """
    hand = hand_boxes(0.0)
    now = arm.surroundings(*ignored, geoms=part.geoms)
    later = arm.surroundings(*arm.scene.objects, geoms=part.geoms)  # what is loose there is carried or pushed along
    nominal = pointing_down(arm.neutral_yaw(handle.middle))
    side = np.cross(_UP, handle.outwards)
    change = part.shut - part.value
    best, least = None, np.inf
    for face in _faces(part, handle):
        for pitch in np.radians([80, 70, 60, 50, 40, 30, 15]):
            forward = -handle.outwards * np.cos(pitch) - _UP * np.sin(pitch)
            for closing in (side, -side, np.cross(side, forward), -np.cross(side, forward)):
                rotation = np.stack([closing, np.cross(forward, closing), forward], 1)
                place = face - (FINGERTIP + 0.002) * forward - _BELOW * np.sin(pitch) * _UP
                cost = float(np.linalg.norm(rotation_vector(rotation @ nominal.T)))
                cost += 10.0 * float(np.linalg.norm(face - handle.middle))
                if cost > least - 0.02:
                    continue
                end = (part.carried(place, change), part.turned(rotation, change))
                if overlap(hand.moved(place, rotation), now, 0.003) or overlap(hand.moved(*end), later, 0.003):
                    continue
                best, least = (rotation, place), cost
    return best


def _faces(part: Part, handle: _Handle) -> list[np.ndarray]:
    """Points `[3]` on the outside of the part: on its handle, and beside it."""
    side = np.cross(_UP, handle.outwards)
    corners = part.boxes.corners()
    points = []
    for offset in (0.0, 0.07, -0.07, 0.09, -0.09):
        spot = (handle.middle + offset * side) @ side
        over = ((corners @ side).min(1) < spot - 0.01) & ((corners @ side).max(1) > spot + 0.01)
        if not over.any():
            continue
        outermost = np.flatnonzero(over)[np.argmax((corners[over] @ handle.outwards).max(1))]
        depth = float((corners[outermost] @ handle.outwards).max()) - float(handle.middle @ handle.outwards)
        points.append(handle.middle + offset * side + depth * handle.outwards)
    return points


def turn_knob(arm: Arm, name: str, predicate: str) -> Motion:
    """Turn the knob of the fixture `name` by pushing one end of its grip sideways; True if `predicate` holds then."""
    part = part_of(arm, name)
    sign = part.opening if predicate == "turnon" else -part.opening
    field, hand = arm.obstacles(), hand_boxes(0.0)
    options = []
    for place, push in _knob_places(part, sign):
        yaw = arm.comfortable(float(np.arctan2(push[1], push[0])), place)
        rotation = arm.leaning(pointing_down(yaw), place)
        lift = max(0.0, clearance(field, hand.moved(place, rotation)))
        options.append((10.0 * lift + arm.cramped(place), place, push, rotation))
    _, place, push, rotation = min(options, key=lambda option: option[0])
    arm.grip = CLOSED
    yield from arm.travel(place, rotation, field)
    for _ in range(_KNOB_STEPS):
        if arm.scene.holds(predicate, name):
            break
        turned = rotation_about(part.axis, part_of(arm, name).value - part.value)
        yield arm.act(part.anchor + turned @ (place + _KNOB_LEAD * push - part.anchor), turned @ rotation)
    here, facing = arm.hand()
    yield from arm.reach(here + 0.1 * _UP, facing, tolerance=0.03, limit=20)
    return bool(arm.scene.holds(predicate, name))


def _knob_places(part: Part, sign: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places `[3]` of the closed fingers beside either end of the grip, with the directions `[3]` to push in."""
    corners = part.boxes.corners()
    tops = corners[..., 2].max(1)
    grip = corners[tops > tops.max() - 0.02].reshape(-1, 3)
    rays = grip[:, :2] - part.anchor[:2]
    longest = rays[np.argmax(np.linalg.norm(rays, axis=1))]
    along = np.array([*(longest / np.linalg.norm(longest)), 0.0])
    half = float(np.abs((grip - part.anchor) @ np.cross(_UP, along)).max())
    level = float(grip[:, 2].max()) - 0.02
    places = []
    for end in (1.0, -1.0):
        push = sign * np.cross(part.axis, end * along)
        beside = part.anchor + end * _KNOB_LEVER * along - (half + 0.026) * push
        places.append((np.array([*beside[:2], level]), push))
    return places
