"""Export and load: the same actions bit for bit, and every damaged artifact refused by name."""

import dataclasses
import datetime
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import kinds, served

from cso_jax import config as configs
from cso_jax import export as command
from cso_jax.cascade import open_run
from cso_jax.checkpoints import Checkpoints
from cso_jax.files import append_jsonl
from cso_jax.policies.interface import Decision, Wants
from cso_jax.runtime import artifact, program
from cso_jax.runtime.manifest import Action, Frame
from cso_jax.stages import table

FAKE = Path(__file__).parents[1] / "configs" / "fake.py"


def untrained(workdir: Path, *changes: tuple[str, str]) -> Path:
    """A workdir whose imitation policy is what it was before its first step."""
    own = dict(changes).get("policy.name", "quest") == "quest"
    config = configs.load(str(FAKE), [("reference.enabled", str(own)), *changes])
    run = open_run(config, workdir)
    made = {"imitation": run.fresh_variables(jax.random.key(1))}
    if own:
        made["reference"] = table.reference._direct(run).fresh_variables(jax.random.key(2))
    for stage, variables in made.items():
        Checkpoints(workdir / "checkpoints" / stage).save(3, {"trainable": variables, "fixed": {}}, {"final": True})
    run.close()
    return workdir


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir and the artifact of its imitation policy."""
    place = tmp_path_factory.mktemp("export")
    workdir = untrained(place / "run")
    append_jsonl(
        workdir / "episodes.jsonl",
        [{"stage": "imitation", "task": task, "init": f"eval:{task}:{i}", "success": i < 3} for task in ("left", "up")
         for i in range(4)],
    )  # fmt: skip
    assert command.main([str(workdir), str(place / "out"), "--stage=imitation", "--name=a point"]) == 0
    return workdir, place / "out"


@pytest.fixture
def copy(made, tmp_path):
    """The artifact, to be damaged."""
    return Path(shutil.copytree(made[1], tmp_path / "copy"))


def test_scaled_actions_are_answered_in_units(made):
    manifest = artifact.read_manifest(made[1])
    plain = dataclasses.asdict(manifest.action) | {"scaled": True, "low": (-2.0, 0.0), "high": (2.0, 0.1)}
    scaled = dataclasses.replace(manifest, action=Action(**plain))
    parameters = artifact.read_parameters(made[1], manifest)
    config = (made[1] / "config.json").read_text()
    given = rows(3)
    own, answered = (
        np.asarray(program.rebuilt_act(config, parameters, one)(parameters, *given)) for one in (manifest, scaled)
    )
    np.testing.assert_allclose(answered[..., 0], 2 * np.clip(own[..., 0], -1, 1), atol=1e-6)
    np.testing.assert_allclose(answered[..., 1], 0.05 + 0.05 * np.clip(own[..., 1], -1, 1), atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Halfway:
    """Predicts half of a unit for every number."""

    wants = Wants(chunk_length=16)

    def decide(self, variables, observation, episode_keys, decision_index, *, sampling, execution_horizon):
        return Decision(jnp.full((len(decision_index), execution_horizon, 7), 0.5))


def test_relative_chunks_are_answered_absolute_and_in_units():
    arm = served.manifest()
    frame = Frame("joints", (1 / 3,) * 6 + (0.0,), (0.0,) * 7, (0.2,) * 6 + (1.0,))
    action = dataclasses.replace(arm.action, scaled=True, frame=frame)
    act = program.make_act(Halfway(), {}, dataclasses.replace(arm, action=action))
    seen = np.array([[0.6] * 6 + [0.01], [-3.0] * 6 + [0.08]], np.float32)
    chunk = act({}, {"joints": seen}, np.zeros(2, np.int32), np.zeros((2, 2), np.uint32), np.zeros(2, np.int32))
    # Joints at 0.2 and -1 of their range of 3, then half of a spread of 0.2 further; the gripper halfway, absolute.
    np.testing.assert_allclose(chunk[:, 0, 0], [3 * 0.3, 3 * -0.9], rtol=1e-5)
    np.testing.assert_allclose(chunk[:, :, 6], 0.06, rtol=1e-5)


def rows(count, seed=0, history=1):
    random = np.random.default_rng(seed)
    steps = (history,) if history > 1 else ()
    return (
        {"state": random.normal(size=(count, *steps, 4)).astype(np.float32)},
        random.integers(0, 3, count).astype(np.int32),
        random.integers(0, 2**32, (count, 2), dtype=np.uint32),
        np.arange(count, dtype=np.int32),
    )


def in_process(workdir, stage, observation, task, keys, index):
    run = open_run(configs.from_json((workdir / "config.json").read_text()), workdir)
    agent = table.EVALUATIONS[stage].agent(run)
    decision = jax.jit(
        lambda variables: agent.policy.decide(
            variables, {**observation, "task": task}, keys, index, sampling=agent.sampling, execution_horizon=8
        )
    )(agent.variables)
    run.close()
    return np.asarray(decision.actions)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_exported_policy_is_the_policy_of_the_run_bit_for_bit(made, count):
    loaded = artifact.load(made[1])
    given = rows(count)
    found = loaded.act(*given)
    assert found.dtype == np.float32 and found.shape == (count, 8, 2)
    np.testing.assert_array_equal(found, in_process(made[0], "imitation", *given))
    assert len(np.unique(found[:, 0])) > 1  # noise of the draws, not a constant


def test_behaviour_cloning_is_exported_too(made, tmp_path):
    assert command.main([str(made[0]), str(tmp_path / "bc"), "--stage=reference"]) == 0
    given = rows(2)
    loaded = artifact.load(tmp_path / "bc")
    assert loaded.manifest.policy == "bc"
    np.testing.assert_array_equal(loaded.act(*given), in_process(made[0], "reference", *given))


def test_a_guided_policy_that_codes_coarse_to_fine_is_exported(tmp_path):
    changes = {"prior.guide": "(16,)", "prior.head": "digits", "autoencoder.network": "residual"}
    workdir = untrained(tmp_path / "run", *changes.items())
    assert command.main([str(workdir), str(tmp_path / "out"), "--stage=imitation"]) == 0
    given = rows(3)
    found = artifact.load(tmp_path / "out").act(*given)
    np.testing.assert_allclose(found, in_process(workdir, "imitation", *given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [k if k == "vqbet" else pytest.param(k, marks=pytest.mark.slow) for k in kinds.TINY])
def test_every_kind_is_exported(kind, tmp_path):
    workdir = untrained(tmp_path / "run", *kinds.changes(kind))
    assert command.main([str(workdir), str(tmp_path / "out"), "--stage=imitation"]) == 0
    loaded = artifact.load(tmp_path / "out")
    assert loaded.manifest.policy == kind
    given = rows(3, history=loaded.manifest.history)
    # Not always the same bits: a program for any number of rows may be fused otherwise than one for three.
    np.testing.assert_allclose(loaded.act(*given), in_process(workdir, "imitation", *given), rtol=0, atol=1e-6)


def test_the_manifest_says_what_the_policy_reads_and_answers(made):
    manifest = artifact.read_manifest(made[1])
    assert (manifest.name, manifest.policy, manifest.stage) == ("a point", "quest", "imitation")
    assert [(entry.name, entry.shape, entry.dtype) for entry in manifest.observation] == [("state", (4,), "float32")]
    assert manifest.action.names == ("x", "y") and manifest.action.chunk_length == 8
    assert [task.name for task in manifest.tasks] == ["left", "right", "up"]
    success = manifest.provenance["success"]
    assert (success["n"], success["rate"], success["tasks"]["up"]) == (8, 0.75, [3, 4])
    assert manifest.provenance["reference"] is None
    assert "**75.0 % (95 % interval 40.9 to 92.9, n = 8)**" in (made[1] / "README.md").read_text()


def test_a_success_counts_only_for_the_policy_that_acted_so(made, tmp_path):
    assert command.main([str(made[0]), str(tmp_path / "greedy"), "--stage=imitation", "--temperature=0"]) == 0
    manifest = artifact.read_manifest(tmp_path / "greedy")
    assert manifest.sampling["temperature"] == 0 and manifest.provenance["success"] is None
    assert "**not measured**" in (tmp_path / "greedy" / "README.md").read_text()


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "manifest.sha256", "config.json", "parameters.npz", "README.md", "parameters/manifest.ocdbt"],
)
def test_one_flipped_bit_is_refused_by_the_name_of_its_file(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(artifact.ArtifactError, match=f"{name.replace('.sha256', '.json')}.* changed or damaged"):
        artifact.load(copy)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "parameters.npz"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(artifact.ArtifactError, match=f"{name} cannot be read"):
        artifact.load(copy)


def signed(folder: Path, change) -> None:
    """Change the manifest, with a checksum that fits."""
    plain = json.loads((folder / "manifest.json").read_text())
    change(plain)
    text = json.dumps(plain)
    (folder / "manifest.json").write_text(text)
    (folder / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())


def test_a_newer_artifact_and_one_that_points_elsewhere_are_refused(copy):
    signed(copy, lambda plain: plain.update(version=2))
    with pytest.raises(artifact.ArtifactError, match="expected version 1, found 2; update cso_jax"):
        artifact.load(copy)
    signed(copy, lambda plain: plain.update(version=1, files={"../secret": "0"}))
    with pytest.raises(artifact.ArtifactError, match="outside of the artifact"):
        artifact.load(copy)


def test_no_pickle_is_read(copy):
    np.savez(copy / "parameters.npz", odd=np.array([{"an": "object"}], dtype=object))
    digest = hashlib.sha256((copy / "parameters.npz").read_bytes()).hexdigest()
    signed(copy, lambda plain: plain["files"].update({"parameters.npz": digest}))
    with pytest.raises(artifact.ArtifactError, match=r"parameters\.npz cannot be read"):
        artifact.load(copy)


def expired(folder: Path) -> None:
    notes = json.loads((folder / "act.json").read_text())
    notes |= {"jax": "0.0.1", "expires": str(datetime.date.today() - datetime.timedelta(days=1))}
    (folder / "act.json").write_text(json.dumps(notes))


def damaged(folder: Path) -> None:
    (folder / "act.stablehlo").write_bytes(b"\x00" + (folder / "act.stablehlo").read_bytes())


def lost(folder: Path) -> None:
    (folder / "act.stablehlo").unlink()


@pytest.mark.parametrize("harm", [expired, damaged, lost])
def test_the_program_is_made_again_where_it_cannot_be_used(made, copy, caplog, harm):
    given = rows(3)
    expected = artifact.load(made[1]).act(*given)
    harm(copy)
    np.testing.assert_array_equal(artifact.load(copy).act(*given), expected)
    assert "made again from the policy's code" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(artifact.load(copy).act(*given), expected)
    assert "made again" not in caplog.text


def test_without_the_policys_code_an_expired_program_says_what_to_install(copy, monkeypatch):
    expired(copy)
    monkeypatch.setitem(sys.modules, "cso_jax.policies", None)
    with pytest.raises(artifact.ArtifactError, match=r"expired on .* pip install it here, or export"):
        artifact.load(copy)


def test_parameters_of_another_policy_are_named(made, copy):
    manifest = artifact.read_manifest(copy)
    parameters = artifact.read_parameters(copy, manifest)
    parameters["prior/odd"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"prior/odd is \(3,\), the config builds no such array"):
        program.rebuilt_act((copy / "config.json").read_text(), parameters, manifest)


def test_an_artifact_is_loaded_without_training_code(made):
    code = (
        "import sys; from cso_jax.runtime import artifact; artifact.load(sys.argv[1]).warm_up(); "
        "print(*sorted(name for name in sys.modules if name.startswith('cso_jax')), "
        "*({'flax', 'orbax', 'optax', 'mujoco', 'h5py', 'tensorboardX'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, made[1]], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {
        "cso_jax", "cso_jax.files", "cso_jax.runtime", "cso_jax.runtime.artifact", "cso_jax.runtime.manifest",
        "cso_jax.runtime.program",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage:"),
        (["{run}"], "usage:"),
        (["{run}", "{new}", "--stage=spo"], "no policy of stage 'spo' to export; it has reference, imitation"),
        (["{run}", "{new}", "--stage=ceiling"], "no policy of stage 'ceiling'"),
        (["{new}", "{new}"], "it has no config.json"),
        (["{run}", "{new}", "--top=3"], "no option --top"),
        (["{run}", "{new}", "--chunk=many"], "are numbers"),
        (["{run}", "{new}", "--chunk=9"], "a chunk of this policy has 8 actions"),
        (["{run}", "{new}", "--horizon=8", "--chunk=4"], "a chunk of this policy has 8 actions"),
        (["{run}", "{old}"], "exists; choose a new folder"),
        (["{run}", "{new}", "--config.seed=3"], "config.seed cannot be changed"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line_and_leave_nothing(made, tmp_path, capsys, arguments, message):
    places = {"run": made[0], "old": made[1], "new": tmp_path / "new"}
    assert command.main([argument.format(**places) for argument in arguments]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and message in said
    assert not list(tmp_path.iterdir())


def test_images_travel(tmp_path):
    changes = (
        ("env.obs", "pixels"), ("env.cameras", '("camera",)'), ("env.image_size", "32"), ("encoder.image_width", "8"),
    )  # fmt: skip
    workdir = untrained(tmp_path / "run", *changes)
    assert command.main([str(workdir), str(tmp_path / "out"), "--stage=imitation"]) == 0
    loaded = artifact.load(tmp_path / "out")
    assert {entry.name: entry.shape for entry in loaded.manifest.observation} == {"state": (4,), "camera": (32, 32, 3)}
    observation, *rest = rows(2)
    observation["camera"] = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(loaded.act(observation, *rest), in_process(workdir, "imitation", observation, *rest))
