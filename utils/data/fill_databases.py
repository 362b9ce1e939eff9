"""Fill databases from a stream of images or captions: several in one pass, or in shards.

A shard is a contiguous range of the samples. Its process fills a database of its own beside the
whole one, e.g. `z.part2of8`. The process that finds all parts complete copies them into the whole
and removes them. Shards need no connection to each other, only a folder that all of them see.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.base.errors import UserError, note
from utils.base.locks import FileLock
from utils.base.out_of_memory import OomBatchSplitter
from utils.base.progress import progress
from utils.data.image_batches import iterate_batches
from utils.data.lmdb_layout import DatabaseKind, names_hash
from utils.data.lmdb_reader import LMDBReader, is_complete, read_meta
from utils.data.lmdb_writer import LMDBWriter
from utils.data.preprocess_jobs import Job
from utils.data.source_files import (
    RECORDS,
    SEEN_IN_CONTENT,
    SourceFiles,
    content_hash,
    read_records,
    renew_records,
)
from utils.data.split_images import advise_skip_bad

if TYPE_CHECKING:
    from models.clip import ClipEncoder
    from models.patch_features import Encode, PatchEncoder

Samples = np.ndarray | Sequence[np.ndarray]  # as LMDBWriter.append takes them


@dataclass(frozen=True)
class Target:
    """A database to fill, and the function that makes its samples."""

    out: Path
    kind: DatabaseKind
    meta: Mapping[str, Any]  # identifies the encoder and its settings
    encode: Callable[[Any, int], Samples]  # takes a batch of inputs and the index of its first


def fill(
    job: Job,
    names: list[str],
    targets: Sequence[Target],
    read: Callable[[int, int], Iterable[Any]],
    shard: tuple[int, int] = (0, 1),
    files: SourceFiles | None = None,
) -> bool:
    """Fill a split's databases in one pass, or the shard of them that belongs to this process.

    Samples that are there already are kept. Returns True if all databases are complete now.

    Args:
        names: of all samples of the split, in order.
        read: `read(first, stop)` yields batches of inputs, which can be sliced, from sample `first`
            up to `stop`.
        shard: this process's number, from 0, and the number of shards.
        files: of the samples, which `read` records; None = the databases record no contents.

    Raises a UserError if a database that is there was made differently or from files of another
    content, or if an image is unreadable.
    """
    number, count = shard
    files = files or SourceFiles([])
    if count == 1:
        _fill_range(job, targets, names, read, 0, files)
        return True
    first, stop = _range(number, count, len(names))
    with _lock(targets[0].out):
        missing = [target for target in targets if not is_complete(target.out)]
        # Nothing is left to fill: this reports that they are complete, or were made differently.
        _fill_range(job, [t for t in targets if t not in missing], names, read, 0, files)
    parts = [replace(target, out=_part(target.out, shard)) for target in missing]
    _fill_range(job, parts, names[first:stop], read, first, files.part(first, stop))
    # The lock admits one process at a time, so the last one finds all parts complete.
    with _lock(targets[0].out):
        return all([_merge(job, target, names, count, files) for target in targets])


def _range(number: int, count: int, length: int) -> tuple[int, int]:
    """Return the first sample of a shard, and the first one after it."""
    return length * number // count, length * (number + 1) // count


def _part(out: Path, shard: tuple[int, int]) -> Path:
    """Return the path of a shard's own database."""
    return out.with_name("{}.part{}of{}".format(out.name, *shard))


def _lock(out: Path) -> FileLock:
    """Lock the whole database against other shards; wait while one of them holds the lock."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(out.with_name(f"{out.name}.shards"), busy=None)


def _meta(job: Job, target: Target, names: list[str]) -> dict[str, Any]:
    """Return a database's `meta`: its encoder, and the images it comes from."""
    source = os.path.relpath(job.images)
    return {**target.meta, "source": source, "names": names, "names_hash": names_hash(names)}


def _fill_range(
    job: Job,
    targets: Sequence[Target],
    names: list[str],
    read: Callable[[int, int], Iterable[Any]],
    first: int,
    files: SourceFiles,
) -> None:
    """Fill databases with the samples `names`, which begin at sample `first` of the job."""
    if not names or not targets:
        return  # there are more shards than samples, or no database lacks samples
    with ExitStack() as stack:
        writers = [
            stack.enter_context(LMDBWriter(t.out, t.kind, _meta(job, t, names), len(names)))
            for t in targets
        ]
        _refuse_changed_files(writers, files)
        complete = [writer.complete for writer in writers]
        position = min(writer.done for writer in writers)
        if not all(complete):
            label = f"{job.split}: {', '.join(target.out.name for target in targets)}"
            bar = progress(None, label, len(names), "image", position)
            in_memory = OomBatchSplitter("encoding")

            def encoded(target: Target, inputs: Any, index: int) -> list[Samples]:
                def encode(part: range) -> Samples:
                    return target.encode(inputs[part.start : part.stop], index + part.start)

                return in_memory(encode, range(len(inputs)))

            with bar, advise_skip_bad():
                for inputs in read(first + position, first + len(names)):
                    for target, writer in zip(targets, writers, strict=True):
                        # A database that was filled alone before may be ahead of the others.
                        rest = inputs[max(writer.done - position, 0) :]
                        for part in encoded(target, rest, first + writer.done):
                            done = writer.done
                            own = files.records[done : done + len(part)] if len(files) else None
                            writer.append(part, own)
                    position += len(inputs)
                    bar.update(len(inputs))
            if line := files.cropped():
                note(f"{job.images}: {line}")
    for target, was_complete in zip(targets, complete, strict=True):
        already = " already" if was_complete else ""
        print(f"{target.out}: complete{already} ({len(names)} images)")


