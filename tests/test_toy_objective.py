"""An objective that the library does not know, added as docs/how_to_add_an_objective.md says: in one registry."""

import shutil
from pathlib import Path

import pytest
from support.cascade import changed_parts, metrics_of, policy_of

from cso_jax import config as configs
from cso_jax import main
from cso_jax.stages.spo import objectives

CONFIG = Path(__file__).parent / "configs" / "fake.py"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    from support import toy_objective

    monkeypatch.setitem(objectives.OBJECTIVES, "toy", toy_objective)


def test_its_problems_are_those_of_the_config():
    assert configs.load(CONFIG, [("spo.objective", "toy")]).spo.objective == "toy"
    with pytest.raises(configs.ConfigError, match=r"epochs must be 1 for config\.spo\.objective=toy"):
        configs.load(CONFIG, [("spo.objective", "toy"), ("spo.epochs", "2")])
    with pytest.raises(configs.ConfigError, match="surrogate, reinforce, preference, toy, got 'tyo'; did you mean toy"):
        configs.load(CONFIG, [("spo.objective", "tyo")])


def test_it_trains_the_prior_on_every_group(tmp_path, finished):
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "spo")
    changes = ("spo.objective=toy", "spo.iterations=1", "report.videos=0")
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{change}" for change in changes)]
    assert main.main(arguments) == 0
    (row,) = metrics_of(workdir, "spo")
    assert row["groups_kept"] == row["groups_drawn"] == 3 and row["toy_items"] == 12
    assert changed_parts(policy_of(workdir, "rsft"), policy_of(workdir, "spo")) == {"prior"}
