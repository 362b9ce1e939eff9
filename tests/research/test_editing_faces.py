"""Edits of rendered faces: what counts as shown, as kept, and as the true result."""

import pytest
import torch

from models.samplers import SamplerSettings
from research.editing.compare import interval
from research.editing.faces import ALL_EDITS, faces_of
from research.editing.masks import by_denoiser, by_steps, seam


@pytest.mark.parametrize("name", ["round glasses", "no beard", "turban"])
def test_the_true_result_shows_the_trait_and_keeps_all_else(name):
    faces = faces_of(name, first=1, number=3)
    assert not faces.shown(faces.codes).any()
    assert faces.shown(faces.target_codes).all()
    assert (faces.kept(faces.target_codes) == 1).all()
    changed = (faces.images != faces.targets).any(dim=1).float().mean(dim=(1, 2))
    assert (changed > 0.005).all()
    assert len(faces.captions) == 3
    first = faces_of(name, first=0, number=2)
    assert (first.images[1] == faces.images[0]).all()


def test_a_lost_attribute_counts_and_a_hidden_one_does_not():
    faces = faces_of("turban", first=0, number=1)
    codes = faces.target_codes.clone()
    codes[0, 0] = 3  # the hair, under the turban
    assert faces.kept(codes) == 1
    codes[0, -1] = (codes[0, -1] + 1) % 7  # the background
    assert 0.5 < float(faces.kept(codes)) < 1


def test_an_interval_holds_the_mean_of_means_and_equal_values_have_none():
    mean, low, high = interval([[0.0, 100.0] * 20, [100.0] * 40])
    assert low < mean == 75 < high
    assert interval([[3.0, 3.0]]) == (3, 3, 3)


def test_every_edit_has_faces():
    assert all(len(faces_of(name, 0, 1).images) == 1 for name in ALL_EDITS)


def test_a_seam_is_a_step_across_the_border():
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 8:16, 4:12] = 50
    images[:, :, 20:, :] = 90  # elsewhere
    assert seam(images, (4, 8, 2, 6), cell=2) == 50


@pytest.mark.parametrize("solve", [by_denoiser, by_steps(3, known=False), by_steps(2, known=True)])
def test_every_way_to_inpaint_keeps_the_known_part(solve):
    clean, mask = torch.randn(2, 1, 4, 4), torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    x = solve(
        lambda x, sigma: 0.25 * x / (0.25 + sigma**2),
        clean, mask, torch.randn(2, 1, 4, 4), SamplerSettings("dpmpp_2m", 6),
    )  # fmt: skip
    torch.testing.assert_close(x[:, :, 2:].float(), clean[:, :, 2:])
    assert (x[:, :, :2].float() - clean[:, :, :2]).abs().mean() > 0.1
