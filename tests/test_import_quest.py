"""Published checkpoints: every number of the imported policy equals that of the original's formulas; no other file."""

import collections
import hashlib
import re
import shlex

import jax
import numpy as np
import pytest
from support import quest_reference as reference
from support.quest_reference import PUBLISHED, Sizes

from cso_jax import config as configs
from cso_jax import defaults, import_quest
from cso_jax import main as cascade
from cso_jax.cascade import open_run
from cso_jax.checkpoints import Checkpoints
from cso_jax.data.language import embeddings
from cso_jax.envs.protocol import EnvSpec
from cso_jax.import_quest import Source
from cso_jax.policies.quest.policy import QuestPolicy, build
from cso_jax.policies.quest.published import QuestError, convert, parameters

TASKS = ("up", "down", "left")
CONFIG = "from cso_jax import defaults\n\ndef get_config():\n    config = defaults.libero()\n    return config\n"
# What the fake environment shows and takes.
FAKE = Sizes(lowdim=(("state", 4),), actions=2, image_keys=("front", "hand"), encoder_layers=1, decoder_layers=1)
FAKE_CONFIG = """
from cso_jax import defaults

def get_config():
    config = defaults.metaworld()
    config.env.name = "fake"
    config.env.tasks = ("up", "down", "left")
    config.env.cameras = ("front", "hand")
    config.env.image_size = 32
    config.env.horizon = 24
    config.execution_horizon = 8
    config.rollout.workers = 1
    config.rollout.slots = 3
    config.rsft.successes_per_task = 1
    config.rsft.strikes = 2
    config.rsft.max_rollouts_per_task = 2
    config.rsft.steps = 1
    config.rsft.batch_size = 4
    config.spo.enabled = False
    config.evaluation.episodes_per_task = 1
    config.report.videos = 0
    return config
"""


def spec_of(sizes):
    images = {key: (sizes.image, sizes.image, 3) for key in sizes.image_keys}
    return EnvSpec(lowdim=dict(sizes.lowdim), images=images, action_dim=sizes.actions)


def networks_of(values, sizes):
    config = defaults.libero()
    for key, value in values.items():
        if not key.startswith("env."):
            section, name = key.split(".")
            with config.ignore_type(), config.unlocked():
                config[section][name] = value
    return build(config, spec_of(sizes), 3, sizes.embedding)


def vectors(sizes, count=3, seed=5):
    return np.random.default_rng(seed).normal(size=(count, sizes.embedding)).astype(np.float32)


def imported(sizes, state, algo=None):
    """(networks, variables) of tensors, as the command makes them."""
    source = Source({name: np.asarray(value) for name, value in state.items()}, algo or {})
    networks = networks_of(import_quest.architecture(source), sizes)
    return networks, convert(source.tensors, networks, spec_of(sizes), vectors(sizes))


def observation_of(sizes, rows, seed=7):
    generator = np.random.default_rng(seed)
    observation = {
        key: generator.integers(0, 256, (rows, sizes.image, sizes.image, 3)).astype(np.uint8)
        for key in sizes.image_keys
    }
    observation |= {key: generator.normal(size=(rows, size)).astype(np.float32) for key, size in sizes.lowdim}
    return observation | {"task": np.arange(rows, dtype=np.int32) % 3}


def assert_same_numbers(sizes, state, networks, variables, rows=2):
    """Tokens exactly, everything else to float32 rounding."""
    skills = assert_same_actions(sizes, state, networks, variables, rows)
    context = assert_same_context(sizes, state, networks, variables, rows)
    model = reference.Model(state, sizes)
    logits = jax.jit(networks.prior.apply)({"params": variables["prior"]}, context, skills)
    wanted = [model.logits(*pair) for pair in zip(context.astype(float), skills, strict=True)]
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=2e-5)


def assert_same_actions(sizes, state, networks, variables, rows):
    """Actions to tokens and back; returns the tokens of `rows` chunks."""
    model = reference.Model(state, sizes)
    chunks = np.random.default_rng(11).uniform(-1, 1, (4 * rows, sizes.chunk, sizes.actions)).astype(np.float32)
    bounded, expected = zip(*(model.encode(chunk) for chunk in chunks), strict=True)
    assert np.abs(np.abs(np.array(bounded) - np.floor(bounded)) - 0.5).min() > 1e-5, "on the border of two codes"
    skills = np.asarray(jax.jit(QuestPolicy.tokenise, static_argnums=0)(networks, variables, chunks))
    np.testing.assert_array_equal(skills, expected)
    assert len(np.unique(skills)) > 2
    decoded = jax.jit(QuestPolicy.decode, static_argnums=0)(networks, variables, skills[:rows])
    np.testing.assert_allclose(decoded, [model.decode(skill) for skill in skills[:rows]], rtol=1e-5, atol=1e-5)
    return skills[:rows]


