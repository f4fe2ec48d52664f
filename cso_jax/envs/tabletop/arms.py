"""The arms as MJCF: what their packages bring, made fit for the table.

Every arm has a site "grip" between its fingertips (x along the fingers, y the way they open), a camera "wrist", pads
"left_pad" and "right_pad" along the inner faces of its fingers, and a box for its palm. Its links do not collide.
Collision shapes are in group 3, not drawn.
"""

import dataclasses
from xml.etree import ElementTree

from cso_jax.envs.tabletop import package
from cso_jax.envs.tabletop.robots import ROBOTS

GRIP_SITE = "grip"
FINGERTIP = 0.014
"""How far the fingers reach beyond the grip site, m."""

_PAD = 'type="box" condim="4" friction="1.5 0.02 0.0001" solref="0.01 1" group="3" mass="0" rgba="0.3 0.3 0.3 1"'
_PALM = 'name="palm" type="box" condim="4" friction="1 0.005 0.0001" solref="0.01 1" group="3"'
_SEEN = 'contype="0" conaffinity="0" mass="0" group="1"'
_FINGER_GAIN, _FINGER_FORCE = 2000, 25  # N/m, N


@dataclasses.dataclass(frozen=True)
class ArmParts:
    """Pieces of MJCF: `meshes` and the folder of their files, the `body` of the base, position servos as `motors`."""

    folder: str
    meshes: str
    body: str
    motors: str


def arm_parts(robot: str) -> ArmParts:
    """The arm of that name, its base at the origin. Raises FileNotFoundError without its package."""
    file = package.arm_file(robot)
    if robot == "piper":
        return ArmParts("", "", _piper(ElementTree.parse(file).getroot()), _motors(robot))
    meshes = ElementTree.parse(file.with_name("vx300s_dependencies.xml")).getroot().iter("mesh")
    text = "".join(ElementTree.tostring(mesh, encoding="unicode") for mesh in meshes)
    return ArmParts(str(file.parent), text, _viperx(ElementTree.parse(file).getroot()), _motors(robot))


def _viperx(root: ElementTree.Element) -> str:
    """gym-aloha's ViperX: its names without their prefix, no dry friction, a grip site and a camera of our own."""
    base = next(root.iter("body"))
    base.set("pos", "0 0 0")
    prefix = f"{base.get('name')}/"
    for named in [*base.iter("body"), *base.iter("joint")]:
        named.set("name", named.get("name", "").removeprefix(prefix))
    _calm(base)
    for geom in base.iter("geom"):
        for name in ("name", "condim", "solimp", "solref", "friction"):
            geom.attrib.pop(name, None)
        colour = "0.5 0.52 0.55 1" if "finger" in geom.get("mesh", "") else "0.2 0.2 0.22 1"
        geom.attrib |= {"contype": "0", "conaffinity": "0", "group": "1", "rgba": colour}
    hand = _named(base, "gripper_link")
    for child in [child for child in hand if child.tag in ("site", "camera") or child.get("name") == "camera_focus"]:
        hand.remove(child)
    _add(
        hand,
        f'<site name="{GRIP_SITE}" pos="0.14 0 0" size="0.004" group="4"/>',
        '<camera name="wrist" pos="0 0 0.1" xyaxes="0 -1 0 0.42 0 0.91" fovy="75"/>',
        f'<geom pos="0.048 0 0" size="0.028 0.075 0.03" {_PALM}/>',
    )
    for side, sign in (("left", 1), ("right", -1)):
        # The finger's inner face, where its mesh has it: 22.4 mm inside the finger's own origin.
        pad = f'<geom name="{side}_pad" pos="0.0553 {sign * -0.0184} 0" size="0.03 0.004 0.008" {_PAD}/>'
        _add(_named(base, f"{side}_finger_link"), pad)
    return ElementTree.tostring(base, encoding="unicode")