def _refuse_changed_files(writers: Sequence[LMDBWriter], files: SourceFiles) -> None:
    """Raise a UserError if samples that are written were made from files of another content."""
    stale: dict[Path, list[int]] = {}
    for writer in writers:
        there = read_records(writer.path)[: min(writer.done, len(files))]
        changed, renewed = files.compare(there)
        # An older database never knew its content; of this one, files.bin was lost or cut.
        if len(there) < len(files) and read_meta(writer.path).get("content_hash"):
            note(f"{writer.path}: {RECORDS} lacks images; whether these have changed is not known")
        if changed:
            stale[writer.path] = changed
        elif writer.complete and (renewed != there).any():
            renew_records(writer.path, renewed)
    if stale:
        raise UserError(files.stale(list(stale), max(stale.values(), key=len)))


def _merge(job: Job, target: Target, names: list[str], count: int, files: SourceFiles) -> bool:
    """Copy the parts into the whole if all are complete; return True if the whole is complete."""
    ranges = [_range(number, count, len(names)) for number in range(count)]
    parts = {
        _part(target.out, (number, count)): bounds
        for number, bounds in enumerate(ranges)
        if bounds[0] < bounds[1]
    }
    if is_complete(target.out):  # a process that completed it may have been killed right after
        _remove_parts(target)
        return True
    if waiting := [part.name for part in parts if not is_complete(part)]:
        note(f"{target.out}: {len(waiting)} of {count} parts are not there yet: {waiting[0]}, …")
        return False
    for part, (first, stop) in parts.items():
        there, now = LMDBReader(part).info.meta, _meta(job, target, names[first:stop])
        may_change = SEEN_IN_CONTENT if content_hash(read_records(part)) else set()
        if different := [k for k in now if there.get(k) != now[k] and k not in may_change]:
            raise UserError(f"{part}: made differently ({', '.join(different)}); delete it")

    def stored(first: int, stop: int) -> Iterator[Samples]:
        for part, (start, end) in parts.items():
            if first < end:
                yield from LMDBReader(part).all_samples(max(first - start, 0))

    copied = replace(target, encode=lambda samples, _: samples)
    for part, (first, stop) in parts.items() if len(files) else ():
        records = read_records(part)[: stop - first]
        files.records[first : first + len(records)] = records
    _fill_range(job, [copied], names, stored, 0, files)
    _remove_parts(target)
    return True


def _remove_parts(target: Target) -> None:
    for part in target.out.parent.glob(f"{target.out.name}.part*of*"):
        shutil.rmtree(part)


def image_meta(resolution: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the part of `meta` that describes how images became pixels."""
    return {"resolution": resolution} | ({"jpeg_draft": True} if args.jpeg_draft else {})


def read_images(
    files: SourceFiles, size: int, args: argparse.Namespace, first: int, stop: int
) -> Iterator[torch.Tensor]:
    """Yield images `first` to `stop` as (B, 3, size, size) uint8, read and recorded in threads.

    A batch holds `--batch_size` images. Raises UnreadableImage at the first broken one.
    """
    part = files.part(first, stop)
    return iterate_batches(part, size, args.batch_size, args.num_workers, draft=args.jpeg_draft)


def patch_features(
    out: Path, encode: PatchEncoder, resolution: int, args: argparse.Namespace
) -> Target:
    """Return the database of the images' patch features, a map (F, G, G) for each image."""
    meta = {"encoder": encode.identity, "side": encode.side, **image_meta(resolution, args)}
    return Target(out, "map", meta, lambda images, first: encode(images, first).numpy())


def image_embeddings(
    out: Path,
    clip: ClipEncoder,
    resolution: int,
    args: argparse.Namespace,
    encode: Encode | None = None,
) -> Target:
    """Return the database of the images' CLIP embeddings, one for each image.

    encode: gives them beside other outputs of the CLIP; None = `clip` itself does.
    """
    meta = {"y_holds": "images", "encoder": clip.identity, **image_meta(resolution, args)}
    embed = encode or (lambda images, _: clip.encode_images(images))
    return Target(out, "y", meta, lambda images, first: embed(images, first).numpy()[:, None])
