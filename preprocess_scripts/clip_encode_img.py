"""Embed images with CLIP into feature databases (LMDB): the condition of language-free training.

The demo:          python preprocess_scripts/clip_encode_img.py
Your config:       python preprocess_scripts/clip_encode_img.py --config X.yaml
One folder:        python preprocess_scripts/clip_encode_img.py --images photos --out clip_img
Four GPUs:         python preprocess_scripts/clip_encode_img.py --num_process_per_node 4
A part of eight:   python preprocess_scripts/clip_encode_img.py --num_shards 8 --shard 2

Beside the embeddings, the script writes their mean, image_mean.npy. `encoders.image_mean` may name
that file: sampling then moves the embeddings of captions towards those of images. If a run is cut
off, start it again: it goes on where it stopped.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.base.script import one_line_errors_of_each
from utils.data.derived_sizes import with_derived_sizes
from utils.data.embeddings import write_image_mean
from utils.data.fill_databases import fill, image_embeddings, read_images
from utils.data.preprocess_jobs import find_jobs, load_clip_that_fits, make_parser, shard_of
from utils.data.source_files import SourceFiles
from utils.data.split_images import find_images
from utils.pretrained.effective_config import load_effective_config


@one_line_errors_of_each
def main() -> None:
    """Embed the images of each split, then write the mean of the embeddings."""
    args = make_parser(__doc__, "clip_img", batch_size=64).parse_intermixed_args()
    config = load_effective_config(args)
    config = with_derived_sizes(config, "none", "makes", databases=args.out is None)
    shard = shard_of(args)
    todo = [(job, find_images(job, args)) for job in find_jobs(args, config, "clip_img")]
    clip = load_clip_that_fits(config, args.device)
    for job, samples in todo:
        target = image_embeddings(job.out, clip, config.data.resolution, args)
        files = SourceFiles([sample.path for sample in samples], threads=args.num_workers)
        read = partial(read_images, files, config.data.resolution, args)
        if fill(job, [sample.name for sample in samples], [target], read, shard, files):
            write_image_mean(job.out)


if __name__ == "__main__":
    main()
