"""Widths and sides that a config does not state follow from its databases and encoders."""

import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
from conftest import ROOT
from diffusers import AutoencoderKL
from ldm_vae import ldm_names
from openai_clip import openai_tensors, random_clip, save_archive
from PIL import Image
from preprocessing import Project
from safetensors.torch import save_file
from tiny import DIM, LATENT_SIZE, RESOLUTION, make_tiny_clip, make_tiny_vae

from utils.base.errors import UserError
from utils.config.load import config_from_dict, load_config
from utils.config.schema import Config
from utils.data.derived_sizes import with_derived_sizes
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter

CONFIGS = [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if p.parent.name != "accelerate"]


def sizes(config: Config) -> tuple[int, ...]:
    """The five sizes: embedding twice, channels twice, side."""
    data, model = config.data, config.model
    dims = (data.feat_dim, model.num_classes, data.num_channels, model.in_channels)
    return (*dims, model.in_size)


def config_of(folder: Path, data: dict | None = None, model: dict | None = None) -> Config:
    """A config that states paths, encoders, and the given keys."""
    if not (folder / "clip").exists():
        make_tiny_clip(folder / "clip")
        make_tiny_vae(folder / "vae")
    paths = {"root": str(folder / "z"), "feat_path": str(folder / "y")}
    return config_from_dict(
        {
            "data": {"resolution": RESOLUTION, **paths, **(data or {})},
            "model": model or {},
            "encoders": {"vae": str(folder / "vae"), "clip": str(folder / "clip")},
        }
    )


def write_databases(folder: Path, width: int, shape: tuple[int, int, int], **meta: str) -> None:
    with LMDBWriter(folder / "z", "z", meta, 2) as writer:
        writer.append(np.zeros((2, *shape), np.float32))
    with LMDBWriter(folder / "y", "y", {}, 2) as writer:
        writer.append(np.zeros((2, 1, width), np.float32))


