"""Configuration: every problem in one message, nearest key, scales, comparison of stored and new configs."""

import json
import re
import sys
from pathlib import Path

import pytest

from cso_jax import checks, config_values, defaults, envs, experts
from cso_jax import config as configs

CONFIGS = sorted(
    path for path in Path(__file__).parents[1].joinpath("configs").glob("*.py") if path.stem not in ("common", "robot")
)
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", configs.SCALES)
def test_every_config_is_valid(path, scale):
    config = configs.load(path, [("scale", scale)])
    assert config.is_locked
    assert json.loads(configs.to_json(config))["scale"] == scale


def test_paper_sized_libero_reads_sentences_by_clip_where_it_is_at_hand(monkeypatch):
    monkeypatch.delenv("CLIP_TEXT", raising=False)
    config = configs.load(QUICKSTART.with_name("libero_long.py"))
    assert (config.encoder.task_embedding, config.encoder.task_embedding_file) == ("minilm", "")
    monkeypatch.setenv("CLIP_TEXT", "/weights")
    config = configs.load(QUICKSTART.with_name("libero_long.py"))
    assert (config.encoder.task_embedding, config.encoder.task_embedding_file) == ("clip", "/weights")


def test_paper_values():
    """Appendix E."""
    config = defaults.metaworld()
    assert (config.autoencoder.levels, config.autoencoder.kernels) == ((8, 5, 5, 5), (5, 3, 3))
    assert (config.prior.layers, config.prior.heads, config.prior.width) == (6, 6, 384)
    assert (config.rsft.successes_per_task, config.rsft.strikes, config.rsft.epochs) == (200, 10, 20)
    assert (config.rsft.batch_size, config.rsft.learning_rate, config.rsft.final_learning_rate) == (256, 1e-4, 1e-5)
    assert (config.spo.iterations, config.spo.groups, config.spo.group_size) == (30, 150, 8)
    assert (config.spo.clip_low, config.spo.clip_high, config.spo.learning_rate) == (0.93, 1.15, 1e-6)


def test_overrides_take_the_type_of_the_value():
    given = [
        ("env.tasks", "reach-v3,push-v3"),
        ("autoencoder.strides", "(2,2,2)"),
        ("spo.freeze_encoder", "false"),
        ("spo.learning_rate", "1e-5"),
        ("imitation.steps", "2e3"),
        ("encoder.lowdim_hidden", "64,64"),
    ]
    config = configs.load(QUICKSTART, given)
    assert config.env.tasks == ("reach-v3", "push-v3")
    assert config.autoencoder.strides == (2, 2, 2)
    assert config.spo.freeze_encoder is False
    assert config.spo.learning_rate == 1e-5
    assert config.imitation.steps == 2000
    assert config.encoder.lowdim_hidden == (64, 64)


def test_overrides_are_stronger_than_the_scale():
    config = configs.load(QUICKSTART, [("spo.iterations", "7"), ("scale", "smoke")])
    assert config.spo.iterations == 7


