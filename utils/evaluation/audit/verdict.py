"""The three sentences of an audit: go, or change this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.evaluation.audit.faults import FAULTS, Fault
from utils.evaluation.audit.gap import WIDE
from utils.evaluation.audit.words import Word
from utils.evaluation.audit.written import Sentence

FAULTY = 0.02  # fraction of faulty or doubled images from which on they should be looked at
POOR_PSNR = 24.0  # dB below which a VAE loses what faces are known by
POOR_DISTANCE = 0.3  # of the distance of two images, likewise
ENOUGH = 0.8  # fraction of the words that a CLIP should tell apart
NAMED = 5  # words that a sentence names
# Images below which the prior learns them by heart, and below which long captions lose a few
# points (docs/freedom.md, "Few images").
BY_HEART, FEW_IMAGES = 1000, 3000


def about_images(
    looked: int, faults: Mapping[Fault, Sequence[int]], unreadable: int, doubled: int, compared: int
) -> str:
    """Return what is wrong with images, or an empty text."""
    found = [f"{len(rows)} {FAULTS[fault]}" for fault, rows in faults.items() if rows]
    found += [f"{unreadable} unreadable"] if unreadable else []
    bad = unreadable + sum(map(len, faults.values()))
    parts = []
    if bad > FAULTY * looked:
        parts.append(f"of {looked} images {', '.join(found)}")
    if doubled > FAULTY * compared:
        parts.append(f"{doubled} near-duplicates among {compared:,}")
    return "; ".join(parts)


def image_sentence(faulty: str, looked: int, psnr: float, distance: float | None) -> Sentence:
    """Return the sentence about images and VAE. psnr, distance: medians."""
    kept = f"{psnr:.1f} dB"
    if distance is not None:
        kept += f", {100 * distance:.0f} % of the distance of two images"
    if psnr < POOR_PSNR or (distance or 0) > POOR_DISTANCE:
        also = f"; and look at the images: {faulty}" if faulty else ""
        return Sentence(
            False,
            f"Change the VAE, it loses too much of these images ({kept}): set encoders.vae to a "
            f"better one, or raise data.resolution{also}.",
        )
    if faulty:
        return Sentence(
            False, f"Change the images: {faulty}; remove these. The VAE keeps the others ({kept})."
        )
    return Sentence(
        True, f"Go with images and VAE: of {looked} images few are broken or doubled, and the VAE "
        f"keeps them ({kept}).",
    )  # fmt: skip


def word_sentence(words: Sequence[Word] | None) -> Sentence:
    """Return the sentence about words; None: there are neither captions nor words."""
    if words is None:
        return Sentence(True, "Words are not audited: there are neither captions nor --words.")
    rated = [word for word in words if word.state in ("known", "weak", "not known")]
    if not rated:
        return Sentence(
            True, "The words are unverified: too few captions say them, so look at their nearest "
            "images.",
        )  # fmt: skip
    known = [word for word in rated if word.state == "known"]
    unknown = sorted((w for w in rated if w.state == "not known"), key=lambda w: w.auc or 0)
    names = ", ".join(word.text for word in unknown[:NAMED])
    counted = f"this CLIP tells {len(known)} of {len(rated)} words apart on these images"
    if unknown:
        counted += f", and does not see {len(unknown)}: {names}"
        counted += ", …" if len(unknown) > NAMED else ""
    if len(rated) - len(unknown) >= ENOUGH * len(rated):
        return Sentence(True, f"Go with the words: {counted}.")
    return Sentence(
        False, f"Change the CLIP or the words: {counted}; a network shows nothing that its CLIP "
        "does not see.",
    )  # fmt: skip


def prior_sentence(total: int, angle: float | None) -> Sentence:
    """Return the sentence about the prior. angle: of pairs, degrees; None: no captions."""
    if total < BY_HEART:
        return Sentence(
            False, f"Change the number of images: a prior learns {total:,} by heart and shows less "
            "of what sentences state; add images (1,000 or more), or set sampling.freedom to 0.5 "
            "or less.",
        )  # fmt: skip
    start = "0.7 (the gap is unknown without captions)"
    if angle is not None:
        start = f"0.7 (captions lie {angle:.0f}° from images)"
        if angle >= WIDE:
            start = f"1 (the gap is wide, {angle:.0f}°)"
    lost = "long captions may lose a few points" if total < FEW_IMAGES else "enough for a prior"
    return Sentence(
        True, f"Go with the prior: there are {total:,} images, {lost}; begin with sampling.freedom="
        f"{start}, until train_prior.py proposes one.",
    )  # fmt: skip
