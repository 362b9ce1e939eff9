"""report.html: all evaluations of an experiment on one page, which loads no other file."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from utils.base.files import write_text
from utils.config.schema import Config
from utils.data.images import load_image, to_uint8_array
from utils.evaluation.image_set import few_samples_note
from utils.evaluation.kept_images import FEW, variety_folder
from utils.evaluation.metric_names import (
    MetricInfo,
    end_key,
    key_of,
    metrics_in,
    network_name,
)
from utils.evaluation.neighbours import (
    nearest,
    open_training_embeddings,
    training_image_paths,
    usual_cosine,
)
from utils.evaluation.plots import plot_curve, plot_trade_off
from utils.evaluation.results import (
    Record,
    Results,
    best_of,
    comparable,
    curves,
    setting_names,
)
from utils.sampling.image_files import png_text

if TYPE_CHECKING:
    from models.clip import ClipEncoder

TEMPLATES = Path(__file__).with_name("templates")
PAIRS = 8  # generated images on the page, each with its nearest training image
CHARTS = {True: (5.6, 3.4), False: (4.1, 2.9)}  # inches; True: few charts, False: many
HIGHLIGHTS = ("frechet_distance", "kid", "recall", "clip_score")


@dataclass(frozen=True)
class Picture:
    """An image of the page, as a data URI, and the text below it."""

    uri: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A generated image and its nearest training image, as data URIs."""

    generated: str
    trained: str | None  # None = the training images are gone
    name: str
    cosine: float


def write_report(results: Results, config: Config, clip: ClipEncoder) -> Path:
    """Write `report.html` beside the results, and return its path.

    Results that cannot be compared with the latest one are left out. `config`: of the latest
    evaluation. `clip`: finds the nearest training images.
    """
    lines = curves(comparable(results.records))
    records = [record for line in lines.values() for record in line.values()]
    records.sort(key=lambda record: record["step"])
    best = best_of(records)
    metrics = metrics_in(records)
    highlights = [key_of(key, best["network"]) for key in HIGHLIGHTS]
    folder = results.folder / best.get("images", "-")
    images = kept_images(folder)
    path = results.folder / "report.html"
    write_page(
        path,
        "report.html",
        title=results.folder.resolve().parent.name,
        facts=facts(records, config),
        best=best,
        best_name=dict(zip(map(id, records), setting_names(records), strict=True))[id(best)],
        header=[about.label for about in metrics.values()],
        rows=table_rows(records, metrics),
        highlights={key: metrics[key] for key in highlights if best.get(key) is not None},
        curves=[curve_chart(records, key, CHARTS[len(metrics) <= 4]) for key in metrics],
        legend=[(name, to_hex(f"C{i % 10}")) for i, name in enumerate(lines)],
        trade_off=trade_off_chart(records),
        pictures=[Picture(data_uri(file.read_bytes()), text) for file, text in images],
        varieties=variety_rows(folder),
        neighbours=neighbours([file for file, _ in images], config, clip),
        counts_differ=len({record["n"] for record in records}) > 1,
        bias=few_samples_note(min(record["n"] for record in records)),
        left_out=len(results.records) - len(comparable(results.records)),
        made=time.strftime("%d %B %Y, %H:%M"),
    )
    return path


