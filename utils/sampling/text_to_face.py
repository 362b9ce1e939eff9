"""Text to face in a few lines of Python. The scripts, the page and the pipeline call this too.

from utils.sampling.text_to_face import TextToFace

faces = TextToFace.load("assets/demo/dit.safetensors")
generation = faces.generate("a person with long red hair", num=4)
generation.grid()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from models.edm import EDMPrecond
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError, note
from utils.base.progress import progress as progress_bar
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.config.sections import Sampling
from utils.data.derived_sizes import with_derived_sizes
from utils.data.embeddings import check_image_mean, check_prior
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import find_network, read_config
from utils.pretrained.encoders import (
    load_config_autoencoder,
    load_config_clip,
    require_encoders,
    usable_device,
)
from utils.pretrained.priors import load_config_prior
from utils.sampling.compile import compile_for_sampling
from utils.sampling.conditions import Conditions, embed_rows
from utils.sampling.generate import Solve, generate, sampler_settings
from utils.sampling.image_files import labelled_grid, save_png
from utils.sampling.prompts import MAX_IMAGES, Row, Seeds, as_rows, describe, resolve_seeds
from utils.sampling.sample_folder import (
    GRID,
    GeneratedImage,
    Texts,
    file_name,
    free_folder,
    other_runs_fault,
    settings_text,
)

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.clip import ClipEncoder

DEMO = "assets/demo/dit.safetensors"  # the network that is part of the project
DEMO_STUDENT = "assets/demo/student.safetensors"  # distilled from it, for --preset instant
MAX_COLUMNS = 8  # of a grid whose rows have one image each

# (conditions (N, D), seeds, sampling, batch size) -> finished batches, see `generate`.
Generate = Callable[
    [torch.Tensor, Sequence[int], Sampling, int], Iterator[tuple[range, torch.Tensor]]
]


def default_device() -> str:
    """Return cuda if there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def with_sampling(config: Config, flags: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return a config with other sampler settings, e.g. `{"cfg_scale": {"sampling.cfg_scale": 2}}`.

    A preset comes first, then the other keys. Raises UserError if a value is wrong, or if values
    do not go together.
    """
    if flags:
        sampling = config_from_dict(config.to_dict(), "the settings", flags=flags).sampling
        config = config.model_copy(update={"sampling": sampling})
    # Raises now rather than at the first batch.
    sampler_settings(config.sampling, config.distill.sigmas)
    return config


class TextToFace:
    """A trained network with its encoders; it generates faces from sentences and images.

    config: its settings; `config.sampling` counts where a call says nothing else.
    source: the file, folder or hub name of the network, for messages and PNGs.
    """

    def __init__(
        self,
        denoiser: EDMPrecond,
        autoencoder: Autoencoder,
        clip: ClipEncoder,
        config: Config,
        source: str,
        solve: Solve | None = None,
    ) -> None:
        """Put loaded networks together; `load` does it from files.

        solve: replaces the sampler, see `sample_images`.
        Raises UserError if the denoiser does not take the embeddings of this CLIP.
        """
        if clip.dim != denoiser.model.cond_width:
            raise UserError(
                f"{source}: takes conditions of {denoiser.model.cond_width} numbers, but "
                f"{config.encoders.clip} gives {clip.dim}; it was trained with another CLIP"
            )
        self.denoiser, self.autoencoder, self.clip = denoiser, autoencoder, clip
        self.config, self.source, self.solve = config, source, solve
        self.device = next(denoiser.parameters()).device
        self._prior: EmbeddingPrior | None = None  # loaded when it is first needed

    @classmethod
    def load(
        cls,
        source: str | Path = DEMO,
        *,
        config: str | Path | None = None,
        overrides: Sequence[str] = (),
        device: str | None = None,
        flags: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> TextToFace:
        """Load a trained network with its encoders.

        source: a checkpoint (.pt), a released file (.safetensors), a release folder, or the name
            `owner/name` of one on the Hugging Face hub, which is downloaded on first use.
        config: YAML file that replaces the config in the checkpoint; published ones hold none.
        overrides: config keys to set, e.g. `["sampling.cfg_scale=2", "encoders.clip=FOLDER"]`.
        device: e.g. cpu or cuda:1; None = cuda if there is a GPU.
        flags: command-line flags and the keys that they set, see `load_config`.

        Raises UserError if something is missing, damaged, or does not fit.
        """
        torch_device = usable_device(device or default_device())
        network = find_network(source)
        settings = read_config(config or network.config, overrides, flags=flags)
        settings = with_sampling(with_derived_sizes(settings, "none", "none"), {})
        denoiser, _ = load_denoiser(network.weights, torch_device, config=settings)
        compile_for_sampling(denoiser, settings.sampling, torch_device)
        require_encoders(settings.encoders)
        clip = load_config_clip(settings.encoders, torch_device)
        check_image_mean(settings, clip.identity)
        autoencoder = load_config_autoencoder(settings, torch_device)
        return cls(denoiser, autoencoder, clip, settings, str(source))

    def generate(
        self,
        sources: Any,
        *,
        batch_size: int = 16,
        progress: bool = False,
        **options: Any,
    ) -> Generation:
        """Generate images, and return when all are finished.

        batch_size: images sampled at once, see `generate`.
        progress: show a bar.
        The other arguments and faults are those of `start`.
        """
        generation = self.start(sources, **options)
        batches: Iterator[list[Any]] = generation.batches(batch_size)
        if progress:
            with progress_bar(desc="generate", total=len(generation), unit="image") as bar:
                for batch in batches:
                    bar.update(len(batch))
        else:
            for _ in batches:
                pass
        return generation

    def draw(self, sources: Any, **options: Any) -> Generation:
        """Call `generate`, which was named so in version 0.2."""
        note("TextToFace.draw is named generate now")
        return self.generate(sources, **options)

    def start(
        self,
        sources: Any,
        *,
        mix: Any = None,
        interpolate: int | None = None,
        num: int = 1,
        seeds: Seeds = None,
        **sampling: Any,
    ) -> Generation:
        """Embed the sources; `Generation.batches` then generates the images.

        sources: a sentence, the `pathlib.Path` of an image, a Pillow image or an embedding (a
            tensor (D,), the condition itself with `freedom=0`); or a list of these, or a dict that
            labels them. Each is a row.
        mix: a row for each mixture of all sources instead: weights, or a list of weights.
        interpolate: so many rows from the first source to the second one instead.
        num: images for each row, with the seeds from `sampling.seed` on.
        seeds: their seeds instead, e.g. `range(8)` or "0-63,100".
        sampling: keys of the config's `sampling` section, e.g. `preset="paper"`, `cfg_scale=2`,
            `freedom=0.8`, `seed=5`; None of a key means None, and keys that are left out stay as
            they are.

        Raises UserError for every mistake in them.
        """
        flags = {key: {f"sampling.{key}": value} for key, value in sampling.items()}
        config = with_sampling(self.config, flags)
        rows = as_rows(sources, mix, interpolate)
        conditions = embed_rows(rows, self.clip, config)
        about = {"checkpoint": self.source}
        numbers = resolve_seeds(seeds, num, config.sampling)
        if len(rows) * len(numbers) > MAX_IMAGES:
            raise UserError(f"{len(rows)} rows of {len(numbers)} images are too many; ask for less")
        if self._prior is None:
            check_prior(config)
            self._prior = load_config_prior(config, self.clip.identity, self.device)
        return Generation(conditions, numbers, config.sampling, about, self._generate)

    def embed(
        self, sources: Any, *, mix: Any = None, interpolate: int | None = None
    ) -> torch.Tensor:
        """Return the conditions of rows, (R, D) float32; arguments and faults as in `start`."""
        rows = as_rows(sources, mix, interpolate)
        return embed_rows(rows, self.clip, self.config).embeddings

    def _generate(
        self, conds: torch.Tensor, seeds: Sequence[int], sampling: Sampling, batch_size: int
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Yield finished batches; see `generate`."""
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; should be at least 1")
        prior = self._prior if sampling.freedom else None
        batches = partial(generate, prior=prior, batch_size=batch_size, solve=self.solve)
        return batches(self.denoiser, self.autoencoder, conds, seeds, sampling)


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