def assert_same_context(sizes, state, networks, variables, rows):
    """Observations to the two tokens `[rows, 2, D]`, which it returns."""
    model = reference.Model(state, sizes)
    observation = observation_of(sizes, rows)
    context = np.asarray(jax.jit(QuestPolicy.encode, static_argnums=0)(networks, variables, observation))
    wanted = [
        model.context(
            {key: observation[key][row] for key in sizes.image_keys},
            {key: observation[key][row] for key, _ in sizes.lowdim},
            vectors(sizes)[observation["task"][row]],
        )
        for row in range(rows)
    ]
    np.testing.assert_allclose(context, wanted, rtol=1e-5, atol=2e-5)
    return context


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(),
        Sizes(image_width=256),  # as published: as many keypoints as maps, the 1x1 convolution is skipped
        Sizes(levels=(5, 3), kernels=(5, 3, 3, 3), strides=(2, 2, 2, 1), encoder_layers=2, prior_layers=1, actions=3),
    ],
    ids=["small", "no_spatial_conv", "other_codebook"],
)
def test_numbers_are_those_of_the_published_formulas(sizes):
    state = reference.state_dict(sizes)
    assert_same_numbers(sizes, state, *imported(sizes, state))


def test_encoders_declared_in_another_order():
    """The columns of obs_proj follow the order of the file."""
    sizes = Sizes(
        image_keys=("eye_in_hand_rgb", "agentview_rgb"),
        lowdim=(("gripper_states", 2), ("joint_states", 7), ("ee_pos", 3)),
    )
    state = reference.state_dict(sizes, seed=3)
    assert_same_context(sizes, state, *imported(sizes, state), rows=1)


def test_published_layout():
    """The full-size model has the 338 entries and 20,013,683 parameters of the published one."""
    layout = reference.layout(PUBLISHED)
    text = "\n".join(f"{name} {list(shape)}" for name, shape, _ in layout)
    assert len(layout) == 338
    assert hashlib.sha256(text.encode()).hexdigest().startswith("e1b02f8891562f9e")
    assert sum(int(np.prod(shape)) for _, shape, kind in layout if kind == "param") == 20_013_683
    source = Source({name: np.broadcast_to(np.float32(0), shape) for name, shape, _ in layout}, {})
    values = import_quest.architecture(source)
    plain = configs.flatten(defaults.libero())
    assert {key: value for key, value in values.items() if plain[key] != value} == {}
    wanted = parameters(networks_of(values, PUBLISHED), spec_of(PUBLISHED))
    expected = {name: shape for name, shape, kind in layout if kind == "param" or "running" in name}
    assert {parameter.tensor: parameter.shape for parameter in wanted} == expected


@pytest.mark.slow
def test_full_size_checkpoint(tmp_path):
    state = reference.state_dict(PUBLISHED)
    config = reference.published_config(PUBLISHED)
    source = import_quest.read(reference.write_pth(tmp_path / "a.pth", {"model": state, "config": config}))
    networks, variables = imported(PUBLISHED, source.tensors, source.algo)
    parts = ("autoencoder", "encoder", "prior")
    assert sum(leaf.size for part in parts for leaf in jax.tree.leaves(variables[part])) == 20_013_683
    assert_same_numbers(PUBLISHED, state, networks, variables, rows=1)


