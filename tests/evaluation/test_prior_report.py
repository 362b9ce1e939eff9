"""The report of a prior: its figures, its verdict, and the freedom that it proposes."""

import json

import pytest
import torch
import torch.nn.functional as F

from models.batch_random import BatchRandom
from models.embedding_prior import EmbeddingPrior, flow_loss, prior_loss
from utils.evaluation.prior_material import usual_sentences
from utils.evaluation.prior_report import (
    FREEDOMS,
    evaluate_prior,
    proposed_freedom,
    report_table,
    verdict,
)

DIM, VALUES, TRAITS, NOISE = 16, 3, 3, (0.5, 8.0)


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings (N, DIM) of unit length and traits (N, TRAITS): one direction each."""
    generator = torch.Generator().manual_seed(seed)
    traits = torch.randint(VALUES, (count, TRAITS), generator=generator)
    y = 0.1 * torch.randn(count, DIM, generator=generator)
    y[:, -1] += 0.7  # all images share a direction
    for t in range(TRAITS):
        y[torch.arange(count), VALUES * t + traits[:, t]] += 1.0
    return F.normalize(y, dim=1), traits


def sentences(y: torch.Tensor, traits: torch.Tensor) -> torch.Tensor:
    """Return the mean embedding of each pair of the first two traits, (VALUES², DIM)."""
    pairs = [(i, j) for i in range(VALUES) for j in range(VALUES)]
    return torch.stack([y[(traits[:, 0] == i) & (traits[:, 1] == j)].mean(0) for i, j in pairs])


@pytest.fixture(scope="module")
def world():
    y, traits = images(800, 0)
    return y, images(200, 1)[0], sentences(y, traits)


def fit(y: torch.Tensor, steps: int, loss) -> EmbeddingPrior:
    """Train a small prior on y (N, D) by a loss of (prior, batch, others, rng)."""
    torch.manual_seed(0)
    prior = EmbeddingPrior(DIM, width=64, depth=2)
    prior.measure(y)
    optimizer = torch.optim.AdamW(prior.parameters(), 4e-3)
    rng = BatchRandom(torch.Generator().manual_seed(0))
    for step in range(steps):
        y = y.roll(128, dims=0)
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        optimizer.zero_grad()
        loss(prior, y[:128], y[128:], rng).mean().backward()
        optimizer.step()
    return prior.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prior(world):
    return fit(world[0], 500, lambda p, batch, bank, rng: prior_loss(p, batch, bank, NOISE, rng))


def evaluate(prior, world, texts=None) -> dict:
    train, held_out, own = world
    texts = own if texts is None else texts
    return evaluate_prior(prior, train, held_out, NOISE, F.normalize(texts, dim=1), texts)


@pytest.fixture(scope="module")
def report(prior, world):
    return evaluate(prior, world)


def test_a_trained_prior_is_good_and_its_samples_are_as_near_as_real_images(report):
    at_one = next(row for row in report["rows"] if row["freedom"] == 1)
    assert verdict(report).startswith("good")
    assert at_one["frechet"] < 2 * report["real"]["frechet"] and at_one["coverage"] > 0.8
    assert [row["freedom"] for row in report["rows"]] == list(FREEDOMS)
    assert (report["held_out"], report["images"], report["texts"]) == (200, 800, 9)


def test_freedom_costs_what_the_sentence_says_and_gives_variety(report):
    rows, last = report["rows"], report["rows"][-1]
    assert rows[0]["kept"] > 0.88 > last["kept"] > 1 / 9
    assert rows[0]["follows"] > last["follows"] and rows[0]["variety"] < last["variety"]
    kept = {row["freedom"]: row["kept"] for row in rows}
    assert kept[report["freedom"]] >= kept[0.4] - 0.02
    assert all(kept[f] < kept[0.4] - 0.02 for f in kept if f > report["freedom"])


def test_texts_that_lie_farther_out_get_a_higher_freedom(prior, world, report):
    mean = world[0].mean(dim=0)
    far = evaluate(prior, world, mean + 1.6 * (world[2] - mean))
    assert far["freedom"] >= report["freedom"] + 0.2


def test_equal_inputs_give_equal_reports_that_fit_into_a_file(prior, world, report):
    again = evaluate(prior, world)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(report))
    lines = report_table(report).splitlines()
    assert len(lines) == len(FREEDOMS) + 3 and lines[-1].startswith("real images")


def test_without_texts_nothing_is_proposed_and_without_held_out_half_of_the_images_serves(
    prior, world
):
    train = world[0]
    report = evaluate_prior(prior, train, None, NOISE)
    assert report["freedom"] is None and "kept" not in report["rows"][0]
    assert (report["held_out"], report["images"]) == (256, 400)
    assert verdict(report).startswith("good") and "sentence" not in report_table(report)


def test_a_prior_that_gives_one_embedding_is_called_collapsed(world):
    def to_the_mean(prior, batch, _, rng):
        return flow_loss(prior, prior.mean.expand_as(batch), torch.zeros_like(batch), rng)

    report = evaluate(fit(world[0], 100, to_the_mean), world)
    assert verdict(report).startswith("collapsed")


def test_an_untrained_prior_is_far_from_images_and_tells_no_sentences_apart(world):
    untrained = EmbeddingPrior(DIM, width=8, depth=1)
    untrained.measure(world[0])
    report = evaluate(untrained.requires_grad_(False), world)
    assert report["rows"][0]["kept"] < 0.5
    assert not verdict(report).startswith("good")


def test_the_proposal_is_the_largest_freedom_within_two_points_of_the_most_literal_one():
    kept = (0.98, 0.99, 0.97, 0.95)
    rows = [{"freedom": 0.4 + 0.1 * i, "kept": value} for i, value in enumerate(kept)]
    assert proposed_freedom(rows) == pytest.approx(0.6)


def test_any_two_usual_sentences_share_one_trait_at_most():
    words = [sentence.replace(" who wears ", ", ").split(", ") for sentence in usual_sentences()]
    parts = [(*first.split(" with "), *rest) for first, *rest in words]
    assert len(set(parts)) == 25 and all(len(part) == 4 for part in parts)
    for i, a in enumerate(parts):
        for b in parts[:i]:
            assert sum(x == y for x, y in zip(a, b, strict=True)) <= 1
