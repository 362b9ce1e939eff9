"""Copies of training images are called copies; other images of the same kind are not."""

import io

import numpy as np
import pytest
import torch
from html_page import Page
from PIL import Image, ImageEnhance
from tiny import RESOLUTION, make_tiny_config, make_tiny_denoiser, make_tiny_evaluation_data

from demo.make_faces import make_face, render
from utils.config.schema import Config
from utils.data.images import list_images, to_uint8_array
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.checkpoints import Evaluation, evaluate_checkpoint
from utils.evaluation.copies import CopyTest, Matches, PixelSearch, thumbnails
from utils.evaluation.copy_check import THUMBNAILS, CopyCheck
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.html_report import write_report
from utils.evaluation.metric_names import copies_found, metrics_text
from utils.evaluation.results import Results
from utils.pretrained.encoders import load_config_clip

TRAINING, HELD_OUT, GENERATED = 100, 100, 40
SIZE = 64


def rendered(split: str, numbers: range) -> list[Image.Image]:
    return [render(make_face(split, number, 1)[0], SIZE) for number in numbers]


@pytest.fixture(scope="module")
def training() -> list[Image.Image]:
    return rendered("train", range(TRAINING))


@pytest.fixture(scope="module")
def held_out() -> list[Image.Image]:
    return rendered("test", range(HELD_OUT))


def pixels(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def matches(images: list[Image.Image], training: list[Image.Image]) -> Matches:
    return PixelSearch(thumbnails(pixels(training))).nearest(thumbnails(pixels(images)))


@pytest.fixture(scope="module")
def of_held_out(training, held_out) -> Matches:
    return matches(held_out, training)


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def shifted(image: Image.Image) -> Image.Image:
    padded = np.pad(np.asarray(image), ((2, 2), (4, 4), (0, 0)), mode="edge")
    return Image.fromarray(padded[4:, 1 : 1 + SIZE])


def darker(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.7)


CHANGES = {
    "equal": lambda image: image,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "shifted": shifted,
    "recompressed": recompressed,
    "darker": darker,
}


@pytest.mark.parametrize("change", CHANGES)
def test_training_images_are_found_and_called_copies(training, of_held_out, change):
    copied = range(50, 50 + GENERATED)
    found = matches([CHANGES[change](training[i]) for i in copied], training)
    assert found.nearest.tolist() == list(copied)
    if change in ("equal", "mirrored"):  # a shifted face may be nearer when it is mirrored
        assert (found.mirrored == (change == "mirrored")).all()
    test = CopyTest(found, of_held_out)
    # Half a pixel of a thumbnail remains of the shift.
    assert test.is_copy.float().mean() >= (0.8 if change == "shifted" else 1)
    assert test.p_value < 1e-9 and test.metrics()["training_distance_high"] < 0.5


def test_fresh_faces_are_no_copies(training, of_held_out):
    fresh = rendered("fresh", range(GENERATED))
    test = CopyTest(matches(fresh, training), of_held_out)
    metrics = test.metrics()
    assert metrics["copies"] <= 0.05 and metrics["copies_p"] > 0.1
    assert metrics["training_distance_low"] < 1 < metrics["training_distance_high"]


def test_blurred_mixtures_are_nearer_than_held_out_faces_and_no_copies(training, of_held_out):
    """A mean of faces is near to all of them, as the images of a network at its start are."""
    blurred = [pixels(training[i : i + 60]).float().mean(dim=0) for i in range(GENERATED)]
    search = PixelSearch(thumbnails(pixels(training)))
    found = search.nearest(thumbnails(torch.stack(blurred).byte()))
    metrics = CopyTest(found, of_held_out).metrics()
    assert metrics["training_distance_high"] < 1
    assert metrics["copies"] == 0


def test_few_copies_among_fresh_faces_are_counted(training, of_held_out):
    fresh = rendered("fresh", range(GENERATED))
    some = [recompressed(training[i]) for i in range(6)]
    test = CopyTest(matches(fresh + some, training), of_held_out)
    assert test.is_copy[GENERATED:].all() and test.is_copy[:GENERATED].sum() <= 2
    assert test.p_value < 1e-3


def with_contrasts(values: torch.Tensor) -> Matches:
    zeros = torch.zeros(len(values), dtype=torch.int64)
    return Matches(zeros, values, values, zeros.bool())


def test_two_alike_sets_alarm_as_often_as_the_p_value_says():
    generator = torch.Generator().manual_seed(0)
    alarms = [
        CopyTest(
            with_contrasts(torch.rand(60, generator=generator)),
            with_contrasts(torch.rand(200, generator=generator)),
        ).p_value
        < 0.1
        for _ in range(1000)
    ]
    # The number of copies is whole, so that the test is a little too careful.
    assert 0.03 < np.mean(alarms) <= 0.12


# ---- the check of an evaluation --------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory, training, held_out) -> Config:
    """A config with training images, their embeddings, and held-out images."""
    config = make_tiny_config(tmp_path_factory.mktemp("copies"))
    make_tiny_evaluation_data(config)
    for images, folder in ((training, config.data.image_dir), (held_out, config.eval.image_dir)):
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            image.save(folder / f"{i:06d}.png")
    clip = load_config_clip(config.encoders)
    files = list_images(config.data.image_dir)
    arrays = np.stack([to_uint8_array(path, RESOLUTION) for _, path in files])
    embeddings = clip.encode_images(torch.from_numpy(arrays).permute(0, 3, 1, 2))
    meta = {"encoder": clip.identity, "names": [name for name, _ in files], "y_holds": "images"}
    with LMDBWriter(config.data.feat_path, "y", meta, len(files)) as writer:
        writer.append(embeddings[:, None].numpy())
    return config


def check_of(config: Config) -> CopyCheck:
    return CopyCheck(config, load_config_clip(config.encoders))


def found_in(check: CopyCheck, images: list[Image.Image]) -> dict:
    sized = [image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX) for image in images]
    rows = check.rows(pixels(sized).permute(0, 2, 3, 1), range(len(images)))
    return check.metrics([(torch.arange(len(images)), rows)])


