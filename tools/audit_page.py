"""audit.html: an audit on one page, which loads no other file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from utils.config.schema import Config
from utils.data.images import to_uint8_array
from utils.evaluation.audit.faults import FAULTS
from utils.evaluation.audit.gap import GapReport
from utils.evaluation.audit.material import Material
from utils.evaluation.audit.measure import Audit
from utils.evaluation.audit.words import FEW, KNOWN, UNKNOWN, Word
from utils.evaluation.html_report import png_uri, svg_uri, write_page
from utils.evaluation.plots import style_axis

SIDE = 96  # pixels of small images
WORST, SHOWN, PAIRS = 8, 12, 8  # images of the VAE and of a fault, and pairs
PICTURED = 10  # words whose nearest images are shown, at either end
LISTED = 40  # words of captions in the table
# What priors kept of long captions, measured (docs/freedom.md): images -> text.
FEW_IMAGES = (
    (1000, "captions of many attributes show 85 to 87 % of them, where 10,000 images give 94 %"),
    (3000, "a prior alone keeps 98 % of a long caption, of 600 images 93 to 95 %"),
)


def write_audit_page(path: Path, found: Audit, values: dict[str, Any], config: Config) -> None:
    """Write the page. values: what `plain_values` returns."""
    words, gap = found.texts.every, found.texts.gap
    ordered = sorted(words or [], key=_by_area)
    shown = ordered
    if found.texts.given is None and len(ordered) > 2 * PICTURED:
        shown = ordered[:PICTURED] + ordered[-PICTURED:]
    write_page(
        path,
        "audit.html",
        title=config.data.dataset,
        values=values,
        sentences=list(found.sentences.values()),
        facts=facts(found, config, values["encoders"]),
        worst=worst_of_vae(found),
        faults=faulty_images(found),
        pairs=pairs_of(found),
        words=ordered if found.texts.given is not None else even_part(ordered, LISTED),
        of_words=len(ordered),
        pictured=[(word, nearest_images(word, found.texts_of)) for word in shown],
        levels={"known": KNOWN, "unknown": UNKNOWN, "few": FEW},
        spectrum=None
        if gap is None
        else svg_uri((7.6, 3.2), lambda axis: plot_spectrum(axis, gap)),
        few_images=FEW_IMAGES,
        made=time.strftime("%d %B %Y, %H:%M"),
    )


def _by_area(word: Word) -> tuple[float, float]:
    return (2.0, -word.near) if word.auc is None else (word.auc, 0.0)


def even_part(words: Sequence[Word], most: int) -> list[Word]:
    """Return at most `most` of sorted words: both ends, and an even choice between."""
    if len(words) <= most:
        return list(words)
    return [words[round(i)] for i in np.linspace(0, len(words) - 1, most)]


def facts(found: Audit, config: Config, encoders: dict[str, str]) -> dict[str, str]:
    """Return label -> text for the head of the page."""
    material, of = found.material, found.texts_of
    captions = f"{len(of.captioned):,} captioned images of the {of.split} split"
    return {
        "Images": f"{material.total:,} in {material.folder}",
        "Looked at": f"{len(material.pixels.indices):,}, at {config.data.resolution} pixels",
        "Compared by CLIP": f"{len(material.samples):,}",
        "Captions": captions if len(of.captioned) else "none",
        "CLIP": f"{config.encoders.clip} ({encoders['clip']})",
        "VAE": config.encoders.vae,
    }


def worst_of_vae(found: Audit) -> list[dict[str, Any]]:
    """Return the images of which the VAE loses most, each beside its reconstruction."""
    loss, crops = found.vae, found.material.pixels.crops
    step = max(1, len(crops) // len(loss.psnr))
    rows = []
    for i in loss.worst[:WORST].tolist():
        distance = None if loss.distance is None else float(loss.distance[i])
        before, after = (x.permute(1, 2, 0).numpy() for x in (crops[i * step], loss.rebuilt[i]))
        index = int(found.material.pixels.indices[i * step])
        rows.append(
            {
                "before": png_uri(before), "after": png_uri(after), "distance": distance,
                "psnr": float(loss.psnr[i]), "name": found.material.samples[index].name,
            }
        )  # fmt: skip
    return rows


def faulty_images(found: Audit) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Return each kind of fault that is there: its text, its count, and images with names."""
    pixels, samples, rows = found.material.pixels, found.material.samples, []
    for fault, indices in found.faults.items():
        images = [
            (
                png_uri(pixels.crops[i].permute(1, 2, 0).numpy()),
                samples[int(pixels.indices[i])].name,
            )
            for i in indices[:SHOWN]
        ]
        if indices:
            rows.append((FAULTS[fault], len(indices), images))
    return rows


def pairs_of(found: Audit) -> list[dict[str, Any]]:
    """Return near-duplicates, each pair with its images."""
    samples = found.material.samples
    return [
        {
            "images": [thumbnail(found.material, i) for i in (pair.first, pair.second)],
            "names": [samples[i].name for i in (pair.first, pair.second)],
            "mirrored": pair.mirrored,
            "cosine": pair.cosine,
        }
        for pair in found.pairs[:PAIRS]
    ]


def nearest_images(word: Word, material: Material) -> list[str]:
    """Return the images nearest to a word, as data URIs."""
    return [thumbnail(material, i) for i in word.nearest]


def thumbnail(material: Material, index: int) -> str:
    """Return a small image as a data URI."""
    return png_uri(to_uint8_array(material.samples[index].path, SIDE))


def plot_spectrum(axis: Axes, gap: GapReport) -> None:
    """Plot the variance that the first principal directions hold, of images and captions."""
    for label, variances in (("images", gap.variance_images), ("captions", gap.variance_texts)):
        held = 100 * (variances.cumsum(0) / variances.sum()).numpy()
        axis.plot(range(1, len(held) + 1), held, label=label, linewidth=1.8)
    style_axis(axis, "Variance within the first directions", "principal directions of each side")
    axis.set_xscale("log")
    axis.set_xlabel("directions")
    axis.set_ylabel("%")
    axis.set_ylim(0, 101)
    axis.legend(frameon=False)
