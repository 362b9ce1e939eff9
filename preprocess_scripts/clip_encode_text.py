"""Embed captions with CLIP into feature databases (LMDB).

The demo:          python preprocess_scripts/clip_encode_text.py
Your config:       python preprocess_scripts/clip_encode_text.py --config X.yaml
One folder:        python preprocess_scripts/clip_encode_text.py --images photos \\
                       --captions texts --out clip_txt
A part of eight:   python preprocess_scripts/clip_encode_text.py --num_shards 8 --shard 2

The captions of photos/a/1.png are the lines of texts/a/1.txt. Language-free training needs none
of the training captions; evaluation needs those of the test split. If a run is cut off, start it
again: it goes on where it stopped.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import note
from utils.base.script import one_line_errors_of_each

# isort: split
import numpy as np

from utils.data.captions import caption_files, captions_hash, read_captions
from utils.data.derived_sizes import with_derived_sizes
from utils.data.fill_databases import Target, fill
from utils.data.preprocess_jobs import find_jobs, load_clip_that_fits, make_parser, shard_of
from utils.data.split_images import find_images
from utils.pretrained.effective_config import load_effective_config


@one_line_errors_of_each
def main() -> None:
    """Embed the captions of each split."""
    args = make_parser(__doc__, "clip_txt", batch_size=64).parse_intermixed_args()
    config = load_effective_config(args)
    config = with_derived_sizes(config, "none", "makes", databases=args.out is None)
    shard = shard_of(args)
    todo = []
    for job in find_jobs(args, config, "clip_txt"):
        samples = find_images(job, args)
        assert job.captions is not None  # find_jobs has raised otherwise
        files = caption_files(samples, job.captions, all_images=job.names is None)
        todo.append((job, [sample.name for sample in samples], files, read_captions(files)))
    clip = load_clip_that_fits(config, args.device)
    for job, names, files, captions in todo:
        texts = [text for lines in captions for text in lines]
        if cut := clip.count_truncated(texts):
            note(
                f"{job.captions}: {cut} of {len(texts)} captions are longer than the "
                f"{clip.context_length} tokens that this CLIP reads; their ends are cut off"
            )
        if blank := sum(clip.is_empty(texts)):
            note(
                f"{job.captions}: {blank} of {len(texts)} captions hold nothing that this CLIP "
                "reads; they are embedded as empty texts"
            )
        meta = {
            "y_holds": "captions",
            "encoder": clip.identity,
            "captions_hash": captions_hash(captions),
        }

        def encode(batch: list[list[str]], _: int) -> list[np.ndarray]:
            y = clip.encode_texts([text for lines in batch for text in lines]).numpy()
            return np.split(y, np.cumsum([len(lines) for lines in batch])[:-1])

        def read(
            first: int, stop: int, captions: list[list[str]] = captions
        ) -> Iterator[list[list[str]]]:
            for start in range(first, stop, args.batch_size):
                yield captions[start : min(start + args.batch_size, stop)]

        fill(job, names, [Target(job.out, "y", meta, encode)], read, shard, files)


if __name__ == "__main__":
    main()
