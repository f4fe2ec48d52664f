"""The published QueST model in plain numpy, on PyTorch's tensor names, and a writer of `.pth` files.

Written from the published description alone; shares no code with cso_jax. float64 throughout, slow on purpose.
"""

import collections
import struct
import zipfile
from typing import NamedTuple

import numpy as np
from scipy import special


class Sizes(NamedTuple):
    """A model's sizes; the defaults are small, `PUBLISHED` is the model for LIBERO."""

    image_keys: tuple = ("agentview_rgb", "eye_in_hand_rgb")
    lowdim: tuple = (("joint_states", 7), ("ee_pos", 3), ("gripper_states", 2))
    image: int = 32
    image_width: int = 16
    lowdim_width: int = 8
    embedding: int = 12
    actions: int = 7
    chunk: int = 32
    width: int = 16
    heads: int = 4
    encoder_layers: int = 1
    decoder_layers: int = 2
    kernels: tuple = (5, 3, 3)
    strides: tuple = (2, 2, 1)
    levels: tuple = (8, 5, 5, 5)
    prior_width: int = 24
    prior_layers: int = 2
    prior_heads: int = 6

    @property
    def tokens(self):
        return self.chunk // int(np.prod(self.strides))


PUBLISHED = Sizes(
    image=128, image_width=256, lowdim_width=128, embedding=512, width=256, encoder_layers=2, decoder_layers=4,
    prior_width=384, prior_layers=6,
)  # fmt: skip


