"""Few images of another kind: databases, held-out images, and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torch.nn import functional as F

from demo.make_faces import ATTRIBUTES, SIZE, encode_attributes, hide, make_face, render
from research.attributes.model import Model
from research.recipes.evaluation import Tower, colour_distance, held_out_losses
from research.recipes.photos import AVATAR_CLIP
from research.study.material import run_script
from utils.base.errors import UserError
from utils.data.image_batches import iterate_batches
from utils.data.images import list_images
from utils.evaluation.copies import CopyTest, PixelSearch, thumbnails
from utils.evaluation.feature_networks import ClipFeatures
from utils.evaluation.frechet import frechet_distance
from utils.pretrained.denoisers import load_denoiser

ROOT = Path(__file__).resolve().parents[2]
MOST = 1000  # training images
TESTED = 160  # held-out images
LOSS_IMAGES = 100  # of these, whose denoising loss is measured
FACE_BOX = (0.2, 0.12, 0.8, 0.72)  # of a rendered face: left, top, right, bottom
OVAL_BOX = (0.1, 0.02, 0.9, 0.98)  # of a rendered face, as FACE_BOX
SEPIA = ("#1d1208", "#a08560", "#fff3dc")  # of black, middle grey and white
PHOTO_BOX = (0.2, 0.25, 0.8, 0.85)  # of a photograph aligned as FFHQ's


class Material(ABC):
    """Images of another kind, seen through the encoders of the network that adapts to them."""

    metrics: ClassVar[Mapping[str, str]]  # those of the table, and their form
    rates: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # of methods that want others than METHODS
    size = SIZE  # side of the images, pixels

    def __init__(self, base: Path, folder: Path, split: str) -> None:
        """Make what is missing below `folder`; `split`: of the held-out images."""
        self.base, self.folder, self.split = base, folder, split
        self.model = Model.load(base)
        self.network = ClipFeatures(self.model.clip)
        self.real = self.images(split, TESTED)
        self.conditions = F.normalize(self.model.clip.encode_images(self.real), dim=1)
        self.latents = self.encode(self.real)
        self.decoded = self.decode(self.latents)  # the real images that networks are compared with
        self.real_features = self.embed(self.decoded)
        self.known = self.images("train", MOST)

    @abstractmethod
    def image(self, split: str, index: int) -> Image.Image:
        """Return an image of a split, of `size` pixels."""

    def images(self, split: str, count: int) -> Tensor:
        """Return the first images of a split, (N, 3, H, W) uint8."""
        place = self.folder / f"{split}_{count}" / "images"
        place.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            if not (file := place / f"{index:06d}.png").exists():
                self.image(split, index).save(file, compress_level=3)
        return torch.cat(
            list(iterate_batches([image.path for image in list_images(place)], self.size, 100))
        )

    def databases(self, count: int) -> list[str]:
        """Return the settings of a training with the first `count` images."""
        self.images("train", count)
        place = self.folder / f"train_{count}"
        for script, name in (("create_latentspace_lmdb.py", "z"), ("clip_encode_img.py", "y")):
            if not (place / name / "data.mdb").exists():
                where = ["--images", str(place / "images"), "--out", str(place / name)]
                side = self.size // self.model.vae.downsample
                where += [f"data.resolution={self.size}", f"model.in_size={side}"]
                run([f"preprocess_scripts/{script}", "--config", str(self.base), *where])
        roots = {"root": "z", "feat_path": "y", "image_dir": "images"}
        return [f"data.{key}={place / name}" for key, name in roots.items()]

    def embed(self, images: Tensor) -> Tensor:
        """Return features of images, (N, D)."""
        return torch.cat([self.network(part).pooled.float() for part in images.split(100)])

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images, (N, C, h, w)."""
        vae = self.model.vae
        parts = [vae.encode_moments(part.float() / 127.5 - 1) for part in images.split(50)]
        return torch.cat([vae.mean_latents(part) for part in parts])

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, (N, 3, H, W) uint8, which no network of these latents can surpass."""
        parts = [self.model.vae.decode(part) for part in latents.split(50)]
        return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).byte()

    def loss(self, checkpoint: Path) -> float:
        """Return the denoising loss of a network on held-out images."""
        denoiser, _ = load_denoiser(checkpoint)
        losses = held_out_losses(
            denoiser, self.latents[:LOSS_IMAGES], self.conditions[:LOSS_IMAGES]
        )
        return sum(losses) / len(losses)

    def measure(self, images: Tensor, count: int) -> dict[str, Any]:
        """Return the metrics of images of held-out conditions, after `count` training images."""
        features = self.embed(images)
        search = PixelSearch(thumbnails(self.known[:count]))
        near = [search.nearest(thumbnails(part)) for part in (images, self.decoded)]
        copies = CopyTest(*near).metrics()
        found = {name: float(copies[name]) for name in ("copies", "copies_p", "training_distance")}
        distance = distance_of(features, self.real_features)
        return {"distance": distance, **self.agreement(images, features), **found}

    @abstractmethod
    def agreement(self, images: Tensor, features: Tensor) -> dict[str, float]:
        """Return how far images show what their conditions state, and further distances."""

    def generate(self, checkpoint: Path, adapters: Sequence[str] = ()) -> Tensor:
        """Return an image for each held-out condition."""
        self.model.denoiser, _ = load_denoiser(checkpoint, adapters=adapters)
        self.model.prior = None
        sampling = self.model.config.sampling.model_copy(
            update={"freedom": 0.0, "amp": "bf16", "cfg_scale": None, "num_steps": 5}
        )
        return self.model.generate(self.conditions, range(len(self.conditions)), sampling)


class RenderedFaces(Material):
    """Rendered faces, whose attributes are known."""

    metrics: ClassVar = {"distance": ".1f", "attributes": ".1%", "copies": ".1%"}

    def __init__(self, base: Path, folder: Path, split: str) -> None:
        """See `Material`."""
        super().__init__(base, folder, split)
        self.codes = self._codes(split, TESTED)
        self.probe = fit_probe(
            with_colours(self.known, self.embed(self.known)), self._codes("train", MOST)
        )

    def agreement(self, images: Tensor, features: Tensor) -> dict[str, float]:
        """Return the fraction of attributes that a linear classifier sees as they should be."""
        shown = self.probe(with_colours(images, features)) == self.codes
        return {"attributes": float(shown.float().mean())}

    @staticmethod
    def _codes(split: str, count: int) -> Tensor:
        """Return the attributes of the first faces of a split, (N, A)."""
        return torch.tensor([encode_attributes(hide(face(split, i))) for i in range(count)])


class Heads(RenderedFaces):
    """Rendered faces of which the head fills the image."""

    def image(self, split: str, index: int) -> Image.Image:
        """Render a face at twice the size, and cut its head."""
        return crop(render(face(split, index), 2 * SIZE), FACE_BOX)


class SepiaFaces(RenderedFaces):
    """Rendered faces as in old photographs, from brown to cream."""

    def image(self, split: str, index: int) -> Image.Image:
        """Render a face, and give its grey levels the colours of SEPIA."""
        return in_sepia(render(face(split, index)))


class OvalFaces(RenderedFaces):
    """Rendered faces in a white passe-partout with an oval window."""

    def image(self, split: str, index: int) -> Image.Image:
        """Render a face, and hide what is outside of the window."""
        image, window = render(face(split, index)).convert("RGB"), Image.new("L", (2 * SIZE,) * 2)
        ImageDraw.Draw(window).ellipse([2 * SIZE * side for side in OVAL_BOX], fill=255)
        return Image.composite(
            image, Image.new("RGB", image.size, "white"), window.resize(image.size)
        )


class Photographs(Material):
    """Photographs, also seen by the image tower of the demo's CLIP and by their colours alone.

    The CLIP of the condition sees what it asked for itself, and hardly how the image was taken.
    """

    metrics: ClassVar = {
        "distance": ".1f",
        "in other features": ".1f",
        "colours": ".2f",
        "cosine": ".3f",
        "copies": ".1%",
    }
    rates: ClassVar = {  # the better ones of --tune
        "all": ("train.lr=3e-4", "train.muon_lr=1.5e-3"),
        "lora": ("train.lr=3e-3",),
        "lora, rank 16": ("train.lr=3e-3",),
        "difffit": ("train.lr=1e-2",),
    }

    def __init__(self, base: Path, folder: Path, split: str) -> None:
        """See `Material`."""
        super().__init__(base, folder, split)
        self.other = Tower(AVATAR_CLIP, self.decoded, torch.device("cpu"))

    def image(self, split: str, index: int) -> Image.Image:
        """Alter a photograph; "other" and "tuning" have the last ones of the training's folder."""
        data = self.model.config.data
        folder = self.model.config.eval.image_dir if split == "test" else data.image_dir
        if folder is None:
            raise UserError(f"{self.base}: its config names no {split} images to alter")
        files = [image.path for image in list_images(folder)]
        with Image.open(files[index if split in ("train", "test") else -1 - index]) as photo:
            return self.altered(photo.convert("RGB"))

    @staticmethod
    @abstractmethod
    def altered(photo: Image.Image) -> Image.Image:
        """Return a photograph of another kind."""

    def agreement(self, images: Tensor, features: Tensor) -> dict[str, float]:
        """Return two further distances, and the mean cosine of embeddings and conditions."""
        cosines = F.cosine_similarity(features, self.conditions)
        return {
            "in other features": distance_of(self.other(images), self.other.features),
            "colours": colour_distance(images, self.decoded),
            "cosine": float(cosines.mean()),
        }


