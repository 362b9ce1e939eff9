"""Variety of the images of one caption: one caption, several seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from alike import assert_alike
from PIL import Image
from tiny import make_tiny_config, make_tiny_denoiser, make_tiny_evaluation_data

from models.samplers import SeededNoise
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.caption_variety import CaptionVariety
from utils.evaluation.checkpoints import evaluate_checkpoint, evaluation_settings
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.feature_store import FeatureBlocks
from utils.evaluation.generated import generate_from_captions, generate_seeds
from utils.evaluation.kept_images import FEW_CAPTIONS, KeptImages
from utils.evaluation.metrics import spread, vendi_score

pytestmark = pytest.mark.bits  # of `make test-machines`

CAPTIONS, SEEDS = 5, 5
KEYS = {"variety", "vendi_score", "spread", "spread_alike", "vendi_alike"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A config of five captions with five seeds each, and embeddings of 40 training images."""
    made = make_tiny_config(
        tmp_path, eval={"variety_captions": CAPTIONS, "variety_seeds": SEEDS, "batchsize": 8}
    )
    make_tiny_evaluation_data(made)
    embeddings = torch.randn(40, 1, 16, generator=torch.Generator().manual_seed(1))
    identity = Evaluator(made).clip.identity
    with LMDBWriter(made.data.feat_path, "y", {"encoder": identity}, 40) as writer:
        writer.append(embeddings.numpy())
    return made


def with_eval(config: Config, **changes) -> Config:
    return config.model_copy(update={"eval": config.eval.model_copy(update=changes)})


def training_embeddings() -> torch.Tensor:
    return torch.randn(40, 1, 16, generator=torch.Generator().manual_seed(1))[:, 0]


def test_each_image_is_that_of_its_caption_and_seed(config, tmp_path):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    variety = CaptionVariety(denoiser, config, evaluator, tmp_path / "partial")
    alone = generate_from_captions(denoiser, config, evaluator, SeededNoise(range(SEEDS)))
    assert torch.equal(variety.caption_ids, alone.caption_ids[:CAPTIONS])
    of_caption = [
        generate_seeds(denoiser, config, evaluator, range(SEEDS), variety.caption_ids[[c] * SEEDS])
        for c in range(CAPTIONS)
    ]
    for c, generated in enumerate(of_caption):
        assert torch.equal(generated.caption_ids, variety.caption_ids[[c] * SEEDS])
        assert not torch.equal(generated.images[c - 1], alone.images[c - 1])
    # Seed c chooses caption c itself.
    of_seed = torch.stack([generated.images[c] for c, generated in enumerate(of_caption)])
    assert_alike(of_seed, alone.images[:CAPTIONS])


def test_metrics_are_those_of_the_images_and_of_the_nearest_training_images(config, tmp_path):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    metrics = evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "partial")
    caption_ids = CaptionVariety(denoiser, config, evaluator, tmp_path / "other").caption_ids
    captions = torch.from_numpy(evaluator.captions.read(*caption_ids.T.numpy()))
    real = torch.nn.functional.normalize(training_embeddings(), dim=1)
    generated, alike = [], []
    for c in range(CAPTIONS):
        images = generate_seeds(
            denoiser, config, evaluator, range(SEEDS), caption_ids[[c] * SEEDS]
        ).images
        generated.append(evaluator.clip.encode_images(images.permute(0, 3, 1, 2)))
        nearest = (real @ captions[c]).topk(SEEDS).indices
        alike.append(real[nearest])
    assert metrics["spread"] == pytest.approx(spread(torch.stack(generated)), rel=1e-4)
    assert metrics["vendi_score"] == pytest.approx(vendi_score(torch.stack(generated)), rel=1e-4)
    assert metrics["spread_alike"] == pytest.approx(spread(torch.stack(alike)), rel=1e-6)
    assert metrics["vendi_alike"] == pytest.approx(vendi_score(torch.stack(alike)), rel=1e-6)
    assert metrics["variety"] == pytest.approx(metrics["spread"] / metrics["spread_alike"])


def test_metrics_do_not_depend_on_the_batch_size(config, tmp_path):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    found = [
        evaluate_checkpoint(
            denoiser, with_eval(config, batchsize=size), evaluator, tmp_path / str(size)
        )
        for size in (1, 5, 24)
    ]
    for key in KEYS:
        assert found[0][key] == found[1][key] == found[2][key]


