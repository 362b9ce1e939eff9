"""The copy check of an evaluation: it finds the images that `copies.py` compares."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.base.errors import note
from utils.base.files import write_whole
from utils.base.progress import progress
from utils.config.schema import Config
from utils.config.sections import Data
from utils.data.embeddings import some_samples
from utils.data.image_batches import iterate_batches
from utils.data.images import list_images
from utils.data.lmdb_reader import LMDBReader, is_complete
from utils.data.name_lists import choose, read_names
from utils.evaluation.copies import (
    NEIGHBOURS,
    SIDE,
    CopyTest,
    Matches,
    PixelSearch,
    nearest_embeddings,
    thumbnails,
    verdict,
)
from utils.evaluation.feature_networks import ClipFeatures
from utils.evaluation.feature_store import Rows
from utils.evaluation.neighbours import nearest, open_training_embeddings, training_image_paths

if TYPE_CHECKING:
    from models.clip import ClipEncoder

MOST, MOST_HELD_OUT = 1000, 500  # images that are searched
MOST_TRAINING = 50_000  # training images whose pixels are searched
FEWEST = 20  # held-out images
THUMBNAILS = f"thumbnails_{SIDE}.npz"  # beside the training embeddings, or else the latents
PIXELS, EMBEDDINGS = "copies.thumbnails", "copies.embeddings"  # keys of an image's rows
BATCH = 64  # image files read at a time


class Pair(NamedTuple):
    """A generated image, by its position in the evaluation, and its nearest training image."""

    position: int
    training: int  # index in the database
    contrast: float
    mirrored: bool
    is_copy: bool


class CopyCheck:
    """Compares generated and held-out images with the training images of a config.

    Pixels of the training images come from `data.image_dir`, once, then from THUMBNAILS; without
    either, embeddings alone are compared. Held-out images are those of `eval.image_dir`.
    """

    def __init__(self, config: Config, clip: ClipEncoder) -> None:
        self.config, self.tower = config, ClipFeatures(clip)
        self.embeddings = image_embeddings(config.data.feat_path, clip)
        self.database = training_database(config.data)
        self.test: CopyTest | None = None  # the latest

    def rows(self, images: Tensor, positions: Sequence[int], pairs: Tensor | None = None) -> Rows:
        """Return what the check needs of images (B, H, W, 3) uint8.

        Images from position MOST on have no rows. `pairs`: (B, D or more), which begin with the
        images' embeddings by the config's CLIP, where they are known.
        """
        counts = torch.tensor([position < MOST for position in positions])
        if self.database is None or not counts.any():
            return {}
        images = images[counts.to(images.device)].permute(0, 3, 1, 2)
        rows = {PIXELS: thumbnails(images).cpu()}
        if self.embeddings is not None:
            known = None if pairs is None else pairs[counts][:, : self.tower.clip.dim]
            rows[EMBEDDINGS] = self.tower(images).pooled if known is None else known
        return rows

    def metrics(self, batches: Iterable[tuple[Tensor, Rows]]) -> dict[str, Any]:
        """Return the metrics of `CopyTest` for positions (B,) and rows of the generated images.

        Those by pixels have their own names, those by embeddings end with `_clip`. `copies_n`,
        `copies_among` and `copies_held_out` count generated, training and held-out images. Without
        training or held-out images there are none.
        """
        parts = [(at[at < MOST], rows) for at, rows in batches if PIXELS in rows]
        if not parts or self.held_out is None:
            return {}
        order = torch.cat([at for at, _ in parts]).argsort()
        rows = {k: torch.cat([r[k] for _, r in parts])[order] for k in self.held_out}
        generated, held_out = self._matches(rows), self._of_held_out
        found: dict[str, Any] = {
            "copies_n": len(order),
            "copies_among": self._searched,
            "copies_held_out": len(self.held_out[PIXELS]),
        }
        tests = {kind: CopyTest(generated[kind], held_out[kind]) for kind in generated}
        for kind, test in tests.items():
            found |= {f"{name}{kind}": value for name, value in test.metrics().items()}
        self.test = next(iter(tests.values()), None)
        if tests:
            found["copies_verdict"] = verdict(found)
        return found if tests else {}

    def nearest_pairs(self, count: int) -> list[Pair]:
        """Return the `count` generated images most like copies, with their training images."""
        if self.test is None:
            return []
        found = self.test.generated
        return [
            Pair(
                row,
                int(found.nearest[row]),
                float(found.contrast[row]),
                found.mirrored is not None and bool(found.mirrored[row]),
                bool(self.test.is_copy[row]),
            )
            for row in found.contrast.argsort()[:count].tolist()
        ]

    def _matches(self, rows: Rows) -> dict[str, Matches]:
        """Return the matches of some images, by pixels as "" and by embeddings as "_clip"."""
        found: dict[str, Matches] = {}
        candidates = None
        if (reader := self.embeddings) is not None:
            count = min(NEIGHBOURS, reader.info.length)
            candidates, cosines = nearest(rows[EMBEDDINGS], reader, count=count)
            found["_clip"] = nearest_embeddings(candidates, cosines)
        if self.search is not None:
            if candidates is not None:
                candidates = self._row_of[candidates]
            by_pixels = self.search.nearest(rows[PIXELS], candidates)
            index = self._thumbnails[0][by_pixels.nearest]
            found = {"": by_pixels._replace(nearest=index), **found}
        return found

    @cached_property
    def held_out(self) -> Rows | None:
        """Rows of MOST_HELD_OUT random held-out images, or of all; None of fewer than FEWEST.

        Their embeddings are those of `eval.image_feat_path` if it was made from these images.
        """
        options = self.config.eval
        if options.image_dir is None or not options.image_dir.exists():
            note("copies are not looked for: eval.image_dir holds no held-out images")
            return None
        paths, embeddings = self._held_out_images(options.image_dir)
        if len(paths) < FEWEST:
            note(f"copies are not looked for: {options.image_dir} holds fewer than {FEWEST} images")
            return None
        batches = iterate_batches(paths, self.config.data.resolution, BATCH, draft=True)
        known = repeat(None) if embeddings is None else embeddings.split(BATCH)
        parts = [
            self.rows(images.permute(0, 2, 3, 1), range(len(images)), pairs)
            for images, pairs in zip(batches, known, strict=False)
        ]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _held_out_images(self, folder: Path) -> tuple[list[Path], Tensor | None]:
        """Choose the files of held-out images; return their embeddings (N, D) too, if known."""
        generator = torch.Generator().manual_seed(0)
        options = self.config.eval
        reader = image_embeddings(options.image_feat_path, self.tower.clip)
        if reader is not None:
            rows = some_samples(reader, MOST_HELD_OUT, generator).sort().values
            paths = training_image_paths(folder, reader, rows.tolist())
            if paths is not None:
                return paths, torch.from_numpy(reader.read(rows.numpy()))
        samples = list_images(folder)
        if options.split_file is not None:
            names = [sample.file_name for sample in samples]
            chosen = choose(names, read_names(options.split_file), options.split_file)
            samples = [samples[i] for i in chosen]
        order = torch.randperm(len(samples), generator=generator.manual_seed(0))[:MOST_HELD_OUT]
        return [samples[i].path for i in order.sort().values.tolist()], None

    @cached_property
    def _of_held_out(self) -> dict[str, Matches]:
        assert self.held_out is not None
        return self._matches(self.held_out)

    @property
    def _searched(self) -> int:
        """Number of training images that are searched."""
        assert self.database is not None
        return self.database.info.length if self.search is None else len(self.search.training)

    @cached_property
    def search(self) -> PixelSearch | None:
        """The search among the training images' pixels; None if they are not there."""
        rows, images = self._thumbnails
        return PixelSearch(images) if len(rows) else None

    @cached_property
    def _row_of(self) -> Tensor:
        """Row in the thumbnails of each training image, (M,); −1 for those that have none."""
        assert self.database is not None
        rows = torch.full((self.database.info.length,), -1)
        rows[self._thumbnails[0]] = torch.arange(len(self._thumbnails[0]))
        return rows

    @cached_property
    def _thumbnails(self) -> tuple[Tensor, Tensor]:
        """Indices (T,) and thumbnails of the training images; empty if they are not there."""
        assert self.database is not None
        return training_thumbnails(self.database, self.config)


