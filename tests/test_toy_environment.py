"""A benchmark that the library does not know, added as docs/how_to_add_an_environment.md says: in two registries."""

import json
from pathlib import Path

import pytest
from support import toy_environment

from cso_jax import config as configs
from cso_jax import envs, experts, main
from cso_jax.envs.protocol import Benchmark, TrainInit

CONFIG = Path(__file__).parent / "configs" / "toy.py"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(envs.BENCHMARKS, "toy", "support.toy_environment")
    monkeypatch.setitem(experts.EXPERTS, "toy", "support.toy_expert")


def test_it_offers_what_a_benchmark_must():
    assert isinstance(toy_environment, Benchmark)


def test_its_facts_are_those_of_the_config():
    config = configs.load(CONFIG)
    settings = config.env.to_dict()
    assert (config.env.tolerance, config.demos.noise, config.prior.layers) == (0.15, 0.2, 1)
    assert envs.task_names(settings) == ("near", "far")
    assert envs.sentence(settings, "far") == "drive to the far mark"
    assert configs.load(CONFIG, [("scale", "smoke"), ("env.horizon", "12")]).env.horizon == 12
    assert configs.fingerprint(configs.load(CONFIG, [("env.paint", "blue")])) == configs.fingerprint(config)
    assert configs.differences(json.loads(configs.to_json(config)), configs.load(CONFIG, [("env.paint", "blue")])) == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("env.obs", "pixels", "config.env.obs must be one of state, got 'pixels'"),
        ("env.tolerance", "0.5", "a cart would be at its mark from the start"),
        ("env.tolerance", "wide", "config.env.tolerance is a number"),
        ("env.name", "fake", "it lacks config.env.cameras, .*such as tests/configs/fake.py"),
        ("env.name", "tyo", "one of metaworld, libero, tabletop, robot, fake, toy, got 'tyo'; did you mean toy"),
    ],
)
def test_its_problems_are_those_of_the_config(key, value, message):
    with pytest.raises(configs.ConfigError, match=message):
        configs.load(CONFIG, [(key, value)])


def test_its_expert_is_found():
    settings = configs.load(CONFIG).env.to_dict()
    demo = experts.collect_demo(settings, TrainInit("near", 0), noise=0.0, extra_steps=2, seed=0)
    assert len(demo.actions) == demo.success_step + 3


def test_the_cascade_runs_on_it(tmp_path):
    """Demonstrations and episodes are made in processes that know nothing of the two registries' new lines."""
    workdir = tmp_path / "run"
    assert main.main([f"--config={CONFIG}", f"--workdir={workdir}"]) == 0
    results = json.loads((workdir / "results.json").read_text())
    for stage in ("imitation", "rsft", "spo"):
        assert {task: results[stage][task]["episodes"] for task in toy_environment.REACH} == {"near": 4, "far": 4}
    assert (workdir / "demos" / "far.hdf5").exists()
    assert list((workdir / "videos").glob("*.gif"))
