"""The scene of a task as MJCF: an arm on a table, cameras, and objects made of primitives.

What stands on something else meets it with boxes, since MuJoCo's box-box contact has up to eight points and the one of
a cylinder has one: discs are only what they look like. Collision shapes are in group 3, not drawn.
"""

from collections.abc import Sequence

import numpy as np

from cso_jax.envs.tabletop.arms import arm_parts
from cso_jax.envs.tabletop.settings import PHYSICS_HZ

CUBE = 0.02  # half of a side, m
BOWL_RADIUS, BOWL_WALL, BOWL_HEIGHT, BOWL_FLOOR = 0.056, 0.005, 0.045, 0.005  # inner radius; metres
BOWL_SIDES = 12
PLATE_RADIUS, PLATE_HEIGHT = 0.08, 0.012
BOTTLE_RADIUS, BOTTLE_CAP, BOTTLE_HEIGHT = 0.028, 0.024, 0.075
BUTTON_BASE, BUTTON_BASE_HEIGHT, BUTTON_RADIUS = 0.04, 0.03, 0.022
BUTTON_TRAVEL, BUTTON_HEIGHT = 0.01, 0.016  # the button stands out by its height, and goes down by its travel

_SOLID = 'condim="4" friction="1 0.005 0.0001" solref="0.01 1" group="3"'
_SEEN_SOLID = _SOLID.replace('group="3"', 'group="0"')
_SEEN = 'contype="0" conaffinity="0" mass="0"'


def scene_xml(objects: Sequence[str], robot: str) -> str:
    """MJCF of the table, the robot's arm and the named objects, each a free body of its name.

    Raises FileNotFoundError without the arm's package.
    """
    arm = arm_parts(robot)
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" meshdir="{arm.folder}"/>
  <option timestep="{1.0 / PHYSICS_HZ}" integrator="implicitfast" cone="elliptic" impratio="10" iterations="20"/>
  <size memory="4M"/>
  <visual>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.35 0.35 0.35" specular="0.1 0.1 0.1"/>
    <map znear="0.01" zfar="20" shadowclip="0.6"/>
    <quality shadowsize="1024"/>
  </visual>
  <statistic extent="1.2" center="0.35 0 0.1"/>
  <asset>
    {arm.meshes}
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
    <camera name="front" pos="0.92 0 0.48" xyaxes="0 1 0 -0.5 0 0.866" fovy="48"/>
    {arm.body}
    {"".join(_OBJECTS[name]() for name in objects)}
  </worldbody>
  <actuator>
    {arm.motors}
  </actuator>
</mujoco>"""


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
