"""The evaluator of embeddings, on faces and on photographs, with the demo's CLIP."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from demo.make_faces import make_face, render
from models.clip import load_clip
from research.gap import embedding_evaluation
from research.gap.discriminants import Discriminants
from research.gap.embedding_evaluation import FaceEvaluator, PhotoEvaluator, prior_sampler
from research.photos.traits import read_sentences
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.references import Reference, save_stats
from utils.pretrained.effective_config import read_config
from utils.pretrained.priors import read_prior

FACES = 60


def write_embeddings(folder: Path, train: torch.Tensor, names: list[str], held_out: torch.Tensor):
    """Write training and held-out embeddings; return the config that names them."""
    meta = {"encoder": "the demo's", "names": names}
    with LMDBWriter(folder / "clip_img", "y", meta, len(train)) as writer:
        writer.append(train[:, None].numpy())
    x = held_out.double().numpy()
    reference = Reference(x.mean(axis=0), np.cov(x.T), features=held_out.numpy())
    save_stats(folder / "ref.npz", reference)
    overrides = [f"data.feat_path={folder / 'clip_img'}", f"eval.ref_path={folder / 'ref.npz'}"]
    return read_config("configs/demo/demo.yaml", overrides)


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> tuple[Path, Config]:
    """Write the embeddings of a few faces, and their records; return folder and config."""
    folder, clip, embeddings = tmp_path_factory.mktemp("faces"), load_clip("assets/demo/clip"), {}
    for split in ("train", "test"):
        made = [make_face(split, index, 2) for index in range(FACES)]
        (folder / split).mkdir()
        lines = [json.dumps(record) for _, record in made]
        (folder / split / "faces.jsonl").write_text("\n".join(lines))
        pixels = np.stack([np.asarray(render(face)) for face, _ in made])
        embeddings[split] = clip.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    names = [f"{index:06d}" for index in range(FACES)]
    return folder, write_embeddings(folder, embeddings["train"], names, embeddings["test"])


@pytest.fixture(scope="module")
def face_evaluator(faces) -> FaceEvaluator:
    folder, config = faces
    return FaceEvaluator(config, folder, each=4, captions=FACES)


def test_the_probe_names_groups_and_leaves_out_those_without_images():
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.eye(4)[:3]
    own = torch.arange(3).repeat_interleave(100)
    images = means[own] + torch.randn(300, 4, generator=generator)
    groups = torch.cat([F.one_hot(own), torch.zeros(300, 1, dtype=torch.long)], dim=1).bool()
    scores = Discriminants(images, groups)(means)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2]
    assert (scores[:, 3] == 0).all()
    assert (scores[:, :3].diagonal() > 0).all()


def test_real_faces_as_samples_have_the_figures_of_real_faces(face_evaluator):
    real = face_evaluator.measure_real()

    def images(texts: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return face_evaluator.held_out[torch.arange(len(texts)) % FACES]

    found = face_evaluator.measure(images)
    assert found["captions"] == real["captions"] > 60  # 60 faces train this probe
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert (found["recall"], found["coverage"]) == (1, 1)
    assert found["variety"] > 0.6
    assert found["stated"] < 60


def test_the_prior_gives_variety_and_its_sampler_is_that_of_the_network(faces, face_evaluator):
    prior, _ = read_prior(Path("assets/demo/prior.safetensors"))
    literal, free = (
        face_evaluator.measure(prior_sampler(prior, faces[1], freedom)) for freedom in (0, 1)
    )
    assert literal["variety"] == pytest.approx(0, abs=1e-9)
    assert free["variety"] > 0.7
    assert free["stated"] > 60
    assert free["frechet_distance"] < literal["frechet_distance"]
    y = F.normalize(face_evaluator.held_out[:2] + 0.1, dim=1)
    noise = torch.ones(2, y.shape[1])
    plain = faces[1].model_copy(deep=True)
    plain.encoders.image_mean = None
    torch.testing.assert_close(
        prior_sampler(prior, plain, 0.7)(y, noise), prior.sample(y, noise, 0.7)
    )


def test_other_faces_than_those_of_the_embeddings_are_one_line(faces, tmp_path):
    folder, config = faces
    (tmp_path / "train").mkdir()
    lines = (folder / "train" / "faces.jsonl").read_text().splitlines()[:3]
    (tmp_path / "train" / "faces.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="not of the faces"):
        FaceEvaluator(config, tmp_path)


def test_the_script_measures_each_freedom_and_writes_it(faces, tmp_path, monkeypatch, capsys):
    folder, config = faces
    words = ["--freedoms", "0", "0.7", "--each", "2", "--captions", "20", "--seeds", "2"]
    words += ["--data", folder, "--out", tmp_path / "found.json", "--threads", "1"]
    words += [f"data.feat_path={config.data.feat_path}", f"eval.ref_path={config.eval.ref_path}"]
    monkeypatch.setattr(sys, "argv", ["embedding_evaluation.py", *map(str, words)])
    monkeypatch.setattr("benchmarks.timing.os.sched_setaffinity", lambda *_: None)
    embedding_evaluation.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["freedom"] for row in found["rows"]] == ["real images", "0", "0.7"]
    assert found["points"]["0.7"]["variety"] > found["points"]["0"]["variety"]
    assert "Fréchet distance" in capsys.readouterr().out


@pytest.fixture
def photo_evaluator(tmp_path) -> PhotoEvaluator:
    """Return an evaluator of `photographs`; their embeddings are noisy ones of their captions."""
    captions = [text for trait in read_sentences().traits.values() for text in trait.captions]
    y, generator = load_clip("assets/demo/clip").encode_texts(captions), torch.Generator()
    images = {}
    for split, each in (("train", 6), ("test", 4)):
        folder = tmp_path / "source" / split
        for kind in ("images", "captions"):
            (folder / kind).mkdir(parents=True)
        for index in range(each * len(captions)):
            (folder / "captions" / f"{index:04d}.txt").write_text(captions[index // each])
            Image.new("RGB", (2, 2)).save(folder / "images" / f"{index:04d}.png")
        own = F.normalize(y, dim=1).repeat_interleave(each, dim=0)
        images[split] = own + 0.02 * torch.randn(own.shape, generator=generator)
    names = [f"{index:04d}" for index in range(len(images["train"]))]
    config = write_embeddings(tmp_path, images["train"], names, images["test"])
    return PhotoEvaluator(config, tmp_path, each=3, captions=len(images["test"]))


def test_photographs_as_samples_have_the_figures_of_photographs(photo_evaluator):
    real = photo_evaluator.measure_real()
    assert real["captions"] > 90
    assert real["stated"] > 90

    def images(texts: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        of_captions = len(texts) == len(photo_evaluator.held_out)
        return photo_evaluator.held_out if of_captions else F.normalize(texts, dim=1)

    found = photo_evaluator.measure(images)
    assert found["captions"] == real["captions"]
    assert found["variety"] == pytest.approx(1)
    assert found["stated"] == 100  # the sentences of the traits are captions

    def first(texts: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return photo_evaluator.held_out[:1].expand(len(texts), -1)

    same = photo_evaluator.measure(first)
    assert same["variety"] == pytest.approx(0, abs=1e-6)
    assert same["captions"] < 30
    assert same["stated"] < 30
