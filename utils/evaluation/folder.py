"""All metrics of a folder of images against references: eval_latent_t2f.py --images DIR."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import PartialState
from torch import Tensor

from models.choices import FeatureNetworkKind
from utils.base.errors import UserError, note
from utils.base.files import write_json
from utils.base.launch import join_processes
from utils.base.processes import is_main_process, main_process_only
from utils.base.progress import progress
from utils.base.text import aligned
from utils.config.parsing import file_to_write
from utils.config.schema import Config
from utils.data.captions import load_captions
from utils.data.image_batches import NpzImages, image_batches
from utils.evaluation.feature_networks import kind_of, load_feature_network
from utils.evaluation.feature_store import FeatureBlocks, batches_of_process
from utils.evaluation.image_set import ImageSet, few_samples_note
from utils.evaluation.metric_names import interval_text, metrics_in, network_name
from utils.evaluation.references import Reference, check_comparable, load_stats
from utils.pretrained.encoders import load_config_clip
from utils.sampling.sample_folder import single_images

WORKERS = 2  # threads that decode images


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that evaluate existing images instead of checkpoints."""
    add = parser.add_argument_group("existing images, instead of checkpoints").add_argument
    add("--images", type=Path, help="folder, .zip, .tar, folder of .tar shards, or npz of images")
    add(
        "--ref",
        type=Path,
        action="append",
        help="reference statistics of fid_ref.py, pytorch-fid or ADM; once for each network; "
        "None = eval.ref_path and eval.more_ref_paths",
    )
    add("--captions", type=Path, help="captions of the images (<stem>.txt) for CLIP scores")
    add(
        "--feature_network",
        choices=get_args(FeatureNetworkKind),
        help="network of references that do not name theirs; None = eval.feature_network",
    )
    add("--metrics_out", type=file_to_write, help="JSON file to write the metrics to")


def report_folder(args: argparse.Namespace, config: Config) -> None:
    """Print the metrics of the images at `--images`, and write them to `--metrics_out`."""
    join_processes()
    processes = PartialState(cpu=not torch.accelerator.is_available())
    config_paths = [p for p in (config.eval.ref_path, *config.eval.more_ref_paths) if p]
    metrics = evaluate_folder(
        config,
        args.images,
        args.ref or config_paths,
        captions=args.captions,
        feature_network=args.feature_network,
        device=processes.device,
        beside=args.metrics_out,
    )
    if not is_main_process():
        return
    print(metrics_table(metrics))
    if warning := few_samples_note(metrics["n"]):
        note(warning)
    if args.metrics_out:
        write_json(args.metrics_out, {"images": str(args.images), **metrics})


def evaluate_folder(
    config: Config,
    images: Path,
    references: Sequence[Path],
    *,
    captions: Path | None = None,
    feature_network: FeatureNetworkKind | None = None,
    device: torch.device | str = "cpu",
    beside: Path | None = None,
) -> dict[str, Any]:
    """Compute the metrics of `ImageSet` for a folder, archive or npz of images.

    Images are cropped to the references' resolution, as fid_ref.py crops them. If the references
    state none, as pytorch-fid's, images are used as they are. All processes call this, and get all
    metrics.

    Args:
        captions: folder of the images' captions, for CLIP scores.
        feature_network: network of references that do not name theirs.
        beside: file next to which features are stored meanwhile, see `shared_folder`.

    Raises UserError if an image cannot be read or is smaller than the references', or if the
    references do not go together.
    """
    compared_with = [load_stats(path) for path in references]
    if not compared_with:
        raise UserError("--ref: required, there is neither it nor eval.ref_path to compare with")
    if images.suffix == ".npz":
        source: NpzImages | list[Path] = NpzImages(images)
    else:
        samples = single_images(images)
        source = [sample.path for sample in samples]
    if len(source) < 2:
        raise UserError(f"{images}: statistics need at least two images, there is {len(source)}")
    lines: list[list[str]] = []
    if captions:
        if isinstance(source, NpzImages):
            raise UserError(f"--captions: {images} is an npz, whose images have no names")
        lines = load_captions(samples, captions)
    size = _common_resolution(compared_with)
    kinds = [kind_of(r.network) if r.network else feature_network for r in compared_with]
    clip = None
    if captions or "clip" in kinds or config.eval.feature_network == "clip":
        clip = load_config_clip(config.encoders, device)
    networks = [load_feature_network(config, device, clip, kind) for kind in kinds]
    for reference, network in zip(compared_with, networks, strict=True):
        check_comparable(reference, network.name, None)
    embeddings = clip.encode_texts([first for first, *_ in lines]) if clip and lines else None

    with shared_folder(beside) as folder:
        blocks = FeatureBlocks(folder, len(source))
        image_set = ImageSet(networks, clip)
        _evaluate_slice(source, size, config.eval.batchsize, image_set, embeddings, blocks)
        PartialState().wait_for_everyone()
        return main_process_only(lambda: image_set.add_batches(blocks).metrics(compared_with))


@contextmanager
def shared_folder(beside: Path | None = None) -> Iterator[Path]:
    """Make an empty folder that all processes see, and delete it at the end; all call this.

    `beside`: a file next to which the folder is made. If it is None, the folder is made in the
    system's temporary folder, or, on several nodes, in the working directory.
    """

    def make() -> str:
        one_node = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        parent = beside.parent if beside else Path(tempfile.gettempdir() if one_node else ".")
        parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=".evaluation-", dir=parent.resolve())

    folder = Path(main_process_only(make))
    try:
        yield folder
    finally:  # in each process: if one of them fails, the others are killed
        shutil.rmtree(folder, ignore_errors=True)


def _evaluate_slice(
    source: NpzImages | list[Path],
    size: int | None,
    batch_size: int,
    image_set: ImageSet,
    embeddings: Tensor | None,
    blocks: FeatureBlocks,
) -> None:
    """Run the networks on the images of this process, and add the features to the blocks.

    `embeddings`: (N, D) of the captions of all images.
    """
    processes = PartialState()
    rank, count = processes.process_index, processes.num_processes
    own = batches_of_process(range(len(source)), batch_size, rank, count)
    positions = [position for batch in own for position in batch]
    batches = image_batches(source, size, batch_size, WORKERS, positions, enlarge=False)
    with progress(desc="images", total=len(source), unit="image") as bar:
        for indices, batch in batches:
            captions = None if embeddings is None else embeddings[indices]
            blocks.add(indices, image_set.features(batch, captions))
            bar.update(len(indices) * count)


def _common_resolution(references: Sequence[Reference]) -> int | None:
    """Return the side of all references' images in pixels, None if they keep their own size.

    Raises UserError if the references differ.
    """
    stated = {r.resolution: r.path for r in references if r.resolution is not None}
    if len(stated) > 1:
        (first, path), (second, other), *_ = stated.items()
        raise UserError(
            f"{path} is of images of {first} pixels, {other} of {second} (0 = of any size); "
            "one set of images cannot be compared with both"
        )
    return next(iter(stated), None) or None


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Format all metrics that are not None as aligned text."""
    rows = [("metric", "value", "", "better")]
    for key, info in metrics_in([metrics]).items():
        rows.append((info.label, info.show(metrics[key]), interval_text(metrics, key), info.better))
    network = network_name(metrics["network"])
    return f"{metrics['n']} images, features of {network}\n{aligned(rows, left=1)}"
