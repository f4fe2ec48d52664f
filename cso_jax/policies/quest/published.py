"""How the tensors of a published QueST policy correspond to the parameters of this package's networks.

The published model is PyTorch's: a Linear stores `[out, in]` where flax stores `[in, out]`, convolutions have their
channels first, and the modules have other names. Nothing is left to chance: every tensor of the checkpoint is either
copied to one parameter or a constant that is compared with what the networks compute themselves.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies.interface import Variables
from cso_jax.policies.quest.policy import QuestPolicy

_SHOWN = 20

# From the path of a flax leaf, "part/module/.../leaf", to the tensor's name; each rule in turn.
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^batch_stats/", "encoder/"),
        (r"^encoder/image_([^/]+)/trunk/conv1/", r"image_encoders/\1/resnet18_base/0/"),
        (r"^encoder/image_([^/]+)/trunk/bn1/", r"image_encoders/\1/resnet18_base/1/"),
        (r"^encoder/image_([^/]+)/trunk/", r"image_encoders/\1/"),
        (r"^encoder/image_([^/]+)/spatial_conv/", r"image_encoders/\1/projection_layer/spatial_softmax/_spatial_conv/"),
        (r"^encoder/image_([^/]+)/projection/", r"image_encoders/\1/projection_layer/projection/"),
        (r"^encoder/lowdim_([^/]+)/projection/", r"lowdim_encoders/\1/projection/0/"),
        (r"^encoder/", ""),
        (r"/downsample_conv/", "/downsample/0/"),
        (r"/downsample_bn/", "/downsample/1/"),
        (r"^autoencoder/project_(in|out)/", r"autoencoder/vq/project_\1/"),
        (r"^autoencoder/conv_blocks_(\d+)/conv/", r"autoencoder/conv_block/blocks/\1/block/0/conv/"),
        (r"^autoencoder/conv_blocks_(\d+)/norm/", r"autoencoder/conv_block/blocks/\1/block/2/"),
        (r"^autoencoder/(encoder|decoder)_(\d+)/", r"autoencoder/\1/layers/\2/"),
        (r"^prior/blocks_(\d+)/", r"policy_prior/decoder/layers/\1/"),
        (r"^prior/", "policy_prior/"),
        (r"/feed_forward/", "/"),
        (r"/cross_attn/", "/multihead_attn/"),
        (r"/in_proj_kernel$", "/in_proj_weight"),
        (r"/(kernel|scale)$", "/weight"),
        (r"/tok_emb$", "/tok_emb/weight"),
        (r"/mean$", "/running_mean"),
        (r"/var$", "/running_var"),
    )
)


class QuestError(ValueError):
    """The checkpoint is not a QueST policy that these networks can hold; the message lists what differs."""


class Parameter(NamedTuple):
    """One parameter: where it lives in `Variables`, what the checkpoint calls it, and its shape there."""

    path: tuple[str, ...]
    tensor: str
    shape: tuple[int, ...]


def parameters(networks: QuestPolicy, spec: EnvSpec) -> list[Parameter]:
    """Every parameter and running statistic of the networks, with the name and shape of its tensor."""
    table = None if networks.encoder.task_kind == "id" else np.zeros((1, networks.encoder.task_dim), np.float32)
    expected = jax.eval_shape(lambda: networks.init(jax.random.key(0), spec, table))
    parts = {part: expected[part] for part in ("autoencoder", "encoder", "batch_stats", "prior")}
    found = []
    for path, leaf in traverse_util.flatten_dict(parts).items():
        found.append(Parameter(path, _tensor_name(path), _tensor_shape(path, leaf.shape)))
    return found


def convert(
    tensors: Mapping[str, np.ndarray], networks: QuestPolicy, spec: EnvSpec, task_embedding: np.ndarray
) -> Variables:
    """The variables of `networks` from the tensors of a checkpoint, in the order of its file.

    Args:
      tensors: name -> array. The order matters: the published model concatenates its encoders in the order in which
        they were declared, which the checkpoint records only so.
      task_embedding: `[N, E]` float32 vectors of the tasks' sentences, kept with the variables.

    Raises QuestError with every tensor that is missing, unexpected, of another shape or type, not finite, or a
    constant with another value.
    """
    wanted = parameters(networks, spec)
    constants = _constants(networks)
    raise_problems(
        [
            *_differences({name: array.shape for name, array in tensors.items()}, wanted, constants),
            *_bad_values(tensors, wanted, constants),
        ]
    )
    flat = {
        parameter.path: _to_flax(parameter.path, tensors[parameter.tensor].astype(np.float32)) for parameter in wanted
    }
    projection = ("encoder", "obs_proj", "kernel")
    flat[projection] = flat[projection][_concatenated_rows(list(tensors), networks)]
    variables: Variables = traverse_util.unflatten_dict(flat)
    variables["normaliser"] = {
        name: {"mean": np.zeros(size, np.float32), "std": np.ones(size, np.float32)}
        for name, size in spec.lowdim.items()
    }
    variables["task_embedding"] = np.asarray(task_embedding, np.float32)
    return variables


def encoder_names(tensors: Iterable[str], kind: str) -> tuple[str, ...]:
    """The observation keys that have an encoder of a kind ("image" or "lowdim"), in the order of the file."""
    pattern = re.compile(rf"{kind}_encoders\.([^.]+)\.")
    return tuple(dict.fromkeys(match[1] for name in tensors if (match := pattern.match(name))))


def raise_problems(problems: list[str]) -> None:
    """Raises QuestError with all problems, the first 20 in full; returns where there is none."""
    if not problems:
        return
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    lines = "\n".join("  " + line for line in [*problems[:_SHOWN], *more])
    raise QuestError(f"the checkpoint is not a QueST policy of this architecture:\n{lines}")


def _tensor_name(path: tuple[str, ...]) -> str:
    name = "/".join(path)
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name.replace("/", ".")


def _tensor_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] not in ("kernel", "in_proj_kernel"):
        return shape
    if path[-2] == "spatial_conv":  # a 1x1 convolution, held as a matrix
        return (*shape[::-1], 1, 1)
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return (outputs, inputs, height, width)
    return shape[::-1]


def _to_flax(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if path[-1] not in ("kernel", "in_proj_kernel"):
        return array
    if path[-2] == "spatial_conv":
        return np.ascontiguousarray(array[:, :, 0, 0].T)
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose())


def _constants(networks: QuestPolicy) -> dict[str, np.ndarray]:
    """Constants that the published model stores beside its parameters, as the networks compute them.

    The coordinate called x varies along the rows.
    """

    def frequencies(width: int) -> np.ndarray:
        return 10000.0 ** -(np.arange(0, width, 2) / width)

    constants = {
        "autoencoder.add_positional_emb.penc.inv_freq": frequencies(networks.autoencoder.width),
        "autoencoder.fixed_positional_emb.inv_freq": frequencies(networks.autoencoder.width),
        "policy_prior.add_positional_emb.penc.inv_freq": frequencies(networks.prior.width),
    }
    for name, (height, width, _) in networks.encoder.images:
        rows, columns = np.meshgrid(np.linspace(-1, 1, height // 8), np.linspace(-1, 1, width // 8), indexing="ij")
        place = f"image_encoders.{name}.projection_layer.spatial_softmax"
        constants[f"{place}.pos_x"] = rows.reshape(1, -1)
        constants[f"{place}.pos_y"] = columns.reshape(1, -1)
    return constants


def _counters(wanted: list[Parameter]) -> set[str]:
    """How many batches each normalisation has seen: its momentum is fixed, so nothing depends on it."""
    means = [parameter.tensor for parameter in wanted if parameter.tensor.endswith(".running_mean")]
    return {name.removesuffix("running_mean") + "num_batches_tracked" for name in means}


def _differences(
    shapes: Mapping[str, tuple[int, ...]], wanted: list[Parameter], constants: Mapping[str, np.ndarray]
) -> Iterator[str]:
    expected = {parameter.tensor: parameter.shape for parameter in wanted}
    expected |= {name: values.shape for name, values in constants.items()}
    expected |= dict.fromkeys(_counters(wanted), ())
    yield from (f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - shapes.keys()))
    yield from (f"unexpected {name} {list(shapes[name])}" for name in sorted(shapes.keys() - expected.keys()))
    for name in sorted(expected.keys() & shapes.keys()):
        if shapes[name] != expected[name]:
            yield f"{name} has shape {list(shapes[name])}, expected {list(expected[name])}"


def _bad_values(
    tensors: Mapping[str, np.ndarray], wanted: list[Parameter], constants: Mapping[str, np.ndarray]
) -> Iterator[str]:
    for name in (parameter.tensor for parameter in wanted if parameter.tensor in tensors):
        if tensors[name].dtype.kind != "f":
            yield f"{name} holds {tensors[name].dtype}, expected floating-point numbers"
        elif not np.isfinite(tensors[name]).all():
            yield f"{name} holds values that are not finite"
    for name, values in constants.items():
        found = tensors.get(name)
        if found is not None and found.shape == values.shape and not np.allclose(found, values, rtol=1e-5, atol=1e-6):
            yield f"{name} holds other values than the networks compute (difference {abs(found - values).max():.2g})"


def _concatenated_rows(names: list[str], networks: QuestPolicy) -> np.ndarray:
    """For each row of this package's `obs_proj` kernel, the row of the published one.

    Both project the concatenation of all encoders, images first; the published order is that of the declaration, here
    each kind is in alphabetical order.
    """
    encoder = networks.encoder
    published = [("image", name, encoder.image_width) for name in encoder_names(names, "image")]
    published += [("lowdim", name, encoder.lowdim_width) for name in encoder_names(names, "lowdim")]
    rows: dict[tuple[str, str], np.ndarray] = {}
    start = 0
    for kind, name, size in published:
        rows[kind, name] = np.arange(start, start + size)
        start += size
    ours: list[tuple[str, Any]] = [("image", name) for name, _ in encoder.images]
    ours += [("lowdim", name) for name, _ in encoder.lowdim]
    return np.concatenate([rows[key] for key in ours])
