"""Edits of one image: by words, by strength, and inside of a mask. `TextToFace.edit` calls this.

The image's latents are the start. The condition is its own embedding, moved by words, or that of a
sentence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops

from models.editing import keeping, trait_between, with_trait
from models.edm import EDMPrecond
from models.embedding_prior import EmbeddingPrior
from models.samplers import Denoise, SamplerSettings, guided, invert, last_part, sample
from utils.base.errors import UserError, note, refusing
from utils.data.image_metadata import ORIENTATION
from utils.data.images import center_crop, load_image, opened_image, upright_rgb
from utils.sampling.generate import Solve
from utils.sampling.prompts import MAX_IMAGES, Row, Source, as_source, text_prompt
from utils.sampling.traits import PERSON, varied

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder

SAMPLES = 256  # of the prior for each sentence
SEAM = 1 / 32  # of the image's side: width of the seam between old and new pixels


class Change(NamedTuple):
    """The change by words of one row: sentences before and after, and a fraction of the way."""

    label: str
    pairs: list[tuple[str, str]]
    fraction: float


@dataclass(frozen=True)
class Edit:
    """A change of one image.

    image: its `pathlib.Path`, or a Pillow image; it is cropped as in training. If words change it,
        also a sentence: the image that it makes of the seed is the one that changes.
    prompts: sentences or embeddings (D,) that replace the image's own embedding; a row each. Inside
        of a mask sentences move it, as `vary` does.
    add, remove: what the person shall have, or not, e.g. "round glasses".
    change: pairs of sentences, of how the person is and how it shall be.
    vary: sentences of how the person shall be, or names of `utils/sampling/traits.py: TRAITS`,
        e.g. "hair colour", which stand for some; a row each, beside all other changes.
    interpolate: so many rows from the image itself to the change by words, instead of one.
    strength: 0 returns the image, as the VAE decodes it; 1 starts from noise alone.
    fresh: fraction of fresh noise in the start, 0 to 1; the rest is the noise that leads to the
        image. None = 0 if words change it, 1 if a prompt replaces it.
    amount: of the way to images with the trait.
    mask: a path or a Pillow image: white is made anew, black stays, and so does what is
        transparent.
    """

    image: Any
    prompts: Sequence[Any] = ()
    add: Sequence[str] = ()
    remove: Sequence[str] = ()
    change: Sequence[tuple[str, str]] = ()
    vary: Sequence[str] = ()
    interpolate: int | None = None
    strength: float = 1.0
    fresh: float | None = None
    amount: float = 1.0
    mask: Any = None

    def __post_init__(self) -> None:
        """Raise UserError if fields do not go together."""
        if self.prompts and self.by_words:
            raise UserError(
                "a prompt replaces the image's own embedding, which add, remove, from, to and vary "
                "change: give one or the other"
            )
        steps = 2 if self.interpolate is None else self.interpolate
        if not 2 <= steps <= MAX_IMAGES or (self.interpolate and not self.by_words):
            raise UserError(
                "interpolate goes from the image to its change by add, remove, from, to or vary, "
                f"in at least 2 rows and at most {MAX_IMAGES}"
            )
        changes = itertools.chain(*self.change)
        for name, texts in (
            ("add", self.add), ("remove", self.remove), ("from or to", changes), ("vary", self.vary)
        ):  # fmt: skip
            for text in texts:
                text_prompt(text, name)  # raises
        for name, most in (("strength", 1.0), ("fresh", 1.0), ("amount", 4.0)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise UserError(f"{name} is {value:g}; should be from 0 to {most:g}")

    @property
    def by_words(self) -> bool:
        """Return True if the image's own embedding is moved."""
        return bool(self.add or self.remove or self.change or self.vary)

    @property
    def fraction_of_noise(self) -> float:
        """Return how much of the start is fresh noise: none if words change the image itself."""
        return (0.0 if self.by_words else 1.0) if self.fresh is None else self.fresh

    def text(self) -> dict[str, str]:
        """Return numbers and files as they stand in each PNG, a file with a hash of its content."""
        numbers = {"strength": self.strength, "fresh": self.fraction_of_noise}
        numbers |= {"amount": self.amount} if self.by_words else {}
        text = {name: f"{value:g}" for name, value in numbers.items()}
        given = {"image": self.image, "mask": self.mask}
        if isinstance(self.mask, str):
            given["mask"] = Path(self.mask)
        for name, source in ((name, as_source(f)) for name, f in given.items() if f is not None):
            text[name] = source.value
            if source.content is None:
                text[f"{name}_hash"] = source.hash
        return text

    def check_files(self) -> None:
        """Raise UserError if image or mask cannot be read, or the mask does not fit the image."""
        source = as_source(self.image)
        whole = _whole_image(source) if source.kind == "image" else Image.new("RGB", (256, 256))
        if self.mask is not None:
            _painted(self.mask, whole, min(whole.size))

    def note_equal_images(self, number: int, has_prior: bool) -> None:
        """Print a note if `number` seeds of a row are more than one, and give the same image."""
        varies = self.fraction_of_noise > 0 or (self.prompts and has_prior)
        if number > 1 and not (varies and self.strength):
            note(
                f"each row has {number} equal images: without fresh noise (fresh, and a strength "
                "above 0) an edit is the same for all seeds"
            )

    @classmethod
    def of(cls, images: Sequence[Any], prompts: Sequence[Any], **changes: Any) -> Edit:
        """Return the edit of one image; without one, words change the image of the one prompt.

        Raises UserError for any other number of images.
        """
        if len(images) == 1:
            return cls(images[0], prompts, **changes)
        by_words = {"add", "remove", "change", "vary"} & changes.keys()
        if images or len(prompts) != 1 or not by_words:
            raise UserError(
                "an edit takes one image; words (add, remove, from, to, vary) also change the "
                "image that one prompt makes"
            )
        return cls(prompts[0], **changes)

    def inside_of_mask(self, has_prior: bool) -> Edit:
        """Return an edit whose sentences move the image's own embedding if there is a mask."""
        if self.mask is None or not has_prior or not all(isinstance(p, str) for p in self.prompts):
            return self
        vary = (*self.vary, *self.prompts)
        return replace(self, prompts=(), vary=vary, fresh=self.fraction_of_noise)

    def rows(self) -> list[Row]:
        """Return the rows to generate: a prompt each, or a change of the image each."""
        if self.prompts:
            return [Row(((as_source(prompt), 1.0),)) for prompt in self.prompts]
        image = as_source(self.image)
        return [Row(((image, 1.0),), change.label) for change in self.changes()]

    def changes(self) -> list[Change]:
        """Return the changes by words, one for each row: each of `vary`, in `interpolate` steps."""
        pairs = [(PERSON, f"{PERSON} with {text}") for text in self.add]
        pairs += [(f"{PERSON} with {text}", PERSON) for text in self.remove]
        pairs += list(self.change)
        labels = [f"+ {text}" for text in self.add] + [f"− {text}" for text in self.remove]
        labels += [f"{before} → {after}" for before, after in self.change]
        rows = [
            Change(
                ", ".join([*labels, *(f"→ {text}" for text in more)]),
                [*pairs, *((PERSON, text) for text in more)],
                1.0,
            )
            for more in ([[text] for text in varied(self.vary)] or [[]])
        ]
        if self.interpolate is None:
            return rows
        fractions = np.linspace(0, 1, self.interpolate).tolist()
        return [
            Change(f"{row.label}, {fraction:.0%}", row.pairs, fraction)
            for row in rows
            for fraction in fractions
        ]


