"""The references of a run: evaluated beside the steps, resumed, and made again with what they were made from."""

import shutil

import numpy as np
from support import cascade
from support.cascade import metrics_of, policy_of, results_of

from cso_jax import evaluate
from cso_jax.files import read_jsonl

BASE = (
    "reference.enabled=true", "reference.steps=100", "reference.checkpoint_every=50",
    "reference.augment=false", "rsft.enabled=false", "spo.enabled=false", "imitation.steps=5", "report.videos=0",
)  # fmt: skip


def rows_of(workdir):
    found = {}
    for row in read_jsonl(workdir / "episodes.jsonl"):
        found.setdefault(row["stage"], {})[row["init"]] = row
    return found


def test_references_follow_what_they_were_made_from(tmp_path, run_environment, capsys):
    workdir = tmp_path / "run"
    said = cascade.finish(workdir, run_environment, *BASE, "codebook.steps=2")
    first = rows_of(workdir)
    assert list(first) == ["reference", "ceiling", "imitation", "greedy"]
    assert results_of(workdir).keys() - {"config_hash"} == first.keys()
    assert len({frozenset(rows) for rows in first.values()}) == 1 and len(first["reference"]) == 12
    success = {name: np.mean([row["success"] for row in rows.values()]) for name, rows in first.items()}
    assert success["reference"] > 0.7 and success["ceiling"] < 0.3
    assert said.count("raise config.codebook.steps or config.autoencoder.width") == 1
    page = (workdir / "report.html").read_text()
    assert "What the data allows" in page and "config.codebook.steps or config.autoencoder.width." in page
    assert not {"reference", "ceiling", "greedy"} & {path.name.split("_")[0] for path in workdir.glob("videos/*")}

    # Resumed in the midst of training, it ends the same, and what was evaluated stays.
    trained = policy_of(workdir, "reference")
    shutil.rmtree(workdir / "checkpoints" / "reference" / "100")
    cascade.finish(workdir, run_environment, *BASE, "codebook.steps=2")
    for name, value in policy_of(workdir, "reference").items():
        np.testing.assert_array_equal(value, trained[name], err_msg=name)
    assert [row["step"] for row in metrics_of(workdir, "reference")] == list(range(50, 101, 50))
    assert rows_of(workdir) == first
    (measured,) = metrics_of(workdir, "ceiling")

    # Another codebook: behaviour cloning is what it was, its chunks come back otherwise.
    shutil.rmtree(workdir / "checkpoints" / "codebook")
    (workdir / "codebook_usage.json").unlink()
    said = cascade.finish(workdir, run_environment, *BASE, "codebook.steps=800")
    second = rows_of(workdir)
    assert second["reference"] == first["reference"] and second.keys() == first.keys()
    (old,) = (workdir / "superseded").glob("codebook-*/episodes.jsonl")
    assert {row["init"]: row for row in read_jsonl(old)} == first["ceiling"]
    assert sum(row["success"] for row in second["ceiling"].values()) > 6
    (again,) = metrics_of(workdir, "ceiling")
    assert 0 < again["executed_l1"] < 0.7 * measured["executed_l1"] and again["chunks"] > 100
    assert "raise config.codebook.steps" not in said

    # Each can be evaluated further, and with the reference switched off nothing of it is asked for.
    assert evaluate.main([f"--workdir={workdir}", "--stage=ceiling", "--episodes=5"]) == 0
    assert evaluate.main([f"--workdir={workdir}", "--protocol=openpi"]) == 1
    assert "the fake environment has no evaluation protocol 'openpi'" in capsys.readouterr().err.splitlines()[-1]
    more = read_jsonl(workdir / "evaluation_ceiling.jsonl")
    assert len(more) == 15 and {row["stage"] for row in more} == {"ceiling"}
    assert rows_of(workdir) == second
