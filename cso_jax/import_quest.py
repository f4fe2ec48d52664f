"""Import a published PyTorch checkpoint of QueST or RIPT as a run that goes on at R-SFT:

    python -m cso_jax.import_quest FILE.pth OUT --task-embeddings=FILE [--suite=libero_10]
        [--config=configs/libero_long.py] [--config.key=value ...]

OUT becomes the workdir of a run whose codebook and imitation stages are finished. The sizes of the networks are those
of the checkpoint; everything else is the config's. PyTorch is not needed, and nothing in the checkpoint is run.

A policy reads one vector per task: CLIP's text features of the task's sentence. The checkpoint does not hold them, so
`--task-embeddings` says where they are (`.npz` or `.npy`; `python -m cso_jax.data language` makes them).
"""

import hashlib
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import config as configs
from cso_jax import envs, learner, telemetry
from cso_jax.checkpoints import Checkpoints
from cso_jax.cli import device_problem, fail, first_line, no_write, run_command
from cso_jax.data.language import embeddings
from cso_jax.files import atomic_write_text
from cso_jax.interop.torch_files import Tensor, TorchFile, TorchFileError
from cso_jax.policies.quest.policy import QuestPolicy, build
from cso_jax.policies.quest.published import QuestError, convert, encoder_names, raise_problems
from cso_jax.stages.fitting import optimiser_of

USAGE = (
    "python -m cso_jax.import_quest FILE.pth OUT --task-embeddings=FILE [--suite=libero_10] "
    "[--config=configs/libero_long.py] [--config.key=value ...]"
)
_SUITE = "libero_10"
_PREFIX = "module."  # of models that were trained on several devices
_NO_EMBEDDINGS = (
    "--task-embeddings=FILE is missing: a QueST policy reads CLIP's text features (ViT-B/32, 512 numbers) of each "
    "task's sentence, which no checkpoint holds; make them with: python -m cso_jax.data language TASKS OUT.npz "
    "--model=clip --weights=FOLDER"
)

# The levels that QueST derives from a codebook size; a checkpoint's shapes tell their product and number.
_LEVELS = ((5, 3), (8, 8), (8, 6, 5), (8, 8, 8), (8, 5, 5, 5), (8, 8, 6, 5), (7, 5, 5, 5, 5))

# What no shape tells, by its place in config["algo"] of the checkpoint, with the published value.
_PUBLISHED = {
    "policy.autoencoder.encoder_heads": 4,
    "policy.autoencoder.decoder_heads": 4,
    "policy.autoencoder.skill_block_size": 32,
    "policy.policy_prior.n_head": 6,
}
# Choices that these networks have made.
_REQUIRED = {
    "policy.autoencoder.vq_type": "fsq",
    "policy.autoencoder.use_causal_encoder": True,
    "policy.autoencoder.use_causal_decoder": True,
    "policy.obs_reduction": "cat",
    "policy.image_encoder_factory.pretrained": False,  # would normalise colours
    "policy.image_encoder_factory.no_stride": False,
    "policy.image_encoder_factory.language_fusion": "none",
    "frame_stack": 1,
}
# What shapes or the run's config decide, by its place in the checkpoint's config: a difference is worth a warning.
_STATED = {
    "autoencoder.width": "policy.autoencoder.encoder_dim",
    "autoencoder.encoder_layers": "policy.autoencoder.encoder_layers",
    "autoencoder.decoder_layers": "policy.autoencoder.decoder_layers",
    "prior.width": "policy.policy_prior.n_embd",
    "prior.layers": "policy.policy_prior.n_layer",
    "sampling.top_k": "policy.policy_prior.beam_size",
    "sampling.temperature": "policy.policy_prior.temperature",
    "execution_horizon": "policy.action_horizon",
}


class Source(NamedTuple):
    """What a checkpoint file holds: its tensors in the order of the file, and its `config["algo"]`, {} if none."""

    tensors: dict[str, np.ndarray]
    algo: dict[str, Any]


