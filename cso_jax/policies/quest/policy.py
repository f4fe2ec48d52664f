"""The QueST policy: encode observations, sample skills, decode chunks, score skills, and the losses that train it.

All that acts or scores computes in float32 whatever the hardware's default (`cso_jax.precision`). Its variables:

    {"autoencoder": params, "encoder": params, "prior": params,
     "batch_stats": running statistics of the encoder, "normaliser": {key: {"mean": [P], "std": [P]}},
     "task_embedding": [N, E] vectors of the N tasks' sentences, absent where the encoder learns a row per task id,
     "guide": params of the regression from context to chunk, absent where `config.prior.guide` is empty}

Letters: B rows, C context tokens, D width, K tokens per skill, T actions per chunk, E executed actions, A action size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cso_jax import fsq, objectives
from cso_jax import rules as value_rules
from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.apply import apply
from cso_jax.networks.augment import augment, mix_dimensions
from cso_jax.networks.observation import ObservationEncoder
from cso_jax.policies.interface import Decision, Loss, Rows, Sampling, Variables, Wants
from cso_jax.policies.observations import fit_normaliser, identity_normaliser, normalise, placeholders
from cso_jax.policies.quest import digit_codes
from cso_jax.policies.quest.autoencoder import ActionAutoencoder
from cso_jax.policies.quest.guide import Guide, draw_digits
from cso_jax.policies.quest.prior import Head, Sample, SkillPrior, entropy_of, log_prob_of
from cso_jax.policies.quest.residual_autoencoder import ResidualAutoencoder
from cso_jax.precision import exact

STAGES = ("demos", "codebook", "reference", "imitation", "rsft", "spo")
DEFAULTS: dict[str, Any] = {}  # its values are the sections autoencoder, encoder and prior


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the sizes of the networks, one line each."""
    autoencoder, prior = config.autoencoder, config.prior
    lists = {
        "autoencoder.strides": autoencoder.strides,
        "autoencoder.kernels": autoencoder.kernels,
        "encoder.lowdim_hidden": config.encoder.lowdim_hidden,
        "autoencoder.levels": autoencoder.levels,
        "prior.guide": prior.guide,
    }
    uncountable = [key for key, sizes in lists.items() if not all(isinstance(n, int) and n > 0 for n in sizes)]
    if uncountable:  # the rules below compute with them
        return [f"config.{key} must hold whole numbers of at least 1; got {lists[key]}" for key in uncountable]
    chunk, codes = autoencoder.chunk_length, math.prod(autoencoder.levels)
    tokens = chunk // math.prod(autoencoder.strides)
    rules = (
        *((config[part].dropout < 1, f"config.{part}.dropout is a probability below 1; got {config[part].dropout}")
          for part in ("autoencoder", "prior")),
        *((config[part].top_k <= codes, f"config.{part}.top_k is {config[part].top_k}, but there are {codes} codes")
          for part in ("sampling", "rsft")),
        (chunk % math.prod(autoencoder.strides) == 0,
         f"config.autoencoder.strides {autoencoder.strides} must divide the chunk of {chunk} actions"),
        (tokens % max(autoencoder.groups, 1) == 0 or autoencoder.network != "residual",
         f"config.autoencoder.groups is {autoencoder.groups}; it must divide the {tokens} tokens of a skill"),
        (len(autoencoder.strides) == len(autoencoder.kernels),
         "config.autoencoder.strides and config.autoencoder.kernels must have one entry per layer"),
        (config.execution_horizon <= chunk,
         f"config.execution_horizon is {config.execution_horizon}, but a chunk has {chunk} actions"),
        (prior.width % max(prior.heads, 1) == 0, "config.prior.heads must divide config.prior.width"),
        (autoencoder.width % max(autoencoder.heads, 1) == 0,
         "config.autoencoder.heads must divide config.autoencoder.width"),
        (all(level >= 2 for level in autoencoder.levels), "config.autoencoder.levels must all be at least 2"),
        (not prior.guide or prior.guide_sharpness > 0,
         f"config.prior.guide_sharpness must be positive where there is a guide; got {prior.guide_sharpness}"),
        (0 < prior.guide_decoded_share <= 1,
         f"config.prior.guide_decoded_share is a share of the batch, above 0 and at most 1; got "
         f"{prior.guide_decoded_share}"),
        (autoencoder.width % 8 == 0, "config.autoencoder.width must be a multiple of 8 (GroupNorm's groups)"),
    )  # fmt: skip
    return [
        *(message for fits, message in rules if not fits),
        *value_rules.one_of("autoencoder.network", autoencoder.network, ("transformer", "residual")),
        *value_rules.one_of("prior.head", prior.head, get_args(Head)),
    ]


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> "QuestPolicy":
    """The policy of a config for an environment with `num_tasks` tasks.

    `embedding_dim` is the size of the task embeddings, 0 where the encoder learns a row per task id.
    """
    tokens = config.autoencoder.chunk_length // math.prod(config.autoencoder.strides)
    encoder = ObservationEncoder(
        width=config.prior.width,
        lowdim=tuple(sorted(spec.lowdim.items())),
        images=tuple(sorted(spec.images.items())),
        task_dim=embedding_dim or num_tasks,
        task_kind="vector" if embedding_dim else "id",
        image_width=config.encoder.image_width,
        lowdim_width=config.encoder.lowdim_width,
        lowdim_hidden=tuple(config.encoder.lowdim_hidden),
        norm=config.encoder.norm,
        trunk=config.encoder.trunk,
        task_in_lowdim=config.encoder.task_in_lowdim,
        lowdim_together=config.encoder.lowdim_together,
    )
    prior = SkillPrior(
        levels=tuple(config.autoencoder.levels),
        tokens=tokens,
        width=config.prior.width,
        layers=config.prior.layers,
        heads=config.prior.heads,
        dropout=config.prior.dropout,
        head=config.prior.head,
        guide_sharpness=config.prior.guide_sharpness if config.prior.guide else 0.0,
    )
    hidden = tuple(config.prior.guide)
    guide = Guide(hidden, config.autoencoder.chunk_length, spec.action_dim) if hidden else None
    return QuestPolicy(
        _autoencoder(config.autoencoder, spec.action_dim, tokens),
        encoder,
        prior,
        guide,
        guide_decoded=config.prior.guide_decoded,
        guide_decoded_share=config.prior.guide_decoded_share,
        executed=config.execution_horizon,
        weighted_actions=config.codebook.weighted_actions,
        action_weight=config.codebook.action_weight,
    )


