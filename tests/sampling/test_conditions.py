"""Sources become rows with labels, and rows become conditions of the network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import RESOLUTION, make_tiny_config

from models.clip import load_clip
from utils.sampling.conditions import embed_rows
from utils.sampling.prompts import arrange, image_prompt, text_prompt


def test_an_image_is_embedded_as_those_of_the_training(tmp_path, tiny_faces):
    """Crop, CLIP and normalisation equal those of the database of image embeddings."""
    config = make_tiny_config(tmp_path)
    clip = load_clip(tmp_path / "clip")
    folder, _ = tiny_faces(1, RESOLUTION)
    path = folder / "000000.png"
    conditions = embed_rows(arrange([image_prompt(str(path))], [], None), clip, config)
    pixels = torch.tensor(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
    torch.testing.assert_close(conditions.embeddings, F.normalize(clip.encode_images(pixels)))


def test_without_normalisation_embeddings_keep_their_length(tmp_path):
    config = make_tiny_config(tmp_path, data={"norm_feature": False})
    clip = load_clip(tmp_path / "clip")
    sources = [text_prompt("red hair"), text_prompt("a hat")]
    conditions = embed_rows(arrange(sources, ["1,0", "0.5,0.5"], None), clip, config)
    plain = clip.encode_texts(["red hair", "a hat"])
    torch.testing.assert_close(conditions.embeddings[0], plain[0])
    lengths = plain.norm(dim=1)
    assert conditions.embeddings[1].norm().item() == pytest.approx(lengths.mean().item(), rel=1e-5)


def test_images_of_one_name_are_told_apart_by_their_paths(tmp_path):
    sources = [image_prompt("a/face.png"), image_prompt("b/face.png"), image_prompt("b/hat.png")]
    labels = [row.label for row in arrange(sources, [], None)]
    assert labels == ["a/face.png", "b/face.png", "hat.png"]


def test_labels_of_mixtures_tell_the_weights():
    sources = [text_prompt("red hair"), image_prompt("a/face.png")]
    rows = arrange(sources, ["3,7", "0,2", "-0.5,1.5"], None)
    labels = [row.label for row in rows]
    assert labels == [
        "0.3 × red hair + 0.7 × face.png",
        "face.png",
        "− 0.5 × red hair + 1.5 × face.png",
    ]
