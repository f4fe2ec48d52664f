"""`support/toy_policy.py`, which tests register as the policy "toy", on the environment without a simulator."""

import runpy
from pathlib import Path

from cso_jax import defaults


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("fake.py")))["get_config"]()
    config.execution_horizon = 4
    config.imitation.steps = 600
    config.imitation.checkpoint_every = 200
    return defaults.with_policy(config, "toy")
