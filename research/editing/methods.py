"""The ways to edit faces that are compared, for many faces at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.editing import trait_between, with_trait
from models.embedding_prior import EmbeddingPrior
from models.samplers import SeededNoise, guided, invert, last_part, sample
from research.attributes.model import Model
from research.editing.faces import ALL_EDITS, Faces
from utils.base.errors import UserError
from utils.sampling.editing import images_of
from utils.sampling.generate import AMP_DTYPES, latent_shape, sampler_settings


@dataclass(frozen=True)
class Setting:
    """method: a key of METHODS. amount: of its change. guidance: scale. fresh: noise, 0 to 1."""

    method: str
    amount: float = 1.0
    guidance: float | None = None
    fresh: float = 0.0

    @property
    def name(self) -> str:
        """Return the name that results are kept under."""
        return f"{self.method}:{self.amount:g} cfg {self.guidance or 1:g} fresh {self.fresh:g}"


class Editor:
    """A network that edits images (N, 3, H, W) uint8 by every method."""

    def __init__(self, checkpoint: Path) -> None:
        """Load the network, its encoders and its prior; raise UserError without a prior."""
        self.model = Model.load(checkpoint)
        if self.model.prior is None:
            raise UserError(f"{checkpoint}: has no prior, which edits by words need")
        sampling = self.model.config.sampling
        self.settings, self.freedom = sampler_settings(sampling), float(sampling.freedom)
        self.amp, self.interval = AMP_DTYPES[sampling.amp], sampling.guidance_interval
        self.samples, self.known = cache(self._samples), cache(self._invert)

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings of unit length, (N, D)."""
        return F.normalize(self.model.clip.encode_images(images), dim=1)

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images, (N, C, h, w)."""
        vae = self.model.vae
        return vae.mean_latents(vae.encode_moments(images.float() / 127.5 - 1))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents."""
        pixels = self.model.vae.decode(latents.float())
        return (pixels * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)

    def _samples(self, sentence: str) -> Tensor:
        """Return the prior's embeddings of images of a sentence."""
        assert isinstance(self.model.prior, EmbeddingPrior)
        return images_of(self.model.prior, self.model.conditions([sentence])[0], self.freedom)

    def text(self, sentence: str) -> Tensor:
        """Return a sentence's embedding of unit length, (1, D)."""
        return F.normalize(self.model.clip.encode_texts([sentence]), dim=1)

    def sentences(self, texts: list[str]) -> Tensor:
        """Return an embedding of an image for each sentence, as `t2f.py --prompt` samples it."""
        assert self.model.prior is not None
        y = self.model.conditions(texts)
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        return self.model.prior.sample(y, noise, self.freedom)

    @torch.inference_mode()
    def edit(self, name: str, faces: Faces, setting: Setting) -> tuple[Tensor, Tensor]:
        """Return the latents (N, C, h, w) of edited faces, and images (N, 3, H, W) uint8."""
        own, clean, inverted = self.known(faces)
        y = METHODS[setting.method](self, name, faces, own, setting.amount)
        part, strength = self.settings, setting.method == "strength"
        if strength:
            part = last_part(part, setting.amount)
        denoise = guided(self.model.denoiser, y, setting.guidance, self.interval)
        seeds = SeededNoise(range(len(y))).randn(latent_shape(self.model.denoiser))
        with torch.autocast("cpu", self.amp):
            if strength:
                start = clean / part.formulation().t_steps[0] + seeds
            else:
                angle = setting.fresh * math.pi / 2
                signal = clean / part.formulation().t_steps[0]
                start = signal + math.cos(angle) * (inverted - signal) + math.sin(angle) * seeds
            latents = sample(denoise, start, part).float()
            return latents, self.decode(latents)

    def _invert(self, faces: Faces) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embeddings of faces, their latents, and the noise that leads to them."""
        own, clean = self.embed(faces.images), self.encode(faces.images)
        with torch.autocast("cpu", self.amp):
            return own, clean, invert(guided(self.model.denoiser, own), clean, self.settings)


# (editor, name of the edit, faces, their embeddings (N, D), amount) -> conditions (N, D).
Method = Callable[[Editor, str, Faces, Tensor, float], Tensor]


def by_words(editor: Editor, name: str, _: Faces, own: Tensor, amount: float) -> Tensor:
    """Move embeddings as `t2f.py --add` does."""
    before, after = (editor.samples(text) for text in ALL_EDITS[name][:2])
    return with_trait(own, trait_between(before, after), amount)


def by_texts(editor: Editor, name: str, _: Faces, own: Tensor, amount: float) -> Tensor:
    """Move embeddings along the difference of the sentences' own (Ramesh 2022, section 3.3)."""
    before, after = (editor.text(text) for text in ALL_EDITS[name][:2])
    return F.normalize(own + amount * (after - before), dim=1)


def mixed(editor: Editor, name: str, _: Faces, own: Tensor, amount: float) -> Tensor:
    """Mix embeddings with that of the second sentence, the weight of which is `amount`."""
    return F.normalize(own.lerp(editor.text(ALL_EDITS[name].after), amount), dim=1)


METHODS: dict[str, Method] = {
    "words": by_words,
    "texts": by_texts,
    "mixed": mixed,
    "caption": lambda editor, _, faces, own, amount: editor.sentences(faces.captions),
    "strength": lambda editor, _, faces, own, amount: editor.sentences(faces.captions),
    "target": lambda editor, _, faces, own, amount: editor.embed(faces.targets),
    "own": lambda editor, _, faces, own, amount: own,
}
