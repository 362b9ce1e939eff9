"""Text to face in a few lines of Python. The scripts, the page and the pipeline call this too.

from utils.sampling.text_to_face import TextToFace

faces = TextToFace.load("assets/demo/dit.safetensors")
generation = faces.generate("a person with long red hair", num=4)
generation.grid()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.editing import AgainstCondition, Prior, PriorUnlike, trait_between
from models.edm import EDMPrecond
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError, note
from utils.config.load import config_from_dict
from utils.config.sampling_sections import Sampling
from utils.config.schema import Config
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
from utils.pretrained.priors import load_config_prior, with_proposed_freedom
from utils.sampling.compile import compile_for_sampling
from utils.sampling.conditions import Conditions, embed_rows
from utils.sampling.editing import Canvas, Edit, images_of, moved_by_words
from utils.sampling.generate import Solve, generate, sampler_settings
from utils.sampling.generation import Generation
from utils.sampling.prompts import Seeds, Source, as_rows, as_source, resolve_seeds
from utils.sampling.traits import PERSON

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder
    from models.clip import ClipEncoder

DEMO = "assets/demo/dit.safetensors"  # the network that is part of the project
DEMO_STUDENT = "assets/demo/student.safetensors"  # distilled from it, for --preset instant
EDIT_FREEDOM = 0.7  # of the images of a sentence, where sampling.freedom is 0

Finish = Callable[[torch.Tensor], torch.Tensor]


def default_device() -> str:
    """Return cuda if there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def with_sampling(config: Config, flags: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return a config with other sampler settings, e.g. `{"cfg_scale": {"sampling.cfg_scale": 2}}`.

    A preset comes first, then the other keys; `freedom=auto` becomes the number that the prior
    proposes. Raises UserError if a value is wrong, or if values do not go together.
    """
    if flags:
        sampling = config_from_dict(config.to_dict(), "the settings", flags=flags).sampling
        config = config.model_copy(update={"sampling": sampling})
    config = with_proposed_freedom(config)
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
        self._images_of = lru_cache(64)(self._sample_images)  # half a megabyte each

    @classmethod
    def load(
        cls,
        source: str | Path = DEMO,
        *,
        config: str | Path | None = None,
        overrides: Sequence[str] = (),
        device: str | None = None,
        flags: Mapping[str, Mapping[str, Any]] | None = None,
        adapters: Sequence[str | Path] = (),
    ) -> TextToFace:
        """Load a trained network with its encoders.

        source: a checkpoint (.pt), a released file (.safetensors), a release folder, or the name
            `owner/name` of one on the Hugging Face hub, which is downloaded on first use.
        config: YAML file that replaces the config in the checkpoint; published ones hold none.
        overrides: config keys to set, e.g. `["sampling.cfg_scale=2", "encoders.clip=FOLDER"]`.
        device: e.g. cpu or cuda:1; None = cuda if there is a GPU.
        flags: command-line flags and the keys that they set, see `load_config`.
        adapters: files of --export_adapter, `PATH` or `PATH:AMOUNT` each (docs/adapting.md).

        Raises UserError if something is missing, damaged, or does not fit.
        """
        torch_device = usable_device(device or default_device())
        network = find_network(source)
        settings = read_config(config or network.config, overrides, flags=flags)
        settings = with_sampling(with_derived_sizes(settings, "none", "none"), {})
        denoiser, _ = load_denoiser(
            network.weights, torch_device, config=settings, adapters=adapters
        )
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
        return self.start(sources, **options).finish(batch_size, progress)

    def edit(
        self,
        image: Any,
        *,
        batch_size: int = 16,
        progress: bool = False,
        **options: Any,
    ) -> Generation:
        """Edit an image, and return when all images are finished; see `start_edit`.

        image: its `pathlib.Path`, a Pillow image, or a sentence that makes it; see `Edit`.
        options: the fields of `Edit`, and the other arguments of `start_edit`.
        """
        given = {f.name: options.pop(f.name) for f in fields(Edit) if f.name in options}
        return self.start_edit(Edit(image, **given), **options).finish(batch_size, progress)

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
        negative: str | None = None,
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
        negative: a sentence that images shall not look like: embeddings of the prior that do are
            moved (`models.editing.unlike`), or with `freedom=0` guidance leads away from it.
        sampling: keys of the config's `sampling` section, e.g. `preset="paper"`, `cfg_scale=2`,
            `freedom=0.8`, `seed=5`; None of a key means None, and keys that are left out stay as
            they are.

        Raises UserError for every mistake in them.
        """
        config = self._configured(sampling)
        rows = as_rows(sources, mix, interpolate)
        numbers = resolve_seeds(seeds, num, config.sampling, len(rows))
        conditions = embed_rows(rows, self.clip, config)
        about = {} if negative is None else {"negative": negative}
        return self._generation(conditions, numbers, config.sampling, about, negative)

    def start_edit(
        self,
        edit: Edit,
        *,
        num: int = 1,
        seeds: Seeds = None,
        negative: str | None = None,
        **sampling: Any,
    ) -> Generation:
        """Encode the image that is edited; `Generation.batches` then generates the images.

        num, seeds, negative, sampling: as in `start`. With words the image's own embedding is the
        condition, moved by each pair of sentences, and `freedom` is that of the images of these
        sentences. Inside of a mask prompts move it too, as `vary` does, unless `freedom` is 0.

        Raises UserError for every mistake in them.
        """
        config = self._configured(sampling)
        numbers = resolve_seeds(seeds, num, config.sampling, len(edit.rows()))
        if (base := as_source(edit.image)).kind != "image":
            edit = replace(edit, image=self._generated(base, numbers, negative, sampling))
        edit = edit.inside_of_mask(has_prior := bool(config.sampling.freedom))
        edit.note_equal_images(len(numbers), has_prior)
        canvas = Canvas(edit.image, edit.mask, self.autoencoder, config.data.resolution)
        conditions = embed_rows(replace(edit, image=canvas.source).rows(), self.clip, config)
        source = embed_rows(as_rows(canvas.source), self.clip, config).embeddings[0]
        settings = config.sampling
        about = edit.text() | ({} if negative is None else {"negative": negative})
        if edit.by_words:
            freedom = float(settings.freedom or EDIT_FREEDOM)
            moved = []
            for y, change in zip(conditions.embeddings, edit.changes(), strict=True):
                pairs = [[self._images_of(text, freedom) for text in pair] for pair in change.pairs]
                moved.append(moved_by_words(y, pairs, edit.amount * change.fraction))
            conditions = replace(conditions, embeddings=torch.stack(moved))
            about["freedom"] = str(freedom)  # of the images of each sentence
        if not edit.prompts:
            settings = settings.model_copy(update={"freedom": 0.0})
        solve = canvas.solver(self.denoiser, source, edit.strength, edit.fraction_of_noise)
        return self._generation(conditions, numbers, settings, about, negative, solve, canvas.paste)

    def _configured(self, sampling: Mapping[str, Any]) -> Config:
        """Return the config with other keys of its `sampling` section."""
        flags = {key: {f"sampling.{key}": value} for key, value in sampling.items()}
        return with_sampling(self.config, flags)

    def _generated(
        self, source: Source, seeds: list[int], negative: str | None, sampling: Mapping[str, Any]
    ) -> Source:
        """Return the image that a sentence or an embedding makes, to be edited."""
        if len(seeds) > 1:
            raise UserError(f"the edit of a generated image has one seed, not {len(seeds)}")
        (image,) = self.generate(source, seeds=seeds, negative=negative, **sampling).images
        name = f"{source.label}, seed {seeds[0]}"
        return Source("image", name, name, image)

    def _sample_images(self, sentence: str, freedom: float) -> torch.Tensor:
        """Return embeddings of images of a sentence, (N, D)."""
        prior = self._loaded_prior(self.config.sampling.model_copy(update={"freedom": freedom}))
        assert prior is not None
        (y,) = embed_rows(as_rows(sentence), self.clip, self.config).embeddings
        return images_of(prior, y, freedom).cpu()

    def _unlike(self, negative: str | None, sampling: Sampling) -> tuple[EDMPrecond, Prior | None]:
        """Return denoiser and prior, whose images do not look like a sentence if one is given."""
        prior = self._loaded_prior(sampling)
        if negative is None:
            return self.denoiser, prior
        if prior is not None:
            both = [self._images_of(text, float(sampling.freedom)) for text in (negative, PERSON)]
            trait = trait_between(*(y.to(self.device) for y in both))
            return self.denoiser, PriorUnlike(prior, trait)
        if sampling.cfg_scale in (None, 1):
            raise UserError(
                "negative: without the prior it needs guidance (sampling.cfg_scale=2), which "
                "students lack; a prompt with freedom above 0 needs none"
            )
        y = embed_rows(as_rows(negative), self.clip, self.config).embeddings[0]
        return AgainstCondition(self.denoiser, y.to(self.device)), None

    def _loaded_prior(self, sampling: Sampling) -> EmbeddingPrior | None:
        """Return the prior, or None if `sampling.freedom` is zero."""
        if sampling.freedom and self._prior is None:
            config = self.config.model_copy(update={"sampling": sampling})
            check_prior(config)
            self._prior = load_config_prior(config, self.clip.identity, self.device)
        return self._prior if sampling.freedom else None

    def _generation(
        self,
        conditions: Conditions,
        seeds: list[int],
        sampling: Sampling,
        about: Mapping[str, str],
        negative: str | None,
        solve: Solve | None = None,
        finish: Finish | None = None,
    ) -> Generation:
        """Return a generation; `finish` changes its finished images (B, H, W, 3) uint8."""
        denoiser, prior = self._unlike(negative, sampling)

        def batches(
            conds: torch.Tensor, seeds: Sequence[int], sampling: Sampling, batch_size: int
        ) -> Iterator[tuple[range, torch.Tensor]]:
            if batch_size < 1:
                raise UserError(f"batch_size is {batch_size}; should be at least 1")
            made = generate(
                denoiser,
                self.autoencoder,
                conds,
                seeds,
                sampling,
                prior=prior,
                batch_size=batch_size,
                solve=solve or self.solve,
            )
            for positions, images in made:
                yield positions, finish(images) if finish else images

        adapters = ", ".join(denoiser.adapters)
        adapted = {"adapters": adapters} if adapters else {}
        about = {"checkpoint": self.source, **adapted, **about}
        return Generation(conditions, seeds, sampling, about, batches)

    def embed(
        self, sources: Any, *, mix: Any = None, interpolate: int | None = None
    ) -> torch.Tensor:
        """Return the conditions of rows, (R, D) float32; arguments and faults as in `start`."""
        rows = as_rows(sources, mix, interpolate)
        return embed_rows(rows, self.clip, self.config).embeddings
