"""The values of a configuration: the paper's defaults for each benchmark, and how a smoke run shrinks them.

A config file starts from `metaworld()`, `libero()` or `benchmark(name)` and changes what its experiment changes. What
is a benchmark's own, its section `env` above all, stands in its module (`cso_jax.envs.protocol.Benchmark`).
docs/paper_choices.md lists every value for which the paper is silent, contradicts itself or is not followed, with the
reason.
"""

from typing import Any

from ml_collections import ConfigDict

from cso_jax import envs, policies


def metaworld() -> ConfigDict:
    """The paper's values (section 5 and Appendix E) for MetaWorld ML45 from pixels, locked."""
    return benchmark("metaworld")


def libero() -> ConfigDict:
    """The paper's values (section 5, Appendix E) for a LIBERO suite from pixels, locked; QueST's where it has none."""
    return benchmark("libero")


def benchmark(name: str) -> ConfigDict:
    """The defaults for a benchmark of `envs.BENCHMARKS`, locked.

    Raises KeyError for a name that is not there, and for a benchmark that changes a key that there is not.
    """
    config = _common()
    changes = envs.benchmark(name).default_config()
    config.env = ConfigDict(changes["env"])
    config.lock()
    for section, values in changes.items():
        for key, value in values.items():
            if section != "env":
                config[section][key] = value
    return config


