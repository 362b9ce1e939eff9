"""All figures of a folder of images against references, from the shell:

python eval_latent_t2f.py --images DIR --ref X.npz [--ref Y.npz] [--captions DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from utils.base.errors import UserError, note
from utils.base.files import write_json
from utils.base.progress import progress
from utils.base.text_table import aligned
from utils.config.schema import Config
from utils.data.captions import load_captions
from utils.data.image_batches import NpzImages, image_batches
from utils.data.images import list_images
from utils.evaluation.feature_networks import kind_of, load_feature_network
from utils.evaluation.image_set import ImageSet, few_samples_note
from utils.evaluation.metric_names import METRICS, metrics_in, network_name
from utils.evaluation.references import Reference, check_comparable, load_stats
from utils.pretrained.encoders import load_config_clip

NETWORKS = ("inception", "inception-tf", "clip", "dinov2")


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags with which images are judged that are there already."""
    group = parser.add_argument_group("images that are there already, instead of checkpoints")
    group.add_argument(
        "--images", type=Path, help="folder, .zip, .tar, folder of .tar shards, or npz of images"
    )
    group.add_argument(
        "--ref",
        type=Path,
        action="append",
        help="reference statistics, of fid_ref.py, pytorch-fid or ADM; once for each network; "
        "None = eval.ref_path and eval.more_ref_paths",
    )
    group.add_argument(
        "--captions", type=Path, help="captions of the images (<stem>.txt) for CLIP scores"
    )
    group.add_argument(
        "--feature_network",
        choices=NETWORKS,
        help="network of references that do not name theirs; None = eval.feature_network",
    )
    group.add_argument("--figures_out", type=Path, help="JSON file to write the figures to")


def judge_folder(args: argparse.Namespace, config: Config) -> None:
    """What the script does with these flags: print the figures, and write them if asked to."""
    processes = PartialState(cpu=not torch.accelerator.is_available())
    config_paths = [p for p in (config.eval.ref_path, *config.eval.more_ref_paths) if p]
    figures = evaluate_folder(
        config,
        args.images,
        args.ref or config_paths,
        captions=args.captions,
        feature_network=args.feature_network,
        device=processes.device,
    )
    if not processes.is_main_process:
        return
    print(metrics_table(figures))
    if about := few_samples_note(figures["n"]):
        note(about)
    if args.figures_out:
        write_json(args.figures_out, {"images": str(args.images), **figures})


def evaluate_folder(
    config: Config,
    images: Path,
    references: Sequence[Path],
    *,
    captions: Path | None = None,
    feature_network: str | None = None,
    device: torch.device | str = "cpu",
    workers: int = 2,
) -> dict[str, Any]:
    """The figures of `ImageSet` for a folder, archive or npz of images; see add_folder_arguments.

    Images are cropped to the references' resolution as fid_ref.py does it; where these state none,
    as pytorch-fid's, they are taken as they are. With several processes all of them call this, and
    the main one gets all figures (the others only `n`).

    Raises UserError if an image cannot be read or is smaller than the references', or if the
    references do not go together.
    """
    judged_by = [load_stats(path) for path in references]
    if not judged_by:
        raise UserError("--ref: required, there is neither it nor eval.ref_path to compare with")
    if images.suffix == ".npz":
        source: NpzImages | list[Path] = NpzImages(images)
    else:
        samples = list_images(images)
        source = [sample.path for sample in samples]
    if len(source) < 2:
        raise UserError(f"{images}: statistics need at least two images, there is {len(source)}")
    size = _common_resolution(judged_by)
    clip = None
    kinds = [
        kind_of(reference.network) if reference.network else feature_network
        for reference in judged_by
    ]
    if captions or "clip" in kinds or config.eval.feature_network == "clip":
        clip = load_config_clip(config, device)
    networks = [load_feature_network(config, device, clip, kind) for kind in kinds]
    for reference, network in zip(judged_by, networks, strict=True):
        check_comparable(reference, network.name, None, reference.path)
    embeddings = None
    if captions:
        if isinstance(source, NpzImages):
            raise UserError(f"--captions: {images} is an npz, whose images have no names")
        lines = load_captions(samples, captions)
        embeddings = clip.encode_texts([first for first, *_ in lines])

    processes = PartialState()
    mine = ImageSet(networks, clip)
    with progress(desc="images", total=len(source), unit="images") as bar:
        for indices, batch in image_batches(
            source,
            size,
            config.eval.batchsize,
            workers,
            range(processes.process_index, len(source), processes.num_processes),
            enlarge=False,
        ):
            mine.update(batch, indices, None if embeddings is None else embeddings[indices])
            bar.update(len(indices) * processes.num_processes)
    whole = mine.gathered()
    return whole.figures(judged_by) if processes.is_main_process else {"n": whole.n}


def _common_resolution(references: Sequence[Reference]) -> int | None:
    """Side of all references' images, None = as they are; raises UserError if they differ."""
    stated = {r.resolution: r.path for r in references if r.resolution is not None}
    if len(stated) > 1:
        (first, path), (second, other), *_ = stated.items()
        raise UserError(
            f"{path} is of images of {first} pixels, {other} of {second} (0 = of any size); "
            "one set of images cannot be compared with both"
        )
    return next(iter(stated), None) or None


def metrics_table(figures: Mapping[str, Any]) -> str:
    """The figures that are there, as aligned text."""
    rows = [("figure", "value", "", "better")]
    for key, info in metrics_in([figures]).items():
        name = key if key in METRICS else key.rpartition("_")[0]
        suffix = key.removeprefix(name)
        beside = ""
        if (deviation := figures.get(f"{name}_std{suffix}")) is not None:
            beside = f"± {info.show(deviation)}"
        elif (low := figures.get(f"{name}_low{suffix}")) is not None:
            beside = f"{info.show(low)} to {info.show(figures[f'{name}_high{suffix}'])}"
        rows.append((info.label, info.show(figures[key]), beside, info.better))
    network = network_name(figures["network"])
    return f"{figures['n']} images, features of {network}\n{aligned(rows, left=1)}"
