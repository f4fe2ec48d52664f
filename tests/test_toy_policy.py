"""A kind of policy that the library does not know, added as docs/how_to_add_a_policy.md says: in one registry."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from support import toy_policy
from support.cascade import policy_of

from cso_jax import config as configs
from cso_jax import main, policies
from cso_jax.envs import fake
from cso_jax.files import read_jsonl
from cso_jax.policies.agent import Agent
from cso_jax.policies.interface import Sampling

CONFIG = Path(__file__).parent / "configs" / "toy_policy.py"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(policies.POLICIES, "toy", "support.toy_policy")


def test_its_values_are_those_of_the_config():
    config = configs.load(CONFIG, [("policy.width", "16")])
    assert config.policy.to_dict() == {"name": "toy", "width": 16, "chunk_length": 8}
    with pytest.raises(configs.ConfigError, match=r"more than config\.policy\.chunk_length"):
        configs.load(CONFIG, [("policy.chunk_length", "2")])


def test_a_config_that_was_made_for_another(tmp_path):
    """A name alone is not enough in a file; on the command line the policy's own values come with it."""
    fake = CONFIG.with_name("fake.py")
    by_hand = tmp_path / "by_hand.py"
    by_hand.write_text(
        f"import runpy\ndef get_config():\n    config = runpy.run_path({str(fake)!r})['get_config']()\n"
        "    config.policy.name = 'toy'\n    return config\n"
    )
    lacking = r"it lacks config\.policy\.width, config\.policy\.chunk_length; see cso_jax\.defaults\.with_policy"
    with pytest.raises(configs.ConfigError, match=lacking):
        configs.load(by_hand)
    config = configs.load(fake, [("policy.name", "toy"), ("policy.width", "16")])
    assert config.policy.to_dict() == {"name": "toy", "width": 16, "chunk_length": 8}
    with pytest.raises(configs.ConfigError, match=r"must be one of act, bc, .*, toy, .*got 'tyo'; did you mean toy"):
        configs.load(fake, [("policy.name", "tyo")])


def test_the_cascade_runs_the_stages_that_it_has(tmp_path):
    workdir = tmp_path / "run"
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}"]
    assert main.main(arguments) == 0
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["imitation"]
    rows = read_jsonl(workdir / "episodes.jsonl")
    assert [row["stage"] for row in rows] == ["imitation"] * 12
    assert np.mean([row["success"] for row in rows]) > 0.8
    assert list(json.loads((workdir / "stages.json").read_text())) == ["demos", "imitation"]
    assert (workdir / "report.html").exists() and "Imitation" in (workdir / "report.html").read_text()
    # Resumed from a checkpoint in the midst of training it ends the same.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "imitation" / "600")
    assert main.main([f"--config={CONFIG}", f"--workdir={again}"]) == 0
    before, after = policy_of(workdir, "imitation"), policy_of(again, "imitation")
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert read_jsonl(again / "episodes.jsonl") == rows


def test_an_agent_sees_as_many_observations_as_it_wants():
    config = configs.load(CONFIG)
    spec = fake.spec(config.env.to_dict())
    policy = policies.build(config, spec, 3)
    agent = Agent(policy, policy.init(jax.random.key(0), spec), ("left",), Sampling(1.0, 5), 4)
    observations = {"state": np.zeros((2, policy.wants.history, 4), np.float32)}
    decision = agent.decide(observations, np.zeros((2, 2), np.uint32), np.zeros(2, np.int32), ("left", "left"))
    assert decision.actions.shape == (2, 4, 2) and decision.skill is None
    with pytest.raises(KeyError, match="down"):
        agent.decide(observations, np.zeros((2, 2), np.uint32), np.zeros(2, np.int32), ("left", "down"))


def test_it_is_not_asked_for_stages_that_it_does_not_have():
    with pytest.raises(KeyError, match="spo"):
        toy_policy.ToyPolicy(None).trained_parts("spo", None)
