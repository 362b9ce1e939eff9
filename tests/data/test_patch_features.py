"""The database of patch features: its content, how it goes on, and what does not fit."""

import shlex
import shutil
from itertools import islice

import numpy as np
import open_clip
import pytest
import timm
import torch
import yaml
from preprocessing import IMG, N_TEST, N_TRAIN, Z, paths_in
from safetensors.torch import save_file
from test_shards import same_database
from tiny import make_tiny_clip

from models.batch_random import RankSlice
from models.clip import load_clip
from models.patch_features import clip_outputs, on_grid
from utils.base.errors import UserError
from utils.config.load import load_config
from utils.data.image_batches import iterate_batches
from utils.data.latent_dataset import open_data
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.feature_networks import DinoFeatures
from utils.training.batches import DataOrder, training_batches

SIZE = 32  # pixels: latents (4, 4, 4), of which the network makes 2x2 tokens


@pytest.fixture
def project(project):
    """A project of images of 32 pixels whose config names a database of patch features."""
    values = project.config.to_dict()
    values["data"] |= {
        "resolution": SIZE,
        "patch_feat_path": str(project.train / "features"),
    }
    values["model"]["in_size"] = SIZE // 8
    values["train"] |= {"align_coef": 1.0, "max_num_steps": 2}
    project.yaml.write_text(yaml.safe_dump(values))
    return project


def images_of(project) -> torch.Tensor:
    """Return the training images, uint8 (N, 3, 32, 32)."""
    paths = paths_in(project.folder / "train" / "images")
    return torch.cat(list(iterate_batches(paths, SIZE, 100)))


def test_features_are_the_normalised_patch_tokens_of_the_image_tower(project):
    project.run(Z, "--split", "train", "--with_features")
    reader = LMDBReader(project.train / "features")
    found = reader.read(range(N_TRAIN))
    assert (found.dtype, found.shape) == (np.float16, (N_TRAIN, 16, 2, 2))
    clip = load_clip(project.folder / "clip")
    tower, tokens = clip.model.visual, []
    tower.transformer.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    clip.encode_images(images_of(project))
    patches = tower.ln_post(tokens[0])[:, 1:].float().numpy()  # (N, 4, 16), without class token
    expected = (patches - patches.mean(axis=1, keepdims=True)) / patches.std(axis=1, keepdims=True)
    np.testing.assert_allclose(
        found.reshape(N_TRAIN, 16, 4).transpose(0, 2, 1), expected, rtol=0, atol=0.01
    )
    meta = reader.info.meta
    assert (meta["encoder"], meta["dtype"]) == (clip.identity, "float16")
    assert len(meta["names"]) == N_TRAIN and meta["content_hash"]
    assert not (project.test / "features").exists()


def test_one_pass_fills_everything_like_passes_of_their_own(project):
    project.run(Z, "--with_clip", "--with_features")
    for script, name in ((Z, "z"), (IMG, "clip_img")):
        project.run(script, "--split", "train", "--out", str(project.folder / "alone" / name))
    alone = project.folder / "alone"
    project.run(Z, "--split", "train", "--out", str(alone / "again"), "--with_features")
    for name in ("z", "clip_img", "features"):
        assert same_database(project.train / name, alone / name)
    assert LMDBReader(project.test / "z").info.length == N_TEST


def test_the_image_tower_runs_once_for_embeddings_and_features(project, monkeypatch):
    runs, forward = [], open_clip.transformer.VisionTransformer._embeds
    monkeypatch.setattr(
        open_clip.transformer.VisionTransformer,
        "_embeds",
        lambda tower, x: runs.append(len(x)) or forward(tower, x),
    )
    project.run(Z, "--split", "train", "--with_clip", "--with_features")
    assert runs[-5:] == [2, 2, 2, 2, 1]  # the first ones compare one batch
    assert len(runs) == 7


def test_a_run_that_was_cut_off_and_shards_give_the_same_database(project, capsys):
    whole = project.folder / "whole"
    project.run(Z, "--split", "train", "--with_features", "--out", str(whole / "z"))
    image = project.folder / "train" / "images" / "000005.png"
    content = image.read_bytes()
    image.write_bytes(b"broken")
    assert "unreadable" in project.fails(capsys, Z, "--split", "train", "--with_features")
    with pytest.raises(UserError, match=r"features: incomplete database \(4 of 9 samples\)"):
        LMDBReader(project.train / "features")
    image.write_bytes(content)
    project.run(Z, "--split", "train", "--with_features")
    assert same_database(project.train / "features", whole / "features")
    shutil.rmtree(project.train)
    for shard in "01":
        options = ("--num_shards", "2", "--shard", shard)
        project.run(Z, "--split", "train", "--with_features", *options)
    assert same_database(project.train / "features", whole / "features")


def test_another_encoder_is_refused(project, capsys):
    project.run(Z, "--split", "train", "--with_features")
    make_tiny_clip(project.folder / "clip2", seed=1)
    other = f"encoders.clip={project.folder / 'clip2'}"
    message = project.fails(capsys, Z, "--split", "train", "--with_features", other)
    assert "features: made differently before (encoder clip-" in message