def write_page(path: Path, template: str, **values: object) -> None:
    """Fill a template of this folder, and write it as a page that loads no other file."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(**values))


def facts(records: Sequence[Record], config: Config) -> dict[str, str]:
    """Return label -> text for the head of the page: data, network, sampler, reference."""
    last = records[-1]
    counts = sorted({record["n"] for record in records})
    model = config.model.model_type + (", with decoder" if config.model.use_decoder else "")
    samplers = {(record["num_steps"], record["solver"]) for record in records}
    size = config.data.resolution
    generated_of = "classes" if config.samples_classes else "no condition"
    if config.eval.feat_path and not config.samples_classes:
        generated_of = f"test captions, {config.eval.feat_path}"
    return {
        "Data": f"{config.data.dataset}, {size} × {size} pixels",
        "Network": model,
        "Images judged": f"{' or '.join(f'{n:,}' for n in counts)} for each line of the table",
        "Generated from": generated_of,
        "Sampler": "; ".join(f"{steps} {solver} steps" for steps, solver in sorted(samplers)),
        "Precision": ", ".join(sorted({record["amp"] for record in records})).replace(
            "no", "float32"
        ),
        "Features": network_name(last["network"]),
        "Reference": str(config.eval.ref_path),
        "Time": duration(sum(record["seconds"] for record in records)),
    }


def duration(seconds: float) -> str:
    """Format seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table_rows(records: Sequence[Record], metrics: dict[str, MetricInfo]) -> list[dict[str, Any]]:
    """Return the lines of a table: for each metric its text, its interval, True if it is best."""
    best = best_of(records)
    leaders = {}
    for key, about in metrics.items():
        values = [record[key] for record in records if record.get(key) is not None]
        leaders[key] = min(values) if about.better == "lower" else max(values)
    rows = []
    for record in records:
        cells = []
        for key, about in metrics.items():
            value = record.get(key)
            low, high = (record.get(end_key(key, end)) for end in ("low", "high"))
            interval = "" if low is None else f"{about.show(low)} – {about.show(high)}"
            if spread := record.get(end_key(key, "std")):
                interval = f"± {about.show(spread)}"
            cells.append((about.show(value), interval, value == leaders[key]))
        rows.append({"record": record, "cells": cells, "is_best": record is best})
    return rows


def curve_chart(records: Sequence[Record], key: str, size: tuple[float, float]) -> str:
    """Plot one metric against the training step, `size` in inches, as a data URI."""
    figure = Figure(figsize=size, layout="constrained")
    plot_curve(figure.subplots(), records, key)
    return svg_uri(figure)


def trade_off_chart(records: Sequence[Record]) -> str | None:
    """Plot Fréchet distance against CLIP score as a data URI; None without several scales."""
    points = [record for record in records if record.get("clip_score") is not None]
    if len({record["cfg_scale"] for record in points}) < 2:
        return None
    figure = Figure(figsize=(11.2, 4.6), layout="constrained")
    plot_trade_off(figure.subplots(), points)
    return svg_uri(figure)


def kept_images(folder: Path) -> list[tuple[Path, str]]:
    """Return the first images that an evaluation kept, and the condition of each as text."""
    found = []
    for path in sorted(folder.rglob("*.png"))[:FEW]:
        about = png_text(path)
        text = about.get("prompt") or about.get("caption") or f"seed {about.get('seed', path.stem)}"
        found.append((path, f"class {about['class']}" if "class" in about else text))
    return found


def variety_rows(folder: Path) -> list[tuple[str, list[str]]]:
    """Return the captions that were drawn with several seeds: text, and images as data URIs."""
    rows = []
    for caption in sorted(path for path in variety_folder(folder).glob("*") if path.is_dir()):
        pictures = kept_images(caption)
        rows.append((pictures[0][1], [data_uri(path.read_bytes()) for path, _ in pictures]))
    return rows


def neighbours(paths: Sequence[Path], config: Config, clip: ClipEncoder) -> dict[str, Any] | None:
    """Find the training images nearest to generated ones; None without their embeddings."""
    reader = open_training_embeddings(config, clip.identity, clip.dim)
    if reader is None or not paths:
        return None
    pixels = np.stack([np.asarray(load_image(path)) for path in paths])
    embeddings = clip.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    indices, cosines = (found[:, 0] for found in nearest(embeddings, reader))
    order = cosines.argsort(descending=True)[:PAIRS]
    files = training_image_paths(config, reader, indices[order].tolist())
    names = reader.info.meta.get("names")
    pairs = []
    for place, row in enumerate(order.tolist()):
        index = int(indices[row])
        shown = None
        if files is not None:
            shown = png_uri(to_uint8_array(files[place], config.data.resolution))
        name = names[index] if names else f"number {index}"
        generated = data_uri(paths[row].read_bytes())
        pairs.append(Pair(generated, shown, name, float(cosines[row])))
    return {
        "pairs": pairs,
        "median": float(cosines.median()),
        "usual": usual_cosine(reader),
        "count": len(paths),
        "trained_on": reader.info.length,
    }


def svg_uri(figure: Figure) -> str:
    """Return a plot as a data URI."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True)
    return data_uri(file.getvalue(), "image/svg+xml")


def png_uri(pixels: np.ndarray) -> str:
    """Return pixels (H, W, 3) uint8 as a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return data_uri(file.getvalue())


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return the content of a file as a data URI, which the page embeds."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
