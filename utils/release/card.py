"""The model card of a release folder: README.md with the metadata of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.base.errors import note
from utils.base.files import read_json_lines
from utils.config.schema import Config
from utils.config.sections import Data, Encoders, Train
from utils.evaluation.metric_names import MetricInfo, end_key, metrics_in, network_name
from utils.evaluation.results import Record, Results, evaluation_of
from utils.pretrained.checkpoint_files import load_checkpoint, step_of
from utils.pretrained.hub import is_clip_name, is_vae_name
from utils.release.tuning import HEADER, read_tuning, report_rows, sentences, table_rows
from utils.sampling.sample_folder import settings_text
from utils.sampling.text_to_face import TextToFace
from utils.training.run_log import time_text
from utils.training.schedules import base_rates

TEMPLATES = Path(__file__).with_name("templates")
GRADIO = "6.31.0"  # the version that app.py was tried with
TAGS = ["text-to-image", "image-to-image", "faces", "language-free", "masked-diffusion-transformer"]


@dataclass(frozen=True)
class Run:
    """The training of a checkpoint, as it and the files beside it state.

    images: number of training images; None if unknown, as for the next two.
    images_seen: by the training, repetitions included.
    processor_seconds: of the training.
    records: its evaluations at this step, from `evaluation/results.jsonl`; of a tuned network, the
        one that tools/tune.py reports.
    tuning: record of tools/tune.py, None for a network that it did not choose.
    """

    step: int
    images: int | None
    images_seen: int | None
    processor_seconds: float | None
    records: list[Record]
    tuning: dict[str, Any] | None = None


def read_run(checkpoint: Path, results_dir: Path = Path("results")) -> Run:
    """Read what is known about a checkpoint's training; files that are missing tell nothing."""
    step, tuning = step_of(checkpoint), read_tuning(checkpoint)
    folder, listed = evaluation_of(checkpoint, results_dir).parent, {}
    seen = load_checkpoint(checkpoint).get("images_seen") if checkpoint.suffix == ".pt" else None
    if tuning is None:
        records = [r for r in Results(folder / "evaluation").records if r.get("step") == step]
    else:
        records, seen = [tuning["report"]["chosen"]], tuning["images_seen"]
        folder = checkpoint.absolute().parents[1]  # tools/tune.py writes into the experiment
    if (folder / "images.json").is_file():
        listed = json.loads((folder / "images.json").read_text(encoding="utf-8"))
    log = read_json_lines(folder / "metrics.jsonl", note)
    spent = [line["cpu_s"] for line in log if line.get("step", 0) <= step and "cpu_s" in line]
    return Run(step, listed.get("count"), seen, sum(spent) or None, records, tuning)


def model_card(
    name: str, faces: TextToFace, run: Run, prompts: Sequence[str], grid: str, notice: bool
) -> str:
    """Return the text of README.md.

    name: of the model. prompts: of the sample grid, whose file is `grid`. notice: True if the
    folder holds NOTICE.md.
    """
    config = faces.config
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # it is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metrics = metrics_in(run.records)
    text: str = environment.get_template("model_card.md").render(
        metadata=metadata(name, config, run, metrics),
        name=name,
        trained_on="on captions"
        if trained_on_captions(config.data)
        else "on images only, without any caption",
        condition=condition(config.data, config.train),
        has_prior=bool(config.sampling.freedom),
        has_words=config.encoders.prior is not None,
        grid=grid,
        seed=config.sampling.seed,
        prompts=[f"“{_cell(prompt)}”" for prompt in prompts],
        prompt=_cell(min(prompts, key=len)).replace('"', "'"),
        facts={label: _cell(text) for label, text in facts(faces, run).items()},
        sampler=settings_text(config.sampling),
        records=run.records,
        header=["guidance", "sampler", "images", *(about.label for about in metrics.values())],
        rows=[[_cell(cell) for cell in row] for row in metric_rows(run.records, metrics)],
        step=f"{run.step:,}",
        evaluated_on=_cell(evaluated_on(run.records)),
        clip=place_of(config.encoders)[1],
        tokens=faces.clip.context_length,
        tuning=tuning_text(run.tuning),
        notice="; see `NOTICE.md`" if notice else "",
    )
    return text


def trained_on_captions(data: Data) -> bool:
    """Return True if the training's condition was made from captions."""
    return data.feat_path is not None and data.feat_path == data.text_feat_path


def condition(data: Data, train: Train) -> str:
    """Return a phrase that says what the network was conditioned on in training."""
    of = "captions" if trained_on_captions(data) else "the image itself"
    if not train.perturbation:
        return f"the CLIP embedding of {of}, without noise"
    kind = f"{train.perturbation_type}, {train.perturbation:g}"
    return f"the CLIP embedding of {of}, perturbed by noise on the unit sphere ({kind})"


