"""Images of another kind in research/adapt: what is done to them, and what measures them."""

import numpy as np
import pytest
import torch
from PIL import Image

from demo.make_faces import ATTRIBUTES, SIZE
from research.adapt.compare import shown
from research.adapt.material import TASKS, CloseUps, OldPhotographs, distance_of, fit_probe


@pytest.fixture
def photo() -> Image.Image:
    """Return a photograph of 160 pixels, of random colours, with a white middle."""
    pixels = np.random.default_rng(0).integers(0, 200, (160, 160, 3)).astype(np.uint8)
    pixels[40:136, 32:128] = 255  # what a close-up cuts
    return Image.fromarray(pixels)


def test_an_old_photograph_has_the_colours_of_sepia(photo):
    pixels = np.asarray(OldPhotographs.altered(photo)).astype(int)
    assert pixels.shape == (SIZE, SIZE, 3)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    assert (red >= green).all() and (green >= blue).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) <= 256


def test_a_close_up_is_the_middle_of_a_photograph(photo):
    pixels = np.asarray(CloseUps.altered(photo))
    assert pixels.shape == (SIZE, SIZE, 3) and (pixels == 255).all()


@pytest.mark.parametrize("name", ["heads", "sepia", "ovals"])
def test_rendered_tasks_alter_a_face_of_the_usual_size(name):
    task = TASKS[name]
    image = task.image(task.__new__(task), "test", 0).convert("RGB")
    assert image.size == (SIZE, SIZE) and image.getextrema() != ((0, 0),) * 3


def test_features_are_at_no_distance_from_themselves_and_at_one_that_grows_with_a_shift():
    features = torch.randn(200, 4)
    distances = [distance_of(features + shift, features) for shift in (0, 1, 2)]
    assert distances == pytest.approx([0, 4, 16], abs=1e-6)


def test_the_probe_finds_attributes_that_features_hold():
    codes = torch.stack([torch.randint(-1, len(v), (600,)) for v in ATTRIBUTES.values()], dim=1)
    hot = [torch.eye(len(v) + 1)[codes[:, i] + 1] for i, v in enumerate(ATTRIBUTES.values())]
    features = torch.cat(hot, dim=1) @ torch.randn(sum(h.shape[1] for h in hot), 96)
    probe = fit_probe(features[:500], codes[:500])
    assert (probe(features[500:]) == codes[500:]).float().mean() > 0.9


def test_a_row_of_the_table_has_the_mean_and_the_range_of_its_seeds():
    run = {"images": 300, "method": "lora", "part": 0.0177, "steps": 5, "memory_gb": 1.0}
    runs = [run | {"seconds": 1.0, "loss": x, "distance": 10 * x} for x in (1.0, 2.0, 6.0)]
    row = shown(runs, {"distance": ".1f"})
    assert (row["trained"], row["of all weights"], row["seeds"]) == ("lora", "0.0177", 3)
    assert row["distance"] == "30.0 (10.0 … 60.0)" and row["loss"] == "3.000 (1.000 … 6.000)"
