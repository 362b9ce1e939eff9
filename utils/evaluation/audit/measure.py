"""All parts of an audit, and its verdict; as plain values, they are its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.base.errors import UserError
from utils.config.schema import Config
from utils.data.images import to_uint8_array
from utils.evaluation.audit.faults import Fault, Pair, find_faults, likely_pairs, looks_equal
from utils.evaluation.audit.gap import GapReport, effective_dimensions, first_captions, measure_gap
from utils.evaluation.audit.material import Material, embed
from utils.evaluation.audit.terms import common_terms, said_of
from utils.evaluation.audit.vae import VaeLoss, measure_vae
from utils.evaluation.audit.verdict import (
    about_images,
    image_sentence,
    prior_sentence,
    word_sentence,
)
from utils.evaluation.audit.words import Word, embed_said, find_captions, measure_words
from utils.evaluation.audit.written import Sentence

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.clip import ClipEncoder
    from models.patch_features import PatchEncoder

POOL = 600  # distinct captions that are embedded
COARSE = 32  # side of the images in which a word's visible part is measured
REBUILT = 64  # images of which the VAE's loss is measured


@dataclass(frozen=True)
class Texts:
    """Figures of words: `words` come from captions, `given` ones from the user.

    found: what `find_captions` returns; it, the gap and the words of captions are None without any.
    """

    words: list[Word] | None
    given: list[Word] | None
    found: dict[str, Any] | None
    gap: GapReport | None

    @property
    def every(self) -> list[Word] | None:
        """Return the given words, or else those of the captions."""
        return self.given if self.given is not None else self.words


@dataclass(frozen=True)
class Audit:
    """All that was measured. `texts_of`: the images that `texts` are measured on."""

    material: Material
    vae: VaeLoss
    faults: dict[Fault, list[int]]
    pairs: list[Pair]
    texts_of: Material
    texts: Texts

    @property
    def sentences(self) -> dict[str, Sentence]:
        """Return the verdict: go, or change this."""
        pixels, distance = self.material.pixels, self.vae.distance
        looked = len(pixels.indices) + len(pixels.unreadable)
        doubled, compared = len({pair.second for pair in self.pairs}), len(self.material.samples)
        faulty = about_images(looked, self.faults, len(pixels.unreadable), doubled, compared)
        lost = None if distance is None else float(distance.median())
        gap = self.texts.gap
        return {
            "images": image_sentence(faulty, looked, float(self.vae.psnr.median()), lost),
            "words": word_sentence(self.texts.every),
            "prior": prior_sentence(self.material.total, None if gap is None else gap.angle),
        }


def find_duplicates(material: Material, clip: ClipEncoder) -> list[Pair]:
    """Find near-duplicates among images, and mirrored ones of those whose pixels are read."""
    side = min(128, material.pixels.crops.shape[-1])
    kept: dict[int, Tensor] = {}

    def pixels(index: int) -> Tensor:
        if index not in kept:
            array = to_uint8_array(material.samples[index].path, side)
            kept[index] = torch.tensor(array).permute(2, 0, 1)
        return kept[index]

    images, indices = material.embeddings, material.pixels.indices
    flipped = embed(clip, material.pixels.crops.flip(3), "CLIP, mirrored images")
    found: dict[tuple[int, int], Pair] = {}
    for part, rows, is_mirrored in (
        (images, torch.arange(len(images)), False),
        (flipped, indices, True),
    ):
        for i, j, cosine in likely_pairs(part, images, rows):
            first, second = pixels(i), pixels(j)
            if looks_equal(first.flip(2) if is_mirrored else first, second):
                found.setdefault((i, j), Pair(i, j, is_mirrored, cosine))
    return sorted(found.values(), key=lambda pair: -pair.cosine)


def coarse_pixels(material: Material, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return places in `rows` of images whose pixels are read, and their coarse pixels (M, P)."""
    place = {row: i for i, row in enumerate(rows.tolist())}
    indices = material.pixels.indices.tolist()
    known = [i for i, index in enumerate(indices) if index in place]
    coarse = F.adaptive_avg_pool2d(material.pixels.crops[known].float(), COARSE).flatten(1)
    return torch.tensor([place[indices[i]] for i in known], dtype=torch.int64), coarse


