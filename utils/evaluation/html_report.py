"""report.html: all evaluations of an experiment on one page, which loads no other file."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from utils.base.files import write_text
from utils.config.schema import Config
from utils.config.sections import Data
from utils.data.images import load_image, to_uint8_array
from utils.evaluation.audit.written import find_audit
from utils.evaluation.copy_check import training_database
from utils.evaluation.image_set import few_samples_note
from utils.evaluation.kept_images import FEW, copies_folder, variety_folder
from utils.evaluation.metric_names import (
    MetricInfo,
    interval_text,
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
from utils.evaluation.plots import plot_metric, plot_trade_off
from utils.evaluation.results import Record, Results, best_of, comparable, curves, setting_names
from utils.evaluation.training_curves import own_curve, reference_curves, training_figure
from utils.sampling.image_files import png_text

if TYPE_CHECKING:
    from models.clip import ClipEncoder

TEMPLATES = Path(__file__).with_name("templates")
PAIRS = 8  # generated images on the page, each with its nearest training image
HIGHLIGHTS = ("frechet_distance", "kid", "recall", "clip_score")


def write_report(results: Results, config: Config, clip: ClipEncoder) -> Path:
    """Write `report.html` beside the results, and return its path.

    Results that cannot be compared with the latest one are left out. `config`: of the latest
    evaluation. `clip`: finds the nearest training images.
    """
    compared = comparable(results.records)
    lines = curves(compared)
    records = [record for line in lines.values() for record in line.values()]
    records.sort(key=lambda record: record["step"])
    best = best_of(records)
    metrics = metrics_in(records)
    points = [record for record in records if record.get("clip_score") is not None]
    trade_off = None
    if len({record["cfg_scale"] for record in points}) > 1:
        trade_off = svg_uri((11.2, 4.6), lambda axis: plot_trade_off(axis, points))
    highlights = [key_of(key, best["network"]) for key in HIGHLIGHTS]
    folder = results.folder / best.get("images", "-")
    images = kept_images(folder)
    own = own_curve(results.folder.parent)
    audit = find_audit(results.folder.parent, config, clip.identity)
    path = results.folder / "report.html"
    write_page(
        path,
        "report.html",
        title=results.folder.resolve().parent.name,
        facts=facts(records, config),
        best=best,
        best_name=setting_names(records)[records.index(best)],
        header=[about.label for about in metrics.values()],
        rows=table_rows(records, metrics),
        highlights={key: metrics[key] for key in highlights if best.get(key) is not None},
        curves=metric_charts(lines, metrics, chart_size(len(metrics))),
        legend=[(name, to_hex(f"C{i % 10}")) for i, name in enumerate(lines)],
        training=own and figure_uri(training_figure(own, reference_curves())),
        trade_off=trade_off,
        images=[(data_uri(file.read_bytes()), text) for file, text in images],
        varieties=variety_rows(folder),
        audit=audit and audit.sentences,
        audit_page=audit and os.path.relpath(audit.page, results.folder),
        verdict=best.get("copies_verdict"),
        copied=copied_pairs(folder, config.data),
        neighbours=neighbours([file for file, _ in images], config.data, clip),
        counts_differ=len({record["n"] for record in records}) > 1,
        bias=few_samples_note(min(record["n"] for record in records)),
        left_out=len(results.records) - len(compared),
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
    counts = sorted({record["n"] for record in records})
    samplers = {(record["num_steps"], record["solver"]) for record in records}
    precisions = sorted({record["amp"] for record in records})
    seconds, size = sum(record["seconds"] for record in records), config.data.resolution
    condition = "classes" if config.samples_classes else "no condition"
    if config.eval.feat_path and not config.samples_classes:
        condition = f"test captions, {config.eval.feat_path}"
    time_text = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return {
        "Data": f"{config.data.dataset}, {size} × {size} pixels",
        "Network": config.model.model_type + (", with decoder" if config.model.use_decoder else ""),
        "Images": f"{' or '.join(f'{n:,}' for n in counts)} for each line of the table",
        "Generated from": condition,
        "Sampler": "; ".join(f"{steps} {solver} steps" for steps, solver in sorted(samplers)),
        "Precision": ", ".join(precisions).replace("no", "float32"),
        "Features": network_name(records[-1]["network"]),
        "Reference": str(config.eval.ref_path),
        "Time": f"{seconds:.0f} s" if seconds < 120 else time_text,
    }


def table_rows(records: Sequence[Record], metrics: dict[str, MetricInfo]) -> list[dict[str, Any]]:
    """Return the lines of a table: for each metric its text, its interval, True if it is best."""
    best = best_of(records)
    leaders = {}
    for key, about in metrics.items():
        values = [record[key] for record in records if record.get(key) is not None]
        leaders[key] = about.best(values)
    rows = []
    for record in records:
        cells = []
        for key, about in metrics.items():
            value = record.get(key)
            interval = interval_text(record, key)
            cells.append((about.show(value), interval, value == leaders[key]))
        rows.append({"record": record, "cells": cells, "is_best": record is best})
    return rows


def kept_images(folder: Path) -> list[tuple[Path, str]]:
    """Return the first images that an evaluation kept, and the condition of each as text."""
    found = []
    for path in sorted(folder.rglob("*.png"))[:FEW]:
        about = png_text(path)
        text = about.get("prompt") or about.get("caption") or f"seed {about.get('seed', path.stem)}"
        found.append((path, f"class {about['class']}" if "class" in about else text))
    return found


def variety_rows(folder: Path) -> list[tuple[str, list[str]]]:
    """Return text and images, as data URIs, of the captions with several seeds."""
    rows = []
    for caption in sorted(path for path in variety_folder(folder).glob("*") if path.is_dir()):
        images = kept_images(caption)
        rows.append((images[0][1], [data_uri(path.read_bytes()) for path, _ in images]))
    return rows


def copied_pairs(folder: Path, data: Data) -> list[dict[str, Any]]:
    """Return the kept images most like copies, each with its nearest training image."""
    reader = training_database(data)
    found = [(png_text(path), path) for path in sorted(copies_folder(folder).glob("*.png"))]
    if reader is None or not found:
        return []
    found.sort(key=lambda pair: float(pair[0]["contrast"]))
    indices = [int(about["training"]) for about, _ in found]
    if max(indices) >= reader.info.length:  # of another database
        return []
    files = training_image_paths(data.image_dir, reader, indices)
    names = reader.info.meta.get("names")
    return [
        {
            **about,
            "generated": data_uri(path.read_bytes()),
            "trained": files and png_uri(to_uint8_array(files[place], data.resolution)),
            "name": names[index] if names else f"number {index}",
        }
        for place, (index, (about, path)) in enumerate(zip(indices, found, strict=True))
    ]


def neighbours(paths: Sequence[Path], data: Data, clip: ClipEncoder) -> dict[str, Any] | None:
    """Find the training images nearest to generated ones; None without their embeddings."""
    reader = open_training_embeddings(data.feat_path, clip.identity, clip.dim)
    if reader is None or not paths:
        return None
    pixels = np.stack([np.asarray(load_image(path)) for path in paths])
    embeddings = clip.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    indices, cosines = (found[:, 0] for found in nearest(embeddings, reader))
    order = cosines.argsort(descending=True)[:PAIRS]
    files = training_image_paths(data.image_dir, reader, indices[order].tolist())
    names = reader.info.meta.get("names")
    pairs = []
    for place, row in enumerate(order.tolist()):
        index = int(indices[row])
        pairs.append(
            {
                "generated": data_uri(paths[row].read_bytes()),
                "trained": files and png_uri(to_uint8_array(files[place], data.resolution)),
                "name": names[index] if names else f"number {index}",
                "cosine": float(cosines[row]),
            }
        )
    return {
        "pairs": pairs,
        "median": float(cosines.median()),
        "usual": usual_cosine(reader),
        "count": len(paths),
        "trained_on": reader.info.length,
    }


def metric_charts(
    lines: Mapping[str, Mapping[int, Record]], metrics: Iterable[str], size: tuple[float, float]
) -> list[str]:
    """Plot each metric against the training step, as data URIs; see `plot_metric`."""
    return [svg_uri(size, partial(plot_metric, lines=lines, key=key)) for key in metrics]


def chart_size(count: int) -> tuple[float, float]:
    """Return the inches of each of `count` charts."""
    return (5.6, 3.4) if count <= 4 else (4.1, 2.9)


def svg_uri(size: tuple[float, float], plot: Callable[[Axes], None]) -> str:
    """Return a plot of this size in inches as a data URI; `plot` fills its axis."""
    figure = Figure(figsize=size, layout="constrained")
    plot(figure.subplots())
    return figure_uri(figure)


def figure_uri(figure: Figure) -> str:
    """Return a figure as a data URI."""
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
