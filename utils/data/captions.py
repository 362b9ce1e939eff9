"""Captions of an image folder, from text files beside the images, and beside their embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from utils.base.errors import UserError, note
from utils.base.text import decoded, lines_of
from utils.data.archive_files import list_files, read_bytes
from utils.data.file_names import find_names
from utils.data.images import SUFFIXES, Sample
from utils.data.lmdb_layout import UnmadeDatabase
from utils.data.lmdb_reader import LMDBReader
from utils.data.source_files import SourceFiles, read_records


def load_captions(
    samples: Sequence[Sample], caption_dir: str | Path, *, all_images: bool = True
) -> list[list[str]]:
    """Return the captions of each image: the lines of `<name>.txt` below `caption_dir`."""
    return read_captions(caption_files(samples, caption_dir, all_images=all_images))


def captions_where_there(samples: Sequence[Sample], caption_dir: str | Path) -> list[list[str]]:
    """Return the captions of each image, as `load_captions`; none where there is no file."""
    found = list_files(caption_dir, {".txt"}, "caption", beside=SUFFIXES)
    names = find_names(found, [f"{sample.name}.txt" for sample in samples])
    with_file = [s for s, name in zip(samples, names, strict=True) if name is not None]
    texts = iter(load_captions(with_file, caption_dir, all_images=False))
    return [[] if name is None else next(texts) for name in names]


def caption_files(
    samples: Sequence[Sample], caption_dir: str | Path, *, all_images: bool = True
) -> SourceFiles:
    """Return the caption file of each image, `<name>.txt` below `caption_dir`.

    With `all_images`, `samples` are all images of their folder: caption files of none of them are
    reported in a note. Raises a UserError if a caption file is missing, or belongs to two images,
    such as `a.jpg` and `a.png`.
    """
    found = list_files(caption_dir, {".txt"}, "caption", beside=SUFFIXES)
    wanted = [f"{sample.name}.txt" for sample in samples]
    names = find_names(found, wanted)
    if missing := [i for i, name in enumerate(names) if name is None]:
        raise UserError(
            f"{caption_dir}: {_of(len(missing), len(names), 'images')} without caption file; "
            f"{samples[missing[0]].path} needs {Path(caption_dir, wanted[missing[0]])}"
        )
    files = [name for name in names if name is not None]
    owners: dict[str, Sample] = {}
    for name, sample in zip(files, samples, strict=True):
        if (owner := owners.setdefault(name, sample)).path != sample.path:
            raise UserError(
                f"{found[name]}: is the caption file of two images, {owner.path} and "
                f"{sample.path}; rename one of them, and give each a caption file"
            )
    if all_images and (unused := sorted(found.keys() - set(files))):
        note(f"{caption_dir}: captions without image, not used: {len(unused)} ({unused[0]}, …)")
    return SourceFiles([found[name] for name in files], "caption files", _content)


def read_captions(files: SourceFiles) -> list[list[str]]:
    """Read and record caption files; return the captions in each, one list for each image.

    Raises a UserError if a file is empty or not UTF-8 text.
    """
    contents = [files.read(i) for i in range(len(files))]
    captions = [content.decode().split("\n") if content else [] for content in contents]
    if empty := [file for file, lines in zip(files.paths, captions, strict=True) if not lines]:
        raise UserError(
            f"{empty[0]}: holds no caption ({_of(len(empty), len(files), 'files')} like this); "
            "write one caption a line"
        )
    return captions


def _content(file: Path) -> bytes:
    """Return what counts of a caption file: its lines that are not blank, one caption each."""
    try:
        content = read_bytes(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    return "\n".join(lines_of(decoded(content, file))).encode()


def _of(part: int, whole: int, what: str) -> str:
    return f"{part} of {whole} {what}"


def captions_hash(captions: Sequence[Sequence[str]]) -> str:
    """Return a hash of all captions in order; it does not say to which image each belongs."""
    texts = [text for lines in captions for text in lines]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def check_captions(
    reader: LMDBReader,
    samples: Sequence[Sample],
    caption_dir: Path,
    rows: Sequence[int] | None = None,
) -> SourceFiles:
    """Return the caption files of images; raise UnmadeDatabase if other captions were embedded.

    samples: all images of the database of embedded captions. rows: the images to check; None = all.
    Files in their recorded state are not read. Raises UserError if a file is missing.
    """
    places = list(range(len(samples)) if rows is None else rows)
    files = caption_files([samples[row] for row in places], caption_dir, all_images=False)
    records, meta = read_records(reader.folder), reader.info.meta
    what, changed, is_other = f"{len(files)} caption files", list[int](), False
    if "content_hash" in meta and len(records) == reader.info.length:
        changed = files.compare(records[places])[0]
    else:  # older databases record the hash of all captions, published ones how many there are
        captions, counts = read_captions(files), reader.info.counts[places].tolist()
        is_exact = "captions_hash" in meta
        pairs = list(zip(map(len, captions), counts, strict=True))
        changed = [
            i for i, (n, stored) in enumerate(pairs) if n < stored or is_exact and n > stored
        ]
        is_other = is_exact and rows is None and meta["captions_hash"] != captions_hash(captions)
    if changed or is_other:
        which = f"{len(changed)} of {what}" if changed else "captions"
        where = f", the first is {files.paths[changed[0]]}" if changed else ""
        remedy = "delete this database and make it again"
        problem = f"{which} have changed since they were embedded{where}"
        raise UnmadeDatabase(reader.path, problem, remedy, remedy)
    return files