def facts(faces: TextToFace, run: Run) -> dict[str, str]:
    """Return label -> text for network and training; what is unknown is left out."""
    config = faces.config
    train, model, encoders = config.train, config.model, config.encoders
    vae, clip = place_of(encoders)
    size = sum(weight.numel() for weight in faces.denoiser.parameters()) / 1e6
    lr, muon_lr = base_rates(config)
    rate = f"lr {lr:.2g}" + (f", Muon {muon_lr:.2g}" if train.optimizer == "muon" else "")
    amount = f"{run.step:,} steps of {train.batchsize}"
    amount += f", {run.images_seen:,} images seen" if run.images_seen else ""
    scaled = ", each channel normalised" if encoders.latent_statistics else ""
    data = f"{config.data.dataset}, {config.data.resolution} × {config.data.resolution} pixels"
    data += f", {run.images:,} images" if run.images else ""
    known = {
        "Images": data,
        "Condition": condition(config.data, train),
        "Network": f"{model.model_type}, {size:.1f} M weights, EDM preconditioning",
        "Masking": f"{model.mask_ratio:.0%} of the tokens, {model.mask_ratio_fn}",
        "Latents": f"{model.in_channels} × {model.in_size} × {model.in_size}, VAE {vae}{scaled}",
        "CLIP": f"{clip}, {faces.clip.dim} numbers, identity {faces.clip.identity}",
        "Training": amount,
        "Optimiser": f"{train.optimizer}, {rate}, {train.lr_schedule}",
        "Averaging": averaging(train, run.tuning),
        "Seed": str(train.seed),
    }
    if run.processor_seconds:
        known["Processor time"] = time_text(run.processor_seconds)
    return known


def averaging(train: Train, tuning: dict[str, Any] | None) -> str:
    """Return a phrase that says of what kind of average the weights are."""
    if tuning is not None and tuning["average"] is not None:
        return f"power function of relative width {tuning['average']['width']:g} (EDM2)"
    return f"EMA with decay {train.ema_decay:g}; these are the averaged weights"


def tuning_text(tuning: dict[str, Any] | None) -> str:
    """Return paragraph and tables of a tuning as Markdown; empty without one."""
    if tuning is None:
        return ""
    tables = [
        "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (HEADER, ["---"] * 7, *rows))
        for rows in (table_rows(tuning), report_rows(tuning))
    ]
    return "\n\n".join([" ".join(sentences(tuning)), tables[0], "To report:", tables[1]])


def metric_rows(records: Sequence[Record], metrics: Mapping[str, MetricInfo]) -> list[list[str]]:
    """Return a line for each evaluation: its settings, then its metrics with their intervals."""
    rows = []
    for record in records:
        scale = record.get("cfg_scale")
        row = [
            "none" if scale is None else f"{scale:g}",
            f"{record.get('num_steps')} {record.get('solver')}",
            str(record.get("n")),
        ]
        for key, about in metrics.items():
            low, high, spread = (record.get(end_key(key, end)) for end in ("low", "high", "std"))
            interval = "" if low is None else f" ({about.show(low)} to {about.show(high)})"
            interval = f" (± {about.show(spread)})" if spread else interval
            row.append(about.show(record.get(key)) + interval)
        rows.append(row)
    return rows


def evaluated_on(records: Sequence[Record]) -> str:
    """Return the feature network and the reference of evaluations as one phrase."""
    pairs = {(network_name(str(r.get("network"))), str(r.get("reference"))) for r in records}
    texts = [f"features of {network}, reference {Path(place).name}" for network, place in pairs]
    return "; ".join(sorted(texts))


def metadata(name: str, config: Config, run: Run, metrics: Mapping[str, MetricInfo]) -> str:
    """Return the YAML that the hub reads: licence, library, tags, base models and metrics."""
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=config.data.dataset,
            dataset_name=config.data.dataset,
            metric_type=key,
            metric_name=about.label,
            metric_value=record[key],
        )
        for record in run.records
        for key, about in metrics.items()
        if record.get(key) is not None
    ]
    base = [config.encoders.vae] if is_vae_name(config.encoders.vae) else None
    data = ModelCardData(
        license="mit",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=TAGS,
        base_model=base,
        model_name=name,
        eval_results=results or None,
        # For a Space: the hub runs app.py with these. Its requirements.txt holds the rest.
        sdk="gradio",
        sdk_version=GRADIO,
        python_version="3.11",
        app_file="app.py",
    )
    return str(data.to_yaml()).strip()


def place_of(encoders: Encoders) -> tuple[str, str]:
    """Return for VAE and CLIP the public name, or a phrase for one that the folder holds."""
    vae, clip, here = encoders.vae, encoders.clip, "in this folder"
    return _cell(vae) if is_vae_name(vae) else here, _cell(clip) if is_clip_name(clip) else here


def _cell(value: object) -> str:
    """Return a value as text that fits into a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