def full_file(sizes, state):
    """The layout of QueST's own training script."""
    moments = {"state": {0: {"step": np.array(5.0, np.float32), "exp_avg": np.zeros((2, 3), np.float32)}}}
    return {
        "model": state, "optimizers": [moments, {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
        "schedulers": [{"T_max": 100, "_last_lr": [1e-4]}], "scaler": {}, "epoch": 100, "stage": 1, "steps": 12345,
        "wandb_id": "abc", "experiment_dir": "x/y", "experiment_name": "x_y",
        "config": reference.published_config(sizes),
    }  # fmt: skip


def test_both_layouts_hold_the_same_policy(tmp_path):
    sizes = Sizes()
    state = reference.state_dict(sizes)
    distributed = collections.OrderedDict((f"module.{name}", value) for name, value in state.items())
    sources = [
        import_quest.read(reference.write_pth(tmp_path / f"{i}.pth", contents))
        for i, contents in enumerate((full_file(sizes, state), {"model": state}, {"model": distributed}))
    ]
    assert sources[0].algo["policy"]["policy_prior"]["n_head"] == 6 and sources[1].algo == {}
    for source in sources:
        assert list(source.tensors) == list(state)
        for name, value in state.items():
            np.testing.assert_array_equal(source.tensors[name], value)
        assert import_quest.architecture(source) == import_quest.architecture(sources[0])


def test_what_no_shape_tells_comes_from_the_config():
    sizes = Sizes(chunk=16, heads=2, prior_heads=3)
    source = Source(reference.state_dict(sizes), reference.published_config(sizes)["algo"])
    values = import_quest.architecture(source)
    found = (values["autoencoder.chunk_length"], values["autoencoder.heads"], values["prior.heads"])
    assert found == (16, 2, 3)
    assert_same_actions(sizes, source.tensors, *imported(sizes, source.tensors, source.algo), rows=1)


# --- refusals ------------------------------------------------------------------------------------------------------


def refusal(state, algo=None, sizes=None):
    with pytest.raises(QuestError, match=r"\S") as error:
        imported(sizes or Sizes(), state, algo)
    return str(error.value)


def test_every_difference_is_listed():
    state = reference.state_dict(Sizes())
    del state["policy_prior.decoder.layers.1.norm1.bias"]
    del state["image_encoders.agentview_rgb.block_2.bn1.num_batches_tracked"]
    state["policy_prior.lang_proj.weight"] = np.zeros((2, 3), np.float32)
    state["autoencoder.encoder.layers.0.linear1.weight"] = np.zeros((64, 15), np.float32)
    state["obs_proj.bias"] = np.full(24, np.nan, np.float32)
    state["task_encoder.bias"] = np.zeros(24, np.int64)
    state["policy_prior.add_positional_emb.penc.inv_freq"] = np.ones(12, np.float32)
    assert refusal(state).splitlines()[1:] == [
        "  missing image_encoders.agentview_rgb.block_2.bn1.num_batches_tracked []",
        "  missing policy_prior.decoder.layers.1.norm1.bias [24]",
        "  unexpected policy_prior.lang_proj.weight [2, 3]",
        "  autoencoder.encoder.layers.0.linear1.weight has shape [64, 15], expected [64, 16]",
        "  obs_proj.bias holds values that are not finite",
        "  task_encoder.bias holds int64, expected floating-point numbers",
        "  policy_prior.add_positional_emb.penc.inv_freq holds other values than the networks compute (difference 1)",
    ]


def test_long_lists_are_cut():
    state = reference.state_dict(Sizes())
    state |= {f"extra.{i:02d}": np.zeros(1, np.float32) for i in range(33)}
    lines = refusal(state).splitlines()
    assert lines[1] == "  unexpected extra.00 [1]" and lines[-1] == "  and 13 more" and len(lines) == 22


@pytest.mark.parametrize(
    "name",
    ["policy_prior.head.weight", "policy_prior.lnf.weight", "autoencoder.conv_block.blocks.1.block.0.conv.weight",
     "autoencoder.vq.project_in.weight", "autoencoder.action_proj.weight",
     "image_encoders.eye_in_hand_rgb.projection_layer.spatial_softmax.pos_x"],
)  # fmt: skip
def test_tensors_that_sizes_follow_from(name):
    state = reference.state_dict(Sizes())
    del state[name]
    assert re.search(rf"{re.escape(name)} is missing", refusal(state))
    state[name] = np.zeros((), np.float32)
    assert re.search(rf"{re.escape(name)} is missing", refusal(state))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("autoencoder", "vq_type"), "vq", "vq_type = 'vq', expected 'fsq'"),
        (("autoencoder", "use_causal_decoder"), False, "use_causal_decoder = False, expected True"),
        (("image_encoder_factory", "pretrained"), True, "pretrained = True, expected False"),
        (("autoencoder", "decoder_heads"), 8, "other numbers of heads"),
        (("autoencoder", "fsq_level"), [8, 8], r"levels \[8, 8\], its tensors have 1000 codes"),
        (("shape_meta", "observation"), {"lowdim": {"ee_pos": 3}}, r"declares the lowdim encoders \('ee_pos',\)"),
    ],
)
def test_policies_of_another_kind(place, value, message):
    algo = reference.published_config(Sizes())["algo"]
    algo["policy"][place[0]][place[1]] = value
    assert re.search(message, refusal(reference.state_dict(Sizes()), algo))


def test_tables_of_task_ids_are_named():
    state = reference.state_dict(Sizes())
    del state["task_encoder.bias"]
    assert "table of task ids" in refusal(state)