def _piper(root: ElementTree.Element) -> str:
    """piper_control's Piper, which has kinematics and masses only: primitives along its links, and a gripper."""
    base = next(root.iter("body"))
    _calm(base)
    white, dark = 'rgba="0.86 0.87 0.88 1"', 'rgba="0.22 0.23 0.25 1"'
    rods = {  # from joint to joint, as the bodies' own positions have it
        "link2": ("0 0 0", "0.28358 0.028726 0", 0.03, white),
        "link3": ("0 0 0", "-0.24221 0.068514 0", 0.026, white),
        "link5": ("0 0 0", "0 0.091 0.0014", 0.024, dark),
    }
    _add(base, f'<geom type="cylinder" fromto="0 0 0 0 0 0.09" size="0.055" {dark} {_SEEN}/>')
    _add(_named(base, "link1"), f'<geom type="cylinder" fromto="0 0 -0.035 0 0 0.03" size="0.045" {white} {_SEEN}/>')
    for name, (start, end, radius, colour) in rods.items():
        _add(_named(base, name), f'<geom type="capsule" fromto="{start} {end}" size="{radius}" {colour} {_SEEN}/>')
    _add(
        _named(base, "gripper"),
        f'<site name="{GRIP_SITE}" pos="0 0 0.121" xyaxes="0 0 1 0 1 0" size="0.004" group="4"/>',
        '<camera name="wrist" pos="-0.1 0 -0.02" xyaxes="0 -1 0 -0.91 0 0.42" fovy="75"/>',
        f'<geom type="box" pos="0 0 0.03" size="0.025 0.05 0.03" {dark} {_SEEN}/>',
        f'<geom pos="0 0 0.03" size="0.025 0.06 0.026" {_PALM}/>',
    )
    for finger, side, back in (("finger1", "left", 1), ("finger0", "right", -1)):
        # The origin of the finger's frame is on the inner face of its tip; outwards is its -z, back its y or -y.
        pad = f'<geom name="{side}_pad" pos="0 {back * 0.03} -0.004" size="0.008 0.03 0.004" {_PAD}/>'
        body = (f'<geom type="box" pos="0 {back * 0.036} -0.006" size="0.009 0.036 0.006" rgba="0.5 0.52 0.55 1" '
                f"{_SEEN}/>")  # fmt: skip
        _add(_named(base, finger), pad, body)
    return ElementTree.tostring(base, encoding="unicode")


def _calm(base: ElementTree.Element) -> None:
    """Joints and weights as position servos with an integral term have them."""
    for body in base.iter("body"):
        body.set("gravcomp", "1")
    for joint in base.iter("joint"):
        slides = joint.get("type") == "slide"
        # gym-aloha's dry friction (30 to 60 N m) stands for worm-like servos; it lets weak joints stick far off.
        joint.set("frictionloss", "0")
        joint.set("limited", "true")
        joint.set("armature", "0.3" if slides else "0.1")
        joint.set("damping", "5" if slides else "1")
        joint.attrib.pop("actuatorfrcrange", None)


def _motors(robot: str) -> str:
    """Position servos, critically damped; a finger's may command more than it can reach, to press."""
    arm = ROBOTS[robot]
    lines = [
        f'<position name="{joint}" joint="{joint}" kp="{gain}" dampratio="1" ctrlrange="{low} {high}" '
        f'forcerange="-{most} {most}"/>'
        for joint, (gain, most), low, high in zip(arm.joints, arm.gains, arm.lower, arm.upper, strict=True)
    ]
    for finger, sign in zip(arm.fingers, (1.0, arm.mirror), strict=True):
        low, high = sorted((sign * arm.push, sign * arm.open))
        lines.append(
            f'<position name="{finger}" joint="{finger}" kp="{_FINGER_GAIN}" dampratio="1" ctrlrange="{low} {high}" '
            f'forcerange="-{_FINGER_FORCE} {_FINGER_FORCE}"/>'
        )
    return "".join(lines)


def _named(base: ElementTree.Element, name: str) -> ElementTree.Element:
    return next(body for body in base.iter("body") if body.get("name") == name)


def _add(body: ElementTree.Element, *parts: str) -> None:
    for part in parts:
        body.append(ElementTree.fromstring(part))
