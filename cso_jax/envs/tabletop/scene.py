"""The scene of a task as MJCF: the ViperX of gym-aloha on a table, cameras, and objects made of primitives.

The arm's links do not collide; its fingers have pads (boxes along the inner faces of their meshes) and the hand a box
for its palm. What stands on something else meets it with boxes, since MuJoCo's box-box contact has up to eight points
and the one of a cylinder has one: discs are only what they look like. Collision shapes are in group 3, not drawn.
"""

from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np

from cso_jax.envs.tabletop import package
from cso_jax.envs.tabletop.robot import FINGER_OPEN, FINGER_PUSH, JOINTS, LOWER, UPPER
from cso_jax.envs.tabletop.settings import PHYSICS_HZ

CUBE = 0.02  # half of a side, m
BOWL_RADIUS, BOWL_WALL, BOWL_HEIGHT, BOWL_FLOOR = 0.056, 0.005, 0.045, 0.005  # inner radius; metres
BOWL_SIDES = 12
PLATE_RADIUS, PLATE_HEIGHT = 0.08, 0.012
BOTTLE_RADIUS, BOTTLE_CAP, BOTTLE_HEIGHT = 0.028, 0.024, 0.075
BUTTON_BASE, BUTTON_BASE_HEIGHT, BUTTON_RADIUS = 0.04, 0.03, 0.022
BUTTON_TRAVEL, BUTTON_HEIGHT = 0.01, 0.016  # the button stands out by its height, and goes down by its travel

GRIP_SITE = "grip"
FINGERTIP = 0.014
"""How far the fingers reach beyond the grip site, m."""

_ARM = "vx300s_left"
_GAINS = {  # N m/rad, and the most that the motor gives, N m: the package's, stiffer at the wrist
    "waist": (800, 150),
    "shoulder": (1600, 300),
    "elbow": (800, 100),
    "forearm_roll": (200, 50),
    "wrist_angle": (200, 50),
    "wrist_rotate": (100, 50),
}
_FINGER_GAIN, _FINGER_FORCE = 2000, 25  # N/m, N
_SOLID = 'condim="4" friction="1 0.005 0.0001" solref="0.01 1" group="3"'
_SEEN_SOLID = _SOLID.replace('group="3"', 'group="0"')
_SEEN = 'contype="0" conaffinity="0" mass="0"'


def scene_xml(objects: Sequence[str]) -> str:
    """MJCF of the table, the arm and the named objects, each a free body of its name. Raises FileNotFoundError."""
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" meshdir="{package.assets_folder()}"/>
  <option timestep="{1.0 / PHYSICS_HZ}" integrator="implicitfast" cone="elliptic" impratio="10" iterations="20"/>
  <size memory="4M"/>
  <visual>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.35 0.35 0.35" specular="0.1 0.1 0.1"/>
    <map znear="0.01" zfar="20" shadowclip="0.6"/>
    <quality shadowsize="1024"/>
  </visual>
  <statistic extent="1.2" center="0.35 0 0.1"/>
  <asset>
    {_meshes()}
    <texture name="sky" type="skybox" builtin="flat" rgb1="0.78 0.81 0.84" width="8" height="8"/>
    <texture name="wood" type="2d" builtin="flat" rgb1="0.62 0.56 0.48" mark="random" markrgb="0.56 0.50 0.42"
             random="0.25" width="256" height="256"/>
    <material name="wood" texture="wood" specular="0.1"/>
  </asset>
  <worldbody>
    <light pos="0.3 0.8 1.4" dir="0 -0.5 -0.85" directional="true" diffuse="0.45 0.45 0.45" castshadow="true"/>
    <light pos="0.3 -0.8 1.4" dir="-0.2 0.5 -0.85" directional="true" diffuse="0.25 0.25 0.25" castshadow="false"/>
    <geom name="table" type="plane" size="2 2 0.1" condim="4" friction="1 0.005 0.0001" solref="0.01 1" group="3"/>
    <geom name="table_top" type="box" size="0.45 0.5 0.02" pos="0.27 0 -0.02" material="wood" {_SEEN}/>
    <geom name="floor" type="box" size="3 3 0.02" pos="0 0 -0.75" rgba="0.45 0.46 0.48 1" {_SEEN}/>
    <camera name="front" pos="0.92 0 0.48" xyaxes="0 1 0 -0.5 0 0.866" fovy="44"/>
    {_arm()}
    {"".join(_OBJECTS[name]() for name in objects)}
  </worldbody>
  <actuator>
    {_motors()}
  </actuator>