def test_alphabetical_order_is_refused():
    state = reference.state_dict(Sizes())
    assert "alphabetical order" in refusal({name: state[name] for name in sorted(state)})


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"state_dict": {}, "epoch": 1}, "the keys state_dict, epoch; a QueST checkpoint has"),
        ([1, 2], "holds no dictionary; a QueST"),
        ({"model": {"a": 1}}, "a QueST checkpoint has the policy's tensors"),
        ({"model": {}, "stage": 0}, "first stage"),
    ],
)
def test_files_without_a_policy(tmp_path, contents, message):
    with pytest.raises(QuestError, match=message):
        import_quest.read(reference.write_pth(tmp_path / "a.pth", contents))


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake_checkpoint(tmp_path_factory):
    """(folder, state) with a checkpoint for the fake environment, its config and its task vectors."""
    folder = tmp_path_factory.mktemp("checkpoint")
    state = reference.state_dict(FAKE)
    reference.write_pth(folder / "policy.pth", full_file(FAKE, state))
    (folder / "fake.py").write_text(FAKE_CONFIG)
    embeddings.save(folder / "vectors.npz", TASKS, vectors(FAKE))
    return folder, state


def run_import(folder, out, *more, config="fake.py"):
    embeddings = f"--task-embeddings={folder / 'vectors.npz'}"
    return import_quest.main([str(folder / "policy.pth"), str(out), embeddings, f"--config={folder / config}", *more])


@pytest.fixture(scope="module")
def imported_run(fake_checkpoint, tmp_path_factory):
    folder, _ = fake_checkpoint
    out = tmp_path_factory.mktemp("runs") / "imported"
    assert run_import(folder, out) == 0
    return out


def test_the_workdir_is_that_of_a_run(fake_checkpoint, imported_run):
    _, state = fake_checkpoint
    assert {path.name for path in imported_run.iterdir()} == {
        "checkpoints", "codebook_usage.json", "config.json", "task_embedding.npz"
    }  # fmt: skip
    assert not [path for path in imported_run.parent.iterdir() if path != imported_run]
    config = configs.from_json((imported_run / "config.json").read_text())
    run = open_run(config, imported_run)
    try:
        for stage in ("codebook", "imitation"):
            assert run.finished(stage)
            meta = run.checkpoints(stage).restore_latest(None)[2]
            assert meta["stage"] == stage and meta["imported"] == "policy.pth" and len(meta["sha256"]) == 64
        assert_same_numbers(FAKE, state, run.policy, run.variables("imitation"), rows=1)
        np.testing.assert_array_equal(run.variables("codebook")["task_embedding"], vectors(FAKE))
    finally:
        run.close()


def test_stages_are_stored_as_the_stages_store_them(imported_run):
    """Trainable parts with the optimiser's state, the rest fixed."""
    for stage, parts in (("codebook", {"autoencoder"}), ("imitation", {"encoder", "prior"})):
        _, tree, meta = Checkpoints(imported_run / "checkpoints" / stage).restore_latest(None)
        assert meta["final"] is True and set(tree) == {"step", "trainable", "fixed", "opt_state"}
        assert set(tree["trainable"]) == parts
        assert set(tree["fixed"]) == {
            "autoencoder", "encoder", "prior", "batch_stats", "normaliser", "task_embedding"
        } - parts  # fmt: skip


def test_the_command_tells_how_to_go_on(fake_checkpoint, tmp_path, capsys):
    folder, _ = fake_checkpoint
    out = tmp_path / "a run"
    assert run_import(folder, out) == 0
    (line,) = capsys.readouterr().out.splitlines()
    count = sum(int(np.prod(shape)) for _, shape, kind in reference.layout(FAKE) if kind == "param")
    assert f"QueST policy of {count:,} parameters imported into {out}; go on with: python -m cso_jax.main " in line
    arguments = shlex.split(line.split("python -m cso_jax.main ")[1])
    options, overrides = configs.split_arguments(arguments)
    assert options["workdir"] == str(out)
    again = configs.load(options["config"], overrides)
    stored = configs.from_json((out / "config.json").read_text())
    assert configs.differences(stored.to_dict(), again) == {}


@pytest.mark.slow
def test_the_run_goes_on_at_rsft(fake_checkpoint, tmp_path, capsys):
    folder, _ = fake_checkpoint
    out = tmp_path / "run"
    assert run_import(folder, out) == 0
    arguments = shlex.split(capsys.readouterr().out.split("python -m cso_jax.main ")[1])
    assert cascade.main(arguments) == 0
    assert (out / "checkpoints" / "rsft").is_dir() and not (out / "demos").exists()
    steps = Checkpoints(out / "checkpoints" / "imitation").steps()
    assert steps == [0]


