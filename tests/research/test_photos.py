"""The world of photographs: traits, metrics and material, with the demo's CLIP as the encoder."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image

from research.photos.material import captioned_names, prepare
from research.photos.traits import TraitClassifier, best_threshold, rate, read_sentences
from research.recipes.evaluation import CELLS, Tower, colour_distance
from research.recipes.photos import Seen, nearest_distances
from research.study.material import mix
from utils.base.errors import UserError
from utils.config.sections import Encoders
from utils.data.captions import captions_where_there
from utils.data.images import list_images
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.metrics import retrieval, spread
from utils.pretrained.encoders import load_config_clip

CLIP = str(ROOT / "assets" / "demo" / "clip")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth random images, (40, 3, 64, 64) uint8."""
    coarse = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (255 * F.interpolate(coarse, 64, mode="bilinear")).to(torch.uint8)


# Traits


def test_the_threshold_separates_best_and_lies_between_two_images():
    scores = torch.tensor([0.1, 0.9, 0.3, 0.6, 0.2, 0.7])
    shown = torch.tensor([False, True, False, False, True, True])
    assert best_threshold(scores, shown) == pytest.approx(0.65)


def test_a_rate_has_wilsons_interval():
    hits, z = torch.tensor([True] * 6 + [False] * 2), 1.959964
    found = rate(hits)
    middle, width = 0.75 + z**2 / 16, z * math.sqrt(0.75 * 0.25 / 8 + z**2 / 256)
    assert (found["rate"], found["n"]) == (75, 8)
    assert found["low"] == pytest.approx(100 * (middle - width) / (1 + z**2 / 8))
    assert found["high"] == pytest.approx(100 * (middle + width) / (1 + z**2 / 8))
    assert rate(hits[:0])["rate"] is None


def test_a_trait_is_seen_in_images_like_its_captions_alone():
    clip, sentences = load_config_clip(Encoders(clip=CLIP)), read_sentences()
    captions = [[text] for trait in sentences.traits.values() for text in trait.captions]
    embeddings = clip.encode_texts([lines[0] for lines in captions])  # as if images were texts
    classifier = TraitClassifier(sentences, clip, embeddings, captions)
    real = classifier.rates_of_real(embeddings, captions)
    assert real["hat"]["n"] == len(sentences.traits["hat"].captions)
    assert np.mean([trait["rate"] for trait in real.values()]) > 90
    assert np.mean([trait["others"] for trait in real.values()]) < 20

    stated = {"a": ["red hair"], "b": ["red hair", "green hair"]}
    of_hair = {name: clip.encode_texts([sentences.traits[name].sentence]) for name in stated["b"]}
    red, green = of_hair["red hair"][0], of_hair["green hair"][0]
    sets = torch.stack([torch.stack([red, red]), torch.stack([red, green])])
    found = classifier.rates_of_sentences(sets, stated)
    assert found["a"]["rate"] == 100
    assert found["b"]["each"] == {"red hair": 50, "green hair": 50}
    assert found["b"]["rate"] == 0  # no image shows both


def test_a_trait_without_training_images_is_one_line():
    clip, sentences = load_config_clip(Encoders(clip=CLIP)), read_sentences()
    captions = [["a person with red hair"], ["a person with green hair"]]
    with pytest.raises(UserError, match="blond hair: no training image"):
        TraitClassifier(sentences, clip, torch.randn(2, clip.dim), captions)


# Metrics


def test_retrieval_counts_the_captions_that_are_nearer_than_the_own_one():
    texts = F.normalize(torch.eye(8) + 0.01, dim=1)
    own = torch.arange(8).repeat(5)
    right = texts[own] + 0.1 * texts[(own + 1) % 8]
    wrong = texts[own] + 2 * texts[(own + 1) % 8]  # the own caption is the second one
    far = -texts[own]
    found = retrieval(torch.cat([right, wrong, far, right]), texts, own.repeat(4))
    assert (found["retrieval_1"], found["retrieval_5"]) == (50, 75)
    assert found["retrieval_1_low"] < 50 < found["retrieval_1_high"]


