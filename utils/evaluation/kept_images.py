"""Images that an evaluation keeps: the first few for the report, on request all of them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.base.files import write_whole
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.copy_check import Pair
from utils.evaluation.feature_store import FeatureBlocks, Rows
from utils.evaluation.generated import Generated
from utils.sampling.conditions import captions_of
from utils.sampling.image_files import save_png

FEW = 18  # images that every evaluation keeps
FEW_CAPTIONS, FEW_SEEDS = 4, 8  # of `eval.variety_captions`, whose images are kept


class KeptImages:
    """A folder of `<seed>.png`, or `images.npz` if `eval.save_images` asks for it.

    Text chunks of a PNG hold its seed and its condition. The npz holds `arr_0`, (N, H, W, 3) uint8
    in order of the seeds, in the form that ADM's evaluator reads.
    """

    def __init__(self, folder: Path, config: Config, captions: LMDBReader | None = None) -> None:
        """`captions`: the embeddings of the test captions; None = their texts are not compared."""
        self.folder, self.config, self.captions = folder, config, captions
        self.wanted, self.npz = config.eval.save_images, folder / "images.npz"
        # An evaluation needs only embeddings, so it goes on when the caption texts are gone.
        folders = (config.eval.caption_dir, config.eval.image_dir)
        self.has_texts = all(folder and folder.exists() for folder in folders)

    def save(self, positions: Sequence[int], seeds: Sequence[int], generated: Generated) -> Rows:
        """Save PNGs of a batch; return the pixels that the npz still needs."""
        few = math.inf if self.wanted == "png" else FEW
        rows = [row for row, position in enumerate(positions) if position < few]
        self._write({row: self.path_of(seeds[row]) for row in rows}, generated)
        return {"pixels": generated.images} if self.wanted == "npz" else {}

    def save_variety(
        self, places: Sequence[tuple[int, int]], seeds: Sequence[int], generated: Generated
    ) -> None:
        """Save PNGs of the first few captions with the first few of all `seeds`.

        `places`: number of the caption and number of the seed of each image.
        """
        folder = variety_folder(self.folder)
        paths = {
            row: folder / f"{caption:03d}" / f"{seeds[seed]:06d}.png"
            for row, (caption, seed) in enumerate(places)
            if caption < FEW_CAPTIONS and seed < FEW_SEEDS
        }
        self._write(paths, generated)

    def save_pairs(self, pairs: Sequence[Pair], generated: Generated, seeds: Sequence[int]) -> None:
        """Save PNGs of images with their nearest training images, which their text chunks name."""
        folder = copies_folder(self.folder)
        about = [
            {
                "training": str(pair.training),
                "contrast": f"{pair.contrast:.3f}",
                "mirrored": str(pair.mirrored),
                "copy": str(pair.is_copy),
            }
            for pair in pairs
        ]
        paths = {row: folder / f"{seed:06d}.png" for row, seed in enumerate(seeds)}
        self._write(paths, generated, about)

    def _write(
        self,
        paths: Mapping[int, Path],
        generated: Generated,
        more: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Write the PNGs of some rows of a batch, with seed and condition as text chunks.

        `more`: further text chunks of each row.
        """
        rows, ids, texts = list(paths), generated.caption_ids, None
        if rows and ids is not None and self.has_texts:
            texts = captions_of(self.config, self.captions, ids[rows])
        for i, row in enumerate(rows):
            about = {"seed": str(int(paths[row].stem)), **(more[row] if more else {})}
            if ids is not None:
                about["caption"] = "test image {}, caption {}".format(*ids[row].tolist())
            if texts is not None:
                about["prompt"] = texts[i]
            if generated.classes is not None:
                about["class"] = str(int(generated.classes[row]))
            save_png(generated.images[row].numpy(), paths[row], about)

    def path_of(self, seed: int) -> Path:
        """Return the file of a seed's image, with the name that EDM's code gives it."""
        folder = self.folder
        if self.config.eval.subdirs:
            folder = folder / f"{seed - seed % 1000:06d}"
        return folder / f"{seed:06d}.png"

    def finish(self, blocks: FeatureBlocks) -> None:
        """Write the npz, if there is to be one, from the pixels of all batches."""
        if self.wanted == "npz":
            write_whole(self.npz, lambda path: _write_npz(path, blocks))

    def are_there(self, seeds: Sequence[int]) -> bool:
        """Return True if all images of these seeds that `eval.save_images` asks for are written."""
        if self.wanted == "npz":
            return self.npz.is_file()
        return self.wanted is None or all(self.path_of(seed).is_file() for seed in seeds)


def variety_folder(folder: Path) -> Path:
    """Return the folder of one caption's images that belongs to a folder of kept images."""
    return folder.with_name(f"{folder.name}-variety")


def copies_folder(folder: Path) -> Path:
    """Return the folder of the images most like copies, beside a folder of kept images."""
    return folder.with_name(f"{folder.name}-copies")


def _write_npz(path: Path, blocks: FeatureBlocks) -> None:
    """Write the pixels batch by batch, so that one batch at a time is in memory."""
    _, first = next(iter(blocks))
    shape = (blocks.count, *first["pixels"].shape[1:])
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for _, rows in blocks:
            file.write(rows["pixels"].numpy().tobytes())
