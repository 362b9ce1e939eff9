"""Text to face in a few lines of Python. The scripts, the page and the pipeline call this too.

from utils.sampling.text_to_face import TextToFace

faces = TextToFace.load("assets/demo/dit.safetensors")
generation = faces.generate("a person with long red hair", num=4)
generation.grid()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.choices import SEED_LIMIT
from models.edm import EDMPrecond
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError, note, short_repr
from utils.base.progress import progress as progress_bar
from utils.config.load import config_from_dict
from utils.config.parsing import parse_seeds, seeds_from
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
from utils.sampling.conditions import embed_rows
from utils.sampling.generate import Solve, generate, sampler_settings
from utils.sampling.generation import Generation
from utils.sampling.prompts import Row, arrange, as_source

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.clip import ClipEncoder

DEMO = "assets/demo/dit.safetensors"  # the network that is part of the project
DEMO_STUDENT = "assets/demo/student.safetensors"  # distilled from it, for --preset instant
Seeds = str | int | Sequence[int] | None
MAX_IMAGES = 1_000_000  # of one generation; more are a slip of the pen


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


def as_rows(sources: Any, mix: Any = None, interpolate: int | None = None) -> list[Row]:
    """Return the rows that `TextToFace.start` describes; raise UserError for every mistake."""
    if isinstance(sources, Mapping):
        sources = [replace(as_source(given), label=str(name)) for name, given in sources.items()]
    several = list(sources) if isinstance(sources, list | tuple) else [sources]
    if several and all(isinstance(row, Row) for row in several):
        return several
    return arrange([as_source(source) for source in several], as_mixes(mix), interpolate)


def as_mixes(mix: Any) -> list[Any]:
    """Return a list of mixtures: of one, e.g. "1,2" or (1, 2), or of several."""
    if mix is None:
        return []
    is_one = isinstance(mix, str | Real) or (len(mix) and all(isinstance(w, Real) for w in mix))
    return [mix] if is_one else list(mix)


def resolve_seeds(
    seeds: str | int | Sequence[int] | None, num: int, sampling: Sampling
) -> list[int]:
    """Return the given seeds, or `num` seeds from `sampling.seed` on.

    Raises UserError if there is none, or one is no whole number in [0, 2^32).
    """
    if isinstance(seeds, str):
        return parse_seeds(seeds)
    if seeds is None:
        if not 1 <= num <= MAX_IMAGES:
            raise UserError(f"num is {num}; should be at least 1 and at most {MAX_IMAGES}")
        return list(seeds_from(sampling.seed, num))
    try:
        given: list[Any] = list(seeds)  # type: ignore[arg-type]
    except TypeError:
        given = [seeds]
    numbers = [int(seed) for seed in given if isinstance(seed, Integral)]
    if len(numbers) < max(len(given), 1) or not 0 <= min(numbers) <= max(numbers) < SEED_LIMIT:
        raise UserError(f"seeds {short_repr(seeds)}: should be whole numbers from 0 to 2^32 - 1")
    return numbers