def read(path: Path) -> Source:
    """The policy of a `.pth` file: its own names, without the prefix of a model on several devices.

    Raises TorchFileError for a file that cannot be read, QuestError for one without a trained policy, OSError where
    it cannot be opened.
    """
    with TorchFile(path) as file:
        contents = file.contents
        model = contents.get("model") if isinstance(contents, dict) else None
        if not isinstance(model, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items()
        ):
            found = f"the keys {', '.join(map(str, contents))}"[:200] if isinstance(contents, dict) else "no dictionary"
            raise QuestError(f"{path} holds {found}; a QueST checkpoint has the policy's tensors under the key 'model'")
        if contents.get("stage", 1) == 0:
            raise QuestError(f"{path} was saved in QueST's first stage: only its autoencoder is trained, not its prior")
        prefix = _PREFIX if all(name.startswith(_PREFIX) for name in model) else ""
        tensors = {name.removeprefix(prefix): file.array(tensor) for name, tensor in model.items()}
        return Source(tensors, dict(_at(contents, "config.algo") or {}))


def architecture(source: Source) -> dict[str, Any]:
    """The config values, `{"prior.width": 384, ...}`, that build the checkpoint's networks.

    Sizes are read from the shapes. What no shape tells is read from the checkpoint's own config where it has one, and
    is the published value otherwise. Raises QuestError, all problems at once, for a policy of another kind.
    """
    _check_kind(source)
    shapes = {name: array.shape for name, array in source.tensors.items()}
    hidden = {name: _at(source.algo, name, value) for name, value in _PUBLISHED.items()}
    if hidden["policy.autoencoder.encoder_heads"] != hidden["policy.autoencoder.decoder_heads"]:
        raise QuestError("the checkpoint's autoencoder has other numbers of heads in its encoder and its decoder")
    blocks = _count(shapes, "autoencoder.conv_block.blocks.")
    kernels = tuple(_size(shapes, f"autoencoder.conv_block.blocks.{i}.block.0.conv.weight", 2) for i in range(blocks))
    cameras, inputs = encoder_names(shapes, "image"), encoder_names(shapes, "lowdim")
    projections = [f"image_encoders.{name}.projection_layer" for name in cameras]
    cells = {_size(shapes, f"{place}.spatial_softmax.pos_x", 1) for place in projections}
    image_widths = {_size(shapes, f"{place}.projection.weight", 0) for place in projections}
    lowdim_widths = {_size(shapes, f"lowdim_encoders.{name}.projection.0.weight", 0) for name in inputs}
    return {
        "autoencoder.chunk_length": hidden["policy.autoencoder.skill_block_size"],
        "autoencoder.levels": _levels(source, shapes),
        "autoencoder.width": _size(shapes, "autoencoder.action_proj.weight", 0),
        "autoencoder.encoder_layers": _count(shapes, "autoencoder.encoder.layers."),
        "autoencoder.decoder_layers": _count(shapes, "autoencoder.decoder.layers."),
        "autoencoder.heads": hidden["policy.autoencoder.encoder_heads"],
        "autoencoder.kernels": kernels,
        # QueST halves the time in every block but the last, unless it has the two kernels of "no shortening".
        "autoencoder.strides": (1, 1) if kernels == (3, 2) else (2,) * (blocks - 1) + (1,),
        "encoder.image_width": _only(image_widths, "width of image encoders"),
        "encoder.lowdim_width": _only(lowdim_widths, "width of low-dimensional encoders"),
        "encoder.lowdim_hidden": (),
        "prior.head": "flat",
        "prior.guide": (),
        "encoder.task_in_lowdim": False,
        "encoder.lowdim_together": False,
        "encoder.norm": "batch",
        "encoder.normalise": False,
        "prior.width": _size(shapes, "policy_prior.lnf.weight", 0),
        "prior.layers": _count(shapes, "policy_prior.decoder.layers."),
        "prior.heads": hidden["policy.policy_prior.n_head"],
        "env.image_size": 8 * math.isqrt(_only(cells, "image size")),
    }


def run_config(path: Path, overrides: list[tuple[str, str]], source: Source) -> tuple[ConfigDict, list[str]]:
    """The config of the imported run, and the arguments with which `cso_jax.main` reads the same from `path`.

    Raises ConfigError as `config.load` does, QuestError as `architecture` does.
    """
    values = architecture(source)
    reads_hand = "ee_pos" in encoder_names(source.tensors, "lowdim")
    values["env.libero.proprio"] = "joints_ee" if reads_hand else "joints"
    values["reference.enabled"] = False  # it would need the demonstrations that the checkpoint was trained on
    plain = configs.flatten(configs.load(path, overrides))
    changed = [(key, _text(value)) for key, value in values.items() if key in plain and plain[key] != value]
    config = configs.load(path, [*overrides, *changed])
    if config.encoder.task_embedding == "id":
        raise configs.ConfigError(_NO_EMBEDDINGS)
    used = configs.flatten(config)
    for key, place in _STATED.items():
        stated = _at(source.algo, place, used[key])
        if stated != used[key]:
            telemetry.warn(f"the checkpoint's config has {place} = {stated}; this run uses config.{key} = {used[key]}")
    return config, [f"--config={path}", *(f"--config.{key}={text}" for key, text in [*overrides, *changed])]


