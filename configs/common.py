"""What the configs for a CPU have in common: networks and training that take minutes instead of the paper's days.

A config beside this file uses it by `from . import common` and changes afterwards what is its own.
"""

import os

CLIP_TEXT = "CLIP_TEXT"


def for_a_cpu(config):
    """Small networks, and learning rates that are as large as they bear."""
    config.autoencoder.width = 64
    config.autoencoder.encoder_layers = 1
    config.autoencoder.decoder_layers = 1
    config.autoencoder.dropout = 0.0
    config.codebook.batch_size = 128
    config.codebook.learning_rate = 1e-3
    config.codebook.warmup_steps = 50

    config.encoder.normalise = True
    config.encoder.lowdim_width = 64
    config.prior.width = 64
    config.prior.layers = 3
    config.prior.heads = 4
    config.imitation.learning_rate = 1e-3
    config.imitation.warmup_steps = 50
    config.imitation.clip_norm = 1.0


def from_states(config, *, hidden):
    """No camera: the state goes through layers of the sizes `hidden`, which are told the task."""
    config.env.obs = "state"
    config.encoder.lowdim_hidden = hidden
    config.encoder.task_in_lowdim = True
    config.prior.dropout = 0.0
    config.imitation.augment = False
    config.rsft.learning_rate = 5e-4
    config.rsft.augment = False


def guided(config):
    """A guided prior on a codebook of two decoder layers, and what refines it best: docs/base_policy.md."""
    config.autoencoder.decoder_layers = 2
    config.codebook.learning_rate = 5e-3
    config.codebook.action_weight = 10.0
    config.codebook.mixed_share = 0.5
    config.encoder.lowdim_width = 256
    config.prior.head = "digits"
    config.prior.guide = (512,)
    config.prior.guide_decoded = 1.0
    config.prior.layers = 1
    config.rsft.learning_rate = 1e-4
    config.spo.epochs = 2
    config.spo.learning_rate = 1e-4
    config.spo.clip_low = 0.8
    config.spo.clip_high = 1.3


def from_small_images(config, *, size):
    """Cameras of `size` pixels a side."""
    config.env.image_size = size
    config.encoder.trunk = "small"
    config.encoder.image_width = 128
    config.encoder.norm = "group"
    config.prior.dropout = 0.0
    config.reference.steps = 1000  # the reference has a trunk of its own, most of its cost
    config.reference.batch_size = 64


def by_sentence(config):
    """Tasks told apart by their sentences: by CLIP, as the paper, where the variable CLIP_TEXT names its weights.

    By MiniLM, which is installed with LIBERO, where it does not.
    """
    weights = os.environ.get(CLIP_TEXT, "")
    config.encoder.task_embedding = "clip" if weights else "minilm"
    config.encoder.task_embedding_file = weights


def small_residual_skills(config):
    """Sizes for a CPU of a policy whose skills are codes of a residual codebook (`vqbet`, `star`)."""
    config.policy.chunk_length = 8
    config.policy.history = 2
    config.policy.latent = 64
    config.policy.width = 64
    config.policy.layers = 2
    config.policy.heads = 4
    config.policy.out = 128
    config.policy.hidden = (256, 256)
    config.policy.dropout = 0.0
    config.codebook.learning_rate = 1e-3


def batches(config, size):
    """Imitation and R-SFT on batches of `size`."""
    config.imitation.batch_size = size
    config.rsft.batch_size = size


def few_groups(config, groups):
    """SPO with `groups` groups per iteration, drawn in one wave, mostly of tasks whose groups have been mixed."""
    config.spo.groups = groups
    config.spo.max_groups = groups
    config.spo.wave_groups = groups
    config.spo.frontier_sampling = True
    config.spo.minibatch_skills = 256


def libero_from_states(config, suite):
    """A LIBERO suite of ten tasks from poses, trained on fast physics: what was found on LIBERO-Object."""
    for_a_cpu(config)
    from_states(config, hidden=(512, 512))
    batches(config, 256)
    few_groups(config, 24)
    on_libero(config)
    config.env.tasks = (suite,)
    config.rollout.slots = 16

    config.demos.per_task = 50

    config.reference.steps = 4000
    config.imitation.steps = 6000

    config.rsft.successes_per_task = 40
    config.rsft.max_rollouts_per_task = 60
    config.rsft.steps = 500

    config.spo.iterations = 4

    config.evaluation.episodes_per_task = 20
    config.report.videos = 2


def on_libero(config):
    """A guided prior on a coarse-to-fine codebook for LIBERO, on fast physics, from states or small images."""
    guided(config)
    config.env.libero.joint_noise = 0.02
    config.env.libero.physics = "fast"
    # About the standard deviation of the demonstrations' actions: a codebook drops turns of the hand that are small.
    config.env.libero.spread = (0.4, 0.4, 0.5, 0.1, 0.1, 0.1, 1.0)

    config.demos.label = "expert"

    config.reference.later_weight = 0.1

    config.autoencoder.network = "residual"
    config.codebook.steps = 4000
    config.codebook.batch_size = 256
    config.codebook.squared_weight = 4.0

    config.encoder.lowdim_together = True
    config.prior.width = 128
    config.prior.guide = (512, 512, 512)
    config.prior.guide_decoded = 0.0
    config.prior.guide_sharpness = 4.0

    config.sampling.temperature = 0.5

    config.spo.learning_rate = 5e-5
    config.spo.average = "episode_mean"
