"""Compiled programs that are kept: found again by the next process, in the user's cache, or where JAX was told."""

import json
import os
import subprocess
import sys

CODE = """
import json, sys, jax, jax.numpy as jnp
from cso_jax import programs, telemetry
folder = programs.keep_programs()
clock = telemetry.PhaseClock()
clock.watch_compilation()
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))))
print(json.dumps([str(folder), clock.programs - clock.recalled, clock.recalled]))
"""


def run(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=kept | {"JAX_PLATFORMS": "cpu"} | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_second_process_compiles_nothing(tmp_path):
    folder, compiled, recalled = run(XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(str(tmp_path / "cso_jax" / "programs")) and compiled > 0 and recalled == 0
    assert run(XDG_CACHE_HOME=str(tmp_path)) == [folder, 0, compiled]


def test_a_folder_that_jax_was_given_stays_and_one_that_cannot_be_made_is_done_without(tmp_path):
    own = str(tmp_path / "own")
    assert run(JAX_COMPILATION_CACHE_DIR=own, XDG_CACHE_HOME=str(tmp_path))[0] == own
    (tmp_path / "file").write_text("")
    assert run(XDG_CACHE_HOME=str(tmp_path / "file"))[0] == "None"
