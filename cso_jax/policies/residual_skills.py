"""Skill policies on a residual codebook: a few codes per decision, and a continuous offset beside what they decode to.

VQ-BeT and STAR are this with different values (`vqbet.py`, `star.py`). A chunk is encoded by an MLP and quantised by Q
codebooks; a transformer on the last N observations gives a distribution over the codes, all at once or one after the
other, and an offset. Acting draws codes and adds the offset to their chunk. The offset is no part of the distribution:
R-SFT trains it on what was executed, but SPO refines the distribution over codes, and the offset, which reads the same
transformer, moves along untrained.

    codebook:  L1(decoded, chunk) + commit * sum_q mean |r_q - sg(e_q)|^2
    imitation: sum_q w_q * -(1 - p_q)^gamma log p_q  +  offset_weight * L1(decoded(drawn codes) + offset, chunk)

Variables: {"autoencoder": params, "vectors": codebooks (networks/residual_vq.py), "encoder": params, "prior": params,
"batch_stats", "normaliser", "task_embedding"} as in policies/imitator.py.

Letters: B rows, N observations, C = N + 1 context tokens, D width, Q codebooks (K of the interface), V codes of each,
T actions per chunk, A action size, L size of a latent.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cso_jax import objectives
from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.apply import apply
from cso_jax.networks.augment import mix_dimensions
from cso_jax.networks.residual_vq import empty_codebooks, followed, lookup, quantise, rotated, started, straight_through
from cso_jax.policies.imitator import Inputs, augmented
from cso_jax.policies.interface import Decision, Loss, Rows, Sampling, Variables, Wants
from cso_jax.policies.observations import fit_normaliser, identity_normaliser, normalise
from cso_jax.policies.quest.prior import Sample, entropy_of, log_prob_of
from cso_jax.policies.residual_networks import ChunkAutoencoder, CodePrior, HistoryEncoder
from cso_jax.precision import exact

STAGES = ("demos", "codebook", "reference", "imitation", "rsft", "spo")


def focal(log_prob: jax.Array, gamma: float) -> jax.Array:
    """-(1 - p)^gamma log p (Lin et al. 2017, Eq. 4) of log-probabilities of any shape."""
    if gamma == 0.0:
        return -log_prob
    # A power's gradient at a base of exactly 0, where p is 1, would be infinite times 0.
    return -(jnp.maximum(-jnp.expm1(log_prob), 1e-7) ** gamma) * log_prob


@dataclasses.dataclass(frozen=True)
class ResidualSkillPolicy:
    """Networks and the weights of their losses. Satisfies `SkillPolicy`."""

    autoencoder: ChunkAutoencoder
    encoder: HistoryEncoder
    prior: CodePrior
    inputs: Inputs
    rotation: bool  # the gradient through the codebooks: by the rotation trick, or straight through
    decay: float
    commit: float
    focal_weights: tuple[float, ...]
    focal_gamma: float
    offset_weight: float

    @property
    def wants(self) -> Wants:
        return Wants(
            self.autoencoder.chunk_length, history=self.inputs.history, target="skill", chunk_in=("imitation", "rsft")
        )

    @property
    def codes(self) -> int:
        return self.prior.codes

    @property
    def codebook_parts(self) -> tuple[str, ...]:
        return ("autoencoder", "vectors")

    def trained_parts(self, stage: str, config: ConfigDict) -> tuple[str, ...]:
        """As the cascade's own policy: SPO leaves the encoder frozen unless it is asked not to. Raises KeyError."""
        encoder = () if config.spo.freeze_encoder else ("encoder",)
        return {
            "codebook": ("autoencoder",),
            "imitation": ("encoder", "prior"),
            "rsft": ("encoder", "prior"),
            "spo": (*encoder, "prior"),
        }[stage]

    def init(self, key: jax.Array, spec: EnvSpec, task_embedding: np.ndarray | None = None) -> Variables:
        """Fresh variables; codebooks and normaliser are set by what they first see."""
        if task_embedding is not None:
            chex.assert_shape(task_embedding, (None, self.inputs.task_dim))
        keys = jax.random.split(key, 3)
        observation = self.inputs.placeholders(2)
        chunk = jnp.zeros((2, self.autoencoder.chunk_length, self.autoencoder.action_dim))
        codes = jnp.zeros((2, self.prior.books), jnp.int32)

        @jax.jit
        def create(keys):
            encoder = self.encoder.init(keys[1], observation, train=False)
            context = apply(self.encoder, encoder, observation, train=False)
            row_keys = jax.random.split(keys[2], 2)
            return {
                "autoencoder": self.autoencoder.init(keys[0], chunk)["params"],
                "vectors": empty_codebooks(self.prior.books, self.prior.codes, self.autoencoder.size),
                "encoder": encoder["params"],
                "prior": self.prior.init(keys[2], context, codes, row_keys, deterministic=True)["params"],
                "batch_stats": encoder.get("batch_stats", {}),
            }

        variables = create(keys) | {"normaliser": identity_normaliser(spec.lowdim)}
        if task_embedding is not None:
            variables["task_embedding"] = jnp.asarray(task_embedding, jnp.float32)
        return variables

    def prepare(self, variables: Variables, lowdim: dict[str, np.ndarray], config: ConfigDict) -> Variables:
        """The normaliser fitted to the demonstrations, whatever `config.encoder.normalise` says of other policies."""
        flat = {name: value.reshape(-1, value.shape[-1]) for name, value in lowdim.items()}
        return variables | {"normaliser": fit_normaliser(flat)}

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
        """Reconstruction and commitment; the codebooks move with the batch. The metrics hold `codes` `[B, Q]` too."""
        chunk = batch["chunk"]
        if mixed_share:
            chunk = mix_dimensions(jax.random.fold_in(key, 1), chunk, share=mixed_share)
        params = {"params": trainable["autoencoder"]}
        latents = apply(self.autoencoder, params, chunk, method="encode")
        still = jax.lax.stop_gradient(latents)
        books = started(fixed["vectors"], still, key)
        codes, residuals, chosen = quantise(still, books["embedding"])
        quantised = jnp.sum(chosen, axis=1)
        passed = rotated(latents, quantised) if self.rotation else straight_through(latents, quantised)
        decoded = apply(self.autoencoder, params, passed, method="decode")
        loss = objectives.reconstruction_l1(decoded, chunk, weight)
        if squared_weight:
            loss += squared_weight * objectives.reconstruction_l2(decoded, chunk, weight)
        # What a codebook was given still hangs on the latents; what those before it took away does not.
        before = jnp.cumsum(chosen, axis=1) - chosen
        commitment = jnp.sum(jnp.mean((latents[:, None] - before - chosen) ** 2, axis=(0, 2)))
        changed = {"vectors": followed(books, codes, residuals, self.decay)}
        return Loss(loss + self.commit * commitment, changed, {"codes": codes, "commitment": commitment})

    def loss(
        self, trainable: Variables, fixed: Variables, batch: Rows, key: jax.Array, *, augment_images: bool
    ) -> Loss:
        """The focal loss of `skill` `[B, Q]`, and the offset's where there is `chunk` `[B, T, A]`."""
        observation = _without_targets(batch)
        keys = jax.random.split(key, 4)
        if augment_images:
            observation = augmented(keys[0], observation, self.inputs)
        context, mutated = apply(
            self.encoder,
            {"params": trainable["encoder"], "batch_stats": fixed["batch_stats"]},
            normalise(fixed, observation),
            train=True,
            mutable=["batch_stats"],
        )
        row_keys = jax.random.split(keys[2], context.shape[0])
        logits, drawn, offset = apply(
            self.prior, {"params": trainable["prior"]}, context, batch["skill"], row_keys,
            deterministic=False, rngs={"dropout": keys[1]},
        )  # fmt: skip
        value, metrics = self._losses({**fixed, **trainable}, logits, batch, drawn, offset)
        return Loss(value, {"batch_stats": mutated.get("batch_stats", {})}, metrics)

    def held_out_loss(self, variables: Variables, batch: Rows) -> jax.Array:
        """The same without dropout, augmentation or update: for validation."""
        context = self.encode(variables, _without_targets(batch))
        keys = jax.random.split(jax.random.key(0), context.shape[0])
        logits, drawn, offset = apply(
            self.prior, {"params": variables["prior"]}, context, batch["skill"], keys, deterministic=True
        )
        return self._losses(variables, logits, batch, drawn, offset)[0]

    def _losses(
        self, variables: Variables, logits: jax.Array, batch: Rows, drawn: jax.Array, offset: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        log_prob = log_prob_of(logits, batch["skill"])
        weights = jnp.asarray(self.focal_weights)
        value = jnp.sum(weights * jnp.mean(focal(log_prob, self.focal_gamma), axis=0))
        metrics = {"token_accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["skill"])}
        if "chunk" not in batch:
            return value, metrics
        decoded = jax.lax.stop_gradient(self.decode(variables, drawn))
        error = objectives.reconstruction_l1(decoded + offset, batch["chunk"])
        return value + self.offset_weight * error, metrics | {"offset_error": error}

    # ------------------------------------------------------------------------------------------- acting and scoring

    @exact
    def tokenise(self, variables: Variables, chunks: jax.Array) -> jax.Array:
        """Codes `[B, Q]` of chunks `[B, T, A]`."""
        latents = apply(self.autoencoder, {"params": variables["autoencoder"]}, chunks, method="encode")
        return quantise(latents, jnp.asarray(variables["vectors"]["embedding"]))[0]

    @exact
    def decode(self, variables: Variables, skills: jax.Array) -> jax.Array:
        """Chunks `[B, T, A]` of codes `[B, Q]`, without an offset."""
        latents = lookup(jnp.asarray(variables["vectors"]["embedding"]), skills)
        return apply(self.autoencoder, {"params": variables["autoencoder"]}, latents, method="decode")

    @exact
    def encode(self, variables: Variables, observation: Rows) -> jax.Array:
        """Context `[B, C, D]` of observations."""
        return apply(
            self.encoder,
            {"params": variables["encoder"], "batch_stats": variables["batch_stats"]},
            normalise(variables, observation),
            train=False,
        )

    @exact
    def sample(self, variables: Variables, context: jax.Array, keys: jax.Array, sampling: Sampling) -> Sample:
        """Codes for every row, and the log-probabilities of the distributions that they were drawn from."""
        return apply(
            self.prior, {"params": variables["prior"]}, context, keys,
            temperature=sampling.temperature, top_k=sampling.top_k, method="sample",
        )  # fmt: skip

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
        """Log-probabilities and entropies `[B, Q]` of given codes under the sampling policy."""
        chex.assert_rank([context, skills], [3, 2])
        logits = apply(self.prior, {"params": variables["prior"]}, context, skills, method="teacher_forced")
        return (
            log_prob_of(logits, skills, temperature=temperature, support=support),
            entropy_of(logits, temperature=temperature, support=support),
        )

    @exact
    def _offset(self, variables: Variables, context: jax.Array, skills: jax.Array) -> jax.Array:
        return apply(self.prior, {"params": variables["prior"]}, context, skills, method="offset")

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
        """Observe, draw codes, decode them and add the offset."""
        keys = jax.vmap(jax.random.fold_in)(episode_keys, decision_index)
        context = self.encode(variables, observation)
        drawn = self.sample(variables, context, keys, sampling)
        chunk = self.decode(variables, drawn.tokens) + self._offset(variables, context, drawn.tokens)
        return Decision(chunk[:, :execution_horizon], drawn.tokens, drawn.log_prob, drawn.support, context)


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the section `config.policy`, one line each."""
    own = config.policy
    found = []
    if config.execution_horizon > own.chunk_length:
        found.append(
            f"config.execution_horizon is {config.execution_horizon}, but a chunk has {own.chunk_length} actions"
        )
    if len(own.focal_weights) != own.books:
        found.append(
            f"config.policy.focal_weights must have one weight for each of config.policy.books = {own.books}; "
            f"got {tuple(own.focal_weights)}"
        )
    if own.width % own.heads:
        found.append(f"config.policy.width is {own.width}, not a multiple of config.policy.heads = {own.heads}")
    if not 0.0 <= own.decay < 1.0:
        found.append(f"config.policy.decay must be in [0, 1); got {own.decay}")
    return found


def build(
    config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int, *, rotation: bool, sequential: bool
) -> ResidualSkillPolicy:
    """The policy of `config.policy`; its cameras and states are read as `config.encoder` says."""
    own = config.policy
    inputs = Inputs.of(spec, num_tasks, embedding_dim, own.history)
    return ResidualSkillPolicy(
        autoencoder=ChunkAutoencoder(own.chunk_length, spec.action_dim, tuple(own.autoencoder_hidden), own.latent),
        encoder=HistoryEncoder(
            inputs,
            own.width,
            config.encoder.image_width,
            tuple(config.encoder.lowdim_hidden),
            config.encoder.norm,
            config.encoder.trunk,
        ),
        prior=CodePrior(
            books=own.books,
            codes=own.codes,
            chunk_length=own.chunk_length,
            action_dim=spec.action_dim,
            width=own.width,
            layers=own.layers,
            heads=own.heads,
            out=own.out,
            hidden=tuple(own.hidden),
            dropout=own.dropout,
            sequential=sequential,
            context=own.history + 1,
        ),
        inputs=inputs,
        rotation=rotation,
        decay=own.decay,
        commit=own.commit,
        focal_weights=tuple(own.focal_weights),
        focal_gamma=own.focal_gamma,
        offset_weight=own.offset_weight,
    )


def _without_targets(batch: Rows) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("skill", "chunk")}
