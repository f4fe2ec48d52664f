"""A stage is valid for its inputs: what changed inputs and removed outputs do to what was made from them."""

import json
import shutil

import jax
import numpy as np
import pytest
from support import cascade
from support.cascade import results_of, saved, sorted_episodes

from cso_jax import config as configs
from cso_jax import defaults
from cso_jax.checkpoints import Checkpoints
from cso_jax.files import append_jsonl, atomic_write_text, read_jsonl
from cso_jax.results import write_results
from cso_jax.stages import provenance, table

# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("env.horizon", set(table.STAGES)),
        ("something.new", set(table.STAGES)),
        ("demos.noise", set(table.STAGES)),
        ("demos.label", set(table.STAGES) - {"demos"}),
        ("prior.width", {"codebook", "imitation", "rsft", "spo"}),
        ("codebook.steps", {"codebook", "imitation", "rsft", "spo"}),
        ("autoencoder.chunk_length", set(table.STAGES) - {"demos"}),
        ("imitation.validation_fraction", {"reference", "imitation", "rsft", "spo"}),
        ("reference.steps", {"reference"}),
        ("imitation.steps", {"imitation", "rsft", "spo"}),
        ("rsft.steps", {"rsft", "spo"}),
        ("sampling.top_k", {"spo"}),
        ("spo.clip_low", {"spo"}),
        ("spo.temperature", {"spo"}),
        ("autoencoder.network", {"codebook", "imitation", "rsft", "spo"}),
        ("evaluation.episodes_per_task", set()),
    ],
)
def test_which_stages_depend_on_a_key(key, stages):
    config = defaults.metaworld()
    assert {name for name in table.STAGES if table.depends(name, key, config)} == stages


def test_what_is_evaluated_and_when():
    config = defaults.metaworld()
    assert [one.name for one in table.evaluations(config)] == [
        "reference", "ceiling", "imitation", "greedy", "rsft", "spo",
    ]  # fmt: skip
    assert [one.name for one in table.evaluations(config, after="reference")] == ["reference", "ceiling"]
    assert table.STEPS == ("imitation", "rsft", "spo")
    assert table.evaluations_of("codebook") == ["ceiling"]
    with config.unlocked():
        config.reference.episodes_per_task = 7
    assert [table.episodes_per_task(name, config) for name in ("ceiling", "greedy", "imitation")] == [7, 7, 50]
    with config.unlocked():
        config.reference.enabled = False
    assert [one.name for one in table.evaluations(config)] == list(table.STEPS)
    config = defaults.with_policy(defaults.metaworld(), "bc")
    assert [one.name for one in table.evaluations(config)] == ["imitation"]


def test_without_rsft_spo_starts_from_imitation():
    config = defaults.metaworld()
    with config.unlocked():
        config.rsft.enabled = False
    assert table.needs("spo", config) == ("imitation",)
    assert not table.depends("spo", "rsft.steps", config)
    with config.unlocked():
        config.rsft.demo_fraction = 0.5
    assert table.needs("rsft", config) == ("imitation", "demos", "codebook")


# ------------------------------------------------------------------------------------------ a workdir of small files


