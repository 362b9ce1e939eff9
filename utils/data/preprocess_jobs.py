"""What the preprocessing scripts share: their options, and the images of a split."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from models.clip import ClipEncoder
from utils.base.errors import UserError, note
from utils.base.files import write_whole
from utils.base.launch import add_launch_arguments, relaunch
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter, add_config_arguments
from utils.config.schema import Config
from utils.data.archive_files import relative_name
from utils.data.images import UnreadableImage, find_unreadable, list_images, sample_names
from utils.data.lmdb_layout import names_hash
from utils.data.name_lists import choose, read_names
from utils.pretrained.encoders import load_config_clip

Product = Literal["z", "clip_img", "clip_txt", "ref"]

# Where the config says that a split's files are.
KEYS = {
    "train": {
        "images": "data.image_dir",
        "captions": "data.caption_dir",
        "names": "data.split_file",
        "z": "data.root",
        "clip_img": "data.feat_path",
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
SKIPPED = "skipped.txt"
WORKERS = min(8, os.cpu_count() or 1)


def make_parser(
    description: str | None, product: Product, batch_size: int
) -> argparse.ArgumentParser:
    """The options of a script that makes `product`; parse with `parse_intermixed_args()`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    add = parser.add_argument
    add_config_arguments(parser)
    if product == "ref":
        add("--split", choices=["train", "test"], default="test", help="whose images")
    else:
        add("--split", choices=["train", "test", "all"], default="all", help="what to encode")
    add("--batch_size", type=_positive, default=batch_size, help="images encoded at once")
    add("--num_workers", type=_positive, default=WORKERS, help="threads that read images")
    if product in ("z", "clip_img"):
        add(
            "--jpeg_draft",
            action="store_true",
            help="decode large JPEGs at a half, quarter or eighth of their size where that is "
            "enough: faster, but pixels differ a little from the published crop",
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
        add("--captions", type=Path, help="where captions are, likewise, instead of the config's")
    add(
        "--split_file",
        type=Path,
        help="list of the images that count (text, .json, .pickle), instead of the config's",
    )
    add("--out", type=Path, help="what to write, instead of the config's")
    return parser


def _add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """How several processes share a dataset; read them with `shard_of`."""
    add_launch_arguments(parser)
    add = parser.add_argument_group("several processes, without a launcher").add_argument
    add(
        "--num_shards",
        type=_positive,
        help="parts of the dataset, each made by one process and merged by the last; None = as "
        "many as the launcher (torchrun, accelerate) started, or 1",
    )
    add("--shard", type=int, help="the part to make, from 0; None = the process's rank")


def shard_of(args: argparse.Namespace) -> tuple[int, int]:
    """This process's shard, and how many there are; UserError if they do not fit together.

    May become several processes, see utils.base.launch.relaunch.
    """
    relaunch(args)
    count = args.num_shards or int(os.environ.get("WORLD_SIZE", 1))
    rank = os.environ.get("RANK", "0" if count == 1 else None)
    shard = args.shard if args.shard is not None or rank is None else int(rank)
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
            name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if has_cuda else "cpu"
        device = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not a device") from error
    if device.type == "cuda" and not has_cuda:
        raise argparse.ArgumentTypeError("this machine has no usable CUDA device")
    return device


@dataclass(frozen=True)
class Job:
    """One split: what is read and what is written."""

    split: str
    images: Path
    captions: Path | None
    names: Path | None  # list of the images that count; None = all
    out: Path
    skipped: Path  # list of the images that are left out of everything made from this split
    is_given: bool  # its output is named on the command line, not by the config


def find_jobs(args: argparse.Namespace, config: Config, product: Product) -> list[Job]:
    """What the options and the config ask for.

    Raises a UserError that names the keys which are missing. With `--split all`, a split for which
    the config names no output is left out, and this is said.
    """
    given = {"images": args.images, "captions": getattr(args, "captions", None), product: args.out}
    needed = ["images", "captions", product] if product == "clip_txt" else ["images", product]
    splits = ["train", "test"] if args.split == "all" else [args.split]
    if args.split == "all" and (any(given.values()) or args.split_file):
        if not all(given[name] for name in needed):
            raise UserError(
                "--images, --captions, --split_file, --out are for one split: "
                "add --split train|test"
            )
        splits = ["train"]  # in name only: nothing comes from the config

    found, faults = [], []
    for split in splits:
        keys = {name: KEYS[split][name] for name in needed}
        places = {name: given[name] or config_value(config, key) for name, key in keys.items()}
        if args.split == "all" and places[product] is None:
            note(f"{split} split left out: {keys[product]} is not set")
            continue
        for name in needed:
            if places[name] is None:
                option = "--out" if name == product else f"--{name}"
                faults.append(
                    f"{args.config}: {keys[name]}: required key is missing; set it there, "
                    f"or add {keys[name]}=… or {option} to the command"
                )
        # Statistics lie elsewhere, but leave out what the split's databases leave out.
        beside = config_value(config, KEYS[split]["z"]) if product == "ref" else places[product]
        skipped = (beside or places[product] or Path()).parent / SKIPPED
        # The config's list is one of the config's images.
        names = None if args.images else config_value(config, KEYS[split]["names"])
        found.append(
            Job(
                split,
                places["images"],
                places.get("captions"),
                args.split_file or names,
                places[product],
                skipped,
                args.out is not None,
            )
        )
    if not found:
        faults = [
            f"{args.config}: nothing to do, no output is named; give --split, --images, --out"
        ]
    if faults:
        raise UserError("\n".join(faults))
    return found


def config_value(config: Config, key: str) -> Path | None:
    """What the config says at a key such as `data.root`."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def find_images(job: Job, args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The images of a split that count, in order, and their names.

    Unreadable ones are looked for once (with `--skip_bad`) and listed beside the databases; every
    script that writes there leaves out the listed ones, whether it reads images itself or not.
    """
    paths = list_images(job.images)
    names = sample_names(paths, job.images)
    if job.names is not None:
        chosen = choose(names, read_names(job.names), job.names)
        paths, names = [paths[i] for i in chosen], [names[i] for i in chosen]
    header = f"{os.path.relpath(job.images)}: {len(paths)} images, names {names_hash(names)[:16]}"
    bad = _read_skipped(job.skipped, header)
    if bad is None:
        bad = _check_images(paths, job, args, header) if args.skip_bad else set()
    if not bad:
        return paths, names
    note(f"{job.images}: left out {len(bad)} of {len(paths)} images, unreadable ({job.skipped})")
    kept = [i for i, path in enumerate(paths) if relative_name(path, job.images) not in bad]
    if not kept:
        raise UserError(f"{job.images}: no image of this folder can be read")
    return [paths[i] for i in kept], [names[i] for i in kept]


def _read_skipped(file: Path, header: str) -> set[str] | None:
    """The unreadable images below the folder, or None if they were not looked for yet."""
    lines = _lines(file)
    if header not in lines:
        return None
    block = itertools.takewhile(lambda x: x.startswith("  "), lines[lines.index(header) + 1 :])
    return {line.strip().partition("\t")[0] for line in block}


def _lines(file: Path) -> list[str]:
    """Lines of `skipped.txt`; names in it need not be UTF-8."""
    if not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]


