"""Reference statistics for evaluation: mean and covariance of the features of a split's images.

The demo:          python preprocess_scripts/fid_ref.py
Your config:       python preprocess_scripts/fid_ref.py --config X.yaml
One folder:        python preprocess_scripts/fid_ref.py --images photos --out photos.npz

The feature network is eval.feature_network: Inception if encoders.inception names its weights,
else the image tower of the config's CLIP. The npz holds mu and sigma (float64) as pytorch-fid's
files do, and which network, how many images, their side in pixels and a hash of their names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import load_config
from utils.errors import UserError, one_line_errors
from utils.images import iterate_batches
from utils.latent_lmdb import names_hash
from utils.metrics import (
    FeatureStats,
    image_features,
    load_feature_network,
    load_stats,
    save_stats,
)
from utils.preprocessing import advise_skip_bad, find_images, find_jobs, make_parser
from utils.tracking import progress


@one_line_errors
def main() -> None:
    args = make_parser(__doc__, "ref", batch_size=64).parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    (job,) = find_jobs(args, config, "ref")
    paths, names = find_images(job, args)
    network = load_feature_network(config, args.device)
    about = {
        "n": len(paths),
        "network": network.name,
        "resolution": config.data.resolution,
        "source": names_hash(names),
    }
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
        print(f"{job.out}: complete already ({len(paths)} images, {network.name})")
        return
    stats = FeatureStats()
    batches = iterate_batches(paths, config.data.resolution, args.batch_size, args.num_workers)
    bar = progress(None, f"{job.split}: statistics", len(paths), "images")
    with bar, advise_skip_bad():
        for features in image_features(network, batches):
            stats.update(features)
            bar.update(len(features))
    save_stats(job.out, stats.mu, stats.sigma, **about)
    print(f"{job.out}: {len(paths)} images, features of {network.name}")


if __name__ == "__main__":
    main()