class Workdir:
    """A finished run as far as provenance can tell: arrays of one number, one row and one video per evaluation."""

    def __init__(self, folder):
        self.folder = folder
        self.config = defaults.metaworld()
        self.marks = {}
        provenance.accept(self.config, folder, [], {})
        (folder / "demos").mkdir()
        (folder / "demos" / "reach-v3.hdf5").write_bytes(b"demonstrations")
        for number, name in enumerate(table.STAGES):
            self.make(name, number)

    def make(self, name, value):
        provenance.begin(self.config, self.folder, name)
        if name != "demos" and not table.found_outputs(name, self.folder):
            checkpoints = Checkpoints(self.folder / "checkpoints" / name)
            checkpoints.save(1, {"fixed": {}, "trainable": {"prior": np.full(2, value)}}, {"final": True})
            checkpoints.close()
        provenance.finish(self.config, self.folder, name)
        for one in table.evaluations(self.config, after=name):
            if any(row["stage"] == one.name for row in self.rows()):
                continue
            row = {"stage": one.name, "task": "t", "init": "i", "success": True}
            append_jsonl(self.folder / "episodes.jsonl", [row])
            if one.step or one.measure:
                append_jsonl(self.folder / "metrics.jsonl", [{"stage": one.name, "step": 1}])
            atomic_write_text(self.folder / "videos" / f"{one.name}_t_success.gif", "a video")
            write_results(self.config, self.folder)

    def rows(self):
        return read_jsonl(self.folder / "episodes.jsonl")

    def change(self, **values):
        with self.config.unlocked():
            self.config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
        changed = provenance.changed_keys(self.config, self.folder)
        provenance.accept(self.config, self.folder, changed, {})
        return changed

    def remove(self, name):
        for place in table.found_outputs(name, self.folder):
            shutil.rmtree(place)

    def evaluated(self):
        """Evaluations with rows, with results and with videos: the same ones, or it fails."""
        results = json.loads((self.folder / "results.json").read_text())
        by_rows = {row["stage"] for row in self.rows()}
        by_videos = {path.name.split("_")[0] for path in (self.folder / "videos").glob("*")}
        assert by_rows == by_videos == results.keys() - {"config_hash"}
        return by_rows

    def begun(self):
        return [name for name in table.STAGES if table.found_outputs(name, self.folder)]


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


EVERYTHING = list(table.STAGES)
EVALUATED = set(table.EVALUATIONS)


def test_a_stage_that_comes_out_the_same_keeps_what_follows(workdir):
    workdir.remove("imitation")
    for number, name in enumerate(table.STAGES):
        workdir.make(name, number)
    assert workdir.begun() == EVERYTHING and workdir.evaluated() == EVALUATED
    assert not (workdir.folder / "superseded").exists()


def test_a_stage_that_comes_out_otherwise_takes_its_rows_and_what_follows_with_it(workdir, capsys):
    workdir.remove("imitation")
    workdir.make("imitation", 77)
    assert workdir.evaluated() == EVALUATED  # imitation's row is new
    old = list((workdir.folder / "superseded").glob("imitation-*/episodes.jsonl"))
    assert len(old) == 1 and [row["stage"] for row in read_jsonl(old[0])] == ["imitation", "greedy"]
    provenance.begin(workdir.config, workdir.folder, "rsft")
    assert workdir.begun() == [name for name in EVERYTHING if name != "rsft"]
    assert workdir.evaluated() == EVALUATED - {"rsft"}
    logged = [row["stage"] for row in read_jsonl(workdir.folder / "metrics.jsonl")]
    assert logged == ["ceiling", "imitation", "spo", "imitation"]
    (kept,) = (workdir.folder / "superseded").glob("rsft-*")
    assert (kept / "checkpoints" / "rsft" / "1").is_dir() and (kept / "videos" / "rsft_t_success.gif").exists()
    assert "R-SFT: what it was made from has changed; it is made again" in capsys.readouterr().err
    workdir.make("rsft", 3)  # comes out as before, so SPO is valid after all
    workdir.make("spo", 4)
    assert workdir.begun() == EVERYTHING and workdir.evaluated() == EVALUATED


def test_changed_values_of_a_removed_stage_make_the_later_ones_again(workdir):
    workdir.remove("imitation")
    assert workdir.change(imitation__steps=7, rsft__steps=5) == ["imitation.steps", "rsft.steps"]
    assert workdir.begun() == ["demos", "codebook", "reference"]
    assert not (workdir.folder / "checkpoints" / "rsft").exists()
    assert workdir.evaluated() == EVALUATED - {"rsft", "spo"}  # imitation's until the new policy is there
    workdir.make("imitation", 9)
    assert workdir.evaluated() == EVALUATED - {"rsft", "spo"}


def test_another_codebook_takes_the_ceilings_rows_and_keeps_those_of_behaviour_cloning(workdir):
    workdir.remove("codebook")
    assert workdir.change(codebook__steps=7) == ["codebook.steps"]
    assert workdir.begun() == ["demos", "reference"]
    provenance.begin(workdir.config, workdir.folder, "codebook")
    workdir.make("codebook", 77)
    assert workdir.evaluated() == {"reference"}
    assert not read_jsonl(workdir.folder / "metrics.jsonl")
    (kept,) = (workdir.folder / "superseded").glob("codebook-*")
    assert [row["stage"] for row in read_jsonl(kept / "episodes.jsonl")] == ["ceiling"]
    assert [row["stage"] for row in read_jsonl(kept / "metrics.jsonl")] == ["ceiling"]
    workdir.make("reference", 2)  # still valid: its evaluation has a row, the ceiling's is new
    assert workdir.evaluated() == {"reference", "ceiling"}


