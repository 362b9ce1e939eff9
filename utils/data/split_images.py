"""The images of a split that count: named in a list, without the unreadable ones.

Unreadable images are looked for once, with `--skip_bad`, and listed in `skipped.txt` beside the
databases. Every script that writes there leaves out the listed ones, whether it reads images or
captions.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.base.errors import UserError, note
from utils.base.files import write_whole
from utils.base.progress import progress
from utils.data.file_names import nfc
from utils.data.images import Sample, UnreadableImage, find_unreadable, list_images
from utils.data.lmdb_layout import names_hash
from utils.data.name_lists import choose, read_names
from utils.data.preprocess_jobs import Job


def find_images(job: Job, args: argparse.Namespace) -> list[Sample]:
    """List the images of a split that count, in order.

    Checks all images first with `--skip_bad`, unless they were checked before. Raises a UserError
    if there are no images, none is readable, or the list of names holds an unknown one.
    """
    samples = list_images(job.images)
    if job.names is not None:
        names = [sample.file_name for sample in samples]
        samples = [samples[i] for i in choose(names, read_names(job.names), job.names)]
    hashed = names_hash(nfc(sample.name) for sample in samples)[:16]
    header = f"{os.path.relpath(job.images)}: {len(samples)} images, names {hashed}"
    bad = _read_skipped(job.skipped, header, samples)
    if bad is None:
        bad = _check_images(samples, job, args, header) if args.skip_bad else set()
    if not bad:
        return samples
    note(f"{job.images}: left out {len(bad)} of {len(samples)} images, unreadable ({job.skipped})")
    readable = [sample for sample in samples if nfc(sample.file_name) not in bad]
    if not readable:
        raise UserError(f"{job.images}: no image of this folder can be read")
    return readable


def _read_skipped(file: Path, header: str, samples: list[Sample]) -> set[str] | None:
    """Return the file names of the unreadable images; None if they were not looked for yet.

    A list of images of equal names in another folder counts if it names the images that cannot be
    read in this one. A note names an image of the list that was repaired.
    """
    lines = _lines(file)
    same = [i for i, line in enumerate(lines) if line.endswith(header[header.rindex(": ") :])]
    same.sort(key=lambda i: lines[i] != header)
    for i in same:
        block = itertools.takewhile(lambda x: x.startswith("  "), lines[i + 1 :])
        bad = {nfc(line.strip().partition("\t")[0]) for line in block}
        listed = [sample for sample in samples if nfc(sample.file_name) in bad]
        errors = find_unreadable([sample.path for sample in listed])
        repaired = [s for s, error in zip(listed, errors, strict=True) if error is None]
        if repaired and lines[i] == header:
            note(
                f"{file}: lists {repaired[0].path}, which can be read now; to take it in, delete "
                "this list and the databases beside it"
            )
        if lines[i] == header or not repaired:
            return bad
    return None


def _lines(file: Path) -> list[str]:
    """Read the lines of `skipped.txt`; names in it need not be UTF-8."""
    if not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]


def _check_images(
    samples: list[Sample], job: Job, args: argparse.Namespace, header: str
) -> set[str]:
    """Decode all images; add a block with the unreadable ones to `skipped.txt`."""
    found = find_unreadable([sample.path for sample in samples], args.num_workers)
    errors = progress(found, f"{job.split}: check images", len(samples), "image")
    bad = {
        sample.file_name: str(error).removeprefix(f"{sample.path}: ")
        for sample, error in zip(samples, errors, strict=True)
        if error is not None
    }
    lines = _lines(job.skipped) or [
        "Unreadable images, left out here; delete this file to check again."
    ]
    lines += [header, *(f"  {name}\t{reason}" for name, reason in bad.items())]
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    write_whole(job.skipped, lambda temporary: temporary.write_bytes(content))
    return set(map(nfc, bad))


@contextmanager
def advise_skip_bad() -> Iterator[None]:
    """Name `--skip_bad` in the message about an unreadable image."""
    try:
        yield
    except UnreadableImage as error:
        raise UserError(f"{error}, or leave unreadable images out with --skip_bad") from error
