"""Embed images with CLIP, straight into feature databases (LMDB): the training condition.

The demo:          python preprocess_scripts/clip_encode_img.py
Your config:       python preprocess_scripts/clip_encode_img.py --config X.yaml
One folder:        python preprocess_scripts/clip_encode_img.py --images photos --out clip_img

Beside the embeddings it writes their mean, image_mean.npy, which `encoders.image_mean` may name: it
moves captions among images when faces are drawn. A run that was cut off goes on where it stopped
when it is started again.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import load_config
from utils.embeddings import write_image_mean
from utils.errors import one_line_errors
from utils.images import iterate_batches
from utils.preprocessing import fill, find_images, find_jobs, load_clip_that_fits, make_parser


@one_line_errors
def main() -> None:
    args = make_parser(__doc__, "clip_img", batch_size=64).parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    todo = [(job, *find_images(job, args)) for job in find_jobs(args, config, "clip_img")]
    clip = load_clip_that_fits(config, args.device)
    meta = {"y_holds": "images", "encoder": clip.identity, "resolution": config.data.resolution}
    for job, paths, names in todo:

        def encode_from(first: int, paths: list[Path] = paths) -> Iterator[np.ndarray]:
            for images in iterate_batches(
                paths[first:], config.data.resolution, args.batch_size, args.num_workers
            ):
                yield clip.encode_images(images).numpy()[:, None]  # one embedding an image

        fill(job, "y", meta, names, encode_from)
        write_image_mean(job.out)


if __name__ == "__main__":
    main()