def _check_images(paths: list[Path], job: Job, args: argparse.Namespace, header: str) -> set[str]:
    """Decode everything and list what cannot be, a block of `skipped.txt` for each image folder."""
    found = find_unreadable(paths, args.num_workers)
    errors = progress(found, f"{job.split}: check images", len(paths), "images")
    bad = {
        relative_name(path, job.images): str(error).removeprefix(f"{path}: ")
        for path, error in zip(paths, errors, strict=True)
        if error is not None
    }
    lines = _lines(job.skipped) or [
        "Unreadable images, left out here; delete this file to check again."
    ]
    lines += [header, *(f"  {name}\t{reason}" for name, reason in bad.items())]
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    write_whole(job.skipped, lambda temporary: temporary.write_bytes(content))
    return set(bad)


@contextmanager
def advise_skip_bad() -> Iterator[None]:
    """Adds the way out to the message about an unreadable image."""
    try:
        yield
    except UnreadableImage as error:
        raise UserError(f"{error}, or leave such images out with --skip_bad") from error


def load_clip_that_fits(config: Config, device: torch.device) -> ClipEncoder:
    """The config's CLIP; raises a UserError if its embeddings are not `data.feat_dim` long."""
    clip = load_config_clip(config, device)
    if clip.dim != config.data.feat_dim:
        raise UserError(
            f"encoders.clip: {config.encoders.clip} gives embeddings of {clip.dim} numbers, "
            f"but data.feat_dim is {config.data.feat_dim}"
        )
    return clip
