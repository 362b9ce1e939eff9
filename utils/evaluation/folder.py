"""All metrics of a folder of images against references, from the shell:

python eval_latent_t2f.py --images DIR --ref X.npz [--ref Y.npz] [--captions DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from accelerate import PartialState
from torch import Tensor

from models.choices import FeatureNetworkKind
from utils.base.errors import UserError, note
from utils.base.files import write_json
from utils.base.launch import join_processes
from utils.base.processes import is_main_process
from utils.base.progress import progress
from utils.base.text import aligned
from utils.config.schema import Config
from utils.data.captions import load_captions
from utils.data.image_batches import NpzImages, image_batches
from utils.evaluation.collective import main_process_only, shared_folder
from utils.evaluation.feature_networks import FeatureNetwork, kind_of, load_feature_network
from utils.evaluation.feature_store import FeatureBlocks, batches_of_process
from utils.evaluation.image_set import ImageSet, few_samples_note
from utils.evaluation.metric_names import METRICS, metrics_in, network_name
from utils.evaluation.references import Reference, check_comparable, load_stats
from utils.pretrained.encoders import load_config_clip
from utils.sampling.sample_folder import single_images

if TYPE_CHECKING:
    from models.clip import ClipEncoder


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that judge existing images instead of checkpoints."""
    group = parser.add_argument_group("existing images, instead of checkpoints")
    group.add_argument(
        "--images", type=Path, help="folder, .zip, .tar, folder of .tar shards, or npz of images"
    )
    group.add_argument(
        "--ref",
        type=Path,
        action="append",
        help="reference statistics of fid_ref.py, pytorch-fid or ADM; once for each network; "
        "None = eval.ref_path and eval.more_ref_paths",
    )
    group.add_argument(
        "--captions", type=Path, help="captions of the images (<stem>.txt) for CLIP scores"
    )
    group.add_argument(
        "--feature_network",
        choices=get_args(FeatureNetworkKind),
        help="network of references that do not name theirs; None = eval.feature_network",
    )
    group.add_argument("--metrics_out", type=Path, help="JSON file to write the metrics to")


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
    workers: int = 2,
    beside: Path | None = None,
) -> dict[str, Any]:
    """Compute the metrics of `ImageSet` for a folder, archive or npz of images.

    Images are cropped to the references' resolution, as fid_ref.py crops them. If the references
    state none, as pytorch-fid's, images are used as they are. All processes call this, and get all
    metrics.

    Args:
        captions: folder of the images' captions, for CLIP scores.
        feature_network: network of references that do not name theirs.
        workers: threads that decode images.
        beside: file next to which features are stored meanwhile, see `shared_folder`.

    Raises UserError if an image cannot be read or is smaller than the references', or if the
    references do not go together.
    """
    evaluated_by = [load_stats(path) for path in references]
    if not evaluated_by:
        raise UserError("--ref: required, there is neither it nor eval.ref_path to compare with")
    if images.suffix == ".npz":
        source: NpzImages | list[Path] = NpzImages(images)
    else:
        samples = single_images(images)
        source = [sample.path for sample in samples]
    if len(source) < 2:
        raise UserError(f"{images}: statistics need at least two images, there is {len(source)}")
    size = _common_resolution(evaluated_by)
    kinds = [kind_of(r.network) if r.network else feature_network for r in evaluated_by]
    clip = None
    if captions or "clip" in kinds or config.eval.feature_network == "clip":
        clip = load_config_clip(config, device)
    networks = _load_networks(config, device, clip, kinds, evaluated_by)
    embeddings = None
    if captions:
        if isinstance(source, NpzImages):
            raise UserError(f"--captions: {images} is an npz, whose images have no names")
        lines = load_captions(samples, captions)
        assert clip is not None
        embeddings = clip.encode_texts([first for first, *_ in lines])

    with shared_folder(beside) as folder:
        blocks = FeatureBlocks(folder, len(source))
        image_set = ImageSet(networks, clip)
        _evaluate_slice(source, size, config.eval.batchsize, workers, image_set, embeddings, blocks)
        PartialState().wait_for_everyone()
        return main_process_only(lambda: image_set.add_batches(blocks).metrics(evaluated_by))


def _load_networks(
    config: Config,
    device: torch.device | str,
    clip: ClipEncoder | None,
    kinds: Sequence[FeatureNetworkKind | None],
    references: Sequence[Reference],
) -> list[FeatureNetwork]:
    """Load the network of each reference; raise UserError if the two do not go together."""
    networks = [load_feature_network(config, device, clip, kind) for kind in kinds]
    for reference, network in zip(references, networks, strict=True):
        check_comparable(reference, network.name, None)
    return networks


def _evaluate_slice(
    source: NpzImages | list[Path],
    size: int | None,
    batch_size: int,
    workers: int,
    image_set: ImageSet,
    embeddings: Tensor | None,
    blocks: FeatureBlocks,
) -> None:
    """Run the networks on this process's share of the images, and add the features to the blocks.

    `embeddings`: (N, D) of the captions of all images.
    """
    processes = PartialState()
    rank, count = processes.process_index, processes.num_processes
    own = batches_of_process(range(len(source)), batch_size, rank, count)
    positions = [position for batch in own for position in batch]
    batches = image_batches(source, size, batch_size, workers, positions, enlarge=False)
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
        name = key if key in METRICS else key.rpartition("_")[0]
        suffix = key.removeprefix(name)
        beside = ""
        if (deviation := metrics.get(f"{name}_std{suffix}")) is not None:
            beside = f"± {info.show(deviation)}"
        elif (low := metrics.get(f"{name}_low{suffix}")) is not None:
            beside = f"{info.show(low)} to {info.show(metrics[f'{name}_high{suffix}'])}"
        rows.append((info.label, info.show(metrics[key]), beside, info.better))
    network = network_name(metrics["network"])
    return f"{metrics['n']} images, features of {network}\n{aligned(rows, left=1)}"