ALGORITHM = [("rsft.strike_rule", "algorithm")]  # ten attempts from each state; by default each has one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("spo.grups", "3")], "unknown config key config.spo.grups; did you mean config.spo.groups?"),
        ([("spo.learning_rate", "fast")], "config.spo.learning_rate is a number"),
        ([("imitation.steps", "2.5")], "config.imitation.steps is a whole number"),
        ([("spo.freeze_encoder", "maybe")], "config.spo.freeze_encoder is true or false"),
        ([("spo.unit", "skil")], "did you mean skill?"),
        ([("spo.clip_low", "0.2"), ("spo.clip_high", "0.28")], "must enclose 1"),
        ([("spo.minibatch_skills", "8")], "a minibatch takes whole episodes"),
        ([("env.horizon", "600")], "500 steps"),
        ([("execution_horizon", "40")], "a chunk has 32 actions"),
        ([("prior.heads", "5")], "must divide"),
        ([("scale", "tiny")], "config.scale must be one of"),
        ([*ALGORITHM, ("rsft.max_rollouts_per_task", "5")], "one initial state takes"),
        ([("sampling.top_k", "5000")], "there are 1000 codes"),
        ([("sampling.temperature", "0"), ("spo.temperature", "0")], "SPO needs a positive one"),
        ([("sampling.top_k", "1")], "config.sampling.top_k is 1 (greedy)"),
        ([*ALGORITHM, ("rsft.temperature", "0")], "config.rsft.temperature is 0 (greedy): the 10 attempts"),
        ([*ALGORITHM, ("rsft.top_k", "1")], "config.rsft.top_k is 1 (greedy): the 10 attempts"),
        ([("autoencoder.dropout", "1.0")], "config.autoencoder.dropout is a probability below 1"),
        ([("prior.dropout", "1.5")], "config.prior.dropout is a probability below 1"),
        ([("spo.learning_rate", "inf")], "config.spo.learning_rate must be a finite number; got inf"),
        ([("demos.noise", "nan")], "config.demos.noise must be a finite number; got nan"),
        ([("imitation.warmup_steps", "1501")], "config.imitation.warmup_steps is 1501, but the stage has 1500 steps"),
        (
            [("imitation.accumulate", "5")],
            "config.imitation.accumulate is into how many equal parts a batch is cut, but "
            "config.imitation.batch_size = 128 and it is 5",
        ),
        ([("rsft.warmup_steps", "501")], "config.rsft.warmup_steps is 501, but the stage has 500 steps"),
        ([("codebook.squared_weight", "-1")], "config.codebook.squared_weight must not be negative"),
        ([("codebook.learning_rate", "1e-6")], "config.codebook.final_learning_rate is 1e-05, above"),
        ([("rsft.final_learning_rate", "1")], "config.rsft.final_learning_rate is 1, above"),
        ([("spo.clip_low", "0.2")], "not its distance from 1: got 0.2, for that distance give 0.8"),
        ([("spo.clip_low", "1.1")], "must enclose 1"),
        ([("spo.clip_norm", "0")], "config.spo.clip_norm must be positive"),
        ([("rollout.step_timeout_s", "0")], "config.rollout.step_timeout_s must be positive"),
        ([("rsft.steps", "0"), ("rsft.epochs", "0")], "config.rsft.steps and config.rsft.epochs are both 0"),
        ([("autoencoder.strides", "2,0,1")], "config.autoencoder.strides must hold whole numbers of at least 1"),
        ([("autoencoder.strides", "-2,-2,1")], "config.autoencoder.strides must hold whole numbers of at least 1"),
        ([("encoder.lowdim_hidden", "64,0")], "config.encoder.lowdim_hidden must hold whole numbers"),
        ([("autoencoder.width", "0")], "config.autoencoder.width must be at least 1"),
        ([("env.obs", "pixels"), ("env.cameras", "()")], "config.env.cameras is empty"),
        ([("env.name", "libero")], "was not made for it: it lacks config.env.libero.assets"),
        ([("env.name", "libero"), ("env.libero.assets", "x")], "start from one that was, such as configs/libero"),
        ([("env.name", "mars"), ("scale", "smoke")], "config.env.name must be one of"),
        ([("autoencoder.levels", "8,a,5")], "config.autoencoder.levels is a list"),
        ([("imitation.steps", "inf")], "config.imitation.steps is a whole number"),
    ],
)
def test_problems(given, message):
    with pytest.raises(configs.ConfigError, match=re.escape(message)):
        configs.load(QUICKSTART, given)


@pytest.mark.parametrize(
    "given",
    [
        {"rsft.steps": "0", "rsft.warmup_steps": "500"},  # how many steps the epochs are is not known yet
        {"imitation.warmup_steps": "1500"},
        {"rsft.strikes": "1", "rsft.top_k": "1"},
        {"rsft.enabled": "false", "rsft.temperature": "0", "rsft.final_learning_rate": "1"},
        {"spo.enabled": "false", "sampling.top_k": "1"},
        {"sampling.temperature": "0", "spo.temperature": "1.5"},  # evaluated greedily
        {"spo.clip_low": "0"},
        {"spo.clip_low": "0.2", "spo.clip_high": "5"},
        {"codebook.learning_rate": "0", "codebook.final_learning_rate": "0"},
        {"autoencoder.dropout": "0.99"},
        {"env.name": "fake", "env.tasks": "three"},
    ],
    ids=str,
)
def test_what_is_legitimate_is_not_refused(given):
    assert configs.load(QUICKSTART, list(given.items())).is_locked