def test_a_database_that_the_config_does_not_name_is_refused(project, capsys):
    null = "data.patch_feat_path=null"
    message = project.fails(capsys, Z, "--with_features", null)
    assert message.startswith("--with_features: data.patch_feat_path is not set; set it in")


def test_training_names_the_command_that_makes_the_features(project):
    project.run(Z, "--split", "train", "--with_clip")
    config = load_config(project.yaml).asked_by(project.yaml, [])
    with pytest.raises(UserError, match="no database there; make it: python ") as fault:
        open_data(config)
    command = shlex.split(str(fault.value).rpartition(": python ")[2])
    script, _, _, *options = command
    assert script == f"preprocess_scripts/{Z}.py"
    project.run(Z, *options)
    assert open_data(config).patch_shape == (16, 2, 2)


def test_features_of_another_grid_are_refused(project, capsys):
    project.run(Z, "--split", "train", "--with_clip")
    project.run(Z, "--split", "train", "--with_features", "model.model_type=DiT-S/4")
    config = load_config(project.yaml).asked_by(project.yaml, [])
    problem = "1x1 positions for 2x2 tokens; delete it and make it again: python .* --with_features"
    with pytest.raises(UserError, match=problem):
        open_data(config)
    message = project.fails(capsys, Z, "--split", "train", "--with_features")
    assert "features: made differently before (side 1 there, 2 now); delete it" in message


def test_features_of_other_images_are_refused(project):
    project.run(Z, "--split", "train", "--with_clip", "--with_features")
    (project.folder / "train" / "images" / "000003.png").unlink()
    for name in ("z", "clip_img"):
        shutil.rmtree(project.train / name)
    project.run(Z, "--split", "train", "--with_clip")
    with pytest.raises(UserError, match="holds 8 samples but .*features holds 9"):
        open_data(load_config(project.yaml))


def test_batches_hold_the_features_of_their_images_until_the_alignment_ends(project):
    project.run(Z, "--split", "train", "--with_clip", "--with_features")
    data, order = open_data(load_config(project.yaml)), DataOrder(N_TRAIN, seed=0)
    features = LMDBReader(project.train / "features")
    plain, mirrored = (
        list(islice(training_batches(data, order, 0, RankSlice.whole(4), xflip=x,
                                     features_until=40), 12))
        for x in (False, True)
    )  # fmt: skip
    flips = 0
    for number, (batch, other) in enumerate(zip(plain, mirrored, strict=True)):
        if number >= 10:
            assert batch.features is None and other.features is None
            continue
        rows = features.read(order.indices(4 * number, 4).numpy())
        np.testing.assert_array_equal(batch.features, rows)
        for i in range(4):
            is_flipped = not torch.equal(other.latents[i], batch.latents[i])
            expected = batch.features[i].flip(2) if is_flipped else batch.features[i]
            assert torch.equal(other.features[i], expected)
            flips += is_flipped
    assert 8 < flips < 32


def test_the_identity_of_the_data_includes_the_features(project):
    project.run(Z, "--split", "train", "--with_clip", "--with_features")
    config = load_config(project.yaml)
    with_features = open_data(config).identity
    plain = open_data(load_config(project.yaml, ["train.align_coef=0"])).identity
    assert plain != with_features and plain.count("-") == with_features.count("-") == 1
    make_tiny_clip(project.folder / "clip2", seed=1)
    shutil.rmtree(project.train / "features")
    project.run(Z, "--split", "train", "--with_features",
                f"encoders.clip={project.folder / 'clip2'}")  # fmt: skip
    assert open_data(config).identity != with_features


def test_a_convolutional_tower_gives_the_stage_that_is_as_fine_as_the_grid():
    clip = load_clip("assets/demo/clip")
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    stages = []
    clip.model.visual.layer3.register_forward_hook(lambda m, inputs, output: stages.append(output))
    embeddings, found = clip_outputs(clip, images, 8)
    assert found.shape == (2, 256, 8, 8)
    assert torch.equal(found, stages[0])
    assert torch.equal(embeddings, clip.encode_images(images))


def test_dinov2_gives_its_patch_tokens_where_it_is_set(project):
    weights = project.folder / "dino.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
    save_file(model.state_dict(), weights)
    options = ("--split", "train", "--with_features", f"encoders.dinov2={weights}")
    project.run(Z, *options, "encoders.clip=nowhere/clip")
    reader = LMDBReader(project.train / "features")
    network = DinoFeatures(weights)
    with torch.inference_mode():
        tokens = model.forward_features(network.prepare(images_of(project)[:2]))[:, 1:]
    maps = tokens.transpose(1, 2).unflatten(2, (16, 16))
    expected = on_grid(maps, 2)
    np.testing.assert_allclose(reader.read([0, 1]), expected, rtol=0, atol=0.01)
    assert reader.info.meta["encoder"] == network.name
