"""Captions in files beside their stored embeddings: do they still belong together?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from utils.data.captions import caption_files, read_captions
from utils.data.images import Sample
from utils.data.lmdb_layout import UnmadeDatabase
from utils.data.lmdb_reader import LMDBReader
from utils.data.source_files import SourceFiles, read_records


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