def test_an_evaluation_that_made_copies_says_so(config, training):
    check = check_of(config)
    metrics = found_in(check, training[:GENERATED])
    assert metrics["copies"] == metrics["copies_clip"] == 1
    assert copies_found(metrics) == f"{GENERATED} of {GENERATED} images are copies"
    assert metrics["copies_verdict"].startswith(f"{GENERATED} of {GENERATED} images are copies")
    assert (
        f"among {TRAINING} training images, with {HELD_OUT} held-out" in metrics["copies_verdict"]
    )
    pair = check.nearest_pairs(1)[0]
    assert pair.is_copy and pair.training == pair.position and not pair.mirrored
    record = metrics | {"network": "clip-0", "frechet_distance_clip": 3.0, "clip_score": 20.0}
    assert metrics_text(record).endswith("; 40 of 40 images are copies")


def test_fresh_faces_in_an_evaluation_raise_no_alarm(config):
    metrics = found_in(check_of(config), rendered("fresh", range(GENERATED)))
    assert not copies_found(metrics)
    assert metrics["copies_verdict"].startswith("No copies seen: ")
    assert "As near to the training images as held-out images are" in metrics["copies_verdict"]


def without(config: Config, section: str, **changes) -> Config:
    part = getattr(config, section).model_copy(update=changes)
    return config.model_copy(update={section: part})


def test_pixels_are_read_once_and_then_come_from_the_thumbnails(config, training):
    first = found_in(check_of(config), training[:GENERATED])
    gone = without(config, "data", image_dir=None)
    assert found_in(check_of(gone), training[:GENERATED]) == first


