"""Configuration: every problem in one message, nearest key, scales, comparison of stored and new configs."""

import json
from pathlib import Path

import pytest

from cso_jax import config as configs
from cso_jax import defaults

CONFIGS = sorted(Path(__file__).parents[1].joinpath("configs").glob("*.py"))
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", configs.SCALES)
def test_every_config_is_valid(path, scale):
    config = configs.load(path, [("scale", scale)])
    assert config.is_locked
    assert json.loads(configs.to_json(config))["scale"] == scale


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
        ([("rsft.max_rollouts_per_task", "5")], "one initial state takes"),
        ([("sampling.top_k", "5000")], "there are 1000 codes"),
        ([("sampling.temperature", "0")], "SPO needs a positive one"),
        ([("autoencoder.levels", "8,a,5")], "config.autoencoder.levels is a list"),
        ([("imitation.steps", "inf")], "config.imitation.steps is a whole number"),
    ],
)
def test_problems(given, message):
    with pytest.raises(configs.ConfigError, match=message.replace("?", r"\?").replace("[", r"\[")):
        configs.load(QUICKSTART, given)


def test_all_problems_at_once():
    with pytest.raises(configs.ConfigError) as error:
        configs.load(QUICKSTART, [("spo.unit", "nothing"), ("spo.groups", "0"), ("encoder.norm", "layer")])
    assert len(str(error.value).splitlines()) == 3


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


def test_differences_ignore_what_changes_no_result():
    stored = json.loads(configs.to_json(configs.load(QUICKSTART)))
    faster = configs.load(QUICKSTART, [("rollout.workers", "7"), ("report.videos", "9")])
    assert configs.differences(stored, faster) == {}
    assert configs.fingerprint(faster) == configs.fingerprint(configs.load(QUICKSTART))
    other = configs.load(QUICKSTART, [("spo.clip_low", "0.9")])
    assert configs.differences(stored, other) == {"spo.clip_low": "config.spo.clip_low: 0.93 in the workdir, 0.9 now"}


def test_arguments():
    options, overrides = configs.split_arguments(["--config=a.py", "--workdir", "out", "--config.spo.groups=4"])
    assert options == {"config": "a.py", "workdir": "out"}
    assert overrides == [("spo.groups", "4")]
    with pytest.raises(configs.ConfigError, match="unexpected argument"):
        configs.split_arguments(["a.py"])
    with pytest.raises(configs.ConfigError, match="--workdir needs a value"):
        configs.split_arguments(["--workdir"])
