"""`act` of a policy as one program: built from the policy's own code, exported as StableHLO, and read back.

    act(parameters, observation, task, episode_keys, decision_index) -> chunks

Shapes are those of `cso_jax.runtime.serving.ServedPolicy.act`; the number of rows B is free. `parameters` are flat,
`{"encoder/Dense_0/kernel": array, ...}`, as an artifact stores them. An exported program needs nothing but JAX to run.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from cso_jax.runtime.manifest import Manifest

PLATFORMS = ("cpu", "cuda")
Act = Callable[..., jax.Array]


def flatten(variables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their path; dictionaries without any are left out."""
    flat: dict[str, Any] = {}
    for name, value in variables.items():
        flat.update(flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


def unflatten(flat: Mapping[str, Any], like: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries again, with the structure of `like`, empty ones included. Raises KeyError for a lack."""
    return {
        name: unflatten(flat, value, f"{prefix}{name}/") if isinstance(value, Mapping) else flat[prefix + name]
        for name, value in like.items()
    }


def make_act(policy: Any, like: Mapping[str, Any], manifest: Manifest) -> Act:
    """`act` of an `ActingPolicy` whose variables have the structure `like`, drawing as the manifest says."""
    from cso_jax.policies.agent import decide_absolutely
    from cso_jax.policies.interface import Sampling

    sampling = Sampling(manifest.sampling["temperature"], int(manifest.sampling["top_k"]))
    frame = _frame_of(manifest)
    low, high = (np.asarray(bound, np.float32) for bound in (manifest.action.low, manifest.action.high))

    def act(parameters, observation, task, episode_keys, decision_index):
        decision = decide_absolutely(
            policy,
            unflatten(parameters, like),
            {**observation, "task": task},
            episode_keys,
            decision_index,
            sampling=sampling,
            execution_horizon=manifest.action.chunk_length,
            frame=frame,
        )
        if not manifest.action.scaled:
            return decision.actions
        return low + (jnp.clip(decision.actions, -1.0, 1.0) + 1) / 2 * (high - low)

    return act


def _frame_of(manifest: Manifest) -> Any:
    """The `ChunkFrame` that the policy's chunks are in, None for absolute ones."""
    from cso_jax.envs.protocol import ChunkFrame

    return None if manifest.action.frame is None else ChunkFrame(**vars(manifest.action.frame))


def rebuilt_act(config_text: str, parameters: Mapping[str, np.ndarray], manifest: Manifest) -> Act:
    """`act` from the config that the policy was made with and the policy's code: no training code, but flax.

    Raises ImportError where the packages of that code are not installed, ValueError where the parameters are not those
    of the policy that the config builds.
    """
    from cso_jax import config_values, policies
    from cso_jax.envs.protocol import EnvSpec
    from cso_jax.policies import bc

    config = config_values.from_json(config_text)
    spec = EnvSpec(
        lowdim={entry.name: entry.shape[0] for entry in manifest.observation if entry.kind == "lowdim"},
        images={
            entry.name: (entry.shape[0], entry.shape[1], 3) for entry in manifest.observation if entry.kind == "image"
        },
        action_dim=manifest.action.dim,
        frame=_frame_of(manifest),
    )
    vectors = parameters.get("task_embedding")
    size = 0 if vectors is None else vectors.shape[1]
    if manifest.stage == "reference":
        wants = policies.build(config, spec, len(manifest.tasks), size).wants
        policy: Any = bc.of_section(
            config, "reference", wants.chunk_length, spec, len(manifest.tasks), size, history=wants.history
        )
    else:
        policy = policies.build(config, spec, len(manifest.tasks), size)
    like = jax.eval_shape(functools.partial(policy.init, jax.random.key(0), spec, vectors))
    expected = {name: tuple(leaf.shape) for name, leaf in flatten(like).items()}
    found = {name: value.shape for name, value in parameters.items()}
    if expected != found:
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise ValueError(
            f"parameters: {wrong[0]} is {found.get(wrong[0], 'missing')}, the config builds "
            f"{expected.get(wrong[0], 'no such array')}; export the policy again"
        )
    return make_act(policy, like, manifest)


def serialise(act: Act, parameters: Mapping[str, np.ndarray], manifest: Manifest) -> bytes:
    """The program as StableHLO for `PLATFORMS`, for any number of rows; parameters are arguments, not part of it."""
    (rows,) = export.symbolic_shape("b")
    history = (manifest.history,) if manifest.history > 1 else ()
    observation = {
        entry.name: jax.ShapeDtypeStruct((rows, *history, *entry.shape), np.dtype(entry.dtype))
        for entry in manifest.observation
    }
    exported = export.export(jax.jit(act), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in parameters.items()},
        observation,
        jax.ShapeDtypeStruct((rows,), np.int32),
        jax.ShapeDtypeStruct((rows, 2), np.uint32),
        jax.ShapeDtypeStruct((rows,), np.int32),
    )
    return bytes(exported.serialize())


def deserialise(data: bytes) -> Act:
    """`act` of an exported program. Raises ValueError where this JAX does not read or run it."""
    try:
        exported = export.deserialize(bytearray(data))
    except Exception as error:  # flatbuffers and JAX raise many types for what they cannot read
        raise ValueError(f"jax {jax.__version__} does not read it: {type(error).__name__}") from error
    low = export.minimum_supported_calling_convention_version
    high = export.maximum_supported_calling_convention_version
    if not low <= exported.calling_convention_version <= high:
        raise ValueError(
            f"calling convention {exported.calling_convention_version}, jax {jax.__version__} has {low} to {high}"
        )
    backend = jax.default_backend()
    platform = "cuda" if backend == "gpu" else backend
    if platform not in exported.platforms:
        raise ValueError(f"made for {' and '.join(exported.platforms)}, this machine computes on {platform}")
    act: Act = exported.call
    return act