def sentence_pairs(befores: Sequence[str], afters: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of how the person is and shall be; it is "a person" where only the latter is.

    Raises UserError if there are more of the former.
    """
    if len(befores) > len(afters):
        raise UserError("from says how the person is: say with to how it shall be")
    befores = [*befores, *[PERSON] * (len(afters) - len(befores))]
    return list(zip(befores, afters, strict=True))


def moved_by_words(
    y: torch.Tensor, pairs: Sequence[Sequence[torch.Tensor]], amount: float
) -> torch.Tensor:
    """Move an embedding (D,) by pairs of a prior's samples (N, D), before and after -> (D,)."""
    moved = F.normalize(y[None], dim=1)
    for before, after in pairs:
        moved = with_trait(moved, trait_between(before, after), amount)
    return moved[0] * y.norm()


@torch.enable_grad()  # whole batches at once; their number never changes
def images_of(prior: EmbeddingPrior, condition: torch.Tensor, freedom: float) -> torch.Tensor:
    """Sample embeddings of images that fit a sentence's condition (D,) -> (SAMPLES, D)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, len(condition), generator=generator).to(prior.mean.device)
    offset = prior.offset_from_mean(condition.to(noise)[None], freedom).expand_as(noise)
    return prior.integrate(offset, noise).detach()


class Canvas:
    """The image that is edited, and the part of it that becomes new.

    source: the image, as it is cropped in training. pixels: (S, S, 3) uint8, the same.
    clean: (C, h, w), its latents. new: (1, h, w), 1 = new, 0 = kept, or None = all is new.
    """

    def __init__(self, image: Any, mask: Any, autoencoder: Autoencoder, side: int) -> None:
        """Read, crop and encode an image and its mask; raise UserError if one does not fit."""
        given = as_source(image)
        whole = _whole_image(given)
        self.source = replace(given, content=center_crop(whole, side))
        self.pixels = np.asarray(self.source.content)
        values = torch.tensor(self.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        self.clean = autoencoder.mean_latents(autoencoder.encode_moments(values))[0]
        self.new = self._blend = None
        if mask is not None:
            painted = _painted(mask, whole, side)
            self.new = F.adaptive_max_pool2d(painted[None], self.clean.shape[1:])[0]
            self.new = self.new.to(self.clean.device)
            self._blend = _softened(painted, max(1, round(SEAM * side)))[0, :, :, None].numpy()

    def solver(
        self, denoiser: EDMPrecond, source: torch.Tensor, strength: float, fresh: float
    ) -> Solve:
        """Return a sampler that starts from the image.

        source: (D,), the embedding under which the image is inverted.
        fresh: fraction of fresh noise in the start; with 0 nothing is new but the condition.
        """
        inverted: list[torch.Tensor] = []  # the noise that leads to the image, found once

        def start(noise: torch.Tensor, settings: SamplerSettings) -> torch.Tensor:
            clean = self.clean[None].to(noise) / settings.formulation().t_steps[0]
            if fresh == 1:
                return clean + noise
            if not inverted:
                known: Denoise = guided(denoiser, source[None].to(noise))
                inverted.append(invert(known, self.clean[None].float(), settings) - clean)
            angle = fresh * math.pi / 2
            return clean + math.cos(angle) * inverted[0] + math.sin(angle) * noise

        def solve(denoise: Denoise, noise: torch.Tensor, settings: SamplerSettings) -> torch.Tensor:
            if strength == 0:
                return self.clean.expand_as(noise)
            if settings.S_churn or settings.schedule or settings.scaling:
                raise UserError("an edit takes no S_churn, schedule or scaling; leave them out")
            part = last_part(settings, strength)
            latents = noise if strength == fresh == 1 else start(noise, part)
            if self.new is None:
                return sample(denoise, latents, part)
            x = sample(keeping(denoise, self.clean, self.new), latents, part)
            return torch.where(self.new > 0, x, self.clean.to(x))

        return solve

    def paste(self, images: torch.Tensor) -> torch.Tensor:
        """Lay the new part of images (B, S, S, 3) uint8 over the old pixels."""
        if self._blend is None:
            return images
        mixed = self.pixels + self._blend * (images.numpy().astype(np.float32) - self.pixels)
        return torch.from_numpy(mixed.round().astype(np.uint8))


def _whole_image(source: Source) -> Image.Image:
    """Return the whole image of a source, upright."""
    if isinstance(source.content, Image.Image):
        return source.content
    if source.kind != "image":
        raise UserError(f"{source.label}: only an image can be edited")
    return load_image(source.value)


def _painted(mask: Any, whole: Image.Image, side: int) -> torch.Tensor:
    """Return a mask as it lies on the cropped image, (1, side, side) in [0, 1].

    It has the shape of the whole image, or is square like the crop. Raises UserError otherwise, and
    if nothing in it is white.
    """
    name = mask if isinstance(mask, str | Path) else "the mask"
    if isinstance(mask, Image.Image):
        with refusing("the mask cannot be decoded; repair it or give another"):
            grey = _grey_on_black(mask)
    else:
        with opened_image(mask) as opened:
            grey = _grey_on_black(opened)
    wanted = grey.width / grey.height
    if grey.size == (side, side):
        pass  # painted on the crop itself
    elif abs(wanted * whole.height - whole.width) <= 1:
        grey = center_crop(grey.resize(whole.size, Image.Resampling.BILINEAR), side)
    elif grey.width == grey.height:
        grey = grey.resize((side, side), Image.Resampling.BILINEAR)
    else:
        shape = "square" if whole.width == whole.height else f"{whole.width} x {whole.height}"
        raise UserError(
            f"{name}: is {grey.width} x {grey.height} pixels, and the image {shape}; give the mask "
            "the image's shape, or make it square"
        )
    painted = torch.tensor(np.asarray(grey)).float()[None] / 255
    if painted.max() == 0:
        raise UserError(f"{name}: is black or transparent; paint white what shall change")
    return painted


def _grey_on_black(image: Image.Image) -> Image.Image:
    """Return an opened image as upright 8-bit grey, black where it is transparent."""
    grey = upright_rgb(image).convert("L")
    if not image.has_transparency_data or image.mode.startswith("I"):
        return grey
    alpha = image.convert("RGBA").getchannel("A")
    alpha.info = {"orientation": image.getexif().get(ORIENTATION)}
    return ImageChops.subtract(grey, ImageChops.invert(upright_rgb(alpha).convert("L")))


def _softened(painted: torch.Tensor, width: int) -> torch.Tensor:
    """Return a mask (1, S, S) that falls from 1 to 0 within `width` pixels outside of the paint."""
    grown = F.max_pool2d(painted[None], 2 * width + 1, 1, width)
    edges = F.pad(grown, (width,) * 4, mode="replicate")
    blurred = F.avg_pool2d(edges, 2 * width + 1, 1)
    return torch.maximum(blurred, painted[None])[0]