class CloseUps(Photographs):
    """Eyes, nose and mouth, which fill the image."""

    @staticmethod
    def altered(photo: Image.Image) -> Image.Image:
        """Cut the middle of a face."""
        return crop(photo, PHOTO_BOX)


class OldPhotographs(Photographs):
    """Photographs as they were a hundred years ago, from brown to cream."""

    @staticmethod
    def altered(photo: Image.Image) -> Image.Image:
        """Give the grey levels of a photograph the colours of SEPIA."""
        return in_sepia(photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


TASKS: dict[str, type[Material]] = {
    "heads": Heads,
    "sepia": SepiaFaces,
    "ovals": OvalFaces,
    "close_ups": CloseUps,
    "old_photographs": OldPhotographs,
}


def face(split: str, index: int) -> Any:
    """Return face `index` of a split."""
    return make_face(f"crop-{split}", index, 1)[0]


def crop(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Return a part of a square image, of SIZE pixels; `box` from 0 to 1."""
    left, top, right, bottom = (round(image.width * side) for side in box)
    return image.crop((left, top, right, bottom)).resize((SIZE, SIZE))


def in_sepia(image: Image.Image) -> Image.Image:
    """Return an image whose grey levels have the colours of SEPIA."""
    dark, middle, light = SEPIA
    return ImageOps.colorize(image.convert("L"), dark, light, middle)


def distance_of(features: Tensor, real: Tensor) -> float:
    """Return the Fréchet distance of features (N, D) and those of real images (M, D)."""
    both = [part.double().numpy() for part in (features, real)]
    moments = [m for part in both for m in (part.mean(axis=0), np.cov(part, rowvar=False))]
    return frechet_distance(*moments)


def with_colours(images: Tensor, features: Tensor) -> Tensor:
    """Return features of images (N, D) with their mean colours in 8×8 cells, (N, D + 192)."""
    return torch.cat([features, F.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)], dim=1)


def fit_probe(features: Tensor, targets: Tensor) -> Any:
    """Return a linear classifier of each attribute, features (N, D) -> (N, A), by ridge."""
    mean, std = features.mean(dim=0), features.std(dim=0) + 1e-3

    def scaled(x: Tensor) -> Tensor:
        return F.pad((x - mean) / std, (0, 1), value=1.0).double()

    x = scaled(features)
    counts = [len(values) + 1 for values in ATTRIBUTES.values()]  # and "hidden"
    hot = [F.one_hot(c + 1, n) for c, n in zip(targets.unbind(1), counts, strict=True)]
    inverse = torch.linalg.inv(x.T @ x + 100 * torch.eye(x.shape[1], dtype=x.dtype))
    weights = inverse @ x.T @ torch.cat(hot, dim=1).double()
    return lambda new: torch.stack(
        [part.argmax(dim=1) - 1 for part in (scaled(new) @ weights).split(counts, dim=1)], dim=1
    )


def run(words: list[str]) -> None:
    """Run a script of the project without its output; raise UserError if it stops."""
    run_script(*words, shown=False)
