"""Measure the CLIP similarity between generated pictures and their prompts.

Pictures of t2f.py:    python tools/clip_similarity.py samples/a-man-in-a-turban
Two folders compared:  python tools/clip_similarity.py samples/guidance1 samples/guidance4
Other pictures:        python tools/clip_similarity.py samples_t2f/72 --prompts prompts.txt
An experiment's CLIP:  python tools/clip_similarity.py samples/x --experiment_dir results/own
Another CLIP:          python tools/clip_similarity.py samples/x --clip ViT-B-32:openai

Prints the mean, greatest and least cosine x 100 between a prompt and its pictures, for each prompt
and for all pictures. Pictures of t2f.py hold their prompt as text in the PNG. With --prompts,
pictures in description_0/ (or named 00_….png) belong to the first line of the file, and so on.
Writes clip_similarity.json and .csv into --out, with the best and worst picture of each prompt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import torch

from tools.prompt_similarity import find_images, side_by_side, similarities, summarise
from utils.base.files import write_csv, write_json
from utils.base.text import aligned
from utils.config.command_line import HelpFormatter, add_config_option
from utils.evaluation.results import Record
from utils.pretrained.effective_config import load_effective_config
from utils.pretrained.encoders import load_config_clip, usable_device
from utils.sampling.prompts import read_prompts


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=Path,
        metavar="folder",
        help="folder of pictures; several are compared",
    )
    add("--prompts", type=Path, help="text file, a prompt a line; None = prompts in the PNGs")
    add_config_option(parser, "YAML file, whose encoders.clip measures")
    add("--clip", help="CLIP that measures: a folder, a file or name:tag; None = the config's")
    add("--batch_size", type=int, default=64, help="pictures that are encoded at once")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    add("--out", type=Path, default=Path("results/clip_similarity"), help="folder to write into")
    return parser.parse_args()


@one_line_errors
def main() -> None:
    """Measure all folders, and print and write the table."""
    args = parse_args()
    if args.batch_size < 1:
        raise UserError("--batch_size must be at least 1")
    device = usable_device(args.device)
    prompts = read_prompts(args.prompts) if args.prompts else None
    found = [find_images(folder, prompts) for folder in dict.fromkeys(args.folders)]
    args.overrides = [f"encoders.clip={args.clip}"] if args.clip else []
    clip = load_config_clip(load_effective_config(args), device)

    records: list[Record] = []
    for pictures in found:
        records += summarise(pictures, similarities(pictures, clip, args.batch_size))

    print(f"cosine x 100 of picture and prompt, {clip.identity}")
    for number, pictures in enumerate(found, 1):
        print(f"  ({number}) {pictures.folder}")
    print(f"\n{aligned(side_by_side(records), left=1)}\n")
    write_json(args.out / "clip_similarity.json", {"clip": clip.identity, "records": records})
    write_csv(args.out / "clip_similarity.csv", records)
    print(f"{args.out}/: clip_similarity.json, clip_similarity.csv")


if __name__ == "__main__":
    main()
