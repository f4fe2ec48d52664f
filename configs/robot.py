"""The cascade on a robot behind a socket, from its joints and the poses of its objects; a simulated arm by default.

    python -m cso_jax.main --config=configs/tabletop_state.py --workdir=runs/tabletop_state     # for its demonstrations
    python -m cso_jax.runtime.simulated_robot --config=configs/tabletop_state.py --serve=9000 --schema=robot.json &
    python -m cso_jax.main --config=configs/robot.py --workdir=runs/robot

One task. Demonstrations are those of the run before; every episode of the evaluations, of R-SFT and of SPO is executed
by the robot, one after the other. A real robot has its own schema, tasks and demonstrations: docs/robot.md.
"""

from cso_jax import defaults

from . import tabletop_state


def get_config():
    config = defaults.benchmark("robot")
    simulated = tabletop_state.get_config()
    for section in ("autoencoder", "encoder", "prior", "codebook", "imitation", "reference", "rsft", "spo"):
        config[section].update(simulated[section])
    config.data = "stored"
    config.demos.folder = "runs/tabletop_state/demos"
    config.demos.per_task = simulated.demos.per_task
    config.demos.label = simulated.demos.label

    config.env.schema = "robot.json"
    config.env.tasks = ("cube-on-cube",)
    config.env.obs = "state"
    config.env.chunks = "relative"
    config.env.horizon = 200

    config.reference.steps = 1500
    config.codebook.steps = 1500
    config.imitation.steps = 1500

    config.rsft.successes_per_task = 50
    config.rsft.max_rollouts_per_task = 100
    config.rsft.wave = 20
    config.rsft.steps = 300

    config.spo.iterations = 6
    config.spo.groups = 10
    config.spo.max_groups = 10
    config.spo.wave_groups = 10

    config.report.videos = 0
    return config
