"""What runs beside a robot loads little: no JAX for the client and the loop, and nothing but requirements-robot.txt."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_JAX = (
    "manifest", "serving", "wire", "requests", "server", "client", "chunks", "control", "safety", "robot", "rosbridge",
    "rosbridge_link", "observer", "view",
)  # fmt: skip
_BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].lower() in {names!r}:
            raise ModuleNotFoundError(f"not beside a robot: {{name}}")
sys.meta_path.insert(0, Block())
"""


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _names(file: str) -> set[str]:
    lines = (ROOT / file).read_text().splitlines()
    return {line.partition("==")[0].replace("-", "_").lower() for line in lines if "==" in line}


@pytest.mark.parametrize(
    "modules", [WITHOUT_JAX, ("client", "control"), ("rosbridge",)], ids=["all", "a robot's program", "ROS"]
)
def test_jax_is_not_loaded(modules):
    imports = "; ".join(f"import cso_jax.runtime.{name}" for name in modules)
    assert _run(f"import sys; {imports}; print('jax' in sys.modules)") == "False\n"


def test_the_packages_of_the_robot_are_enough():
    """Those that the whole library needs beside them are not to be found."""
    others = (_names("requirements-dev.txt") - _names("requirements-robot.txt")) | {"pil", "orbax", "mujoco", "absl"}
    code = _BLOCK.format(names=others)
    code += f"for name in {WITHOUT_JAX!r}: __import__('cso_jax.runtime.' + name)\n"
    code += "import cso_jax.serve; print(cso_jax.serve.main(['--help']))"
    assert _run(code).endswith("0\n")


def test_the_pins_of_the_robot_are_those_of_development():
    def pins(file):
        return dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / file).read_text(), flags=re.MULTILINE))

    robot, dev = pins("requirements-robot.txt"), pins("requirements-dev.txt")
    assert {name: version for name, version in robot.items() if dev.get(name, version) != version} == {}