</mujoco>"""


def _meshes() -> str:
    root = ElementTree.parse(package.assets_folder() / "vx300s_dependencies.xml").getroot()
    return "".join(ElementTree.tostring(mesh, encoding="unicode") for mesh in root.iter("mesh"))


def _arm() -> str:
    """The package's arm, at the origin: its names without their prefix, no dry friction, links that do not collide."""
    root = ElementTree.parse(package.arm_file()).getroot()
    base = next(root.iter("body"))
    base.set("pos", "0 0 0")
    base.set("name", "base")
    for body in base.iter("body"):
        body.set("name", body.get("name", "").removeprefix(f"{_ARM}/"))
        body.set("gravcomp", "1")  # what the integral term of the arm's servos does
    for joint in base.iter("joint"):
        joint.set("name", joint.get("name", "").removeprefix(f"{_ARM}/"))
        # The package's dry friction (30 to 60 N m) stands for worm-like servos; it lets weak joints stick far off.
        joint.set("frictionloss", "0")
        joint.set("armature", "0.3" if joint.get("type") == "slide" else "0.1")
        joint.set("damping", "5" if joint.get("type") == "slide" else "1")
    for geom in base.iter("geom"):
        for name in ("name", "condim", "solimp", "solref", "friction"):
            geom.attrib.pop(name, None)
        geom.attrib |= {"contype": "0", "conaffinity": "0", "group": "1", "rgba": "0.2 0.2 0.22 1"}
        if "finger" in geom.get("mesh", ""):
            geom.set("rgba", "0.5 0.52 0.55 1")
    hand = next(body for body in base.iter("body") if body.get("name") == "gripper_link")
    for child in [child for child in hand if child.tag in ("site", "camera") or child.get("name") == "camera_focus"]:
        hand.remove(child)
    for added in (
        f'<site name="{GRIP_SITE}" pos="0.14 0 0" size="0.004" group="4"/>',
        '<camera name="wrist" pos="0 0 0.1" xyaxes="0 -1 0 0.42 0 0.91" fovy="75"/>',
        f'<geom name="palm" type="box" pos="0.048 0 0" size="0.028 0.075 0.03" {_SOLID}/>',
    ):
        hand.append(ElementTree.fromstring(added))
    for side, sign in (("left", 1), ("right", -1)):
        finger = next(body for body in base.iter("body") if body.get("name") == f"{side}_finger_link")
        # Inner face where the mesh has it: 22.4 mm inside the finger's own origin.
        pad = (f'<geom name="{side}_pad" type="box" pos="0.0553 {sign * -0.0184} 0" size="0.03 0.004 0.008" '
               'condim="4" friction="1.5 0.02 0.0001" solref="0.01 1" group="3" mass="0"/>')  # fmt: skip
        finger.append(ElementTree.fromstring(pad))
    return ElementTree.tostring(base, encoding="unicode")


def _motors() -> str:
    """Position servos, critically damped; a finger's may command more than it can reach, to press."""
    lines = [
        f'<position name="{joint}" joint="{joint}" kp="{_GAINS[joint][0]}" dampratio="1" ctrlrange="{low} {high}" '
        f'forcerange="-{_GAINS[joint][1]} {_GAINS[joint][1]}"/>'
        for joint, low, high in zip(JOINTS, LOWER, UPPER, strict=True)
    ]
    for side, low, high in (("left", FINGER_PUSH, FINGER_OPEN), ("right", -FINGER_OPEN, -FINGER_PUSH)):
        lines.append(
            f'<position name="{side}_finger" joint="{side}_finger" kp="{_FINGER_GAIN}" dampratio="1" '
            f'ctrlrange="{low} {high}" forcerange="-{_FINGER_FORCE} {_FINGER_FORCE}"/>'
        )
    return "".join(lines)


def _body(name: str, parts: str) -> str:
    return f'<body name="{name}"><freejoint name="{name}"/>{parts}</body>'


def _cube(name: str, colour: str) -> str:
    return _body(name, f'<geom type="box" size="{CUBE} {CUBE} {CUBE}" mass="0.04" rgba="{colour}" {_SEEN_SOLID}/>')


