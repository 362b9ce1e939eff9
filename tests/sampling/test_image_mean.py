"""`encoders.image_mean`: captions move towards the images, by the mean of the preprocessing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import crude_face
from tiny import DIM, RESOLUTION, make_tiny_config

from models.clip import load_clip
from models.geometry import towards_images
from utils.base.errors import UserError
from utils.data.embeddings import read_image_mean, write_image_mean
from utils.data.lmdb_writer import LMDBWriter
from utils.sampling.conditions import caption_conditions, embed_rows
from utils.sampling.image_files import save_png
from utils.sampling.prompts import arrange, image_prompt, text_prompt


@pytest.fixture
def mean_of_images(tmp_path):
    """Make a database of image embeddings of different lengths; return its mean's file and mean."""
    y = np.random.default_rng(0).normal(1, 1, (50, 1, DIM)).astype(np.float32)
    y *= np.linspace(0.1, 10, 50, dtype=np.float32)[:, None, None]
    with LMDBWriter(tmp_path / "clip_img", "y", {}, 50) as writer:
        writer.append(y)
    write_image_mean(tmp_path / "clip_img")
    mean = F.normalize(torch.from_numpy(y[:, 0]), dim=1).mean(dim=0)
    return tmp_path / "clip_img" / "image_mean.npy", mean


def test_every_image_counts_alike_in_the_mean(mean_of_images):
    path, mean = mean_of_images
    torch.testing.assert_close(read_image_mean(path, DIM), mean)


def test_a_caption_comes_nearer_to_the_images_and_keeps_unit_length():
    y, mean = torch.tensor([[0.0, 5.0], [0.0, 0.1]]), torch.tensor([1.0, 0.0])
    expected = torch.full((2, 2), 0.5**0.5)  # half-way; the length of the embedding does not count
    torch.testing.assert_close(towards_images(y, mean), expected)


def test_prompts_are_moved_and_images_are_not(tmp_path, mean_of_images):
    path, mean = mean_of_images
    face = tmp_path / "face.png"
    save_png(crude_face(1, 2 * RESOLUTION), face)
    rows = arrange([text_prompt("red hair"), image_prompt(str(face))], [], None)
    found = {}
    for name, encoders in (("plain", {}), ("moved", {"image_mean": path})):
        config = make_tiny_config(tmp_path, encoders=encoders)
        clip = load_clip(config.encoders.clip)
        found[name] = embed_rows(rows, clip, config).embeddings
    prompt, image = found["plain"]
    torch.testing.assert_close(found["moved"][0], F.normalize(prompt + mean, dim=0))
    assert torch.equal(found["moved"][1], image)


def test_without_the_mean_captions_are_only_normalised(tmp_path):
    config = make_tiny_config(tmp_path)
    y = torch.randn(3, DIM)
    torch.testing.assert_close(caption_conditions(y, config), F.normalize(y, dim=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (np.zeros(DIM + 1, np.float32), f"does not hold {DIM} numbers"),
        (np.array([{"a": 1}]), "cannot be read"),  # a pickle is never read
    ],
)
def test_a_file_that_holds_no_mean_is_named(tmp_path, content, message):
    path = tmp_path / "mean.npy"
    if content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        read_image_mean(path, DIM)
    assert str(path) in str(error.value) and "encoders.image_mean" in str(error.value)
