"""One generation: rows of conditions times seeds, their images, and the folder that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.base.errors import UserError
from utils.base.progress import progress as progress_bar
from utils.config.sampling_sections import Sampling
from utils.sampling.conditions import Conditions
from utils.sampling.image_files import labelled_grid, save_png
from utils.sampling.prompts import Row, describe
from utils.sampling.sample_folder import (
    GRID,
    GeneratedImage,
    Texts,
    file_name,
    free_folder,
    other_runs_fault,
    settings_text,
)

MAX_COLUMNS = 8  # of a grid whose rows have one image each

# (conditions (N, D), seeds, sampling, batch size) -> finished batches, see `generate`.
Generate = Callable[
    [torch.Tensor, Sequence[int], Sampling, int], Iterator[tuple[range, torch.Tensor]]
]


@dataclass
class Generation:
    """Images of each row and seed, ordered by row and then by seed.

    conditions: rows with their embeddings.
    results: images that are finished.
    about: further text for every PNG, e.g. the checkpoint.
    """

    conditions: Conditions
    seeds: list[int]
    sampling: Sampling
    about: dict[str, str]
    generate: Generate = field(repr=False)
    results: list[GeneratedImage] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """Return the rows: prompts, images or mixtures."""
        return self.conditions.rows

    @property
    def embeddings(self) -> torch.Tensor:
        """Return the condition of each row, (R, D) float32."""
        return self.conditions.embeddings

    @property
    def images(self) -> list[Image.Image]:
        """Return the finished images as Pillow images."""
        return [image.image for image in self.results]

    def __len__(self) -> int:
        """Return the number of images that are asked for."""
        return len(self.rows) * len(self.seeds)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return the sampler settings and `about` as text; see `settings_text`."""
        return settings_text(self.sampling) | self.about

    def batches(self, batch_size: int = 16) -> Iterator[list[GeneratedImage]]:
        """Generate all images that are not finished yet; yield each batch when it is finished.

        A caller may stop at any batch, and go on later with a new call.
        Raises UserError if the sampler settings do not go together.
        """
        jobs = [(row, seed) for row in range(len(self.rows)) for seed in self.seeds]
        jobs = jobs[len(self.results) :]
        conds = self.embeddings[[row for row, _ in jobs]]
        seeds = [seed for _, seed in jobs]
        for positions, images in self.generate(conds, seeds, self.sampling, batch_size):
            batch = []
            for position, pixels in zip(positions, images.numpy(), strict=True):
                row, seed = jobs[position]
                text, image = self._text_of(row, seed), Image.fromarray(pixels)
                batch.append(GeneratedImage(image, row, self.rows[row].label, seed, text))
            self.results += batch
            yield batch

    def finish(self, batch_size: int = 16, progress: bool = False) -> Generation:
        """Generate all images, with a bar if asked to, and return this generation."""
        if progress:
            with progress_bar(desc="generate", total=len(self), unit="image") as bar:
                for batch in self.batches(batch_size):
                    bar.update(len(batch))
        else:
            for _ in self.batches(batch_size):
                pass
        return self

    def grid(self) -> Image.Image:
        """Return all finished images on one page: a line for each row, with its sentence."""
        pixels = np.stack([np.asarray(image) for image in self.images])
        icons = self.conditions.icons()
        if len(self.rows) == 1:
            return labelled_grid(pixels, None, title=self.rows[0].label, icons=icons)
        labels = [image.label for image in self.results]
        columns = len(self.seeds) if len(self.seeds) > 1 else min(len(self.rows), MAX_COLUMNS)
        return labelled_grid(pixels, labels, columns, icons=icons)

    @property
    def text(self) -> dict[str, str]:
        """Return all sources, seeds and settings, as they stand in the PNG of the grid."""
        seeds = " ".join(map(str, self.seeds))
        return {**describe(self.rows), **self.settings, "seed": seeds}

    def save_grid(self, path: str | Path) -> None:
        """Write the grid as a PNG that carries `text`."""
        save_png(self.grid(), path, self.text)

    def _text_of(self, row: int, seed: int) -> dict[str, str]:
        """Return sources, settings and seed of one image, as they stand in its PNG."""
        return {**describe([self.rows[row]]), **self.settings, "seed": str(seed)}

    def _texts(self) -> Texts:
        """Return the texts of all images that are asked for, by file name."""
        jobs = [(row, seed) for row in range(len(self.rows)) for seed in self.seeds]
        return {file_name(row, seed): self._text_of(row, seed) for row, seed in jobs}

    def check_folder(self, folder: Path) -> None:
        """Raise UserError if a folder holds images of another run.

        Images of this run may be there; they are made again.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; name a folder (--out)")
        if fault := other_runs_fault(folder, self._texts(), self.text):
            raise UserError(
                f"{folder}: holds images of another run ({fault}); name another folder (--out), "
                "or remove them"
            )

    def free_folder(self, folder: Path) -> Path:
        """Return `folder`, or `<folder>-2` and so on if it holds images of another run."""
        return free_folder(folder, self._texts(), self.text)

    def save(self, folder: str | Path) -> None:
        """Write each finished image and `grid.png` into a folder, as t2f.py does.

        Raises UserError if the folder holds images of another run.
        """
        self.check_folder(Path(folder))
        for image in self.results:
            image.save(Path(folder) / image.file_name)
        self.save_grid(Path(folder) / GRID)