def test_what_is_there_is_not_overwritten(fake_checkpoint, tmp_path, capsys):
    folder, _ = fake_checkpoint
    (tmp_path / "notes.txt").write_text("mine")
    assert run_import(folder, tmp_path) == 1
    assert "is there already and is not overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_left_of_an_import_that_fails(fake_checkpoint, tmp_path, capsys, monkeypatch):
    folder, _ = fake_checkpoint

    def full(*_):
        raise OSError(28, "No space left on device", "here")

    monkeypatch.setattr(embeddings, "save", full)
    assert run_import(folder, tmp_path / "out") == 1
    assert "here: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.env.cameras=front"], r"images: \['front', 'hand'\] in the checkpoint, \['front'\] here"),
        (["--config.prior.hieght=3"], "unknown config key config.prior.hieght"),
        (["--task-embedding=x"], "usage: python -m cso_jax.import_quest"),
        (["--suite=libero_90"], "give one of the two"),
        (["another"], "usage: python -m cso_jax.import_quest"),
    ],
)
def test_bad_arguments(fake_checkpoint, tmp_path, capsys, more, message):
    folder, _ = fake_checkpoint
    assert run_import(folder, tmp_path / "out", *more) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_vectors_of_another_size(fake_checkpoint, tmp_path, capsys):
    folder, _ = fake_checkpoint
    embeddings.save(tmp_path / "other.npz", TASKS, np.zeros((3, 384), np.float32))
    arguments = [str(folder / "policy.pth"), str(tmp_path / "out"), f"--config={folder / 'fake.py'}"]
    assert import_quest.main([*arguments, f"--task-embeddings={tmp_path / 'other.npz'}"]) == 1
    assert "numbers per task embedding: 12 in the checkpoint, 384 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "message"),
    [(None, "no file of task embeddings"), (("up", "down", "right"), "has no vector of the task 'left'")],
)
def test_unusable_vectors(fake_checkpoint, tmp_path, capsys, tasks, message):
    folder, _ = fake_checkpoint
    if tasks:
        embeddings.save(tmp_path / "other.npz", tasks, vectors(FAKE))
    arguments = [str(folder / "policy.pth"), str(tmp_path / "out"), f"--config={folder / 'fake.py'}"]
    assert import_quest.main([*arguments, f"--task-embeddings={tmp_path / 'other.npz'}"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_vectors_say_what_to_do(fake_checkpoint, tmp_path, capsys):
    folder, _ = fake_checkpoint
    assert import_quest.main([str(folder / "policy.pth"), str(tmp_path / "o"), f"--config={folder / 'fake.py'}"]) == 1
    error = capsys.readouterr().err
    assert "--task-embeddings=FILE is missing" in error and "python -m cso_jax.data language" in error


def test_missing_checkpoint(tmp_path, capsys):
    assert import_quest.main([str(tmp_path / "none.pth"), str(tmp_path / "out"), "--task-embeddings=x"]) == 1
    assert "none.pth: No such file or directory" in capsys.readouterr().err


def test_sizes_that_the_config_states_otherwise_are_named(fake_checkpoint, tmp_path, capsys):
    folder, state = fake_checkpoint
    contents = full_file(FAKE, state)
    contents["config"]["algo"]["policy"]["policy_prior"] |= {"n_layer": 4, "beam_size": 10}
    reference.write_pth(tmp_path / "policy.pth", contents)
    arguments = [f"--config={folder / 'fake.py'}", f"--task-embeddings={folder / 'vectors.npz'}"]
    assert import_quest.main([str(tmp_path / "policy.pth"), str(tmp_path / "out"), *arguments]) == 0
    error = capsys.readouterr().err
    assert "n_layer = 4; this run uses config.prior.layers = 2" in error
    assert "beam_size = 10; this run uses config.sampling.top_k = 5" in error


def test_libero_config_of_the_published_model(tmp_path):
    """The published sizes are the defaults: only what the policy sees is another."""
    (tmp_path / "libero_long.py").write_text(CONFIG)
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape, _ in reference.layout(PUBLISHED)}
    overrides = [("encoder.task_embedding", "file"), ("encoder.task_embedding_file", "x.npz")]
    config, arguments = import_quest.run_config(tmp_path / "libero_long.py", overrides, Source(tensors, {}))
    assert config.env.libero.proprio == "joints_ee" and config.encoder.normalise is False
    assert [argument for argument in arguments if "config." in argument.split("=")[0]] == [
        "--config.encoder.task_embedding=file", "--config.encoder.task_embedding_file=x.npz",
        "--config.env.libero.proprio=joints_ee", "--config.reference.enabled=False",
    ]  # fmt: skip
