"""Options of the preprocessing scripts, and the jobs that they ask for."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from utils.base.errors import UserError, note
from utils.base.launch import add_launch_arguments, relaunch
from utils.base.processes import launch
from utils.base.threads import processors
from utils.config.command_line import ArgumentParser, add_config_arguments
from utils.config.schema import Config
from utils.data.lmdb_layout import UnmadeDatabase
from utils.pretrained.encoders import load_config_clip

if TYPE_CHECKING:
    from models.clip import ClipEncoder

Product = Literal["z", "clip_img", "clip_txt", "ref"]

# Keys of the config that name a split's files.
KEYS = {
    "train": {
        "images": "data.image_dir",
        "captions": "data.caption_dir",
        "names": "data.split_file",
        "z": "data.root",
        "clip_img": "data.feat_path",
        "features": "data.patch_feat_path",
        "z_xflip": "data.mirrored_root",
        "clip_txt": "data.text_feat_path",
        "ref": "eval.ref_path",
    },
    "test": {
        "images": "eval.image_dir",
        "captions": "eval.caption_dir",
        "names": "eval.split_file",
        "z": "eval.root",
        "clip_img": "eval.image_feat_path",
        "clip_txt": "eval.feat_path",
        "ref": "eval.ref_path",
    },
}
# Who reads an output, for the note about a split that is left out as the config names none.
READERS = {
    "data.root": "training needs it",
    "data.feat_path": "language-free training needs it",
    "data.text_feat_path": "only training on text–image pairs needs it",
    "eval.root": "this is fine, as training and evaluation do not read it",
    "eval.image_feat_path": "this is fine, as training and evaluation do not read it",
    "eval.feat_path": "sample grids and evaluation need it",
}
SCRIPTS = {
    "z": "create_latentspace_lmdb.py",
    "clip_img": "clip_encode_img.py",
    "clip_txt": "clip_encode_text.py",
}
OPTIONS = {"features": ["--with_features"], "z_xflip": ["--xflip"]}  # of the latents' script
SKIPPED = "skipped.txt"
WORKERS = min(8, processors())


def make_parser(
    description: str | None, product: Product, batch_size: int
) -> argparse.ArgumentParser:
    """Return the parser of a script that makes `product`; call its `parse_intermixed_args()`."""
    parser = ArgumentParser(description=description)
    add = parser.add_argument
    add_config_arguments(parser)
    if product == "ref":
        add("--split", choices=["train", "test"], default="test", help="the images to measure")
    else:
        add("--split", choices=["train", "test", "all"], default="all", help="the split to encode")
    add("--batch_size", type=_positive, default=batch_size, help="images encoded at once")
    add("--num_workers", type=_positive, default=WORKERS, help="threads that read images")
    if product in ("z", "clip_img"):
        add(
            "--jpeg_draft",
            action="store_true",
            help="decode large JPEGs at a half, quarter or eighth of their size, where that leaves "
            "enough pixels: faster, but pixels differ a little from the published crop",
        )
    add("--device", type=_device, default=_device("auto"), help="cpu, cuda, cuda:1, …")
    if product != "ref":
        _add_shard_arguments(parser)
    add(
        "--skip_bad",
        action="store_true",
        help=f"check all images first; leave out unreadable ones and list them in {SKIPPED}",
    )
    add(
        "--images",
        type=Path,
        help="image folder, .zip, .tar or folder of .tar shards, instead of the config's",
    )
    if product == "clip_txt":
        add(
            "--captions",
            type=Path,
            help="caption folder, .zip, .tar or folder of .tar shards, instead of the config's",
        )
    add(
        "--split_file",
        type=Path,
        help="list of the images to use (text, .json, .pickle), instead of the config's",
    )
    add("--out", type=Path, help="database or file to write, instead of the config's")
    return parser


def _add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that cut a dataset into shards; `shard_of` reads them."""
    add_launch_arguments(parser)
    add = parser.add_argument_group("several processes, without a launcher").add_argument
    add(
        "--num_shards",
        type=_positive,
        help="parts of the dataset, each made by one process and merged by the last; None = one "
        "for each process that the launcher (torchrun, accelerate) started",
    )
    add("--shard", type=int, help="the part to make, from 0; None = the process's rank")


def shard_of(args: argparse.Namespace) -> tuple[int, int]:
    """Return the number of this process's shard and the number of shards.

    Starts several processes if the options ask for it, see utils.base.launch.relaunch.
    """
    relaunch(args)
    place = launch()
    count = args.num_shards or place.size
    rank = place.rank if count == 1 or place.size > 1 else None
    shard = args.shard if args.shard is not None else rank
    if shard is None or not 0 <= shard < count:
        given = "not given" if shard is None else shard
        raise UserError(f"--shard: {given}; with --num_shards {count}, give 0 to {count - 1}")
    return shard, count


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("should be at least 1")
    return number


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    try:
        if name == "auto":  # one GPU for each process of a launcher
            name = f"cuda:{launch().local_rank}" if has_cuda else "cpu"
        device = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not a device") from error
    if device.type == "cuda" and not has_cuda:
        raise argparse.ArgumentTypeError("this machine has no usable CUDA device")
    return device