def layout(sizes):
    """(name, shape, kind) of every tensor in the order of the file; kind is "param", "buffer" or "count"."""
    found = []

    def add(name, *shape, kind="param"):
        found.append((name, shape, kind))

    def linear(name, inputs, outputs):
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name, width):
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    def batch_norm(name, width):
        norm(name, width)
        add(f"{name}.running_mean", width, kind="buffer")
        add(f"{name}.running_var", width, kind="buffer")
        add(f"{name}.num_batches_tracked", kind="count")

    def attention(name, width):
        add(f"{name}.in_proj_weight", 3 * width, width)
        add(f"{name}.in_proj_bias", 3 * width)
        linear(f"{name}.out_proj", width, width)

    def layers(name, count, width, cross):
        for i in range(count):
            place = f"{name}.layers.{i}"
            attention(f"{place}.self_attn", width)
            if cross:
                attention(f"{place}.multihead_attn", width)
            linear(f"{place}.linear1", width, 4 * width)
            linear(f"{place}.linear2", 4 * width, width)
            for number in (1, 2, 3) if cross else (1, 2):
                norm(f"{place}.norm{number}", width)

    for key in sizes.image_keys:
        place = f"image_encoders.{key}"
        add(f"{place}.resnet18_base.0.weight", 64, 3, 7, 7)
        batch_norm(f"{place}.resnet18_base.1", 64)
        for block, inputs, outputs in ((1, 64, 64), (2, 64, 64), (3, 64, 128), (4, 128, 128)):
            add(f"{place}.block_{block}.conv1.weight", outputs, inputs, 3, 3)
            batch_norm(f"{place}.block_{block}.bn1", outputs)
            add(f"{place}.block_{block}.conv2.weight", outputs, outputs, 3, 3)
            batch_norm(f"{place}.block_{block}.bn2", outputs)
            if inputs != outputs:
                add(f"{place}.block_{block}.downsample.0.weight", outputs, inputs, 1, 1)
                batch_norm(f"{place}.block_{block}.downsample.1", outputs)
        softmax, maps = f"{place}.projection_layer.spatial_softmax", sizes.image_width // 2
        add(f"{softmax}.pos_x", 1, (sizes.image // 8) ** 2, kind="buffer")
        add(f"{softmax}.pos_y", 1, (sizes.image // 8) ** 2, kind="buffer")
        add(f"{softmax}._spatial_conv.weight", maps, 128, 1, 1)
        add(f"{softmax}._spatial_conv.bias", maps)
        linear(f"{place}.projection_layer.projection", 2 * maps, sizes.image_width)
    for key, size in sizes.lowdim:
        linear(f"lowdim_encoders.{key}.projection.0", size, sizes.lowdim_width)
    encoded = len(sizes.image_keys) * sizes.image_width + len(sizes.lowdim) * sizes.lowdim_width
    linear("obs_proj", encoded, sizes.prior_width)
    linear("task_encoder", sizes.embedding, sizes.prior_width)

    linear("autoencoder.vq.project_in", sizes.width, len(sizes.levels))
    linear("autoencoder.vq.project_out", len(sizes.levels), sizes.width)
    linear("autoencoder.action_proj", sizes.actions, sizes.width)
    linear("autoencoder.action_head", sizes.width, sizes.actions)
    for i, kernel in enumerate(sizes.kernels):
        place = f"autoencoder.conv_block.blocks.{i}.block"
        add(f"{place}.0.conv.weight", sizes.width, sizes.width, kernel)
        add(f"{place}.0.conv.bias", sizes.width)
        norm(f"{place}.2", sizes.width)
    layers("autoencoder.encoder", sizes.encoder_layers, sizes.width, cross=False)
    layers("autoencoder.decoder", sizes.decoder_layers, sizes.width, cross=True)
    add("autoencoder.add_positional_emb.penc.inv_freq", sizes.width // 2, kind="buffer")
    add("autoencoder.fixed_positional_emb.inv_freq", sizes.width // 2, kind="buffer")
    codes = int(np.prod(sizes.levels))
    add("policy_prior.tok_emb.weight", codes + 1, sizes.prior_width)
    add("policy_prior.add_positional_emb.penc.inv_freq", sizes.prior_width // 2, kind="buffer")
    layers("policy_prior.decoder", sizes.prior_layers, sizes.prior_width, cross=False)
    linear("policy_prior.head", sizes.prior_width, codes)
    norm("policy_prior.lnf", sizes.prior_width)
    return found


def state_dict(sizes, seed=0):
    """Random tensors, float32, in the order of the file; no bias is 0 and no scale is 1."""
    generator = np.random.default_rng(seed)
    state = collections.OrderedDict()
    for name, shape, kind in layout(sizes):
        values = generator.normal(size=shape)
        if kind == "count":
            values = np.array(1234, np.int64)
        elif name.endswith("inv_freq"):
            width = 2 * shape[0]
            values = np.array([10000 ** (-2 * i / width) for i in range(shape[0])])
        elif name.endswith(("pos_x", "pos_y")):
            side = sizes.image // 8
            line = np.linspace(-1, 1, side)
            values = np.repeat(line, side) if name.endswith("pos_x") else np.tile(line, side)
            values = values.reshape(shape)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            values = 1 + 0.1 * np.abs(values)
        elif len(shape) > 1 and "tok_emb" not in name:
            values /= np.sqrt(np.prod(shape[1:]))
        elif len(shape) == 1:
            values *= 0.1
        state[name] = values if kind == "count" else values.astype(np.float32)
    return state


def published_config(sizes):
    """What a QueST checkpoint says of itself, as far as it is of interest."""
    autoencoder = {
        "encoder_dim": sizes.width, "decoder_dim": sizes.width, "skill_block_size": sizes.chunk,
        "downsample_factor": sizes.chunk // sizes.tokens, "attn_pdrop": 0.1, "use_causal_encoder": True,
        "use_causal_decoder": True, "encoder_heads": sizes.heads, "encoder_layers": sizes.encoder_layers,
        "decoder_heads": sizes.heads, "decoder_layers": sizes.decoder_layers, "vq_type": "fsq", "fsq_level": None,
        "codebook_size": 1024,
    }  # fmt: skip
    prior = {
        "start_token": 1000, "vocab_size": 1000, "block_size": sizes.tokens, "n_layer": sizes.prior_layers,
        "n_head": sizes.prior_heads, "n_embd": sizes.prior_width, "beam_size": 5, "temperature": 1.0,
    }  # fmt: skip
    observation = {
        "rgb": {key: [3, sizes.image, sizes.image] for key in sizes.image_keys},
        "lowdim": dict(sizes.lowdim),
    }
    policy = {
        "autoencoder": autoencoder, "policy_prior": prior, "obs_reduction": "cat", "action_horizon": 8,
        "shape_meta": {"observation": observation}, "image_encoder_factory": {"pretrained": False, "no_stride": False},
    }  # fmt: skip
    return {"algo": {"policy": policy, "frame_stack": 1, "lr": 1e-4}, "seed": 0}


# --- the file ------------------------------------------------------------------------------------------------------

_STORAGE = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Call(NamedTuple):
    """Something that a pickle calls when it is read."""

    module: str
    name: str
    arguments: tuple


class View(NamedTuple):
    """A tensor that is a part of a storage; offset and strides count elements."""

    storage: np.ndarray
    offset: int
    shape: tuple
    strides: tuple


def pickled(value, storages):
    """`value` as PyTorch pickles it, without the frame; the arrays that it refers to are added to `storages`."""
    if isinstance(value, np.ndarray):
        strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
        return pickled(View(value, 0, value.shape, strides), storages)
    if isinstance(value, View):
        if not any(stored is value.storage for stored in storages):
            storages.append(value.storage)
        key = next(i for i, stored in enumerate(storages) if stored is value.storage)
        kind = b"ctorch\n" + _STORAGE[value.storage.dtype.name].encode() + b"\n"
        place = [pickled(part, storages) for part in ("storage", str(key), "cuda:0", value.storage.size)]
        reference = b"(" + place[0] + kind + b"".join(place[1:]) + b"tQ"
        rest = [value.offset, value.shape, value.strides, False, collections.OrderedDict()]
        arguments = b"(" + reference + b"".join(pickled(part, storages) for part in rest) + b"t"
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    if isinstance(value, Call):
        return f"c{value.module}\n{value.name}\n".encode() + pickled(value.arguments, storages) + b"R"
    if isinstance(value, dict):
        start = b"ccollections\nOrderedDict\n)R" if isinstance(value, collections.OrderedDict) else b"}"
        items = b"".join(pickled(part, storages) for item in value.items() for part in item)
        return start + b"(" + items + b"u"
    if isinstance(value, list | tuple):
        items = b"".join(pickled(part, storages) for part in value)
        return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    return b"J" + struct.pack("<i", value) if isinstance(value, int) else b"G" + struct.pack(">d", value)


def write_pth(path, contents, order="little"):
    """`contents` (containers, numbers, texts, arrays) in the file format of torch.save."""
    storages = []
    data = b"\x80\x02" + pickled(contents, storages) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", order)
        for i, storage in enumerate(storages):
            raw = storage.astype(storage.dtype.newbyteorder("<" if order == "little" else ">"))
            archive.writestr(f"archive/data/{i}", raw.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


# --- the model -----------------------------------------------------------------------------------------------------


class Model:
    """The published model: `encode`, `decode`, `context` and `logits` of single rows."""

    def __init__(self, state, sizes):
        self.state = {name: np.asarray(value, np.float64) for name, value in state.items()}
        self.sizes = sizes

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def layer_norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, name, x, memory, heads, causal):
        width = x.shape[-1]
        weight, bias = self.state[f"{name}.in_proj_weight"], self.state[f"{name}.in_proj_bias"]
        query = x @ weight[:width].T + bias[:width]
        key = memory @ weight[width : 2 * width].T + bias[width : 2 * width]
        value = memory @ weight[2 * width :].T + bias[2 * width :]
        size, mixed = width // heads, []
        for start in range(0, width, size):
            part = slice(start, start + size)
            scores = query[:, part] @ key[:, part].T / np.sqrt(size)
            if causal:
                scores[np.triu_indices(len(x), 1)] = -np.inf
            mixed.append(special.softmax(scores, axis=-1) @ value[:, part])
        return self.linear(f"{name}.out_proj", np.concatenate(mixed, axis=-1))

    def feed_forward(self, name, x):
        hidden = self.linear(f"{name}.linear1", x)
        return self.linear(f"{name}.linear2", hidden * special.ndtr(hidden))

    def layer(self, name, x, heads, memory=None):
        y = self.layer_norm(f"{name}.norm1", x)
        x = x + self.attention(f"{name}.self_attn", y, y, heads, causal=True)
        if memory is not None:
            y = self.layer_norm(f"{name}.norm2", x)
            x = x + self.attention(f"{name}.multihead_attn", y, memory, heads, causal=False)
        return x + self.feed_forward(name, self.layer_norm(f"{name}.norm{2 if memory is None else 3}", x))

    def positions(self, length, frequencies):
        angles = np.arange(length)[:, None] * self.state[frequencies]
        return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)

    def encode(self, actions):
        """Latents `[K, levels]` before and digits after rounding, and the indices `[K]`, of one chunk `[T, A]`."""
        x = self.linear("autoencoder.action_proj", actions)
        for i, stride in enumerate(self.sizes.strides):
            place = f"autoencoder.conv_block.blocks.{i}.block"
            x = self.group_norm(f"{place}.2", self.causal_conv(f"{place}.0.conv", x, stride))
            x = x * np.tanh(np.log1p(np.exp(x)))
        x = x + self.positions(len(x), "autoencoder.add_positional_emb.penc.inv_freq")
        for i in range(self.sizes.encoder_layers):
            x = self.layer(f"autoencoder.encoder.layers.{i}", x, self.sizes.heads)
        levels = np.array(self.sizes.levels)
        half = (levels - 1) * 1.001 / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        latent = self.linear("autoencoder.vq.project_in", x)
        bounded = np.tanh(latent + np.arctanh(offset / half)) * half - offset
        digits = np.round(bounded) + levels // 2
        basis = np.cumprod([1, *self.sizes.levels[:-1]])
        return bounded, (digits * basis).sum(-1).astype(int)

    def decode(self, indices):
        """Actions `[T, A]` of skill tokens `[K]`."""
        digits, rest = [], np.asarray(indices)
        for level in self.sizes.levels:
            digits.append(rest % level)
            rest = rest // level
        half = np.array(self.sizes.levels) // 2
        memory = self.linear("autoencoder.vq.project_out", (np.stack(digits, -1) - half) / half)
        x = self.positions(self.sizes.chunk, "autoencoder.fixed_positional_emb.inv_freq")
        for i in range(self.sizes.decoder_layers):
            x = self.layer(f"autoencoder.decoder.layers.{i}", x, self.sizes.heads, memory)
        return self.linear("autoencoder.action_head", x)

    def causal_conv(self, name, x, stride):
        """Symmetric padding of k - 1, then the last outputs cut off, as the original computes it."""
        weight, size = self.state[f"{name}.weight"], self.state[f"{name}.weight"].shape[2]
        padded = np.pad(x, ((size - 1, size - 1), (0, 0)))
        count = (len(padded) - size) // stride + 1
        out = [np.einsum("ki,oik->o", padded[j * stride : j * stride + size], weight) for j in range(count)]
        cut = (2 * (size - 1) - size) // stride + 1
        return np.stack(out[: count - cut]) + self.state[f"{name}.bias"]

    def group_norm(self, name, x):
        groups = x.T.reshape(8, -1)  # of channels, each with all its times
        groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
        return groups.reshape(x.T.shape).T * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def context(self, images, lowdim, embedding):
        """Two tokens `[2, D]` of images `{key: uint8 [H, W, 3]}`, `{key: [P]}` and a task vector `[E]`."""
        encoded = [self.image(f"image_encoders.{key}", images[key]) for key in self.sizes.image_keys]
        encoded += [self.linear(f"lowdim_encoders.{key}.projection.0", lowdim[key]) for key, _ in self.sizes.lowdim]
        token = self.linear("obs_proj", np.concatenate(encoded))
        return np.stack([self.linear("task_encoder", embedding), token])

    def conv2d(self, name, x, stride):
        weight = self.state[f"{name}.weight"]
        size = weight.shape[-1]
        pad = size // 2
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
        return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True)

    def batch_norm(self, name, x):
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def image(self, name, pixels):
        x = pixels.transpose(2, 0, 1) / 255.0
        x = np.maximum(self.batch_norm(f"{name}.resnet18_base.1", self.conv2d(f"{name}.resnet18_base.0", x, 2)), 0)
        x = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((-1, -2))
        for i, stride in ((1, 1), (2, 1), (3, 2), (4, 1)):
            block = f"{name}.block_{i}"
            y = np.maximum(self.batch_norm(f"{block}.bn1", self.conv2d(f"{block}.conv1", x, stride)), 0)
            y = self.batch_norm(f"{block}.bn2", self.conv2d(f"{block}.conv2", y, 1))
            if stride == 2:
                x = self.batch_norm(f"{block}.downsample.1", self.conv2d(f"{block}.downsample.0", x, 2))
            x = np.maximum(x + y, 0)
        place = f"{name}.projection_layer"
        softmax = f"{place}.spatial_softmax"
        if self.sizes.image_width // 2 != len(x):  # the original skips its convolution where it would change nothing
            x = np.einsum("chw,oc->ohw", x, self.state[f"{softmax}._spatial_conv.weight"][:, :, 0, 0])
            x = x + self.state[f"{softmax}._spatial_conv.bias"][:, None, None]
        attention = special.softmax(x.reshape(len(x), -1), axis=1)
        points = [(attention * self.state[f"{softmax}.pos_{axis}"]).sum(1) for axis in "xy"]
        return self.linear(f"{place}.projection", np.concatenate(points))

    def logits(self, context, tokens):
        """`[K, V]`: what the prior expects at every token, given those before it."""
        embedded = self.state["policy_prior.tok_emb.weight"][[int(np.prod(self.sizes.levels)), *tokens[:-1]]]
        embedded = embedded + self.positions(len(tokens), "policy_prior.add_positional_emb.penc.inv_freq")
        x = np.concatenate([context, embedded])
        for i in range(self.sizes.prior_layers):
            x = self.layer(f"policy_prior.decoder.layers.{i}", x, self.sizes.prior_heads)
        return self.linear("policy_prior.head", self.layer_norm("policy_prior.lnf", x[len(context) :]))
