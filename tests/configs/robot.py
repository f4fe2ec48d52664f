"""The cascade of fake.py on a robot behind a socket: config.env.schema, env.robots and demos.folder say which."""

from cso_jax import defaults

from . import fake


def get_config():
    config = defaults.benchmark("robot")
    small = fake.get_config()
    for section in (
        "autoencoder",
        "encoder",
        "prior",
        "codebook",
        "imitation",
        "reference",
        "rsft",
        "spo",
        "evaluation",
    ):
        config[section].update(small[section])
    config.demos.per_task = small.demos.per_task
    config.data = "stored"
    config.env.obs = "state"
    config.env.horizon = 40
    config.report.videos = 1
    return config
