"""Train a prior: it samples, for one sentence, the embeddings of many images that fit it. No text.

The demo:      python train_prior.py
Your config:   python train_prior.py --config X.yaml
Other sizes:   python train_prior.py --config X.yaml prior.width=768 prior.max_num_steps=20000

Reads the image embeddings at data.feat_path (clip_encode_img.py writes them) and no caption. Writes
prior.safetensors beside them. Name this file in encoders.prior, and set sampling.freedom: 0 takes a
sentence literally, so that all its images show one face; at 0.7 each seed fills in what the
sentence leaves open. A prior belongs to a CLIP and to a kind of images, not to a denoiser: it
serves every checkpoint that was trained on such embeddings.

Takes minutes on a CPU. After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import torch

from utils.config.command_line import HelpFormatter, add_config_arguments
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader, expect_kind
from utils.data.preprocess_jobs import naming_commands
from utils.pretrained.effective_config import config_file, read_config
from utils.pretrained.encoders import usable_device
from utils.training.prior import make_training, train

PRIOR = "prior.safetensors"


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_config_arguments(parser)
    parser.add_argument(
        "--out", type=Path, help=f"file to write; None = {PRIOR} in the folder data.feat_path"
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    return parser.parse_intermixed_args()


def open_embeddings(config: Config) -> LMDBReader:
    """Open the image embeddings of a config.

    Raises UserError if there are none, or if they are embeddings of captions.
    """
    path = config.data.feat_path
    if path is None:
        raise UserError("data.feat_path: required key is missing; set it to image embeddings")
    with naming_commands(config):
        reader = LMDBReader(path)
    expect_kind(reader, "y")
    if "captions_hash" in reader.info.meta:
        raise UserError(
            f"{path} holds embeddings of captions, and a prior learns from images alone; set "
            "data.feat_path to a database of preprocess_scripts/clip_encode_img.py"
        )
    if reader.info.length < 2:
        raise UserError(f"{path} holds {reader.info.length} image; a prior needs many")
    return reader


@one_line_errors
def main() -> None:
    """Train the prior of a config, from where an earlier run stopped."""
    args = parse_args()
    config = read_config(config_file(args.config, args.experiment_dir), args.overrides)
    device = usable_device(args.device)
    reader = open_embeddings(config)
    out = args.out or reader.path / PRIOR
    training = make_training(reader, config.prior, device)
    train(training, out, reader.info.meta)
    print(
        f"{out}: name it in encoders.prior, and set sampling.freedom=0.7, or 1 to 1.4 if all seeds "
        "of a sentence show one face"
    )


if __name__ == "__main__":
    main()