def measure_texts(material: Material, clip: ClipEncoder, given: Sequence[str], total: int) -> Texts:
    """Measure captions and given words on images. total: training images."""
    rows, pool = material.captioned, dict[str, Tensor]()
    captions = [material.captions[i] for i in rows.tolist()]
    if not captions:
        rows = torch.arange(len(material.samples))
    images, seen = material.embeddings[rows], coarse_pixels(material, rows)
    words, gap, found, asked = None, None, None, None
    if captions:
        firsts = first_captions(captions)
        order = torch.randperm(len(firsts), generator=torch.Generator().manual_seed(0)).tolist()
        chosen = list(dict.fromkeys(firsts[i] for i in order))[:POOL]
        pool = dict(zip(chosen, F.normalize(clip.encode_texts(chosen), dim=1), strict=True))
        said = common_terms(captions)
        middle = torch.stack(list(pool.values())).mean(dim=0)
        if said:
            words = measure_words(
                images, said, embed_said(list(said), pool, clip), middle, total, seen
            )
        paired = [i for i in order if firsts[i] in pool][:POOL]
        if len(paired) > 1:
            gap = measure_gap(images[paired], torch.stack([pool[firsts[i]] for i in paired]))
        found = find_captions(images, [[text] for text in firsts], pool)
    if given:
        if empty := [t for t, no in zip(given, clip.is_empty(given), strict=True) if no]:
            raise UserError(f"--words: {empty[0]!r} holds nothing that this CLIP reads")
        texts = F.normalize(clip.encode_texts(list(given)), dim=1)
        if not captions:
            middle = texts.mean(dim=0) if len(given) > 1 else torch.zeros(texts.shape[1])
        said = {text: said_of(text, captions or [[]] * len(rows)) for text in given}
        asked = measure_words(images, said, texts, middle, total, seen)
    place = rows.tolist()
    for word in (words or []) + (asked or []):
        word.nearest[:] = [place[i] for i in word.nearest]
    return Texts(words, asked, found, gap)


def audit(
    material: Material,
    texts_of: Material,
    vae: Autoencoder,
    clip: ClipEncoder,
    patches: PatchEncoder | None,
    given: Sequence[str] = (),
) -> Audit:
    """Measure everything. texts_of: the images with captions, or `material` if there are none."""
    crops = material.pixels.crops
    return Audit(
        material,
        measure_vae(vae, crops[:: max(1, len(crops) // REBUILT)][:REBUILT], patches),
        find_faults(crops, material.pixels.sizes),
        find_duplicates(material, clip),
        texts_of,
        measure_texts(texts_of, clip, given, material.total),
    )


def plain_values(found: Audit, config: Config, clip: str, vae: str) -> dict[str, Any]:
    """Return an audit as values for JSON. clip, vae: identities of the encoders."""
    material, texts, loss = found.material, found.texts, found.vae
    names = [sample.name for sample in material.samples]
    looked = material.pixels.indices.tolist()
    gap = texts.gap
    return {
        "verdict": {key: sentence._asdict() for key, sentence in found.sentences.items()},
        "go": all(sentence.go for sentence in found.sentences.values()),
        "encoders": {"clip": clip, "vae": vae},
        "images": {
            "folder": str(material.folder),
            "total": material.total,
            "looked_at": len(looked),
            "compared": len(names),
            "unreadable": material.pixels.unreadable,
            "faults": {key: [names[looked[i]] for i in rows] for key, rows in found.faults.items()},
            "near_duplicates": [
                {**pair._asdict(), "first": names[pair.first], "second": names[pair.second]}
                for pair in found.pairs
            ],
        },
        "vae": {
            "images": len(loss.psnr),
            "resolution": config.data.resolution,
            "psnr": _summary(loss.psnr),
            "distance": None if loss.distance is None else _summary(loss.distance),
        },
        "texts": {
            "split": found.texts_of.split,
            "captioned": len(found.texts_of.captioned),
            "words": _records(texts.words),
            "given": _records(texts.given),
            "retrieval": texts.found,
        },
        "gap": gap
        and {
            "pairs": len(gap.gap.angle),
            "angle": gap.angle,
            "distance_of_means": gap.gap.distance,
            "effective_dimensions_images": effective_dimensions(gap.variance_images),
            "effective_dimensions_texts": effective_dimensions(gap.variance_texts),
            "text_variance_outside_images": gap.outside,
        },
    }


def _summary(values: Tensor) -> dict[str, float]:
    ends = torch.quantile(values.double(), torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    return dict(zip(("p5", "median", "p95"), ends.tolist(), strict=True))


def _records(words: Sequence[Word] | None) -> list[dict[str, Any]] | None:
    if words is None:
        return None
    return [
        {**{k: v for k, v in asdict(word).items() if k != "nearest"}, "state": word.state}
        for word in words
    ]
