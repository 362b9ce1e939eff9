"""Reference statistics for evaluation: mean and covariance of the features of a split's images.

The demo:          python preprocess_scripts/fid_ref.py
Your config:       python preprocess_scripts/fid_ref.py --config X.yaml
One folder:        python preprocess_scripts/fid_ref.py --images photos --out photos.npz
Another network:   python preprocess_scripts/fid_ref.py --out dino.npz eval.feature_network=dinov2
As pytorch-fid:    python preprocess_scripts/fid_ref.py --images photos --out photos.npz --no_crop
ADM's batches:     python preprocess_scripts/fid_ref.py --images VIRTUAL.npz --out X.npz --features

The feature network is eval.feature_network: Inception if encoders.inception names its weights,
else the image tower of the config's CLIP. The npz holds mu and sigma (float64) as pytorch-fid's
files do, and which network, how many images, their side in pixels and a hash of their names; with
Inception mu_s and sigma_s for sFID; with --features the features of up to 10,000 images, which KID,
precision, recall, density, coverage and CMMD need.

Until it is complete, what the network gave for each batch lies in a folder X.npz.partial beside
it (20 kB an image with Inception); if interrupted, start it again: it goes on from there.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.base.errors import UserError, one_line_errors
from utils.base.files import write_whole
from utils.base.locks import FolderLock, writer_of
from utils.base.progress import progress
from utils.config.load import load_config
from utils.data.image_batches import NpzImages, image_batches
from utils.data.lmdb_layout import names_hash
from utils.data.preprocess_jobs import find_jobs, make_parser
from utils.data.split_images import advise_skip_bad, find_images
from utils.evaluation.feature_networks import FeatureNetwork, load_feature_network
from utils.evaluation.feature_store import FeatureBlocks
from utils.evaluation.image_set import ImageSet
from utils.evaluation.references import Reference, load_stats, save_stats


def statistics_of(
    source: list[Path] | NpzImages,
    size: int | None,
    network: FeatureNetwork,
    partial: Path,
    about: dict[str, Any],
    args: argparse.Namespace,
) -> Reference:
    """Statistics of images, cropped to `size` if given.

    What the network gives lies in the folder `partial`, and is taken from there if it was made
    from the same, which `about` tells.
    """
    made_of, now = partial / "about.json", json.dumps(about, default=str)
    if not made_of.exists() or made_of.read_text() != now:
        for block in partial.glob("*.safetensors"):
            block.unlink()
        write_whole(made_of, lambda temporary: temporary.write_text(now))
    blocks = FeatureBlocks(partial, len(source))
    missing, _ = blocks.check()
    images, done = ImageSet([network]), len(source) - len(missing)
    bar = progress(None, f"{args.split}: statistics", len(source), "images", done)
    with bar, advise_skip_bad():
        batches = image_batches(source, size, args.batch_size, args.num_workers, missing)
        for indices, batch in batches:
            blocks.add(indices, images.features(batch))
            bar.update(len(indices))
    for positions, rows in blocks:
        images.add(rows, positions)
    return images.references()[0]


@one_line_errors
def main() -> None:
    parser = make_parser(__doc__, "ref", batch_size=64)
    parser.add_argument(
        "--features", action="store_true", help="keep features of up to 10,000 images as well"
    )
    parser.add_argument(
        "--no_crop",
        action="store_true",
        help="images as they are, as pytorch-fid takes them, not crops of data.resolution",
    )
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    (job,) = find_jobs(args, config, "ref")
    if job.images.suffix == ".npz" and job.images.is_file():
        source, size = NpzImages(job.images), None
        side, identity = source.side, source.checksum
    else:
        samples = find_images(job, args)
        source = [sample.path for sample in samples]
        size = None if args.no_crop else config.data.resolution
        side, identity = size or 0, names_hash(sample.name for sample in samples)
    network = load_feature_network(config, args.device)
    about = {"n": len(source), "network": network.name, "resolution": side, "source": identity}
    statistics = None  # of more images than are here, as in ADM's reference batches
    if isinstance(source, NpzImages) and source.has_statistics:
        if network.name != "inception-tf":
            raise UserError(
                f"{job.images}: its statistics are those of ADM's evaluator, whose network is "
                f"inception-tf, not {network.name}; add eval.feature_network=inception-tf and "
                "encoders.inception=FILE"
            )
        statistics, about["n"] = load_stats(job.images), None
    partial = job.out.with_name(f"{job.out.name}.partial")
    if job.out.exists():
        there = load_stats(job.out)
        different = [
            f"{key} {getattr(there, key)} there, {value} now"
            for key, value in about.items()
            if getattr(there, key) != value
        ]
        if different:
            raise UserError(
                f"{job.out}: made differently before ({'; '.join(different)}); "
                "delete it or choose another --out"
            )
        if there.features is not None or not args.features:
            if not writer_of(partial):  # left if the end was killed
                shutil.rmtree(partial, ignore_errors=True)
            print(f"{job.out}: complete already ({len(source)} images, {network.name})")
            return
    partial.mkdir(parents=True, exist_ok=True)
    with FolderLock(partial, "reference"):
        made = statistics_of(source, size, network, partial, {**about, "images": job.images}, args)
        features = made.features if args.features else None
        save_stats(job.out, replace(statistics or made, **about, features=features))
        shutil.rmtree(partial)
    print(f"{job.out}: {len(source)} images, features of {network.name}")


if __name__ == "__main__":
    main()
