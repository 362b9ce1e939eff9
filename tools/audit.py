"""Audit images, captions and encoders before a training: go, or change this.

The config's images:   python tools/audit.py --config X.yaml
Words of your own:     python tools/audit.py --config X.yaml --words "red hair" glasses "a smile"
Words in a file:       python tools/audit.py --config X.yaml --words words.txt
Other folders:         python tools/audit.py data.image_dir=FOLDER data.caption_dir=FOLDER

Says what the VAE loses, which images are broken or doubled, which words of the captions this CLIP
tells apart on these images, how far captions lie from images, how many images each word has, and
what a prior can learn from so many images. Embeddings come from the config's databases where they
are made. Captions are those of the training images, or else of the test images. Without captions,
--words show their nearest images, unverified. Writes audit.html and audit.json into --out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError, note
from utils.base.script import one_line_errors

# isort: split
import torch

from tools.audit_page import write_audit_page
from utils.base.files import write_json
from utils.config.command_line import ArgumentParser, add_config_arguments
from utils.config.parsing import folder_to_write
from utils.config.schema import Config
from utils.data.derived_sizes import token_grid
from utils.evaluation.audit.material import Material, find_files, load_material
from utils.evaluation.audit.measure import audit, plain_values
from utils.evaluation.audit.written import JSON, PAGE, audit_folder
from utils.evaluation.patch_encoder import load_patch_encoder
from utils.pretrained.effective_config import load_effective_config
from utils.pretrained.encoders import (
    load_config_autoencoder,
    load_config_clip,
    require_encoders,
    usable_device,
)
from utils.sampling.prompts import read_prompts, text_prompt

if TYPE_CHECKING:
    from models.clip import ClipEncoder
    from models.patch_features import PatchEncoder

LEAST = 8  # images of an audit


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    add = parser.add_argument
    add(
        "--words",
        nargs="+",
        metavar="TEXT",
        help="words or sentences to ask for, or one text file with one a line; None = the words of "
        "the captions",
    )
    add("--images", type=int, default=400, help="random images that are looked at")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, e.g. cpu or cuda:1",
    )
    add("--out", type=folder_to_write, help="folder to write into; None = audit/ beside data.root")
    return parser.parse_intermixed_args()


def given_words(words: list[str] | None) -> list[str]:
    """Return the words that are asked for: those given, or the lines of the one file given."""
    if words is None:
        return []
    if len(words) == 1 and Path(words[0]).suffix == ".txt":
        words = read_prompts(Path(words[0]))
    return list(dict.fromkeys(text_prompt(word).value for word in words))


def with_captions(config: Config, train: Material, clip: ClipEncoder, count: int) -> Material:
    """Return the images with captions: the training images, or else the test images.

    Returns the training images, with a note, if neither have captions.
    """
    if len(train.captioned):
        return train
    images, captions = config.eval.image_dir, config.eval.caption_dir
    if images is not None and captions is not None and images.exists() and captions.exists():
        test = load_material(config, find_files(config, "test"), clip, count)
        if len(test.captioned):
            return test
    note(
        "no captions are there (data.caption_dir, eval.caption_dir): the gap and what captions say "
        "are left out"
    )
    return train


def patches_of(config: Config, clip: ClipEncoder, device: torch.device) -> PatchEncoder | None:
    """Return the network whose patch features measure what the VAE loses; None, with a note."""
    try:
        return load_patch_encoder(config, token_grid(config.model), device, clip)
    except UserError as fault:
        note(f"what the VAE loses is measured in pixels alone: {fault}")
        return None


@one_line_errors
def main() -> None:
    """Measure, print the verdict, and write the page and the JSON."""
    args = parse_args()
    if args.images < LEAST:
        raise UserError(f"--images must be at least {LEAST}")
    words, device = given_words(args.words), usable_device(args.device)
    config = load_effective_config(args)
    out, files = args.out or audit_folder(config), find_files(config, "train")
    if len(files.samples) < LEAST:
        raise UserError(
            f"{files.folder}: holds {len(files.samples)} images; an audit needs {LEAST}"
        )
    # They are made from latents, which come after the audit; an image and its copy need none.
    plain = config.encoders.model_copy(update={"latent_statistics": None})
    config = config.model_copy(update={"encoders": plain})
    require_encoders(config.encoders)
    clip = load_config_clip(config.encoders, device)
    train = load_material(config, files, clip, args.images)
    if len(train.samples) < LEAST:
        raise UserError(
            f"{files.folder}: {len(train.samples)} images can be read; an audit needs {LEAST}"
        )
    texts_of = with_captions(config, train, clip, args.images)
    vae, patches = load_config_autoencoder(config, device), patches_of(config, clip, device)
    found = audit(train, texts_of, vae, clip, patches, words)

    values = plain_values(found, config, clip.identity, vae.identity)
    write_json(out / JSON, values)
    write_audit_page(out / PAGE, found, values, config)
    for sentence in found.sentences.values():
        print(sentence.text)
    print(f"\n{out}/: {PAGE}, {JSON}")


if __name__ == "__main__":
    main()