def _common() -> ConfigDict:
    config = ConfigDict()
    config.name = ""
    config.seed = 0
    config.scale = "full"
    config.policy = ConfigDict({"name": "quest"})
    config.precision = "default"  # of products in supervised training; "highest": float32 on any hardware
    config.data = "scripted"  # demonstrations: of scripted experts, or "official": files under demos.folder

    config.execution_horizon = 8  # of the 32 actions of a chunk

    config.rollout = ConfigDict()
    config.rollout.workers = 0  # 0: one per CPU core
    config.rollout.slots = 16  # environments per worker, and rows of one policy call
    config.rollout.step_timeout_s = 60.0
    config.rollout.start_timeout_s = 180.0
    config.rollout.max_attempts = 3
    config.rollout.recycle_after_episodes = 0
    config.rollout.engine = "local"  # processes of this machine; or "ray": docs/cluster.md
    config.rollout.ray = ConfigDict()
    config.rollout.ray.address = "auto"  # of a running cluster; "": one of this run's own, on this machine
    config.rollout.ray.actors = 0  # 0: as many as the cluster's CPUs allow
    config.rollout.ray.cpus = 2  # of an actor; as many workers
    config.rollout.ray.gpus = 0.0  # of an actor, for its policy; a part of one will do

    config.demos = ConfigDict()
    config.demos.folder = ""  # of the official HDF5 files
    config.demos.per_task = 100
    config.demos.noise = 0.1  # std of the Gaussian added to the expert's actions
    config.demos.extra_steps = 16  # recorded after the first success
    config.demos.actions = "clip"  # of official files; "gripper_01", "gripper_10", "refuse": data/libero/official.py
    config.demos.label = "executed"  # or "expert": what the expert meant, without the noise
    config.demos.max_attempts_per_demo = 10
    config.demos.processes = 0

    config.autoencoder = ConfigDict()
    config.autoencoder.network = "transformer"  # the paper's; or "residual": policies/quest/residual_autoencoder.py
    config.autoencoder.groups = 2  # into which a residual one's tokens fall
    config.autoencoder.hidden = 256  # width of a residual one's hidden layers
    config.autoencoder.chunk_length = 32
    config.autoencoder.levels = (8, 5, 5, 5)
    config.autoencoder.width = 256
    config.autoencoder.encoder_layers = 2
    config.autoencoder.decoder_layers = 4
    config.autoencoder.heads = 4
    config.autoencoder.kernels = (5, 3, 3)
    config.autoencoder.strides = (2, 2, 1)
    config.autoencoder.dropout = 0.1

    config.encoder = ConfigDict()
    config.encoder.task_embedding = "id"  # or of the task's sentence: "minilm", "clip", or "file" of vectors
    config.encoder.task_embedding_file = ""  # CLIP's weights, or the vectors
    config.encoder.trunk = "resnet"  # the paper's; or "small", for small images on a CPU: networks/vision.py
    config.encoder.image_width = 256
    config.encoder.lowdim_width = 128
    config.encoder.lowdim_hidden = ()
    config.encoder.task_in_lowdim = False
    config.encoder.lowdim_together = False  # one encoder for all low-dimensional observations, instead of one each
    config.encoder.norm = "batch"
    config.encoder.normalise = False  # low-dimensional observations by the demonstrations' mean and std

    config.prior = ConfigDict()
    config.prior.width = 384
    config.prior.layers = 6
    config.prior.heads = 6
    config.prior.dropout = 0.1
    config.prior.head = "flat"  # or "digits", "both": what it knows of a code, policies/quest/prior.py
    config.prior.guide = ()  # layers from context to a regressed chunk around which skills are drawn; () for none
    config.prior.guide_sharpness = 1.0  # logit that a digit one step from the guide's loses at first
    config.prior.guide_decoded = 0.0  # weight, in the guide's loss, of the error of skills drawn around its chunk
    config.prior.guide_decoded_share = 1.0  # of each batch, for which that is computed

    config.sampling = ConfigDict()  # the policy of evaluation and SPO
    config.sampling.temperature = 1.0
    config.sampling.top_k = 5  # 0: the whole softmax

    config.codebook = _optimisation(steps=30_000, batch_size=1024, learning_rate=1e-4, final_learning_rate=1e-5)
    config.codebook.weighted_actions = 8  # the first of a chunk; 8 are executed
    config.codebook.action_weight = 1.0  # of their errors in the loss, against 1 of the others
    config.codebook.squared_weight = 0.0  # of the squared error, beside Eq. 1's absolute one
    config.codebook.mixed_share = 0.0  # of the chunks, each of their dimensions from another chunk of the batch
    config.imitation = _optimisation(steps=100_000, batch_size=256, learning_rate=1e-4, final_learning_rate=1e-5)
    config.imitation.keep = "last"  # or "best": the state of the lowest validation loss
    config.imitation.augment = True
    config.imitation.validation_fraction = 0.05  # of each task's demonstrations

    # Behaviour cloning on the same demonstrations, and its chunks through the codebook: what success is measured by.
    config.reference = _optimisation(steps=3000, batch_size=256, learning_rate=1e-3, final_learning_rate=1e-5)
    config.reference.enabled = True
    config.reference.hidden = (512, 512, 512)
    config.reference.later_weight = 1.0  # in the loss, of the actions after the executed ones
    config.reference.clip_norm = 1.0
    config.reference.augment = True
    config.reference.episodes_per_task = 0  # 0: as many as evaluation.episodes_per_task

    config.rsft = _optimisation(steps=0, batch_size=256, learning_rate=1e-4, final_learning_rate=1e-5)
    config.rsft.enabled = True
    config.rsft.epochs = 20  # used when steps is 0
    config.rsft.successes_per_task = 200
    config.rsft.strike_rule = "new_state"  # or "algorithm", "until_success": rollout/groups.py says what they are
    config.rsft.strikes = 10  # attempts from one initial state, by the rules that make more than one
    config.rsft.max_rollouts_per_task = 2000
    config.rsft.temperature = 1.0
    config.rsft.top_k = 5
    config.rsft.wave = 320  # rollouts between two saves
    config.rsft.demo_fraction = 0.0  # of each batch, drawn from the demonstrations
    config.rsft.augment = True

    config.spo = ConfigDict()
    config.spo.enabled = True
    config.spo.iterations = 30
    config.spo.groups = 150
    config.spo.group_size = 8
    config.spo.max_groups = 600  # drawn at most per iteration: the budget of dynamic rejection
    config.spo.wave_groups = 150
    # So many episodes of a group run first, and if all end alike it ends with them; 0: all run. Not for objectives that
    # learn from every group.
    config.spo.probe = 0
    config.spo.temperature = 0.0  # of what its rollouts draw; 0: sampling.temperature
    config.spo.frontier_sampling = False  # draw tasks by how likely their groups have been mixed so far
    config.spo.epochs = 1
    config.spo.minibatch_skills = 512
    config.spo.learning_rate = 1e-6
    config.spo.weight_decay = 1e-4
    config.spo.clip_norm = 1.0
    config.spo.unit = "skill"
    config.spo.clip_low = 0.93
    config.spo.clip_high = 1.15
    config.spo.average = "episode_sum"
    config.spo.length_normalise = False
    config.spo.baseline = "mean"
    config.spo.normalise_std = False
    config.spo.objective = "surrogate"  # or "reinforce" (no ratio, no clipping), "preference" (GRAPE's, on pairs)
    config.spo.preference_beta = 0.1
    config.spo.critic = False  # advantages from a learned value, and every group used
    config.spo.critic_learning_rate = 1e-3
    config.spo.critic_warmup_steps = 200  # on the returns of the first iteration, before its advantages
    config.spo.value_coefficient = 0.5
    config.spo.discount = 0.99  # per decision
    config.spo.gae_lambda = 0.95
    config.spo.normalise_advantage = True  # of the critic's advantages, over an iteration; Eq. 8's stay as they are
    config.spo.entropy_bonus = 0.0
    config.spo.freeze_encoder = True
    config.spo.checkpoint_every = 1

    config.evaluation = ConfigDict()
    config.evaluation.episodes_per_task = 50
    config.evaluation.wave = 500  # episodes between two saves

    config.report = ConfigDict()
    config.report.videos = 3  # tasks shown, one success and one failure each; 0 for none
    return config


