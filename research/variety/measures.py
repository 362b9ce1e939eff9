"""Variety of the faces generated for sentences that say little, beside all that these state.

A model generates K images of each sentence, and the attribute classifier names their attributes.
Those that a sentence leaves open should vary as they do among the faces of which the sentence is
true; `make_faces.py` gives that distribution.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from scipy.stats import binom
from torch import Tensor

from demo.make_faces import ATTRIBUTES, encode_attributes, hide, random_attributes
from utils.base.errors import UserError
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.metrics import manifold_metrics

PROMPTS = Path(__file__).with_name("short_prompts.jsonl")
FACES = 200_000  # random ones, for the data's own distribution
VALUES = 1 + max(len(values) for values in ATTRIBUTES.values())  # the first one is "hidden"
MIN_FACES = 200  # of which a sentence is true, to know how they vary

States = Mapping[str, str]  # name of an attribute → the value that a sentence states


def visible(codes: Tensor) -> Tensor:
    """Return attributes (N, A) with −1 for those that a face cannot show; see `hide`.

    A classifier names hidden attributes too, by guessing.
    """
    rows = []
    for row in codes.tolist():
        named = zip(ATTRIBUTES.items(), row, strict=True)
        face = {name: "hidden" if code < 0 else values[code] for (name, values), code in named}
        rows.append(encode_attributes(hide(face)))
    return torch.tensor(rows)


@cache
def data_codes(count: int = FACES) -> Tensor:
    """Return the visible attributes of `count` faces of the demo, (count, A) int64."""
    rng = random.Random("variety")
    return torch.tensor([encode_attributes(hide(random_attributes(rng))) for _ in range(count)])


def wanted_codes(stated: Sequence[States]) -> Tensor:
    """Return the attributes that each sentence states, (P, A) int64; −1 for those left open."""
    return torch.tensor(
        [
            [values.index(states[name]) if name in states else -1
             for name, values in ATTRIBUTES.items()]
            for states in stated
        ]
    )  # fmt: skip


def frequencies(codes: Tensor) -> Tensor:
    """Return the frequency of each value: visible attributes (N, A) → (A, VALUES) float64.

    The first column is that of faces that hide the attribute.
    """
    places = codes + 1 + VALUES * torch.arange(codes.shape[1])
    counts = torch.bincount(places.flatten(), minlength=VALUES * codes.shape[1])
    return counts.view(-1, VALUES).double() / len(codes)


def entropies(p: Tensor) -> Tensor:
    """Return Shannon's entropy of distributions (…, V), in nats: (…)."""
    return -torch.xlogy(p, p).sum(dim=-1)


def expected_entropies(p: Tensor, k: int) -> Tensor:
    """Return the mean entropy of the frequencies in k samples of each distribution: (A, V) → (A,).

    The entropy of few samples is too low (Miller 1955). This one is as low, so that their ratio is
    one if the samples are of that distribution. It is exact: the number of times that a value of
    probability p comes up is binomial.
    """
    return _expected(p, k, lambda f, _: -torch.xlogy(f, f))


def expected_overlaps(p: Tensor, k: int) -> Tensor:
    """Return the mean overlap of k samples with their own distribution: (A, V) → (A,)."""
    return _expected(p, k, torch.minimum)