def _autoencoder(sizes: ConfigDict, action_dim: int, tokens: int) -> ActionAutoencoder | ResidualAutoencoder:
    levels = tuple(sizes.levels)
    if sizes.network == "residual":
        return ResidualAutoencoder(action_dim, sizes.chunk_length, tokens, sizes.groups, sizes.hidden, levels)
    return ActionAutoencoder(
        action_dim=action_dim,
        chunk_length=sizes.chunk_length,
        width=sizes.width,
        encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers,
        heads=sizes.heads,
        levels=levels,
        kernels=tuple(sizes.kernels),
        strides=tuple(sizes.strides),
        dropout=sizes.dropout,
    )


@dataclasses.dataclass(frozen=True)
class QuestPolicy:
    """The networks of a QueST policy, flax modules without parameters. Satisfies `SkillPolicy`.

    A `guide` is no part of the published policy. With it the encoder learns by behaviour cloning: a small network on
    the context regresses the chunk, and what the codebook's encoder makes of that chunk is where the prior's logits
    peak. The transformer adds to them, from nothing. A regression generalises from few demonstrations where a
    classifier over a thousand codes learns them by heart; what is sampled, scored and refined are skills all the same.
    """

    autoencoder: ActionAutoencoder | ResidualAutoencoder
    encoder: ObservationEncoder
    prior: SkillPrior
    guide: Guide | None = None
    guide_decoded: float = 0.0
    guide_decoded_share: float = 1.0
    executed: int = 8
    weighted_actions: int = 8
    action_weight: float = 1.0

    @property
    def wants(self) -> Wants:
        return Wants(
            self.autoencoder.chunk_length, target="skill", chunk_in=("imitation",) if self.guide is not None else ()
        )

    @property
    def codes(self) -> int:
        return fsq.codebook_size(self.autoencoder.levels)

    @property
    def codebook_parts(self) -> tuple[str, ...]:
        return ("autoencoder",)

    def trained_parts(self, stage: str, config: ConfigDict) -> tuple[str, ...]:
        """What each stage trains. Nothing else freezes anything: a stage's other parts stay as they came.

        - codebook: the action autoencoder (Eq. 1), which no later stage touches.
        - imitation: encoder and prior (Eq. 2). rsft: both again (Eq. 6, section 4.1).
        - spo: the prior alone: the encoder is frozen after R-SFT (Algorithm 1; section 4.1, "Upon
          completion, we freeze"; Appendix E.2). `config.spo.freeze_encoder=false` is Table 2's "w/o Encoder Freeze".
        - With a guide, imitation trains encoder and guide, by regression, and leaves the prior as it is; rsft and spo
          train the guide too, by what its skills are worth.

        Raises KeyError for an unknown stage.
        """
        guide = () if self.guide is None else ("guide",)
        encoder = () if config.spo.freeze_encoder else ("encoder",)
        return {
            "codebook": ("autoencoder",),
            "imitation": ("encoder", *(guide or ("prior",))),
            "rsft": ("encoder", "prior", *guide),
            "spo": (*encoder, "prior", *guide),
        }[stage]

    def init(self, key: jax.Array, spec: EnvSpec, task_embedding: np.ndarray | None = None) -> Variables:
        """Fresh variables; the normaliser is the identity until the demonstrations set it.

        `task_embedding` `[N, E]` float32 is kept with them, for a policy that was built for embeddings of size E.
        """
        if task_embedding is not None:
            chex.assert_shape(task_embedding, (None, self.encoder.task_dim))
        keys = jax.random.split(key, 3)
        actions = jnp.zeros((2, self.autoencoder.chunk_length, self.autoencoder.action_dim), jnp.float32)
        observation = placeholders(spec.lowdim, spec.images, 2)
        by_id = self.encoder.task_kind == "id"
        observation["task"] = jnp.zeros((2,), jnp.int32) if by_id else jnp.zeros((2, self.encoder.task_dim))

        @jax.jit
        def create(keys):
            encoder = self.encoder.init(keys[1], observation, train=False)
            context = apply(self.encoder, encoder, observation, train=False)
            guide = {}
            if self.guide is not None:
                guide["guide"] = self.guide.init(jax.random.fold_in(keys[2], 1), context)["params"]
            tokens = jnp.zeros((2, self.prior.tokens), jnp.int32)
            digits = jnp.zeros((*tokens.shape, len(self.prior.levels))) if self.guide is not None else None
            return {
                "autoencoder": self.autoencoder.init(keys[0], actions, deterministic=True)["params"],
                "encoder": encoder["params"],
                "prior": self.prior.init(keys[2], context, tokens, digits)["params"],
                "batch_stats": encoder.get("batch_stats", {}),
                **guide,
            }

        variables = create(keys)
        variables["normaliser"] = identity_normaliser(spec.lowdim)
        if task_embedding is not None:
            variables["task_embedding"] = jnp.asarray(task_embedding, jnp.float32)
        return variables

    def prepare(self, variables: Variables, lowdim: dict[str, np.ndarray], config: ConfigDict) -> Variables:
        """The normaliser fitted to the demonstrations where `config.encoder.normalise` asks for it."""
        return variables | {"normaliser": fit_normaliser(lowdim)} if config.encoder.normalise else variables

    # ------------------------------------------------------------------------------------------------------- losses

    def codebook_loss(
        self,
        trainable: Variables,
        fixed: Variables,
        batch: Rows,
        key: jax.Array,
        *,
        weight: jax.Array | None = None,
        mixed_share: float = 0.0,
        squared_weight: float = 0.0,
    ) -> Loss:
        """The reconstruction of `chunk` `[B, T, A]` (Eq. 1), its actions weighted by `weight` `[T]`.

        An absolute error alone is least at the median: a dimension that mostly rests is then given back as rest, and
        small motions shrink. `squared_weight` adds the squared error, which is least at the mean.

        A `mixed_share` of the chunks is made of several (`augment.mix_dimensions`). The metrics hold `codes` `[B, K]`,
        the indices, too.
        """
        del fixed
        chunk = batch["chunk"]
        if mixed_share:
            chunk = mix_dimensions(jax.random.fold_in(key, 1), chunk, share=mixed_share)
        reconstruction, indices = apply(
            self.autoencoder,
            {"params": trainable["autoencoder"]},
            chunk,
            deterministic=False,
            rngs={"dropout": key},
        )
        loss = objectives.reconstruction_l1(reconstruction, chunk, weight)
        if squared_weight:
            loss += squared_weight * objectives.reconstruction_l2(reconstruction, chunk, weight)
        return Loss(loss, {}, {"codes": indices})

    def loss(
        self, trainable: Variables, fixed: Variables, batch: Rows, key: jax.Array, *, augment_images: bool
    ) -> Loss:
        """The likelihood of `skill` `[B, K]` (Eq. 2 and Eq. 6) for encoder and prior.

        The encoder's running statistics, where it has them, move with the batch. With a guide, and where there is
        `chunk` `[B, T, A]` to regress, in the stage imitation: the guide's error instead.
        """
        observation = _without_targets(batch)
        keys = jax.random.split(key, 3)
        if augment_images:
            observation = {
                name: augment(jax.random.fold_in(keys[0], number), value) if value.ndim == 4 else value
                for number, (name, value) in enumerate(sorted(observation.items()))
            }
        context, mutated = apply(
            self.encoder,
            {"params": trainable["encoder"], "batch_stats": fixed["batch_stats"]},
            normalise(fixed, observation),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": keys[1]},
        )
        changed = {"batch_stats": mutated.get("batch_stats", {})}
        if self.guide is not None and "chunk" in batch:
            return Loss(self._guide_loss({**fixed, **trainable}, context, batch["chunk"], keys[2]), changed, {})
        variables = {**fixed, **trainable}
        skill, by_digit = batch["skill"], self.prior.by_digit()
        logits = apply(
            self.prior,
            {"params": variables["prior"]},
            context,
            skill,
            self._digits(variables, context, skill),
            deterministic=False,
            by_digit=by_digit,
            rngs={"dropout": keys[2]},
        )
        if by_digit:
            log_prob = digit_codes.log_prob_of(logits, skill, self.prior.levels, temperature=1.0)
            likeliest = digit_codes.likeliest(logits, self.prior.levels)
        else:
            log_prob, likeliest = log_prob_of(logits, skill), jnp.argmax(logits, -1)
        return Loss(objectives.imitation_nll(log_prob), changed, {"token_accuracy": jnp.mean(likeliest == skill)})

    def held_out_loss(self, variables: Variables, batch: Rows) -> jax.Array:
        """The same without dropout, augmentation or update: for validation."""
        observation = _without_targets(batch)
        context = self.encode(variables, observation)
        if self.guide is not None and "chunk" in batch:
            return self._guide_loss(variables, context, batch["chunk"], jax.random.key(0))
        log_prob, _ = self.score(variables, context, batch["skill"], temperature=1.0)
        return objectives.imitation_nll(log_prob)

    def _guide_loss(self, variables: Variables, context: jax.Array, wanted: jax.Array, key: jax.Array) -> jax.Array:
        """The error of the regressed chunk, weighted as the codebook's; and of what is executed of skills around it.

        The second term trains the guide for what will be done with its chunk: what the codebook makes of it, and how
        far the draw strays, is part of the error.
        """
        assert self.guide is not None
        chunk = apply(self.guide, {"params": variables["guide"]}, context)
        weight = objectives.first_actions_weight(
            chunk.shape[1], actions=self.weighted_actions, weight=self.action_weight
        )
        loss = objectives.reconstruction_l1(chunk, wanted, weight)
        if not self.guide_decoded:
            return loss
        rows = max(1, int(self.guide_decoded_share * len(chunk)))
        chunk, wanted = chunk[:rows], wanted[:rows]
        codebook = {"params": variables["autoencoder"]}

        def around(digits: jax.Array, first: int) -> jax.Array:
            group_key = jax.random.fold_in(key, first)
            return draw_digits(digits, group_key, sharpness=self.prior.guide_sharpness, levels=self.prior.levels)

        drawn, _ = apply(self.autoencoder, codebook, chunk, around, method="walk")
        decoded = apply(self.autoencoder, codebook, drawn, length=self.executed, method="decode_digits")
        return loss + self.guide_decoded * objectives.reconstruction_l1(decoded, wanted[:, : self.executed])

    # ------------------------------------------------------------------------------------------- acting and scoring

    @exact
    def encode(self, variables: Variables, observation: Rows) -> jax.Array:
        """Context `[B, C, D]` of observations (rows stacked), with running statistics where the encoder has them."""
        return apply(
            self.encoder,
            {"params": variables["encoder"], "batch_stats": variables["batch_stats"]},
            normalise(variables, observation),
            train=False,
        )

    @exact
    def sample(self, variables: Variables, context: jax.Array, keys: jax.Array, sampling: Sampling) -> Sample:
        """One skill per row, and the log-probabilities of the distribution that it was drawn from."""
        return apply(
            self.prior,
            {"params": variables["prior"]},
            context,
            keys,
            self._digits_after(variables, context),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            method="sample",
        )

    @exact
    def decode(self, variables: Variables, skills: jax.Array) -> jax.Array:
        """Chunks `[B, T, A]` of skills `[B, K]`."""
        return apply(self.autoencoder, {"params": variables["autoencoder"]}, skills, method="decode")

    @exact
    def _first_actions(self, variables: Variables, skills: jax.Array, length: int) -> jax.Array:
        return apply(self.autoencoder, {"params": variables["autoencoder"]}, skills, length=length, method="decode")

    @exact
    def tokenise(self, variables: Variables, chunks: jax.Array) -> jax.Array:
        """Skills `[B, K]` of chunks `[B, T, A]`, without dropout."""
        return apply(self.autoencoder, {"params": variables["autoencoder"]}, chunks, method="encode")

    @exact
    def score(
        self,
        variables: Variables,
        context: jax.Array,
        skills: jax.Array,
        *,
        temperature: float,
        support: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and entropies `[B, K]` of given skills under the sampling policy.

        `support` `[B, K, top_k]` is the recorded top-k set; the distribution is renormalised over it, as when sampling.
        """
        chex.assert_rank([context, skills], [3, 2])
        digits, by_digit = self._digits(variables, context, skills), self.prior.by_digit(support)
        logits = apply(
            self.prior, {"params": variables["prior"]}, context, skills, digits, deterministic=True, by_digit=by_digit
        )
        if by_digit:
            levels = self.prior.levels
            return (
                digit_codes.log_prob_of(logits, skills, levels, temperature=temperature),
                digit_codes.entropy_of(logits, levels, temperature=temperature),
            )
        return (
            log_prob_of(logits, skills, temperature=temperature, support=support),
            entropy_of(logits, temperature=temperature, support=support),
        )

    def _digits(self, variables: Variables, context: jax.Array, skills: jax.Array) -> jax.Array | None:
        """The guide's digits `[B, K, len(levels)]` of every token after those of `skills` before it."""
        after = self._digits_after(variables, context)
        return None if after is None else after(skills)

    def _digits_after(self, variables: Variables, context: jax.Array) -> Callable[[jax.Array], jax.Array] | None:
        """From tokens `[B, K]` to the digits of the guide's chunk after them; None without a guide."""
        if self.guide is None:
            return None
        chunk = apply(self.guide, {"params": variables["guide"]}, context)
        codebook = {"params": variables["autoencoder"]}

        def after(tokens: jax.Array) -> jax.Array:
            return apply(self.autoencoder, codebook, chunk, tokens, method="real_digits")

        if self.autoencoder.groups > 1:
            return after
        digits = after(jnp.zeros((chunk.shape[0], self.prior.tokens), jnp.int32))  # once, not for every token
        return lambda tokens: digits

    def decide(
        self,
        variables: Variables,
        observation: Rows,
        episode_keys: jax.Array,
        decision_index: jax.Array,
        *,
        sampling: Sampling,
        execution_horizon: int,
    ) -> Decision:
        """Observe, sample and decode for a batch of episodes.

        `episode_keys` uint32 `[B, 2]`, one raw PRNG key per episode; with `decision_index` `[B]` it fixes the draw, so
        a row's result depends on its own episode only, not on which episodes share the batch.
        """
        keys = jax.vmap(jax.random.fold_in)(episode_keys, decision_index)
        context = self.encode(variables, observation)
        drawn = self.sample(variables, context, keys, sampling)
        actions = self._first_actions(variables, drawn.tokens, execution_horizon)
        return Decision(actions, drawn.tokens, drawn.log_prob, drawn.support, context)


def _without_targets(batch: Rows) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("skill", "chunk")}