def import_checkpoint(file: Path, out: Path, config_path: Path, overrides: list[tuple[str, str]]) -> str:
    """Make `out` the workdir of a run with the policy of `file`; what was done, in one line.

    Raises QuestError, TorchFileError, ConfigError or OSError before anything is written.
    """
    if out.exists():
        raise QuestError(f"{out} is there already and is not overwritten; name a new folder")
    source = read(file)
    config, arguments = run_config(config_path, overrides, source)
    settings = config.env.to_dict()
    try:
        tasks = envs.task_names(settings)
        sentences = [envs.sentence(settings, task) for task in tasks]
        spec = envs.spec(settings)
        embedding = embeddings.task_embeddings(
            config.encoder.task_embedding, tasks, sentences, file=config.encoder.task_embedding_file
        )
    except (ValueError, ImportError, FileNotFoundError, embeddings.LanguageError) as error:
        raise configs.ConfigError(str(error)) from None
    _check_inputs(source, spec.images, spec.lowdim, spec.action_dim, embedding)
    networks = build(config, spec, len(tasks), embedding.shape[1])
    variables = convert(source.tensors, networks, spec, embedding)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    partial = out.with_name(f".{out.name}.{os.getpid()}.importing")
    try:
        partial.mkdir(parents=True)
        write_stages(partial, config, networks, variables, {"imported": file.name, "sha256": digest})
        embeddings.save(partial / "task_embedding.npz", tasks, embedding)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # is there no more, unless something went wrong
    count = sum(np.size(leaf) for part in ("autoencoder", "encoder", "prior") for leaf in _leaves(variables[part]))
    return (
        f"{file}: QueST policy of {count:,} parameters imported into {out}; go on with: "
        f"python -m cso_jax.main {shlex.join(arguments)} {shlex.quote(f'--workdir={out}')}"
    )


def write_stages(
    workdir: Path, config: ConfigDict, networks: QuestPolicy, variables: dict[str, Any], origin: dict[str, Any]
) -> None:
    """Write `variables` as the finished stages codebook and imitation of a run would have left them.

    `origin` is kept with both checkpoints. How often each code is used is not known without demonstrations.
    """
    for stage in ("codebook", "imitation"):
        settings, parts = config[stage], networks.trained_parts(stage, config)
        state = learner.start(variables, parts, optimiser_of(settings, settings.steps)[0])
        checkpoints = Checkpoints(workdir / "checkpoints" / stage)
        checkpoints.save(0, jax.device_get(state), {"stage": stage, "final": True, **origin})
        checkpoints.close()
    atomic_write_text(workdir / "codebook_usage.json", json.dumps({"counts": [], "perplexity": None}))
    atomic_write_text(workdir / "config.json", configs.to_json(config))


def _check_kind(source: Source) -> None:
    """Raises QuestError for a policy that no choice of sizes turns into ours."""
    problems = [
        f"its config has {name} = {_at(source.algo, name)!r}, expected {value!r}"
        for name, value in _REQUIRED.items()
        if _at(source.algo, name, value) != value
    ]
    names = list(source.tensors)
    if "task_encoder.weight" in names and "task_encoder.bias" not in names:
        problems.append("its task encoder is a table of task ids, expected a linear layer of CLIP's text features")
    for kind, declared in (("image", "rgb"), ("lowdim", "lowdim")):
        order = tuple(_at(source.algo, f"policy.shape_meta.observation.{declared}") or encoder_names(names, kind))
        if order != encoder_names(names, kind):
            problems.append(
                f"its config declares the {kind} encoders {order}, its tensors {encoder_names(names, kind)}"
            )
    if names and names == sorted(names):
        problems.append(
            "its tensors are in alphabetical order: the order in which its encoders were declared is lost, so the "
            "columns of obs_proj.weight cannot be told apart; take the file as it was published"
        )
    raise_problems(problems)