@dataclass(frozen=True)
class Job:
    """One split: the files to read and the files to write."""

    split: str
    images: Path
    captions: Path | None
    names: Path | None  # list of the images to use; None = all
    out: Path
    skipped: Path  # list of the unreadable images, which everything made from this split leaves out
    is_given: bool  # the command line names the output, not the config


def find_jobs(args: argparse.Namespace, config: Config, product: Product) -> list[Job]:
    """Return the job of each split that the options and the config ask for.

    With `--split all`, a split for which the config names no output is left out with a note. Raises
    a UserError that names the missing keys.
    """
    needed = ["images", "captions", product] if product == "clip_txt" else ["images", product]
    given = {"images": args.images, "captions": getattr(args, "captions", None), product: args.out}
    found, faults = [], []
    for split in _splits(args, [given[name] for name in needed]):
        keys = {name: KEYS[split][name] for name in needed}
        places = {name: given[name] or config_value(config, key) for name, key in keys.items()}
        if args.split == "all" and places[product] is None:
            key = keys[product]
            note(f"{split} split left out: {key} is not set; {READERS[key]}")
            continue
        there = {name: place for name, place in places.items() if place is not None}
        for name in (name for name in needed if name not in there):
            option = "--out" if name == product else f"--{name}"
            faults.append(
                f"{args.config}: {keys[name]}: required key is missing; set it there, "
                f"or add {keys[name]}=… or {option} to the command"
            )
        if product == "clip_img" and args.out is None:
            refuse_place_of_captions(there.get(product), config, keys[product])
        if len(there) == len(needed):
            found.append(_make_job(split, there, product, args, config))
    if not found and not faults:
        faults = [
            f"{args.config}: nothing to do, no output is named; give --split, --images, --out"
        ]
    if faults:
        raise UserError("\n".join(faults))
    return found


def _splits(args: argparse.Namespace, places: list[Path | None]) -> list[str]:
    """Return the splits to make; `places` are the files that the command line names."""
    if args.split != "all":
        return [args.split]
    if not any(places) and not args.split_file:
        return ["train", "test"]
    if not all(places):
        raise UserError(
            "--images, --captions, --split_file, --out are for one split: add --split train|test"
        )
    return ["train"]  # in name only: nothing comes from the config


def _make_job(
    split: str,
    places: dict[str, Path],
    product: Product,
    args: argparse.Namespace,
    config: Config,
) -> Job:
    # Statistics lie elsewhere, but leave out the images that the split's databases leave out.
    database = config_value(config, KEYS[split]["z"]) if product == "ref" else None
    # The config's list holds names of the config's images only.
    names = None if args.images else config_value(config, KEYS[split]["names"])
    return Job(
        split,
        places["images"],
        places.get("captions"),
        args.split_file or names,
        places[product],
        (database or places[product]).parent / SKIPPED,
        args.out is not None,
    )


def config_value(config: Config, key: str) -> Path | None:
    """Return the path that the config holds at a key, e.g. `data.root`."""
    section, name = key.split(".")
    path: Path | None = getattr(getattr(config, section), name)
    return path


def refuse_place_of_captions(path: Path | None, config: Config, where: str) -> None:
    """Raise a UserError if embeddings of images would go to `path`, the place of captions'.

    A config for text–image pairs trains on embeddings of captions. `where`: what asked for it.
    """
    if path is not None and path == config.data.text_feat_path:
        raise UserError(
            f"{where}: {path} is data.text_feat_path too, the place of the captions' embeddings, "
            "on which this config trains; run clip_encode_text.py instead, without embedding images"
        )


def load_clip_that_fits(config: Config, device: torch.device) -> ClipEncoder:
    """Load the config's CLIP; raise a UserError unless its embeddings are `data.feat_dim` long."""
    clip = load_config_clip(config.encoders, device)
    if clip.dim != config.data.feat_dim:
        raise UserError(
            f"encoders.clip: {config.encoders.clip} gives embeddings of {clip.dim} numbers, "
            f"but data.feat_dim is {config.data.feat_dim}"
        )
    return clip


@contextmanager
def naming_commands(config: Config) -> Iterator[None]:
    """Name the command in the message about a database of `config` that is to be made.

    Raises UserError for UnmadeDatabase.
    """
    try:
        yield
    except UnmadeDatabase as fault:
        command = command_for(fault.path, config)
        if command is None:
            raise
        raise UserError(f"{fault.path}: {fault.problem}; {fault.remedy}: {command}") from fault


def command_for(path: Path, config: Config) -> str | None:
    """Return the shell command that makes the database `path`; None if the config names none."""
    for split, keys in KEYS.items():
        # Text–image pairs train on embeddings of captions, so these are looked for first.
        for product in ("clip_txt", "clip_img", "z", "features", "z_xflip"):
            if product not in keys or config_value(config, keys[product]) != path:
                continue
            more = OPTIONS.get(product, [])
            if product == "clip_img" and re.search("te?xt", path.name):
                product, more = "clip_txt", [f"{keys['clip_txt']}={path}"]
            script = f"preprocess_scripts/{SCRIPTS.get(product, SCRIPTS['z'])}"
            return shlex.join(["python", script, *config.words, "--split", split, *more])
    return None