def test_without_it_the_other_metrics_and_the_settings_are_as_before(config, tmp_path):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    off = with_eval(config, variety_captions=0)
    settings = evaluation_settings(off, evaluator)
    assert not any(key.startswith("variety") for key in settings)
    with_it = evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "on")
    without = evaluate_checkpoint(denoiser, off, evaluator, tmp_path / "off")
    assert with_it.keys() - without.keys() == KEYS
    for key in without.keys() - {"seconds"}:
        assert with_it[key] == without[key]
    assert evaluation_settings(config, evaluator) == {
        **settings,
        "variety_captions": CAPTIONS,
        "variety_seeds": SEEDS,
    }


def test_the_first_images_of_each_caption_are_kept(config, tmp_path):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    kept = KeptImages(tmp_path / "images" / "x", config)
    evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "partial", kept=kept)
    folder = tmp_path / "images" / "x-variety"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert names == {f"{c:03d}/{s:06d}.png" for c in range(FEW_CAPTIONS) for s in range(SEEDS)}
    caption_ids = CaptionVariety(denoiser, config, evaluator, tmp_path / "other").caption_ids
    generated = generate_seeds(denoiser, config, evaluator, range(SEEDS), caption_ids[[2] * SEEDS])
    with Image.open(folder / "002" / "000003.png") as image:
        assert np.array_equal(np.asarray(image), generated.images[3].numpy())
    assert len(list((tmp_path / "images" / "x").glob("*.png"))) == 18


def test_a_stopped_evaluation_generates_only_the_rest(config, tmp_path, monkeypatch):
    """Lost batches before and after a whole one become one: their order in it is another."""
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    whole = evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "whole")
    add = FeatureBlocks.add
    partial = tmp_path / "partial"

    def stop_after_two(self, positions, rows, took):
        add(self, positions, rows, took)
        if self.folder != partial and positions[0] == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FeatureBlocks, "add", stop_after_two)
        evaluate_checkpoint(denoiser, config, evaluator, partial)
    (partial / "variety" / "00000000.safetensors").unlink()
    resumed = evaluate_checkpoint(denoiser, with_eval(config, batchsize=32), evaluator, partial)
    blocks = CaptionVariety(denoiser, config, evaluator, partial).blocks
    assert blocks.images_generated == CAPTIONS * SEEDS + 8
    assert sorted(path.name[:8] for path in blocks.folder.glob("*.safetensors")) == [
        "00000000",
        "00000008",
    ]
    for key in KEYS | {"frechet_distance_clip", "images_drawn"}:
        assert resumed[key] == whole[key]


def test_without_embeddings_of_training_images_there_is_no_comparison(config, tmp_path, capsys):
    data = config.data.model_copy(update={"feat_path": tmp_path / "nowhere"})
    config = config.model_copy(update={"data": data})
    metrics = evaluate_checkpoint(
        make_tiny_denoiser(), config, Evaluator(config), tmp_path / "partial"
    )
    assert metrics["spread"] > 0 and metrics["vendi_score"] > 1
    assert metrics["variety"] is metrics["spread_alike"] is metrics["vendi_alike"] is None
    assert "not compared with real images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variety_seeds": 25}, r"eval\.variety_seeds: 25 is more than eval\.fid_sample_size=24"),
        ({"variety_captions": 30}, r"eval\.variety_captions: 30 is more than"),
    ],
)
def test_more_than_the_evaluation_has_is_refused(config, tmp_path, changes, message):
    config = with_eval(config, **changes)
    with pytest.raises(UserError, match=message):
        evaluate_checkpoint(make_tiny_denoiser(), config, Evaluator(config), tmp_path / "partial")


def test_a_model_without_captions_has_no_variety_per_caption(tmp_path):
    config = make_tiny_config(
        tmp_path, model={"num_classes": 0}, eval={"variety_captions": 2, "feat_path": None}
    )
    make_tiny_evaluation_data(make_tiny_config(tmp_path))
    with pytest.raises(UserError, match=r"eval\.variety_captions: the model does not sample from"):
        Evaluator(config)