def _bowl() -> str:
    """A ring of boxes around a floor; its origin is on the ground, in the middle."""
    colour = "0.25 0.45 0.75 1"
    middle, low = BOWL_RADIUS + BOWL_WALL / 2, 0.002  # the walls do not reach the ground: the floor carries it
    half_length = (BOWL_RADIUS + BOWL_WALL) * np.tan(np.pi / BOWL_SIDES)
    height = (BOWL_HEIGHT - low) / 2
    walls = [
        f'<geom type="box" size="{BOWL_WALL / 2} {half_length:.5f} {height}" mass="0.003" rgba="{colour}" '
        f'pos="{middle * np.cos(angle):.6f} {middle * np.sin(angle):.6f} {low + height}" euler="0 0 {angle:.6f}" '
        f"{_SEEN_SOLID}/>"
        for angle in 2 * np.pi * np.arange(BOWL_SIDES) / BOWL_SIDES
    ]
    side = 0.045
    floor = (f'<geom type="box" size="{side} {side} {BOWL_FLOOR / 2}" pos="0 0 {BOWL_FLOOR / 2}" mass="0.03" {_SOLID}/>'
             f'<geom type="cylinder" size="{BOWL_RADIUS + 0.003} {BOWL_FLOOR / 2}" pos="0 0 {BOWL_FLOOR / 2}" '
             f'rgba="{colour}" {_SEEN}/>')  # fmt: skip
    return _body("bowl", "".join(walls) + floor)


def _plate() -> str:
    """A disc, on which things stand with the square within it."""
    half, side = PLATE_HEIGHT / 2, PLATE_RADIUS * np.sqrt(0.5)
    disc = (f'<geom type="cylinder" size="{PLATE_RADIUS} {half}" pos="0 0 {half}" rgba="0.93 0.93 0.9 1" {_SEEN}/>'
            f'<geom type="cylinder" size="{PLATE_RADIUS * 0.7} 0.0005" pos="0 0 {2 * half}" rgba="0.84 0.85 0.84 1" '
            f"{_SEEN}/>")  # fmt: skip
    return _body("plate", f'<geom type="box" size="{side:.5f} {side:.5f} {half}" pos="0 0 {half}" mass="0.3" {_SOLID}/>'
                          + disc)  # fmt: skip


def _bottle() -> str:
    """A bottle with a flat cap, on which something can stand; its origin is on the ground."""
    shoulder = BOTTLE_HEIGHT - 0.02
    square = BOTTLE_CAP * np.sqrt(0.5)
    return _body(
        "bottle",
        f'<geom type="cylinder" size="{BOTTLE_RADIUS} {shoulder / 2}" pos="0 0 {shoulder / 2}" mass="0.2" {_SOLID}/>'
        f'<geom type="cylinder" size="{BOTTLE_RADIUS} {shoulder / 2}" pos="0 0 {shoulder / 2}" rgba="0.85 0.5 0.12 1" '
        f"{_SEEN}/>"
        f'<geom type="cylinder" size="{BOTTLE_RADIUS + 0.0005} 0.014" pos="0 0 0.028" rgba="0.95 0.95 0.92 1" {_SEEN}/>'
        f'<geom type="box" size="{square:.5f} {square:.5f} 0.01" pos="0 0 {shoulder + 0.01}" mass="0.01" {_SOLID}/>'
        f'<geom type="cylinder" size="{BOTTLE_CAP} 0.01" pos="0 0 {shoulder + 0.01}" rgba="0.95 0.95 0.95 1" {_SEEN}/>',
    )


def _button() -> str:
    """A heavy box with a button on a spring."""
    reach = BUTTON_HEIGHT / 2
    return _body(
        "button",
        f'<geom type="box" size="{BUTTON_BASE} {BUTTON_BASE} {BUTTON_BASE_HEIGHT / 2}" mass="0.8" '
        f'pos="0 0 {BUTTON_BASE_HEIGHT / 2}" rgba="0.22 0.24 0.27 1" {_SEEN_SOLID}/>'
        f'<body name="button_top" pos="0 0 {BUTTON_BASE_HEIGHT}">'
        f'<joint name="button_travel" type="slide" axis="0 0 -1" range="0 {BUTTON_TRAVEL}" limited="true" '
        'stiffness="250" springref="-0.004" damping="4" armature="0.02"/>'
        f'<geom type="cylinder" size="{BUTTON_RADIUS} {reach}" pos="0 0 {reach}" mass="0.02" rgba="0.85 0.1 0.1 1" '
        f"{_SEEN_SOLID}/></body>",
    )


_OBJECTS = {
    "red_cube": lambda: _cube("red_cube", "0.85 0.1 0.1 1"),
    "yellow_cube": lambda: _cube("yellow_cube", "0.95 0.8 0.1 1"),
    "bowl": _bowl,
    "plate": _plate,
    "bottle": _bottle,
    "button": _button,
}
OBJECTS = tuple(_OBJECTS)
"""Every object there is."""
