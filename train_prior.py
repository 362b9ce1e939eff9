"""Train a prior: it samples, for one sentence, the embeddings of many images that fit it. No text.

The demo:      python train_prior.py
Your config:   python train_prior.py --config X.yaml
Other sizes:   python train_prior.py --config X.yaml prior.width=768 prior.max_num_steps=20000

Learns from the image embeddings at data.feat_path (clip_encode_img.py writes them) and from no
caption. Writes prior.safetensors beside them. Name this file in encoders.prior, and set
sampling.freedom: 0 takes a sentence literally, so that all its images show one face; above 0 each
seed fills in what the sentence leaves open. A prior belongs to a CLIP and to a kind of images, not
to a denoiser: it serves every checkpoint that was trained on such embeddings.

At the end it evaluates the prior by held-out images (eval.image_feat_path, or prior.held_out) and
by sentences: test captions if they are embedded, else 25 usual ones. The report stands in the file,
with the freedom that it proposes, which sampling.freedom=auto takes.

Takes minutes on a CPU. After an interruption the same command goes on. A finished prior of equal
embeddings and options is kept, and evaluated if it has no report yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import torch

from utils.config.command_line import ArgumentParser, add_config_arguments
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader, expect_kind
from utils.data.preprocess_jobs import naming_commands
from utils.evaluation.prior_material import different_texts, held_out_images
from utils.evaluation.prior_report import evaluate_prior, report_table, verdict
from utils.pretrained.effective_config import config_file, read_config
from utils.pretrained.encoders import usable_device
from utils.pretrained.priors import add_report, prior_report, read_prior
from utils.sampling.conditions import caption_conditions
from utils.training.prior import Training, make_training, train

PRIOR = "prior.safetensors"


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
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


def evaluate(out: Path, config: Config, reader: LMDBReader, training: Training) -> dict[str, Any]:
    """Return the report of a finished prior, and write it into its file.

    A report that stands there stays if it was made of equal images and texts. Without texts the
    report proposes no freedom, and `no_texts` says why there are none.
    """
    held_out = held_out_images(config, reader, training.held_out)
    texts, conditions, why = None, None, ""
    try:
        texts = different_texts(config, reader)
        conditions = caption_conditions(texts.embeddings, config)
    except UserError as fault:
        texts, why = None, str(fault)
    sources = {"held_out_are": held_out.source if held_out else "training images"}
    sources |= {"texts_are": texts.source} if texts else {"no_texts": why}
    if sources.items() <= (report := prior_report(out)).items():
        return report
    report = evaluate_prior(
        read_prior(out)[0],
        training.y.cpu(),
        held_out.embeddings if held_out else None,
        training.options.noise_range,
        texts.embeddings if texts else None,
        conditions,
    )
    report |= sources
    add_report(out, report)
    return report


def summary(out: Path, report: dict[str, Any]) -> str:
    """Return what a user reads at the end: the figures, how good it is, and what to set."""
    lines = [
        f"samples beside {report['held_out']} {report['held_out_are']}, by freedom:",
        report_table(report),
        f"{out} is {verdict(report)}.",
    ]
    if (freedom := report["freedom"]) is None:
        lines.append(
            f"It proposes no freedom: {report['no_texts']}. Name it in encoders.prior, and set "
            "sampling.freedom=0.7, or 1 to 1.4 if all seeds of a sentence show one face."
        )
    else:
        (row,) = (row for row in report["rows"] if row["freedom"] == freedom)
        lines.append(
            f"It proposes a freedom of {freedom:g}: there {row['kept']:.1%} of the samples are "
            f"nearest to their own sentence ({report['texts']} {report['texts_are']}). Name it in "
            "encoders.prior, and set sampling.freedom=auto."
        )
    return "\n".join(lines)


@one_line_errors
def main() -> None:
    """Train the prior of a config, from where an earlier run stopped, and evaluate it."""
    args = parse_args()
    config = read_config(config_file(args.config, args.experiment_dir), args.overrides)
    device = usable_device(args.device)
    reader = open_embeddings(config)
    out = args.out or reader.path / PRIOR
    training = make_training(reader, config.prior, device)
    train(training, out, reader.info.meta)
    print(summary(out, evaluate(out, config, reader, training)))


if __name__ == "__main__":
    main()
