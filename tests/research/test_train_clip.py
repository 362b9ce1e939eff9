"""The training of the demo's CLIP: its teacher, its losses, and the script itself."""

import random
import sys

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from faults.harness import Run
from torch import nn

from demo.captions import make_caption
from demo.make_faces import ATTRIBUTES, encode_attributes, hide
from models.clip import load_clip
from research.attributes.classifier import SIZES, attribute_loss
from research.demo_weights import train_clip
from research.demo_weights.clip_losses import AttributeTeacher
from research.demo_weights.clip_model import clip_config
from research.demo_weights.face_groups import (
    GROUP,
    TrainingFaces,
    make_group,
    random_batch,
    read_pixels,
)
from research.demo_weights.resumable import set_lr
from research.demo_weights.train_clip import IMAGE_PARTS, TEXT_PARTS, build_optimizer, write_text

SCRIPT = "research/demo_weights/train_clip.py"


def training_faces(groups: int) -> TrainingFaces:
    """Make groups of faces whose images are noise."""
    made = [make_group(index) for index in range(groups)]
    shown = [[hide(face) for face in faces] for faces, _ in made]
    codes = np.array([[encode_attributes(face) for face in faces] for faces in shown])
    images = np.random.default_rng(0).integers(0, 255, (groups, GROUP, 128, 128, 3), np.uint8)
    return TrainingFaces(images, shown, [name for _, name in made], codes)


def test_the_teacher_sums_the_stated_attributes_only():
    teacher = AttributeTeacher(16)
    codes = torch.full((1, len(ATTRIBUTES)), -1)
    codes[0, 0] = 2
    torch.testing.assert_close(
        teacher.embed(codes)[0], F.normalize(teacher.values.weight[2], dim=0)
    )
    codes[0, 1] = 3
    both = F.normalize(teacher.values.weight[2] + teacher.values.weight[SIZES[0] + 3], dim=0)
    torch.testing.assert_close(teacher.embed(codes)[0], both)


def test_a_fitted_teacher_writes_the_mean_of_the_images_that_a_caption_is_true_of():
    torch.manual_seed(0)
    made = [encode_attributes(hide(face)) for i in range(400) for face in make_group(i)[0]]
    codes, source, teacher = torch.tensor(made), AttributeTeacher(64), AttributeTeacher(64)
    nn.init.normal_(source.common, std=5.0)
    image = source.embed(codes)
    teacher.fit(image, codes)
    assert (teacher.embed(codes) * image).sum(1).mean() > 0.95
    nothing = torch.full((1, len(ATTRIBUTES)), -1)
    torch.testing.assert_close(teacher.embed(nothing)[0], F.normalize(image.mean(0), dim=0))
    name = list(ATTRIBUTES).index("background")
    nothing[0, name] = 3
    pink = image[codes[:, name] == 3].mean(0)
    assert F.cosine_similarity(teacher.embed(nothing)[0], pink, dim=0) > 0.97


def test_naming_weighs_small_parts_of_the_image_more():
    teacher = AttributeTeacher(16)
    assert torch.isclose(teacher.weights.mean(), torch.tensor(1.0))
    expression, skin = (list(ATTRIBUTES).index(name) for name in ("expression", "skin"))
    assert teacher.weights[expression] > 3 * teacher.weights[skin]


def test_weights_of_one_leave_the_attribute_loss_as_it_is():
    torch.manual_seed(0)
    logits = torch.randn(5, sum(SIZES))
    codes = torch.stack([torch.randint(-1, n, (5,)) for n in SIZES], dim=1)
    plain = attribute_loss(logits, codes)
    assert torch.equal(attribute_loss(logits, codes, torch.ones(len(SIZES))), plain)
    weights = torch.ones(len(SIZES))
    weights[3] = 5.0
    assert not torch.equal(attribute_loss(logits, codes, weights), plain)


def test_a_batch_depends_on_the_step_alone_and_its_texts_fit_its_faces():
    faces = training_faces(12)
    batch, again = (random_batch(faces, 7, 4, write_text) for _ in range(2))
    assert batch.texts == again.texts != random_batch(faces, 8, 4, write_text).texts
    assert batch.shows.shape == batch.stated.shape == (16, len(ATTRIBUTES))
    group, place = batch.faces[5]
    assert np.array_equal(batch.shows[5], faces.codes[group, place])
    assert (batch.shows[batch.stated] >= 0).all()  # a hidden attribute is never stated
    pixels = read_pixels(faces, batch)[5].permute(1, 2, 0)
    expected = torch.from_numpy(faces.images[group, place]).float() / 127.5 - 1
    torch.testing.assert_close(pixels, expected)


def test_texts_come_from_both_grammars():
    face, plain = hide(make_group(0)[0][0]), 0
    for seed in range(200):
        rng = random.Random(seed)
        rng.random()  # the choice of the grammar
        plain += write_text(face, random.Random(seed), "skin") == make_caption(face, rng, "skin")
    assert 40 < plain < 100


def test_each_stage_trains_its_own_parts():
    model = open_clip.CLIP(**clip_config(600)["model_cfg"])
    parts = nn.ModuleDict({"clip": model, "teacher": AttributeTeacher(256)})
    optimizer = build_optimizer(parts, 1e-3, IMAGE_PARTS)
    learning = {name for name, p in parts.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"clip", "teacher"}
    assert not any("transformer" in name or "text_projection" in name for name in learning)
    set_lr(optimizer, 1e-3, 10, 1000, warm_up=5)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[2] == pytest.approx(10 * rates[0])
    build_optimizer(parts, 1e-3, TEXT_PARTS)
    learning = {name for name, p in parts.named_parameters() if p.requires_grad}
    assert "clip.transformer.resblocks.0.ln_1.weight" in learning
    assert not any("visual" in name or "teacher" in name for name in learning)


@pytest.mark.e2e
def test_the_script_trains_both_towers_resumes_and_writes_a_clip(
    tmp_path, monkeypatch, capsys, own_cores
):
    few = ["--out", f"{tmp_path}/clip", "--work", f"{tmp_path}/work", "--groups", "4"]
    few += ["--batch", "2", "--image_steps", "2", "--threads", "1", "--held_out", "20"]
    with Run(SCRIPT, [*few, "--text_steps", "1"], tmp_path / "said.txt") as process:
        assert process.wait() == 0, process.said()
    said = process.said()
    assert "image step 2" in said and "text step 1" in said and "R@1 among 20" in said
    clip = load_clip(tmp_path / "clip")
    assert clip.dim == 256 and clip.image_size == 128
    monkeypatch.setattr(sys, "argv", [SCRIPT, *few, "--text_steps", "2"])
    train_clip.main()
    more = capsys.readouterr().out
    assert "resumed at step 2" in more and "resumed at step 1" in more
    assert "image step" not in more and "text step 2" in more


def test_the_script_refuses_fewer_groups_than_a_batch_takes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--groups", "3", "--batch", "4"])
    with pytest.raises(SystemExit) as stop:
        train_clip.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("--groups 3 is less than one batch of 4")