def with_policy(config: ConfigDict, name: str, preset: str = "public") -> ConfigDict:
    """The config for another kind of policy, locked.

    `preset`: whose values, `policies.defaults_of`. Raises KeyError for a policy that there is not, ValueError for a
    preset that it has not.
    """
    config = ConfigDict(config).unlock()
    config.policy = ConfigDict({"name": name, **policies.defaults_of(name, preset)})
    return config.lock()


def _optimisation(*, steps: int, batch_size: int, learning_rate: float, final_learning_rate: float) -> ConfigDict:
    """AdamW with warm-up and a cosine schedule, as every supervised stage uses it."""
    return ConfigDict(
        {
            "steps": steps,
            "batch_size": batch_size,
            "accumulate": 1,  # parts of a batch that go one after the other, where all of it is too much for the memory
            "learning_rate": learning_rate,
            "final_learning_rate": final_learning_rate,
            "warmup_steps": 0,
            "weight_decay": 1e-4,
            "clip_norm": 100.0,
            "log_every": 50,
            "checkpoint_every": 1000,
        }
    )


_SMOKE: dict[str, Any] = {
    "rollout.slots": 8,
    "demos.per_task": 4,
    "autoencoder.width": 32,
    "autoencoder.encoder_layers": 1,
    "autoencoder.decoder_layers": 1,
    "encoder.image_width": 32,
    "prior.width": 48,
    "prior.layers": 2,
    "codebook.steps": 20,
    "codebook.batch_size": 32,
    "reference.steps": 20,
    "reference.batch_size": 32,
    "imitation.steps": 20,
    "imitation.batch_size": 32,
    "rsft.epochs": 1,
    "rsft.batch_size": 32,
    "rsft.successes_per_task": 4,
    "rsft.strikes": 4,
    "rsft.max_rollouts_per_task": 8,
    "spo.iterations": 2,
    "spo.groups": 2,
    "spo.group_size": 4,
    "spo.max_groups": 6,
    "spo.wave_groups": 3,
    "spo.minibatch_skills": 128,
    "evaluation.episodes_per_task": 2,
    "report.videos": 1,
}


def smoke(config: ConfigDict) -> None:
    """Shrink every stage in place so that it runs once, all of them in about a minute on two CPU cores.

    Raises ValueError for a task that does not exist.
    """
    own = envs.benchmark(config.env.name)
    limits = {**_SMOKE, **own.SMOKE}
    for key, limit in limits.items():
        section, name = key.split(".")
        config[section][name] = min(config[section][name], limit)
    config.rsft.steps = 10
    for section in ("codebook", "reference", "imitation", "rsft"):
        config[section].log_every = 5
        config[section].warmup_steps = 0
    config.demos.max_attempts_per_demo = 30
    config.demos.extra_steps = 4
    tasks = envs.task_names(config.env.to_dict())
    if len(tasks) > 3:
        config.env.tasks = own.SMOKE_TASKS or tasks[:2]