def test_a_caption_varies_like_its_real_images_and_copies_are_near(images):
    tower = Tower(CLIP, images, torch.device("cpu"))
    captions = ["a"] * 6 + ["b"] * 3 + [f"c{i}" for i in range(31)]
    seen = Seen(tower, tower(images.flip(3)), captions)
    assert seen.caption_variety(tower.features) == pytest.approx(1)
    narrow = tower.features.clone()
    narrow[:6] += narrow[:6].mean(dim=0) - 0.5 * (narrow[:6] + narrow[:6].mean(dim=0))
    expected = spread(narrow[:6]) / spread(tower.features[:6])  # b has too few images
    assert seen.caption_variety(narrow) == pytest.approx(expected)
    assert seen.distance_to_training(tower.features)["to_training"] == pytest.approx(1)
    copies = seen.distance_to_training(seen.train)
    assert copies["to_training"] == pytest.approx(0, abs=1e-4)
    assert copies["nearest_training"] == pytest.approx(0, abs=1e-6)


def test_the_nearest_of_other_images_is_found():
    x = F.normalize(torch.randn(5, 8), dim=1)
    others = torch.cat([torch.randn(3, 8), 7 * x[2:3]])
    assert float(nearest_distances(x, others)[2]) == pytest.approx(0, abs=1e-6)


def test_a_tower_compares_with_the_held_out_images(images):
    tower = Tower(CLIP, images, torch.device("cpu"))
    same = tower.metrics(tower.features, tower.features)
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert (same["recall"], same["clip_score"]) == (1, pytest.approx(100))
    other = tower.other_metrics(tower(255 - images))
    assert other["frechet_distance_other"] > 1
    assert other["network_other"] == tower.clip.identity
    assert "clip_score_other" not in other


def test_colours_are_compared_without_network(images):
    assert colour_distance(images, images) == pytest.approx(0, abs=1e-6)
    darker = images // 2
    mean_difference = (images - darker).double().mean(dim=(0, 2, 3)) / 255
    least = CELLS**2 * float(mean_difference.square().sum())  # of the means of all cells
    assert colour_distance(darker, images) > least


# Material


def write(path, values, names):
    """Write embeddings, (n, D) for each name."""
    meta = {"encoder": "clip-a", "source": "x", "names": names, "names_hash": names_hash(names)}
    with LMDBWriter(path, "y", meta, len(names)) as writer:
        writer.append(values)
    return path


def test_images_without_captions_keep_their_own_embedding_in_a_mixture(tmp_path):
    rng = np.random.default_rng(0)
    own = rng.normal(size=(3, 1, 4)).astype(np.float32)
    lines = [rng.normal(size=(n, 4)).astype(np.float32) for n in (2, 1)]
    images = write(tmp_path / "images", own, ["a", "b", "c"])
    texts = write(tmp_path / "texts", lines, ["a", "c"])
    mix(texts, images, tmp_path / "mixed")
    reader = LMDBReader(tmp_path / "mixed")
    assert reader.info.counts.tolist() == [4, 1, 2]
    assert reader.info.meta["names"] == ["a", "b", "c"]
    np.testing.assert_array_equal(reader.read([0, 0], [0, 1]), lines[0])
    np.testing.assert_array_equal(reader.read([0, 0, 1, 2], [2, 3, 0, 1]), own[[0, 0, 1, 2], 0])
    np.testing.assert_array_equal(reader.read([2]), lines[1])


def test_captions_belong_to_some_images_and_a_part_is_drawn_from_these(tmp_path, images):
    (tmp_path / "images").mkdir()
    (tmp_path / "captions").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{i:03d}.png")
        if i % 2:
            (tmp_path / "captions" / f"{i:03d}.txt").write_text(f"number {i}\nodd\n")
    folders = tmp_path / "images", tmp_path / "captions"
    captions = captions_where_there(list_images(folders[0]), folders[1])
    assert captions[:2] == [[], ["number 1", "odd"]]
    every, quarter = captioned_names(*folders), captioned_names(*folders, 4)
    assert every == [f"{i:03d}" for i in range(1, 40, 2)]
    assert len(quarter) == 5 and [name for name in every if name in quarter] == quarter
    assert captioned_names(*folders, 4) == quarter


def test_missing_photographs_and_unknown_material_are_one_line(tmp_path):
    database = tmp_path / "lmdb" / "train" / "z"
    with pytest.raises(UserError, match=r"source: no photographs .*make photos PHOTOS=FOLDER"):
        prepare([database], tmp_path)
    (tmp_path / "source").mkdir()
    for part in ("study/none/z", "study/mixed/z", "lmdb/train/pixels", "prior.safetensors"):
        with pytest.raises(UserError, match="no such material|no database is called so"):
            prepare([tmp_path / part], tmp_path)
    prepare([tmp_path.parent / "elsewhere"], tmp_path)  # not of this world