def _expected(p: Tensor, k: int, f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return E Σ f(frequency in k samples, p) over the values: (A, V) → (A,)."""
    counts = torch.arange(k + 1, dtype=torch.float64)
    chance = torch.from_numpy(binom.pmf(counts.numpy(), k, p[..., None].numpy()))  # (A, V, k+1)
    return (chance * f(counts / k, p[..., None])).sum(dim=(-2, -1))


def faces_that_show(stated: Tensor, data: Tensor) -> Tensor:
    """Return those of the faces (N, A) that show all that a sentence states, (A,): (M, A).

    Raises UserError if they are fewer than MIN_FACES.
    """
    says = stated >= 0
    found = data[(data[:, says] == stated[says]).all(dim=1)]
    if len(found) < MIN_FACES:
        pairs = zip(ATTRIBUTES.items(), stated.tolist(), strict=True)
        named = ", ".join(f"{name} = {values[code]}" for (name, values), code in pairs if code >= 0)
        raise UserError(
            f"{named}: {len(found)} of {len(data):,} faces show this, too few to compare with; "
            "state less in the sentence"
        )
    return found


def variety_of(generated: Tensor, data: Tensor, stated: Tensor) -> dict[str, Tensor]:
    """Compare the attributes of one sentence's images with those of the faces that it is true of.

    Args:
        generated: (K, A) visible attributes of the images.
        data: (N, A) visible attributes of faces; N should be thousands.
        stated: (A,) int64 of `wanted_codes`.

    Returns:
        For each attribute that the sentence leaves open, (O,) float64: `generated` and `data`, the
        entropies divided by the logarithm of the number of values that faces show; `overlap`,
        1 − total variation distance of both distributions; `data_overlap`. The data's figures are
        those of K faces, on average.
    """
    possible = (frequencies(data) > 0).sum(dim=1).double()
    p, q = frequencies(faces_that_show(stated, data)), frequencies(generated)
    is_open = (stated < 0) & (p.amax(dim=1) < 1)  # a stated bun leaves no choice of a hat
    k = len(generated)
    found = {
        "generated": entropies(q) / possible.log(),
        "data": expected_entropies(p, k) / possible.log(),
        "overlap": torch.minimum(p, q).sum(dim=1),
        "data_overlap": expected_overlaps(p, k),
    }
    return {name: values[is_open] for name, values in found.items()}


def figures(codes: Tensor, stated: Sequence[States], data: Tensor | None = None) -> dict:
    """Return the figures of a model from the attributes of its images, (P, K, A) int64.

    stated: the P sentences' attributes. data: visible attributes of faces; None = the demo's.

    Returns:
        `stated`: percentage of the stated attributes that the images show; None if none is stated.
        `variety`: mean normalised entropy of the open attributes, over all sentences; 1 = uniform.
        `data_variety`: that of the faces of which the sentences are true, for K of them.
        `ratio`: variety / data_variety; 1 = as varied as the data.
        `overlap`: mean overlap of both distributions, divided by that of K faces; 1 = distributed
        like the data. Unlike the ratio it also falls if rare values come up too often.
        `prompts`: stated (None if nothing is), variety, ratio and overlap of each sentence.
    """
    data = data_codes() if data is None else data
    wanted = wanted_codes(stated)
    hits = (codes == wanted[:, None]).double().mean(dim=1)  # (P, A)
    says = wanted >= 0
    of_prompts = [
        variety_of(visible(generated), data, states)
        for generated, states in zip(codes, wanted, strict=True)
    ]
    rows = []
    for hit, said, found in zip(hits, says, of_prompts, strict=True):
        shown = 100 * hit[said].mean().item() if said.any() else None
        rows.append({"stated": shown, **_summary(found)})
    every = {key: torch.cat([found[key] for found in of_prompts]) for key in of_prompts[0]}
    return {
        "seeds": codes.shape[1],
        "stated": 100 * hits[says].mean().item() if says.any() else None,
        **_summary(every),
        "prompts": rows,
    }


def _summary(found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the means of `variety_of` over attributes."""
    mean = {key: values.mean().item() for key, values in found.items()}
    return {
        "variety": mean["generated"],
        "data_variety": mean["data"],
        "ratio": mean["generated"] / mean["data"],
        "overlap": mean["overlap"] / mean["data_overlap"],
    }


def closeness(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Compare features of images with those of real faces, (N, D) and (M, D).

    Returns the Fréchet distance (Heusel 2017), and precision, recall (Kynkäänniemi 2019), density
    and coverage (Naeem 2020).
    """
    x, y = features.double(), reference.double()
    sides = [(part.mean(dim=0).numpy(), part.T.cov().numpy()) for part in (x, y)]
    return {
        "n": len(x),
        "frechet_distance": frechet_distance(*sides[0], *sides[1]),
        **manifold_metrics(x, y),
    }