def image_embeddings(path: Path | None, clip: ClipEncoder) -> LMDBReader | None:
    """Open a database of this CLIP's image embeddings; None if it is missing or holds others."""
    reader = open_training_embeddings(path, clip.identity, clip.dim)
    of_images = reader is not None and reader.info.meta.get("y_holds", "images") == "images"
    return reader if of_images else None


def training_database(data: Data) -> LMDBReader | None:
    """Open the database that names the training images; None if there is none."""
    places = [path for path in (data.feat_path, data.root) if path and is_complete(path)]
    return LMDBReader(places[0], data.num_channels) if places else None


def training_thumbnails(reader: LMDBReader, config: Config) -> tuple[Tensor, Tensor]:
    """Return indices (T,) and thumbnails (T, 3, SIDE, SIDE) uint8 of training images.

    Of more than MOST_TRAINING images it takes as many at random. They are read from THUMBNAILS, or
    made from `data.image_dir` and written there. Both are empty if the images are gone or replaced.
    """
    meta, data = reader.info.meta, config.data
    made_from = json.dumps(
        {
            **{key: meta.get(key) for key in ("names_hash", "content_hash")},
            "length": reader.info.length,
            "resolution": data.resolution,
        }
    )
    path = reader.folder / THUMBNAILS
    with contextlib.suppress(OSError, ValueError, KeyError), np.load(path) as file:
        if str(file["made_from"]) == made_from:
            return torch.from_numpy(file["rows"]), torch.from_numpy(file["images"])
    rows = some_samples(reader, MOST_TRAINING, torch.Generator().manual_seed(0)).sort().values
    paths = training_image_paths(data.image_dir, reader, rows.tolist())
    if paths is None:
        note(
            "copies are looked for by embeddings alone: data.image_dir does not hold the images "
            f"that {reader.path} was made from"
        )
        return rows[:0], torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8)
    batches = iterate_batches(paths, data.resolution, BATCH, draft=True)
    parts = -(-len(paths) // BATCH)
    images = torch.cat([thumbnails(x) for x in progress(batches, "thumbnails", parts, "batch")])

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, rows=rows.numpy(), images=images.numpy(), made_from=made_from)

    with contextlib.suppress(OSError):  # a folder that is only read, or a full disk
        write_whole(path, write)
    return rows, images
