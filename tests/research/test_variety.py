"""Variety of images, measured against the faces that a sentence is true of."""

import math

import pytest
import torch

from demo.make_faces import ATTRIBUTES
from research.attributes.check_handwritten import read_captions
from research.variety.measures import (
    PROMPTS,
    closeness,
    data_codes,
    entropies,
    expected_entropies,
    expected_overlaps,
    faces_that_show,
    figures,
    frequencies,
    visible,
    wanted_codes,
)
from utils.base.errors import UserError

NAMES = list(ATTRIBUTES)
K = 48


def code(name: str, value: str) -> int:
    return ATTRIBUTES[name].index(value)


def true_faces(stated: list[dict[str, str]], count: int, seed: int = 0) -> torch.Tensor:
    """Return random faces of which each sentence is true, (P, count, A)."""
    faces, generator = data_codes(), torch.Generator().manual_seed(seed)
    parts = []
    for wanted in wanted_codes(stated):
        says = wanted >= 0
        true = faces[(faces[:, says] == wanted[says]).all(dim=1)]
        parts.append(true[torch.randint(len(true), (count,), generator=generator)])
    return torch.stack(parts)


def test_entropy_of_known_distributions():
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.25, 0.25, 0]])
    expected = torch.tensor([math.log(4), 0.0, 1.5 * math.log(2)])
    assert torch.allclose(entropies(p), expected)


def test_expected_figures_of_few_samples_are_the_mean_over_many():
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    generated = torch.multinomial(p[0], 20_000 * 10, replacement=True, generator=generator)
    samples = torch.nn.functional.one_hot(generated.view(20_000, 10), 4).double().mean(dim=1)
    entropy, overlap = expected_entropies(p, 10), expected_overlaps(p, 10)
    assert entropy[0].item() == pytest.approx(entropies(samples).mean().item(), abs=3e-3)
    assert overlap[0].item() == pytest.approx(
        torch.minimum(samples, p[0]).sum(dim=1).mean().item(), abs=3e-3
    )
    assert entropy[0] < entropies(p[0]) and overlap[0] < 1  # few samples vary less
    assert entropy[1] == 0 and overlap[1] == 1


def test_the_classifiers_guesses_of_hidden_attributes_do_not_count():
    codes = torch.zeros(2, len(NAMES), dtype=torch.int64)
    codes[1, NAMES.index("headwear")] = code("headwear", "turban")
    codes[1, NAMES.index("glasses")] = code("glasses", "sunglasses")
    bare, covered = (dict(zip(NAMES, row, strict=True)) for row in visible(codes).tolist())
    assert bare["headwear_color"] == -1 and bare["hair_style"] == bare["eyes"] == 0
    assert covered["headwear_color"] == 0 and covered["hair_style"] == covered["eyes"] == -1
    assert torch.equal(visible(visible(codes)), visible(codes))


def test_faces_like_the_data_have_ratio_and_overlap_one():
    texts, stated = read_captions(PROMPTS)
    found = figures(true_faces(stated, K), stated)
    assert found["stated"] == 100 and found["seeds"] == K and len(found["prompts"]) == len(texts)
    assert found["ratio"] == pytest.approx(1, abs=0.03)
    assert found["overlap"] == pytest.approx(1, abs=0.03)


def test_one_face_for_all_seeds_has_no_variety_and_follows_the_sentence():
    _, stated = read_captions(PROMPTS)
    found = figures(true_faces(stated, 1).expand(-1, K, -1), stated)
    assert found["stated"] == 100 and found["variety"] == found["ratio"] == 0
    assert 0 < found["overlap"] < 0.5


def test_faces_that_ignore_the_sentence_vary_and_do_not_show_what_it_states():
    stated = [{"background": "pink"}, {"glasses": "round"}]
    found = figures(true_faces([{}, {}], 2000), stated)
    assert found["ratio"] == pytest.approx(1, abs=0.02)
    assert [row["stated"] for row in found["prompts"]] == pytest.approx([100 / 7, 25], abs=3)


def test_too_many_rare_faces_raise_the_ratio_and_lower_the_overlap():
    """One in three faces has headwear; here all have some."""
    generated = true_faces([{}], 20_000)
    covered = generated[generated[..., NAMES.index("headwear")] > 0][None, :2000]
    like_data, found = figures(generated[:, :2000], [{}]), figures(covered, [{}])
    assert found["overlap"] < like_data["overlap"] - 0.15
    assert found["variety"] > 0.5


def test_an_attribute_that_the_sentence_decides_is_not_open():
    """A stated bun means that no hat covers the hair; hats then lower `stated`, not `ratio`."""
    stated = [{"hair_style": "bun"}]
    faces = true_faces(stated, K)
    bun = figures(faces, stated)
    assert bun["ratio"] > 0.9
    faces[0, : K // 2, NAMES.index("headwear")] = code("headwear", "hat")
    faces[0, : K // 2, NAMES.index("headwear_color")] = code("headwear_color", "red")
    assert figures(faces, stated)["data_variety"] == bun["data_variety"]


def test_a_sentence_of_which_hardly_any_face_is_true_is_refused():
    stated = wanted_codes([{"hair_style": "bun", "headwear": "hat"}])[0]  # a hat covers the hair
    with pytest.raises(UserError, match="hair_style = bun, headwear = hat: 0 of 200,000 faces"):
        faces_that_show(stated, data_codes())


def test_closeness_of_a_set_to_itself_and_to_a_shifted_one():
    features = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    same, far = closeness(features, features), closeness(features + 10, features)
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert same["recall"] == same["precision"] == 1
    assert far["frechet_distance"] == pytest.approx(400, abs=1e-3)
    assert far["recall"] == far["precision"] == 0


def test_short_sentences_state_at_most_two_attributes_and_all_are_asked_for():
    texts, stated = read_captions(PROMPTS)
    assert len(set(texts)) == 12 and "a person" in texts
    assert max(len(states) for states in stated) <= 2
    assert {name for states in stated for name in states} == set(ATTRIBUTES)
    assert frequencies(data_codes()).sum(dim=1).allclose(torch.ones(len(NAMES)).double())
