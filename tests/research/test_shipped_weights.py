"""The weights in `assets/demo` are as good as research/demo_weights/README.md states."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handwritten_sentences import SENTENCES

from demo.make_faces import ATTRIBUTES, make_face, render
from models.clip import ClipEncoder, load_clip
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import codes_of, predict, train_probe
from research.demo_weights.train_clip import retrieval
from research.demo_weights.train_vae import held_out_psnr
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.load import load_config
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.text_to_face import DEMO, DEMO_STUDENT, TextToFace
from utils.training.teacher import Teacher

ASSETS = Path("assets/demo")

pytestmark = pytest.mark.e2e


def test_the_demo_config_fits_the_shipped_encoders():
    config = load_config(DEFAULT_CONFIG)
    assert load_config_clip(config.encoders).dim == config.data.feat_dim == config.model.num_classes
    vae = load_config_autoencoder(config)
    assert config.data.resolution == vae.downsample * config.model.in_size


@pytest.mark.parametrize(("name", "teacher"), [("distill", DEMO), ("distill_one", DEMO_STUDENT)])
def test_configs_of_distillation_fit_the_shipped_networks(name, teacher):
    config = load_config(f"configs/demo/{name}.yaml", [f"distill.teacher={teacher}"])
    Teacher(config, torch.device("cpu"))


def test_shipped_clip_finds_the_face_that_a_caption_describes():
    assert retrieval(ASSETS / "clip", count=200) >= 95  # % caption → image R@1


def embed_faces(clip: ClipEncoder, split: str, count: int) -> tuple[torch.Tensor, list[dict]]:
    """Return image embeddings (N, D) of unit length, and the records of the faces."""
    made = [make_face(split, index, num_captions=6) for index in range(count)]
    images = np.stack([np.asarray(render(face)) for face, _ in made])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    y = torch.cat([clip.encode_images(part) for part in pixels.split(100)])
    return F.normalize(y, dim=1), [record for _, record in made]


@pytest.fixture(scope="module")
def clip() -> ClipEncoder:
    return load_clip(ASSETS / "clip")


@pytest.fixture(scope="module")
def probe(clip: ClipEncoder) -> torch.nn.Module:
    embeddings, records = embed_faces(clip, "train", 800)
    return train_probe(embeddings, codes_of(records), perturb_scale=2.0, steps=1000)


@torch.no_grad()
def test_shipped_clip_keeps_every_attribute_of_images_and_captions(clip, probe):
    image, records = embed_faces(clip, "test", 500)
    codes, (texts, stated) = codes_of(records), choose_captions(records)
    of_images = agreement(predict(probe(image)), codes, codes >= 0)
    text = F.normalize(clip.encode_texts(texts), dim=1)
    of_captions = agreement(predict(probe(text)), codes, stated)
    assert of_images["mean"] >= 97 and of_captions["mean"] >= 95  # %
    assert min(of_images.values()) >= 90 and min(of_captions.values()) >= 90


@torch.no_grad()
def test_shipped_clip_understands_sentences_written_by_hand(clip, probe):
    texts = F.normalize(clip.encode_texts([text for text, _ in SENTENCES]), dim=1)
    named = predict(probe(texts))
    right = [
        ATTRIBUTES[name][row[list(ATTRIBUTES).index(name)]] == value
        for row, (_, stated) in zip(named, SENTENCES, strict=True)
        for name, value in stated.items()
    ]
    assert sum(right) / len(right) >= 0.9


def test_shipped_vae_reconstructs_held_out_faces():
    assert held_out_psnr(ASSETS / "vae", count=40) >= 28  # dB


@pytest.mark.parametrize(
    ("network", "sampling"),
    [
        ("dit.safetensors", {"guidance_interval": None, "amp": "no"}),
        ("student.safetensors", {"amp": "no"}),
    ],
)
def test_shipped_networks_show_the_faces_that_sentences_describe(network, sampling):
    faces = TextToFace.load(ASSETS / network, device="cpu")
    records = [make_face("test", index, num_captions=6)[1] for index in range(40)]
    fullest = [max(r["captions"], key=lambda c: len(c["states"]))["text"] for r in records]
    generation = faces.generate(fullest, **sampling)
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in generation.images])
    texts = F.normalize(faces.clip.encode_texts(fullest), dim=1)
    images = F.normalize(faces.clip.encode_images(pixels.permute(0, 3, 1, 2)), dim=1)
    found = ((texts @ images.T).argmax(dim=1) == torch.arange(40)).float().mean()
    assert found >= 0.8  # by chance 0.025


def test_shipped_weights_stay_small():
    sizes = [file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()]
    assert sum(sizes) <= 36e6