def test_another_reference_touches_no_step(workdir):
    workdir.remove("reference")
    workdir.change(reference__steps=7)
    assert workdir.begun() == [name for name in EVERYTHING if name != "reference"]
    workdir.make("reference", 77)
    assert workdir.begun() == EVERYTHING and workdir.evaluated() == EVALUATED
    (kept,) = (workdir.folder / "superseded").glob("*")
    assert [row["stage"] for row in read_jsonl(kept / "episodes.jsonl")] == ["reference", "ceiling"]


def test_a_workdir_from_before_the_references_gets_them(tmp_path):
    """Its config names none; the stages that it has stay."""
    old = json.loads(configs.to_json(defaults.metaworld()))
    del old["reference"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    stored = configs.from_json((tmp_path / "config.json").read_text())
    assert [stage.name for stage in table.enabled(stored)] == ["demos", "codebook", "imitation", "rsft", "spo"]
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "imitation")
    checkpoints.save(1, {"fixed": {}, "trainable": {"prior": np.ones(2)}}, {"final": True})
    checkpoints.close()
    config = defaults.metaworld()
    assert provenance.changed_keys(config, tmp_path) == ["reference.enabled"]
    provenance.accept(config, tmp_path, ["reference.enabled"], {})
    assert table.found_outputs("imitation", tmp_path) and not (tmp_path / "superseded").exists()
    # A reference that is off leaves no trace in what tells runs apart.
    with config.unlocked():
        config.reference.enabled, config.reference.steps = False, 7
    assert configs.fingerprint(config) == configs.fingerprint(stored)


def test_changed_demonstrations_make_everything_again(workdir):
    workdir.remove("demos")
    workdir.change(demos__per_task=30)
    assert workdir.begun() == []
    assert len(list((workdir.folder / "superseded").glob("*/checkpoints/*/1"))) == 5


def test_removed_demonstrations_are_no_longer_needed(workdir):
    workdir.remove("demos")
    assert workdir.change() == []
    for name in table.STAGES:
        workdir.make(name, 0)
    assert workdir.begun() == EVERYTHING[1:] and workdir.evaluated() == EVALUATED


@pytest.mark.parametrize(
    ("removed", "change", "holders"),
    [
        ("", {"imitation__steps": 7}, "imitation"),
        ("spo", {"rsft__steps": 7}, "R-SFT"),
        ("", {"sampling__top_k": 3}, "SPO, evaluations"),
        ("spo", {"sampling__top_k": 3}, "evaluations"),
        ("demos", {"env__horizon": 300}, "codebook, behaviour cloning, imitation, R-SFT, SPO"),
        ("demos", {"demos__label": "expert"}, "codebook, behaviour cloning, imitation"),
        ("", {"demos__per_task": 30}, "demonstrations, codebook, behaviour cloning, imitation"),
        ("", {"reference__steps": 7}, "behaviour cloning"),
        ("", {"spo__iterations": 3}, "SPO; it can only grow"),
        ("", {"evaluation__episodes_per_task": 3}, "evaluations; it can only grow"),
    ],
)
def test_values_that_contradict_what_is_there_are_refused(workdir, removed, change, holders):
    if removed:
        workdir.remove(removed)
    before = (workdir.folder / "config.json").read_text(), workdir.begun(), workdir.evaluated()
    with pytest.raises(configs.ConfigError, match="was made with another config") as raised:
        workdir.change(**change)
    (key,) = change
    lines = str(raised.value).splitlines()
    assert len(lines) == 2 and all(len(line) < 300 for line in lines)
    assert lines[1].startswith(f"  config.{key.replace('__', '.')}: ") and lines[1].endswith(f"({holders})")
    assert before == ((workdir.folder / "config.json").read_text(), workdir.begun(), workdir.evaluated())