def test_a_libero_config_names_what_metaworld_would_need():
    with pytest.raises(configs.ConfigError, match=r"it lacks config.env.instance_cap, .*configs/quickstart.py"):
        configs.load(QUICKSTART.with_name("libero_object_state.py"), [("env.name", "metaworld")])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_config():\n    pass", r"get_config\(\) returned nothing .*return config"),
        ("def get_config():\n    return {'a': 1}", r"get_config\(\) returned a dict"),
        ("def get_config():\n    raise OSError('no disk')", r"is not a config \(line 2\): OSError: no disk"),
        ("def get_config(name):\n    pass", "is not a config: TypeError"),
        ("\n\n1 / 0", r"is not a config \(line 3\): ZeroDivisionError"),
        ("import sys\nsys.exit()", r"is not a config \(line 2\): SystemExit"),
        ("x = (", "is not a config: SyntaxError"),
        ("get_config = 3", "is not a config: TypeError"),
        ("def config():\n    pass", "defines no get_config"),
        ("from ml_collections import ConfigDict\nget_config = ConfigDict", "the config lacks config.autoencoder"),
        (
            "from cso_jax import defaults\ndef get_config():\n    c = defaults.metaworld()\n    with c.unlocked(), "
            "c.ignore_type():\n        c.spo.groups = 'many'\n    return c",
            "config.spo.groups must be a whole number, like 150; got 'many'",
        ),
    ],
)
def test_a_file_that_gives_no_config_is_one_line(tmp_path, body, message):
    file = tmp_path / "mine.py"
    file.write_text(body)
    with pytest.raises(configs.ConfigError, match=message) as error:
        configs.load(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_frozen_config_is_a_config(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from ml_collections import FrozenConfigDict\nfrom cso_jax import defaults\n"
                    "def get_config():\n    return FrozenConfigDict(defaults.metaworld())\n")  # fmt: skip
    assert configs.load(file, [("spo.groups", "7")]).spo.groups == 7


def test_all_problems_at_once():
    wrong = [("spo.unit", "nothing"), ("spo.groups", "0"), ("encoder.norm", "layer")]
    with pytest.raises(configs.ConfigError, match=r"spo\.unit") as error:
        configs.load(QUICKSTART, wrong)
    lines = str(error.value).splitlines()
    assert len(lines) == len(wrong)
    assert all(sum(key in line for line in lines) == 1 for key, _ in wrong)


def test_a_typo_in_a_config_file(tmp_path):
    file = tmp_path / "typo.py"
    body = "from cso_jax import defaults\ndef get_config():\n    c = defaults.metaworld()\n    {}\n    return c\n"
    file.write_text(body.format("c.spo.learning_rte = 1e-5"))
    with pytest.raises(configs.ConfigError, match=r"typo\.py.*learning_rte"):
        configs.load(file)
    file.write_text(body.format("c.spo.learning_rate = 'fast'"))
    with pytest.raises(configs.ConfigError, match=r"typo\.py"):
        configs.load(file)


def test_missing_file_names_the_nearest():
    with pytest.raises(configs.ConfigError, match=r"no config file .*did you mean .*quickstart.py"):
        configs.load(QUICKSTART.with_name("quickstrat.py"))


def test_a_value_of_a_later_version_changes_the_fingerprint_only_where_it_is_used(monkeypatch):
    flatten = config_values.flatten

    def of_before(config):
        later = (".accumulate", "encoder.lowdim_together")
        return {key: value for key, value in flatten(config).items() if not key.endswith(later)}

    now = configs.fingerprint(configs.load(QUICKSTART))
    for changed in (("imitation.accumulate", "2"), ("encoder.lowdim_together", "true")):
        assert configs.fingerprint(configs.load(QUICKSTART, [changed])) != now
    used = configs.load(QUICKSTART)
    monkeypatch.setattr(config_values, "flatten", of_before)
    assert configs.fingerprint(used) == now


def test_differences_ignore_what_changes_no_result():
    stored = json.loads(configs.to_json(configs.load(QUICKSTART)))
    faster = configs.load(QUICKSTART, [("rollout.workers", "7"), ("report.videos", "9")])
    assert configs.differences(stored, faster) == {}
    assert configs.fingerprint(faster) == configs.fingerprint(configs.load(QUICKSTART))
    other = configs.load(QUICKSTART, [("spo.clip_low", "0.9")])
    assert configs.differences(stored, other) == {"spo.clip_low": "config.spo.clip_low: 0.8 in the workdir, 0.9 now"}


def test_keys_that_change_no_result_are_the_benchmarks_own():
    config = configs.load(QUICKSTART)
    larger = configs.load(QUICKSTART, [("env.instance_cap", "7"), ("env.video_size", "64")])
    assert configs.differences(json.loads(configs.to_json(config)), larger) == {}
    assert configs.fingerprint(config) == configs.fingerprint(larger)
    stored = json.loads(configs.to_json(config))
    stored["env"]["name"] = "a benchmark that is gone"
    assert list(configs.differences(stored, larger)) == ["env.name"]


@pytest.mark.parametrize("name", envs.BENCHMARKS)
def test_the_defaults_of_a_benchmark_are_what_it_accepts(name):
    config = defaults.benchmark(name)
    assert config.is_locked and config.env.name == name
    assert checks.structure_problems(config) == []
    # A robot is the user's: what it is, and where its demonstrations are, has no default.
    missing = ["config.env.schema is empty", "config.data=scripted needs"] if name == "robot" else []
    found = configs.validate(config)
    assert len(found) == len(missing) and all(any(one.startswith(text) for one in found) for text in missing)


def test_a_problem_of_the_environment_is_one_of_the_config():
    given = [("env.obs", "pixel"), ("env.horizon", "0"), ("env.video_every", "0"), ("spo.groups", "0")]
    with pytest.raises(configs.ConfigError) as error:
        configs.load(QUICKSTART, given)
    said = str(error.value)
    assert len(said.splitlines()) == 4
    assert "config.env.obs must be one of pixels, state, got 'pixel'; did you mean pixels?" in said
    assert "config.env.video_every must be at least 1, got 0" in said


def test_a_benchmark_without_experts_needs_no_scripted_demonstrations(monkeypatch):
    monkeypatch.delitem(experts.EXPERTS, "metaworld")
    with pytest.raises(
        configs.ConfigError, match="scripted experts; there are some for libero, tabletop, fake, not for metaw"
    ):
        configs.load(QUICKSTART)


def test_a_config_file_uses_files_beside_it(tmp_path, monkeypatch):
    """Each folder its own `common`, loaded anew each time, whatever the working directory; lazy imports too."""
    body = (
        "from cso_jax import defaults\n{}\ndef get_config():\n    {}\n    return common.changed(defaults.metaworld())\n"
    )
    common = "def changed(config):\n    config.spo.groups = {}\n    return config\n"
    for number, imports in enumerate((("from . import common", "pass"), ("", "from . import common"))):
        folder = tmp_path / f"configs_{number}"
        folder.mkdir()
        (folder / "mine.py").write_text(body.format(*imports))
        (folder / "common.py").write_text(common.format(10 + number))
    before = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path / "configs_0")
    assert [configs.load(file).spo.groups for file in ("mine.py", "../configs_1/mine.py", "mine.py")] == [10, 11, 10]
    assert (set(sys.modules), list(sys.path)) == before
    (tmp_path / "configs_0" / "common.py").unlink()
    with pytest.raises(configs.ConfigError, match=r"mine\.py is not a config \(line 2\): ImportError"):
        configs.load("mine.py")
    assert set(sys.modules) == before[0]


def test_arguments():
    options, overrides = configs.split_arguments(["--config=a.py", "--workdir", "out", "--config.spo.groups=4"])
    assert options == {"config": "a.py", "workdir": "out"}
    assert overrides == [("spo.groups", "4")]
    with pytest.raises(configs.ConfigError, match="unexpected argument"):
        configs.split_arguments(["a.py"])
    with pytest.raises(configs.ConfigError, match="--workdir needs a value"):
        configs.split_arguments(["--workdir"])


def test_a_workdir_from_before_a_key_was_there_is_still_this_configs():
    config = configs.load(QUICKSTART)
    stored = json.loads(configs.to_json(config))
    del stored["policy"]
    assert configs.differences(stored, config) == {}
    assert configs.from_json(json.dumps(stored)) == config
    with config.unlocked():
        config.policy.name = "other"
    assert list(configs.differences(stored, config)) == ["policy.name"]