def _check_inputs(
    source: Source, images: Mapping[str, Any], lowdim: Mapping[str, int], actions: int, embedding: np.ndarray
) -> None:
    """Raises QuestError where the checkpoint reads or gives something else than the environment."""
    shapes = {name: array.shape for name, array in source.tensors.items()}
    cameras, inputs = encoder_names(shapes, "image"), encoder_names(shapes, "lowdim")
    sizes = {name: _size(shapes, f"lowdim_encoders.{name}.projection.0.weight", 1) for name in sorted(inputs)}
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("images", sorted(cameras), sorted(images)),
        ("low-dimensional inputs", sizes, dict(sorted(lowdim.items()))),
        ("numbers per action", _size(shapes, "autoencoder.action_proj.weight", 1), actions),
        ("numbers per task embedding", _size(shapes, "task_encoder.weight", 1), embedding.shape[1]),
    )
    raise_problems([f"{what}: {has} in the checkpoint, {needs} here" for what, has, needs in pairs if has != needs])


def _levels(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    size, number = _size(shapes, "policy_prior.head.weight", 0), _size(shapes, "autoencoder.vq.project_in.weight", 0)
    stated = _at(source.algo, "policy.autoencoder.fsq_level")
    if stated:
        if math.prod(stated) != size or len(stated) != number:
            raise QuestError(f"the checkpoint's config has the levels {stated}, its tensors have {size} codes")
        return tuple(stated)
    for levels in _LEVELS:
        if math.prod(levels) == size and len(levels) == number:
            return levels
    raise QuestError(f"QueST has no codebook of {size} codes from {number} levels; known are {_LEVELS}")


def _size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int:
    """One size that the architecture follows from. Raises QuestError where the tensor is not there."""
    shape = shapes.get(name, ())
    if len(shape) <= axis:
        raise QuestError(f"the checkpoint is not a QueST policy: {name} is {list(shape) if shape else 'missing'}")
    return shape[axis]


def _count(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many numbered modules there are below a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _only(values: set[int], what: str) -> int:
    if len(values) != 1:
        raise QuestError(f"the checkpoint should have one {what}, it has {sorted(values) or 'none'}")
    return values.pop()


def _at(tree: Any, place: str, default: Any = None) -> Any:
    """The value at "a.b.c" of nested dictionaries."""
    for key in place.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return default
        tree = tree[key]
    return tree


def _text(value: Any) -> str:
    """A config value as it is typed on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _leaves(tree: Any) -> list[Any]:
    return [leaf for value in tree.values() for leaf in _leaves(value)] if isinstance(tree, dict) else [tree]


def _parse(arguments: list[str]) -> tuple[Path, Path, Path, list[tuple[str, str]]]:
    """(checkpoint, new workdir, config file, config overrides). Raises ConfigError."""
    places = [argument for argument in arguments if not argument.startswith("--")]
    options, overrides = configs.split_arguments([argument for argument in arguments if argument.startswith("--")])
    unknown = sorted(options.keys() - {"task-embeddings", "suite", "config"})
    if len(places) != 2 or unknown or {"suite", "config"} <= options.keys():
        raise configs.ConfigError(f"usage: {USAGE}; --suite is short for a config in configs/, so give one of the two")
    suite = options.get("suite", _SUITE)
    suite = "libero_long" if suite == "libero_10" else suite
    if "task-embeddings" in options:
        overrides += [("encoder.task_embedding", "file"), ("encoder.task_embedding_file", options["task-embeddings"])]
    return Path(places[0]), Path(places[1]), Path(options.get("config", f"configs/{suite}.py")), overrides


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 after an error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        telemetry.show(f"usage: {USAGE}")
        return 0
    problem = device_problem()
    if problem:
        return fail(QuestError(problem))
    try:
        telemetry.show(import_checkpoint(*_parse(arguments)))
    except (QuestError, TorchFileError, configs.ConfigError) as error:
        return fail(error)
    except OSError as error:
        return fail(QuestError(f"{error.filename or arguments[0]}: {error.strerror or error}"))
    except Exception as error:  # orbax's own, of a full disk
        if not no_write(error):
            raise
        return fail(QuestError(f"cannot write the run: {first_line(error)}; free some space, or give another OUT"))
    return 0


if __name__ == "__main__":
    run_command(main)