def test_more_iterations_and_episodes_are_taken(workdir):
    assert workdir.change(spo__iterations=40, evaluation__episodes_per_task=60) == [
        "evaluation.episodes_per_task", "spo.iterations",
    ]  # fmt: skip
    assert workdir.begun() == EVERYTHING and workdir.evaluated() == EVALUATED


def test_a_workdir_without_records_is_taken_as_it_is(workdir):
    (workdir.folder / "stages.json").unlink()
    for number, name in enumerate(table.STAGES):
        workdir.make(name, number)
    assert workdir.begun() == EVERYTHING and workdir.evaluated() == EVALUATED
    assert json.loads((workdir.folder / "stages.json").read_text())["spo"]["from"].keys() == {"rsft"}


def test_images_of_two_versions_of_the_files_are_not_mixed(tmp_path):
    config = defaults.metaworld()
    provenance.accept(config, tmp_path / "new", [], {"libero-assets": "original"})
    provenance.accept(config, tmp_path / "new", [], {"libero-assets": "other"})  # it was begun with the first
    provenance.require_same_files(tmp_path / "new", {"libero-assets": "original"})
    with pytest.raises(configs.ConfigError, match="was begun with libero-assets original, these are other") as caught:
        provenance.require_same_files(tmp_path / "new", {"libero-assets": "other"})
    assert "\n" not in str(caught.value)

    provenance.accept(config, tmp_path / "older", [], {})
    provenance.accept(config, tmp_path / "older", [], {"libero-assets": "original"})
    provenance.require_same_files(tmp_path / "older", {"libero-assets": "other"})  # nobody knows what it had


def test_official_files_are_told_apart_by_their_sizes(tmp_path):
    config = defaults.libero()
    with config.unlocked():
        config.data = "official"
        config.env.tasks = ("left",)
        config.env.name = "fake"
        config.demos.folder = str(tmp_path)
    (tmp_path / "left_demo.hdf5").write_bytes(b"1")
    one = provenance._demonstrations_mark(config)
    (tmp_path / "left_demo.hdf5").write_bytes(b"12")
    assert one != provenance._demonstrations_mark(config)
    (tmp_path / "left_demo.hdf5").unlink()
    assert provenance._demonstrations_mark(config) is None


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def run(run_environment):
    """A whole run on the fake environment; returns what it said."""

    def call(workdir, *changes):
        return cascade.finish(workdir, run_environment, "report.videos=0", *changes)

    return call


def test_rows_are_those_of_the_policy_that_is_there(run, tmp_path):
    short = ("rsft.steps=5", "spo.iterations=1")
    again, fresh = tmp_path / "again[1]", tmp_path / "fresh"
    run(again, *short, "imitation.steps=10")
    old = sorted_episodes(again)
    shutil.rmtree(again / "checkpoints" / "imitation")
    run(again, *short, "imitation.steps=200")
    run(fresh, *short, "imitation.steps=200")
    assert sorted_episodes(again) == sorted_episodes(fresh) != old
    assert results_of(again) == results_of(fresh)
    steps = [[row["step"] for row in cascade.metrics_of(workdir, "imitation")] for workdir in (again, fresh)]
    assert steps[0] == steps[1] and steps[0]


@pytest.mark.parametrize("changes", [(), ("spo.critic=true",)], ids=["spo", "critic"])
def test_a_finished_run_grows(run, tmp_path, changes):
    short = ("rsft.steps=5", *changes)
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    said = run(grown, *short, "spo.iterations=1", "evaluation.episodes_per_task=2")
    assert "larger --config.spo.iterations (now 1) or --config.evaluation.episodes_per_task (now 2) goes on" in said
    run(grown, *short, "spo.iterations=3", "evaluation.episodes_per_task=4")
    run(whole, *short, "spo.iterations=3", "evaluation.episodes_per_task=4")
    left, right = saved(grown, "spo"), saved(whole, "spo")
    assert left[0] == right[0] == 3
    jax.tree.map(np.testing.assert_array_equal, left[1], right[1])
    assert sorted_episodes(grown) == sorted_episodes(whole)
    assert results_of(grown) == results_of(whole)
