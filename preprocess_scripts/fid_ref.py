"""Compute reference statistics: mean and covariance of the features of a split's images.

The demo:          python preprocess_scripts/fid_ref.py
Your config:       python preprocess_scripts/fid_ref.py --config X.yaml
One folder:        python preprocess_scripts/fid_ref.py --images photos --out photos.npz
Another network:   python preprocess_scripts/fid_ref.py --out dino.npz eval.feature_network=dinov2
As pytorch-fid:    python preprocess_scripts/fid_ref.py --images photos --out photos.npz --no_crop
ADM's batches:     python preprocess_scripts/fid_ref.py --images VIRTUAL.npz --out X.npz --features

The feature network is eval.feature_network: Inception if encoders.inception names its weights,
else the image tower of the config's CLIP. The npz holds mu and sigma (float64) under pytorch-fid's
names, the network, the number of images, their side in pixels, a hash of their names and one of
their contents, and a record of each file. With Inception it also holds mu_s and sigma_s, for sFID.
With --features it also holds the features of up to 10,000 images, for KID, precision, recall,
density, coverage and CMMD.

Until the npz is complete, the features of each batch lie in a folder X.npz.partial beside it
(20 kB an image with Inception). After an interruption the same command goes on from there.
"""

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, note
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch

from utils.base.files import write_text
from utils.base.locks import FolderLock, writer_of
from utils.base.progress import progress
from utils.data.derived_sizes import require_fitting_resolution
from utils.data.image_batches import NpzImages, image_batches
from utils.data.lmdb_layout import names_hash
from utils.data.preprocess_jobs import find_jobs, make_parser
from utils.data.source_files import RECORD, SourceFiles, as_bytes, content_hash, from_bytes
from utils.data.split_images import advise_skip_bad, find_images
from utils.evaluation.feature_networks import FeatureNetwork, load_feature_network
from utils.evaluation.feature_store import FeatureBlocks
from utils.evaluation.image_set import ImageSet
from utils.evaluation.references import FILES, Reference, load_stats, save_stats
from utils.pretrained.effective_config import load_effective_config


class Facts(TypedDict):
    """Entries of the npz that identify how it was made."""

    n: int | None
    network: str
    resolution: int
    source: str


def statistics_of(
    source: SourceFiles | NpzImages,
    size: int | None,
    network: FeatureNetwork,
    partial: Path,
    about: Mapping[str, object],
    args: argparse.Namespace,
) -> Reference:
    """Compute the statistics of images, cropped to `size` if given; record the files.

    Features are written to the folder `partial`. Features in it are used only if their `about` was
    equal, and no image has changed.
    """
    made_of, now = partial / "about.json", json.dumps(about, default=str)
    blocks = FeatureBlocks(partial, len(source))
    if not made_of.exists() or made_of.read_text(encoding="utf-8") != now:
        blocks.clear()
        write_text(made_of, now)
    missing, _ = blocks.check()
    if isinstance(source, SourceFiles) and not take_records(blocks, source):
        note(f"{partial}: images have changed since it was begun; all are measured again")
        blocks.clear()
        missing = list(range(len(source)))
    images, done = ImageSet([network]), len(source) - len(missing)
    bar = progress(None, f"{args.split}: statistics", len(source), "image", done)
    with bar, advise_skip_bad():
        batches = image_batches(source, size, args.batch_size, args.num_workers, missing)
        for indices, batch in batches:
            rows = images.features(batch)
            if isinstance(source, SourceFiles):
                rows[FILES] = torch.from_numpy(as_bytes(source.records[indices]))
            blocks.add(indices, rows)
            bar.update(len(indices))
    return images.add_batches(blocks).references()[0]


def take_records(blocks: FeatureBlocks, files: SourceFiles) -> bool:
    """Take over the records of measured images; return False if one of these has changed."""
    there = np.zeros(len(files), RECORD)
    for positions, rows in blocks:
        if FILES in rows:
            there[positions.numpy()] = from_bytes(rows[FILES].numpy())
    changed, renewed = files.compare(there)
    known = renewed["digest"].any(axis=1)
    files.records[known] = renewed[known]
    return not changed


def is_complete(out: Path, about: Facts, features: bool, source: SourceFiles | NpzImages) -> bool:
    """Return True if `out` holds all that is asked for; UserError if it was made differently."""
    if not out.exists():
        return False
    there = load_stats(out)
    different = [
        "images were added, removed or renamed"
        if key == "source"
        else f"{key} {getattr(there, key)} there, {value} now"
        for key, value in about.items()
        if getattr(there, key) != value
    ]
    if different:
        raise UserError(
            f"{out}: made differently before ({'; '.join(different)}); "
            "delete it or choose another --out"
        )
    if isinstance(source, SourceFiles) and there.files is not None:
        changed, renewed = source.compare(there.files)
        if changed:
            raise UserError(source.stale([out], changed))
        if (renewed != there.files).any():
            with contextlib.suppress(OSError):  # a read-only place
                save_stats(out, replace(there, files=renewed))
    return there.features is not None or not features


@one_line_errors
def main() -> None:
    """Write the reference of one split, folder or npz of images."""
    parser = make_parser(__doc__, "ref", batch_size=64)
    parser.add_argument(
        "--features", action="store_true", help="also keep the features of up to 10,000 images"
    )
    parser.add_argument(
        "--no_crop",
        action="store_true",
        help="use images as they are, like pytorch-fid, not crops of data.resolution",
    )
    args = parser.parse_intermixed_args()
    config = load_effective_config(args)
    (job,) = find_jobs(args, config, "ref")
    source: SourceFiles | NpzImages
    size: int | None
    if job.images.suffix == ".npz" and job.images.is_file():
        source, size = NpzImages(job.images), None
        side, identity = source.side, source.checksum
    else:
        if args.images is None and not args.no_crop:
            require_fitting_resolution(config)
        samples = find_images(job, args)
        source = SourceFiles([sample.path for sample in samples], threads=args.num_workers)
        size = None if args.no_crop else config.data.resolution
        side, identity = size or 0, names_hash(sample.name for sample in samples)
    network = load_feature_network(config, args.device)
    about = Facts(n=len(source), network=network.name, resolution=side, source=identity)
    statistics = None  # ADM's batches hold those of more images than are in the file
    if isinstance(source, NpzImages) and source.has_statistics:
        if network.name != "inception-tf":
            raise UserError(
                f"{job.images}: its statistics are those of ADM's evaluator, whose network is "
                f"inception-tf, not {network.name}; add eval.feature_network=inception-tf and "
                "encoders.inception=FILE"
            )
        statistics, about["n"] = load_stats(job.images), None
    partial = job.out.with_name(f"{job.out.name}.partial")
    if is_complete(job.out, about, args.features, source):
        if not writer_of(partial):  # a kill may have come between the reference and the end
            shutil.rmtree(partial, ignore_errors=True)
        print(f"{job.out}: complete already ({len(source)} images, {network.name})")
        return
    partial.mkdir(parents=True, exist_ok=True)
    with FolderLock(partial, "reference"):
        made = statistics_of(source, size, network, partial, about, args)
        features = made.features if args.features else None
        files = source.records if isinstance(source, SourceFiles) else None
        content = None if files is None else content_hash(files)
        made = replace(statistics or made, files=files, content=content, features=features)
        save_stats(job.out, replace(made, **about))
        shutil.rmtree(partial)
    print(f"{job.out}: {len(source)} images, features of {network.name}")


if __name__ == "__main__":
    main()