def test_without_training_images_the_embeddings_decide(config, training, capsys):
    (config.data.feat_path / THUMBNAILS).unlink(missing_ok=True)
    gone = without(config, "data", image_dir=config.data.image_dir / "gone")
    metrics = found_in(check_of(gone), training[:GENERATED])
    assert "by embeddings alone: data.image_dir" in capsys.readouterr().err
    assert "copies" not in metrics and metrics["copies_clip"] == 1
    assert "by CLIP embeddings alone" in metrics["copies_verdict"]
    assert copies_found(metrics) == "40 of 40 images are copies"


def test_embeddings_of_held_out_images_come_from_their_database(config, training, tmp_path):
    clip = load_config_clip(config.encoders)
    expected = found_in(check_of(config), training[:GENERATED])
    files = list_images(config.eval.image_dir)
    meta = {"encoder": clip.identity, "names": [name for name, _ in files], "y_holds": "images"}
    near = {}
    for kind, folder in (("own", config.eval.image_dir), ("of training", config.data.image_dir)):
        arrays = [to_uint8_array(path, RESOLUTION) for _, path in list_images(folder)]
        with LMDBWriter(tmp_path / kind, "y", meta, len(files)) as writer:
            images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
            writer.append(clip.encode_images(images)[:, None].numpy())
        read = without(config, "eval", image_feat_path=tmp_path / kind)
        near[kind] = found_in(check_of(read), training[:GENERATED])
    assert near["own"]["copies_verdict"] == expected["copies_verdict"]
    assert near["own"]["training_distance_clip"] == pytest.approx(
        expected["training_distance_clip"], rel=1e-4
    )
    assert near["of training"]["copies_clip"] < 0.5 < expected["copies_clip"]


def test_without_embeddings_the_pixels_decide(config, training, tmp_path):
    latents = without(config, "data", feat_path=None)
    names = [name for name, _ in list_images(config.data.image_dir)]
    with LMDBWriter(config.data.root, "z", {"names": names}, TRAINING) as writer:
        writer.append(np.zeros((TRAINING, 4, 4, 4)))
    metrics = found_in(check_of(latents), training[:GENERATED])
    assert metrics["copies"] == 1 and "copies_clip" not in metrics


@pytest.mark.parametrize(
    "gone",
    [("data", {"feat_path": None, "root": None}), ("eval", {"image_dir": None})],
    ids=["training", "test"],
)
def test_without_training_or_held_out_images_nothing_is_measured(config, gone):
    section, changes = gone
    check = check_of(without(config, section, **changes))
    assert found_in(check, rendered("fresh", range(4))) == {}
    assert check.nearest_pairs(8) == []


def test_the_report_shows_the_verdict_and_the_pairs(config, tmp_path):
    evaluator, results = Evaluator(config), Results(tmp_path / "exp" / "evaluation")
    checkpoint = tmp_path / "0000010.pt"
    checkpoint.write_bytes(b"weights")
    evaluation = Evaluation(results, checkpoint, config, evaluator, 10)
    record = evaluation.run(make_tiny_denoiser())
    pairs = results.folder / f"{record['images']}-copies"
    assert len(list(pairs.glob("*.png"))) == 8
    page = Page(write_report(results, config, evaluator.clip).read_text())
    assert record["copies_verdict"] in page.text and "Images that count as copies" in page.text
    assert {"Copies", "Training distance"} <= set(page.words)
    assert page.text.count("training image 0") >= 8
    old = {key: value for key, value in record.items() if not key.startswith("copies")}
    results.add(old | {"step": 20, "frechet_distance_clip": 1e-9})
    page = Page(write_report(results, config, evaluator.clip).read_text())
    assert "Not measured: this needs" in page.text


def test_the_check_changes_no_other_metric(config, tmp_path):
    denoiser = make_tiny_denoiser()
    with_it = evaluate_checkpoint(denoiser, config, Evaluator(config), tmp_path / "a")
    plain = without(config, "eval", image_dir=None)
    alone = evaluate_checkpoint(denoiser, plain, Evaluator(plain), tmp_path / "b")
    new = with_it.keys() - alone.keys()
    assert "copies" in new and all(key.startswith(("copies", "training_dist")) for key in new)
    for key in alone.keys() - {"seconds"}:
        assert with_it[key] == alone[key]
