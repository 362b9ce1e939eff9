"""Whole trainings with the alignment: exact resume, processes, shards, and what they leave."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from aligned import WIDTH, make_aligned_config, write_features
from trainings import final_state, metrics, run

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.data.latent_dataset import open_data
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import export_safetensors, load_denoiser
from utils.training.checkpoint import list_checkpoints

STEPS = 12
OPTIONS = {
    "plain": (),
    "accumulated": ("train.grad_accum=2", "train.xflip=true", "train.grad_clip=1"),
    "muon": ("train.optimizer=muon", "train.weight_decay=0.1"),
    "no_decoder": ("model.use_decoder=false", "model.mae_loss_coef=0", "model.unmasked_tail=0.3"),
    "class_token": ("model.pad_cls_token=true", "model.self_cond=true", "train.amp=bf16"),
    "spared_memory": ("train.activation_checkpointing=true", "model.mask_ratio_fn=linear"),
}


@pytest.fixture(scope="module")
def aligned(faces) -> Path:
    """Return the config file of a training of twelve steps, eight of which align."""
    return make_aligned_config(faces)


@pytest.fixture(scope="module")
def finished(aligned) -> Path:
    """Return the folder of a finished run."""
    return run(aligned, aligned.parent / "finished")


def last(folder: Path) -> Path:
    """Return the last checkpoint of a run."""
    return list(list_checkpoints(folder / "checkpoints").values())[-1]


@pytest.mark.bits
@pytest.mark.parametrize(("name", "steps"), [*((name, 5) for name in OPTIONS), ("plain", 9)])
def test_a_continued_run_equals_the_uninterrupted_one(aligned, tmp_path, name, steps):
    # The alignment ends after eight steps, after the kill or before it.
    every = ("log.ckpt_every=1", f"log.keep_last={STEPS}", "log.sample_every=0", *OPTIONS[name])
    whole = run(aligned, tmp_path / "whole", *every)
    continued = Path(shutil.copytree(whole, tmp_path / "continued"))
    for step, path in list_checkpoints(continued / "checkpoints").items():
        if step > steps:
            path.unlink()
    run(aligned, continued, *every)
    assert final_state(continued) == final_state(whole)
    assert metrics(continued) == metrics(whole)


def test_the_log_states_the_distance_until_the_alignment_ends(aligned, finished, tmp_path):
    lines = metrics(run(aligned, tmp_path / "run", "log.log_every=1"))
    assert ["alignment" in line for line in lines] == [True] * 8 + [False] * 4
    assert all(0 < line["alignment"] < 2 for line in lines[:8])
    learned = metrics(run(aligned, tmp_path / "long", "train.max_num_steps=80", "train.lr=1e-2"))
    distances = [line["alignment"] for line in learned if "alignment" in line]
    assert distances[-1] < 0.8 * distances[0]
    assert "align" in (tmp_path / "run" / "log.txt").read_text()


def test_a_head_that_is_off_changes_no_weight_of_the_network(faces, aligned, tmp_path):
    off = run(aligned, tmp_path / "off", "train.align_until=0", "train.max_num_steps=12")
    plain = run(faces, tmp_path / "plain", "train.max_num_steps=12")
    without, with_head = (load_checkpoint(last(folder)) for folder in (plain, off))
    for which in ("model", "ema"):
        assert without[which].keys() == with_head[which].keys()
        assert all(torch.equal(without[which][n], w) for n, w in with_head[which].items())
    assert without["head"] is None and len(with_head["head"]) == 4
    for one, other in zip(metrics(plain), metrics(off), strict=True):
        # The sum over all gradients has four zeros more, which some processors round otherwise.
        assert other == one | {"grad_norm": pytest.approx(one["grad_norm"], rel=1e-6)}


def test_the_alignment_changes_the_weights_of_the_encoder(finished, faces, tmp_path):
    plain = load_checkpoint(last(run(faces, tmp_path / "plain", "train.max_num_steps=12")))
    state = load_checkpoint(last(finished))
    assert state["model"].keys() == plain["model"].keys()
    assert not torch.equal(
        state["model"]["model.blocks.0.mlp.fc1.weight"],
        plain["model"]["model.blocks.0.mlp.fc1.weight"],
    )


def test_networks_for_sampling_and_release_have_no_head(finished, tmp_path):
    x, cond = torch.randn(2, 4, 8, 8), None
    denoiser, config = load_denoiser(last(finished))
    assert config.train.align_coef == 0.5
    assert not any("head" in name for name in denoiser.state_dict())
    export_safetensors(last(finished), tmp_path / "dit.safetensors")
    released, _ = load_denoiser(tmp_path / "dit.safetensors")
    assert released.state_dict().keys() == denoiser.state_dict().keys()
    torch.testing.assert_close(released(x, 1.0, cond), denoiser(x, 1.0, cond), rtol=0, atol=0.02)


@pytest.mark.parametrize("options", [(), ("train.optimizer=muon",)])
def test_finetuning_takes_the_head_over_or_starts_it_anew(faces, aligned, tmp_path, options):
    with_head = last(run(aligned, tmp_path / "with", *options))
    without = last(run(faces, tmp_path / "without", "train.max_num_steps=12", *options))
    few = ("train.max_num_steps=1", "log.ckpt_every=1", "log.sample_every=0", *options)
    for config, source, is_kept in ((aligned, with_head, True), (aligned, without, False)):
        folder = tmp_path / f"tuned_{is_kept}"
        run(config, folder, *few, "train.lr=1e-9", start_from=source)
        said = (folder / "log.txt").read_text()
        assert ("the alignment starts anew" in said) is not is_kept
        assert "with its optimizer state" in said
        before, after = (load_checkpoint(path)["head"] for path in (with_head, last(folder)))
        distance = max((before[name] - after[name]).abs().max() for name in before)
        assert (distance < 1e-6) == is_kept
    folder = run(faces, tmp_path / "plain", *few, start_from=with_head)
    assert "with its optimizer state" in (folder / "log.txt").read_text()
    assert load_checkpoint(last(folder))["head"] is None


def test_moments_of_another_head_are_left_out(aligned, finished, tmp_path):
    other = tmp_path / "features"
    write_features(other, np.random.default_rng(2).standard_normal((40, WIDTH + 1, 4, 4)))
    settings = (f"data.patch_feat_path={other}", "train.max_num_steps=1", "log.ckpt_every=1")
    folder = run(aligned, tmp_path / "run", *settings, start_from=last(finished))
    assert "the alignment starts anew" in (folder / "log.txt").read_text()
    moments = load_checkpoint(last(folder))["opt"]["state"]
    assert sorted({int(moment["step"]) for moment in moments.values()}) == [1, STEPS + 1]


def test_a_run_without_the_alignment_reads_no_features(aligned, tmp_path):
    settings = ("train.align_coef=0", f"data.patch_feat_path={tmp_path / 'nowhere'}")
    assert open_data(load_config(aligned, settings)).patch_shape == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.patch_feat_path=null",), "train.align_coef: .* --with_features"),
        (("data.patch_feat_path={}/nowhere",), "nowhere: no database there"),
        (("data.patch_feat_path={}/fewer",), "hold.* 40 samples but .*fewer holds 39"),
        (("data.patch_feat_path={}/coarse",), "coarse: holds patch features of 2x2 .* 4x4 tokens"),
        (("data.patch_feat_path={}/y",), "embeddings where patch features are expected"),
    ],
)
def test_features_that_do_not_fit_are_refused(aligned, tmp_path, settings, message):
    write_features(tmp_path / "fewer", np.ones((39, WIDTH, 4, 4)))
    write_features(tmp_path / "coarse", np.ones((40, WIDTH, 2, 2)))
    with LMDBWriter(tmp_path / "y", "y", {}, 40) as writer:
        writer.append(np.ones((40, 1, 4)))
    with pytest.raises(UserError, match=message):
        open_data(load_config(aligned, [text.format(tmp_path) for text in settings]))


def test_a_longer_run_says_that_the_alignment_is_on_again(aligned, finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "longer"))
    run(aligned, folder, "train.max_num_steps=24")
    log = (folder / "log.txt").read_text()
    assert "the weight of the alignment goes from 0 to 0.5 (train.align_until)" in log


def test_a_student_is_not_aligned(aligned, finished, tmp_path):
    few = ("train.max_num_steps=1", "log.ckpt_every=1", "distill.teacher_steps=2")
    student = ("distill.sigmas=[80,1.5]", "sampling.preset=instant", "sampling.cfg_scale=null")
    folder = run(aligned, tmp_path / "run", *few, *student, f"distill.teacher={last(finished)}")
    assert "train.align_coef: not used" in (folder / "log.txt").read_text()
    assert load_checkpoint(last(folder))["head"] is None


def test_a_block_that_the_encoder_lacks_is_refused(aligned, tmp_path):
    with pytest.raises(UserError, match=r"train\.align_depth: 3, but the encoder has 2 blocks"):
        run(aligned, tmp_path / "run", "train.align_depth=3")