def faults(config: Config, *uses: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        with_derived_sizes(config, *uses)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_the_configs_here_keep_their_sizes(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    assert with_derived_sizes(config, databases=False) == config
    assert capsys.readouterr().err == ""


def test_sizes_follow_from_the_encoders_before_there_are_databases(tmp_path):
    config = with_derived_sizes(config_of(tmp_path), "makes", "makes")
    assert sizes(config) == (DIM, DIM, 4, 4, LATENT_SIZE)


def test_sizes_follow_from_the_databases_where_they_are(tmp_path, capsys):
    write_databases(tmp_path, 24, (3, 5, 5))
    assert sizes(with_derived_sizes(config_of(tmp_path))) == (24, 24, 3, 3, 5)
    # A training needs no encoder, but a prompt will.
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_moments_have_twice_the_channels_of_a_latent(tmp_path):
    write_databases(tmp_path, DIM, (8, 2, 2), z_holds="moments")
    assert sizes(with_derived_sizes(config_of(tmp_path))) == (DIM, DIM, 4, 4, LATENT_SIZE)


def test_the_plain_published_layout_gives_the_side(tmp_path):
    golden = ROOT / "tests" / "golden" / "lmdb_seed_format"
    data = {"root": str(golden / "z"), "feat_path": str(golden / "clip_txt")}
    config = with_derived_sizes(config_of(tmp_path, data))
    latents = LMDBReader(golden / "z").info.shape
    assert (config.model.in_channels, config.model.in_size) == (latents[0], latents[-1])
    assert (config.model.num_classes,) == LMDBReader(golden / "clip_txt").info.shape


def test_an_incomplete_database_does_not_count(tmp_path):
    with LMDBWriter(tmp_path / "y", "y", {}, 5) as writer:
        writer.append(np.zeros((2, 1, 24), np.float32))
    assert sizes(with_derived_sizes(config_of(tmp_path)))[:2] == (DIM, DIM)


def test_one_stated_key_gives_the_other(tmp_path):
    config = config_from_dict({"model": {"in_channels": 8}, "encoders": {"vae": "./none"}})
    assert with_derived_sizes(config).data.num_channels == 8


def test_class_labels_and_no_condition_stay_as_they_are(tmp_path):
    labels = config_of(tmp_path, {"feat_path": None}, {"num_classes": 1000})
    assert sizes(with_derived_sizes(labels))[:2] == (512, 1000)
    nothing = config_of(tmp_path, {"feat_path": None}, {"num_classes": 0})
    assert sizes(with_derived_sizes(nothing))[:2] == (512, 0)
    beside = config_of(tmp_path, {}, {"num_classes": 10, "ext_feature_dim": 99})
    assert sizes(with_derived_sizes(beside))[:2] == (512, 10)


def test_all_disagreements_come_in_one_message_with_key_value_source_and_remedy(tmp_path):
    data, model = {"feat_dim": 512, "num_channels": 3}, {"num_classes": 512, "in_size": 32}
    config = config_of(tmp_path, data, model)
    clip, vae = tmp_path / "clip", tmp_path / "vae"
    assert faults(config, "makes", "makes") == [
        f"channels of a latent: data.num_channels says 3, encoders.vae ({vae}) gives 4; "
        "set data.num_channels to 4, or leave out the key",
        f"side of a latent: model.in_size says 32, data.resolution 16 and encoders.vae ({vae}), "
        "8 times down, give 2; set model.in_size to 2, or leave out the key, or set "
        "data.resolution to 256",
        f"width of an embedding: data.feat_dim says 512, model.num_classes says 512, "
        f"encoders.clip ({clip}) gives 16; set data.feat_dim and model.num_classes to 16, "
        "or leave out the keys",
    ]


def test_a_database_of_another_encoder_is_named(tmp_path):
    write_databases(tmp_path, 24, (4, 2, 2))
    (line,) = faults(config_of(tmp_path), "none", "makes")
    assert f"({tmp_path / 'clip'}) gives 16, the database {tmp_path / 'y'} holds 24; " in line
    assert line.endswith("or delete the database and make it again")


def test_a_training_refuses_keys_that_differ_from_its_database_or_from_each_other(tmp_path):
    write_databases(tmp_path, 24, (4, 2, 2))
    (line,) = faults(config_of(tmp_path, {"feat_dim": 16}))
    assert "data.feat_dim says 16" in line and "holds 24" in line
    config = config_from_dict(
        {"data": {"num_channels": 4}, "model": {"in_channels": 8}, "encoders": {"vae": "./none"}}
    )
    assert faults(config) == [
        "channels of a latent: data.num_channels says 4, model.in_channels says 8; "
        "set data.num_channels and model.in_channels to one number"
    ]


def test_a_script_that_makes_no_latents_only_notes_that_they_would_not_fit(tmp_path, capsys):
    config = config_of(tmp_path, {}, {"in_size": 7})
    assert with_derived_sizes(config, "none", "makes").model.in_size == 7
    assert capsys.readouterr().err.startswith("note: side of a latent: model.in_size says 7")


def test_the_files_of_other_projects_give_their_sizes_without_being_loaded(tmp_path):
    tower = {"layers": 1, "width": 16, "head_width": 16}
    clip = random_clip(
        embed_dim=24,
        vision_cfg={**tower, "image_size": 16, "patch_size": 8},
        text_cfg={"layers": 1, "width": 16, "heads": 1, "context_length": 8, "vocab_size": 99},
    )
    save_archive(openai_tensors(clip), tmp_path / "clip.pt")
    vae = AutoencoderKL.from_pretrained(make_tiny_vae(tmp_path / "vae"))
    save_file(ldm_names(vae), tmp_path / "vae.safetensors")
    config = config_from_dict(
        {
            "data": {"resolution": RESOLUTION, "feat_path": "nowhere"},
            "encoders": {
                "clip": str(tmp_path / "clip.pt"),
                "vae": str(tmp_path / "vae.safetensors"),
            },
        }
    )
    made = with_derived_sizes(config, "makes", "makes")
    assert made.model.num_classes == made.data.feat_dim == 24
    assert (made.model.in_channels, made.model.in_size) == (4, LATENT_SIZE)


def test_a_large_clip_is_known_by_its_name_at_once():
    name = "ViT-L-14"
    config = config_from_dict(
        {"data": {"feat_path": "nowhere"}, "encoders": {"clip": f"{name}:openai", "vae": "./none"}}
    )
    begin = time.thread_time()
    width = with_derived_sizes(config).model.num_classes
    assert width == open_clip.get_model_config(name)["embed_dim"] == 768
    assert time.thread_time() - begin < 1  # of the processor: its weights are not made


def test_a_config_of_paths_and_encoders_alone_preprocesses_trains_and_samples(
    tmp_path, monkeypatch, capsys
):
    project = Project(tmp_path, monkeypatch)
    for split in ("train", "test"):
        for kind in ("images", "captions"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (20, 20), (30 * i, 99, 0)).save(tmp_path / split / f"images/{i}.png")
            (tmp_path / split / f"captions/{i}.txt").write_text(f"face {i}\n")
    project.without_sizes()
    written, out = project.train_and_generate("face")
    assert sizes(written) == sizes(project.config) == (DIM, DIM, 4, 4, LATENT_SIZE)
    assert {"num_classes", "in_size"} <= written.model.model_fields_set
    assert list(out.glob("*.png"))
    assert "note: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model_type", "resolution", "unit", "advice"),
    [
        ("DiT-S/2", 104, 16, "96 or 112"),
        ("DiT-S/2", 100, 16, "96 or 112"),
        ("DiT-S/4", 144, 32, "128 or 160"),
        ("DiT-S/8", 130, 64, "128 or 192"),
        ("DiT-S/2", 4, 16, "16"),
    ],
)
@pytest.mark.parametrize("uses", [("makes", "none"), ("none", "makes"), ("reads", "reads")])
def test_a_resolution_that_patches_do_not_tile_is_refused(
    tmp_path, model_type, resolution, unit, advice, uses
):
    config = config_of(tmp_path, {"resolution": resolution}, {"model_type": model_type})
    (line,) = faults(config, *uses)
    assert line.startswith(f"data.resolution: {resolution} is no multiple of {unit} pixels")
    assert model_type in line and line.endswith(f"set it to {advice}")


def test_what_only_samples_has_a_network_already_and_is_not_asked(tmp_path):
    config = config_of(tmp_path, {"resolution": 104})
    assert with_derived_sizes(config, "none", "none").data.resolution == 104


def test_statistics_of_images_that_no_network_could_learn_are_refused_too(
    tmp_path, monkeypatch, capsys
):
    project = Project(tmp_path, monkeypatch)
    message = project.fails(capsys, "fid_ref", "data.resolution=104")
    assert "data.resolution: 104 is no multiple of 16 pixels" in message
