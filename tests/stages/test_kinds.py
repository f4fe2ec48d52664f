"""Other kinds of policy through the cascade: what each trains in every stage, and that a resumed run ends the same."""

import shutil

import numpy as np
import pytest
from support import cascade, kinds
from support.cascade import CONFIG, policy_of, sorted_episodes

from cso_jax import config as configs
from cso_jax import defaults, main, policies
from cso_jax.files import read_jsonl

SKILLS = ("vqbet", "star")


def arguments(kind, workdir):
    changes = [f"--config.{key}={value}" for key, value in kinds.changes(kind)]
    return [f"--config={CONFIG}", f"--workdir={workdir}", "--config.demos.noise=0.1", *changes]


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds.TINY)
def test_a_kind_goes_through_its_stages_and_resumes(kind, tmp_path):
    whole = tmp_path / "whole"
    assert main.main(arguments(kind, whole)) == 0
    stages = ["imitation", "rsft", *(["spo"] if kind in SKILLS else [])]
    assert {row["stage"] for row in read_jsonl(whole / "episodes.jsonl")} == set(stages)
    assert len(read_jsonl(whole / "episodes.jsonl")) == 12 * len(stages)
    if kind in SKILLS:
        assert cascade.changed_parts(policy_of(whole, "rsft"), policy_of(whole, "spo")) <= {"prior"}
    # Begun again from the midst of imitation, with what came later gone.
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "imitation" / "200")
    for later in ("checkpoints/rsft", "checkpoints/spo", "rsft"):
        shutil.rmtree(again / later, ignore_errors=True)
    (again / "episodes.jsonl").unlink()
    assert main.main(arguments(kind, again)) == 0
    for stage in stages:
        before, after = policy_of(whole, stage), policy_of(again, stage)
        assert before.keys() == after.keys()
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name], err_msg=f"{stage} {name}")
    assert sorted_episodes(whole) == sorted_episodes(again)


def test_a_stage_that_a_policy_has_not_is_refused():
    own = [("policy.name", "bc"), ("policy.chunk_length", "8")]
    says = r"config\.spo\.enabled: the policy bc has no stage spo; it has demos, imitation"
    with pytest.raises(configs.ConfigError, match=says):
        configs.load(CONFIG, [*own, ("spo.enabled", "true")])
    assert not configs.load(CONFIG, [*own, ("spo.enabled", "false")]).spo.enabled


def test_presets():
    config = defaults.with_policy(defaults.libero(), "act", preset="paper")
    assert (config.policy.bins, config.policy.chunk_length, config.policy.kl_weight) == (256, 20, 10.0)
    with pytest.raises(ValueError, match="the policy star has no preset 'paper'; it has public"):
        policies.defaults_of("star", "paper")
