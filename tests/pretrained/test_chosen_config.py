"""Settings of an experiment or checkpoint that is named, and where a checkpoint's encoders are."""

from argparse import Namespace
from pathlib import Path

import pytest
from tiny import make_tiny_checkpoint, make_tiny_config

from utils.base.errors import UserError
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.schema import Config
from utils.pretrained.checkpoint_files import read_weights, step_of
from utils.pretrained.denoisers import export_safetensors
from utils.pretrained.effective_config import (
    config_file,
    experiment_config,
    load_effective_config,
    read_config,
)
from utils.pretrained.encoder_paths import PROJECT, find_encoders, shareable_encoders


@pytest.fixture
def experiment(tmp_path) -> Path:
    """Make an experiment folder with two checkpoints and no config.yaml, as old ones may be."""
    for step in (10, 20):
        config = make_tiny_config(tmp_path, train={"seed": step})
        make_tiny_checkpoint(tmp_path / "exp" / "checkpoints" / f"{step:07d}.pt", config)
    return tmp_path / "exp"


def write_config(folder: Path, config: Config) -> None:
    (folder / "config.yaml").write_text(config.to_yaml())


def test_the_experiments_own_file_counts_before_its_checkpoints(experiment, tmp_path):
    write_config(experiment, make_tiny_config(tmp_path, train={"seed": 7}))
    assert experiment_config(experiment) == experiment / "config.yaml"
    args = Namespace(config=None, experiment_dir=experiment, overrides=["train.lr=0.5"])
    config = load_effective_config(args)
    assert (config.train.seed, config.train.lr) == (7, 0.5)
    assert args.config == str(experiment / "config.yaml")


def test_without_a_file_the_newest_whole_checkpoint_counts(experiment):
    assert read_config(config_file(None, experiment)).train.seed == 20
    newest = experiment / "checkpoints" / "0000020.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert read_config(config_file(None, experiment)).train.seed == 10


def test_a_given_config_counts_before_all(experiment):
    assert config_file("mine.yaml", experiment, Path("x.pt")) == "mine.yaml"
    assert config_file(None) == DEFAULT_CONFIG


def test_a_folder_that_is_no_experiment_is_named(tmp_path):
    with pytest.raises(UserError, match=r"own: holds no config\.yaml, and no checkpoint"):
        config_file(None, tmp_path / "own")


def test_overrides_and_required_keys_work_on_a_checkpoints_config(experiment):
    path = experiment / "checkpoints" / "0000010.pt"
    assert read_config(path, ["sampling.preset=fast"]).sampling.solver == "dpmpp_2m"
    assert read_config(path, flags={"--tag": {"log.tag": "x"}}).log.tag == "x"
    with pytest.raises(UserError, match=r"0000010\.pt: data\.root: required key is missing"):
        read_config(path, ["data.root=null"], require=("data.root",))


def test_the_step_comes_from_the_file_whatever_its_name(experiment, tmp_path):
    source = experiment / "checkpoints" / "0000020.pt"
    export_safetensors(source, tmp_path / "dit.safetensors")
    assert step_of(source) == 20
    assert step_of(source.rename(tmp_path / "best.pt")) == 20
    assert step_of(tmp_path / "dit.safetensors") == 20


def find(folder: Path, **encoders: str) -> dict[str, str]:
    return find_encoders({"encoders": encoders}, folder)["encoders"]


def test_encoders_are_looked_up_around_the_checkpoint_and_in_the_project(tmp_path, monkeypatch):
    checkpoints, elsewhere = tmp_path / "a" / "exp" / "checkpoints", tmp_path / "elsewhere"
    for folder in (checkpoints / "my_clip", tmp_path / "a" / "weights" / "vae", elsewhere):
        folder.mkdir(parents=True)
    (tmp_path / "a" / "weights" / "b32.pt").touch()
    monkeypatch.chdir(elsewhere)
    found = find(
        checkpoints,
        vae="weights/vae",  # below a folder above the checkpoint
        clip="/gone/my_clip",  # beside the checkpoint
        image_mean="assets/demo/image_mean.npy",  # in the project
    )
    assert found == {
        "vae": str(tmp_path / "a" / "weights" / "vae"),
        "clip": str(checkpoints / "my_clip"),
        "image_mean": str(PROJECT / "assets/demo/image_mean.npy"),
    }
    named = find(checkpoints, clip="ViT-B-32:weights/b32.pt")["clip"]
    assert named == f"ViT-B-32:{tmp_path / 'a' / 'weights' / 'b32.pt'}"


def test_encoders_that_are_here_or_of_a_hub_or_nowhere_stay_as_they_are(tmp_path, monkeypatch):
    for folder in ("here/weights/vae", "there/weights/vae", "there/openai"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for vae in ("weights/vae", "stabilityai/sd-vae-ft-ema", "assets/gone"):
        encoders = {"vae": vae, "clip": "ViT-B-32:openai"}
        assert find(tmp_path / "there", **encoders) == encoders


def test_an_export_names_encoders_so_that_other_folders_find_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights" / "vae").mkdir(parents=True)
    encoders = {"vae": "weights/vae", "clip": str(PROJECT / "assets/demo/clip")}
    values = Config.model_validate({"encoders": encoders}).to_dict()
    shared, local = shareable_encoders(values)
    assert local == [str(tmp_path / "weights" / "vae"), "assets/demo/clip"]
    assert [shared["encoders"][key] for key in ("vae", "clip")] == local
    hub = Config().to_dict()
    assert shareable_encoders(hub) == (hub, [])


def test_a_checkpoint_without_config_asks_for_one(golden):
    assert read_weights(golden / "0000100.pt")[1] is None
    with pytest.raises(UserError, match=r"0000100\.pt holds no configuration; .*--config"):
        read_config(golden / "0000100.pt")
