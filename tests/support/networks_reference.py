"""Plain numpy versions of the networks, written from the published description and sharing no code with cso_jax.

float64 throughout; parameters are the flax trees. Only what the tests need, and slow on purpose.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special


def init(model, *arguments, seed=0, **keywords):
    """Random variables of the model's shapes, without compiling its initialiser; no bias is 0 and no scale is 1."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments, **keywords))
    generator = np.random.default_rng(seed)

    def fill(path, leaf):
        values = generator.normal(size=leaf.shape)
        name = path[-1].key
        if name in ("scale", "var"):
            values = 1 + 0.1 * np.abs(values)
        elif "kernel" in name:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values *= 1.0 if name == "tok_emb" else 0.1
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def apply(model, variables, *arguments, **keywords):
    """`model.apply` in one compiled program; keywords are static."""
    return jax.jit(lambda v, *a: model.apply(v, *a, **keywords))(variables, *arguments)


def tree64(tree):
    return {k: tree64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def layer_norm(p, x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def gelu(x):
    return x * special.ndtr(x)  # x times the normal distribution function


def positions(length, width):
    table = np.zeros((length, width))
    for p in range(length):
        for i in range(width // 2):
            angle = p * 10000 ** (-2 * i / width)
            table[p, 2 * i], table[p, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


def attention(p, x, memory, heads, causal):
    """One batch element and one head at a time: `x [S, D]`, `memory [M, D]`."""
    width = x.shape[-1]
    q_kernel, k_kernel, v_kernel = np.split(p["in_proj_kernel"], 3, axis=1)
    q_bias, k_bias, v_bias = np.split(p["in_proj_bias"], 3)
    q, k, v = x @ q_kernel + q_bias, memory @ k_kernel + k_bias, memory @ v_kernel + v_bias
    out, size = [], width // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / np.sqrt(size)
        if causal:
            scores[np.triu_indices(len(x), 1)] = -np.inf
        out.append(special.softmax(scores, axis=-1) @ v[:, part])
    return linear(p["out_proj"], np.concatenate(out, axis=-1))


def feed_forward(p, x):
    return linear(p["linear2"], gelu(linear(p["linear1"], x)))


def encoder_layer(p, x, heads):
    y = layer_norm(p["norm1"], x)
    x = x + attention(p["self_attn"], y, y, heads, causal=True)
    return x + feed_forward(p["feed_forward"], layer_norm(p["norm2"], x))


def decoder_layer(p, x, memory, heads):
    y = layer_norm(p["norm1"], x)
    x = x + attention(p["self_attn"], y, y, heads, causal=True)
    x = x + attention(p["cross_attn"], layer_norm(p["norm2"], x), memory, heads, causal=False)
    return x + feed_forward(p["feed_forward"], layer_norm(p["norm3"], x))


def causal_conv(p, x, stride):
    kernel, bias = p["kernel"], p["bias"]
    size = len(kernel)
    out = np.tile(bias, (len(x) // stride, 1))
    for j in range(len(out)):
        for i in range(size):
            source = stride * j - (size - 1) + i
            if source >= 0:
                out[j] += x[source] @ kernel[i]
    return out


def group_norm(p, x, groups=8):
    time, width = x.shape
    y = x.reshape(time, groups, width // groups)
    mean = y.mean((0, 2), keepdims=True)
    y = (y - mean) / np.sqrt(((y - mean) ** 2).mean((0, 2), keepdims=True) + 1e-5)
    return y.reshape(time, width) * p["scale"] + p["bias"]


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


def fsq(z, levels):
    """Codes and index of one row at a time."""
    levels = np.asarray(levels)
    half = (levels - 1) * 1.001 / 2
    offset = np.where(levels % 2 == 0, 0.5, 0)
    q = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
    basis = np.concatenate([[1], np.cumprod(levels[:-1])])
    return q / (levels // 2), ((q + levels // 2) * basis).sum(-1).astype(int)


def autoencoder(p, actions, model):
    """One chunk `[T, A]` to (reconstruction, indices, pre-quantisation latents)."""
    x = linear(p["action_proj"], actions)
    for i, stride in enumerate(model.strides):
        block = p[f"conv_blocks_{i}"]
        x = mish(group_norm(block["norm"], causal_conv(block["conv"], x, stride)))
    x = x + positions(*x.shape)
    for i in range(model.encoder_layers):
        x = encoder_layer(p[f"encoder_{i}"], x, model.heads)
    latent = linear(p["project_in"], x)
    codes, indices = fsq(latent, model.levels)
    memory = linear(p["project_out"], codes)
    x = positions(model.chunk_length, model.width)
    for i in range(model.decoder_layers):
        x = decoder_layer(p[f"decoder_{i}"], x, memory, model.heads)
    return linear(p["action_head"], x), indices, latent


def prior(p, context, tokens, model):
    """Logits `[K, V]` of one row."""
    shifted = [model.vocabulary, *tokens[:-1]]
    x = p["tok_emb"][shifted] + positions(model.tokens, model.width)
    x = np.concatenate([context, x])
    for i in range(model.layers):
        x = encoder_layer(p[f"blocks_{i}"], x, model.heads)
    return linear(p["head"], layer_norm(p["lnf"], x[len(context) :]))


def conv2d(kernel, x, stride):
    """`x [B, H, W, C]`, `kernel [k, k, C, O]`, zero padding k // 2."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True)


def max_pool(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2].max((-1, -2))


def batch_norm(p, stats, x, train, new_stats):
    if train:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        new_stats["mean"] = 0.9 * stats["mean"] + 0.1 * mean
        new_stats["var"] = 0.9 * stats["var"] + 0.1 * x.reshape(-1, x.shape[-1]).var(0, ddof=1)
    else:
        mean, var = stats["mean"], stats["var"]
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def image_encoder(p, stats, x, train):
    """(output, updated running statistics)."""
    new = {}

    def norm(params, old, name, y, into):
        into[name] = {}
        return batch_norm(params[name], old[name], y, train, into[name])

    trunk, old = p["trunk"], stats["trunk"]
    x = conv2d(trunk["conv1"]["kernel"], x, 2)
    x = max_pool(np.maximum(norm(trunk, old, "bn1", x, new), 0))
    for i, stride in ((1, 1), (2, 1), (3, 2), (4, 1)):
        block, block_old = trunk[f"block_{i}"], old[f"block_{i}"]
        into = new[f"block_{i}"] = {}
        y = np.maximum(norm(block, block_old, "bn1", conv2d(block["conv1"]["kernel"], x, stride), into), 0)
        y = norm(block, block_old, "bn2", conv2d(block["conv2"]["kernel"], y, 1), into)
        if stride == 2:
            x = conv2d(block["downsample_conv"]["kernel"], x, 2)
            x = norm(block, block_old, "downsample_bn", x, into)
        x = np.maximum(x + y, 0)
    if p["spatial_conv"]["kernel"].shape[0] != p["spatial_conv"]["kernel"].shape[1]:
        x = linear(p["spatial_conv"], x)
    batch, height, width, channels = x.shape
    weights = special.softmax(x.reshape(batch, -1, channels), axis=1).reshape(x.shape)
    first = np.einsum("bhwc,h->bc", weights, np.linspace(-1, 1, height))
    second = np.einsum("bhwc,w->bc", weights, np.linspace(-1, 1, width))
    return linear(p["projection"], np.concatenate([first, second], axis=-1)), {"trunk": new}
