"""The attribute classifier, which names the attributes of an image; and a probe for embeddings.

The classifier is a small convolutional network with one head per attribute. It is trained on
rendered faces that are blurred, shifted and made noisy, so that it does not depend on clean edges.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.make_faces import ATTRIBUTES, encode_attributes
from models.perturbation import Perturbation, perturb
from utils.base.errors import UserError
from utils.base.progress import progress
from utils.data.image_batches import iterate_batches
from utils.data.images import list_images

SIZES = [len(values) for values in ATTRIBUTES.values()]  # classes of each attribute
CHUNK = 200  # images that are classified at once


def add_classifier_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the rendered faces and the classifier that is trained on them."""
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder of the rendered faces"
    )
    add_classifier_file(parser)


def add_classifier_file(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the file of the classifier."""
    parser.add_argument(
        "--classifier",
        type=Path,
        default=Path("results/check_prompts/classifier.safetensors"),
        help="attribute classifier, trained on first use",
    )


def split_heads(logits: Tensor) -> list[Tensor]:
    """Split logits (N, all classes) into (N, classes) for each attribute."""
    return list(logits.split(SIZES, dim=1))


def attribute_loss(logits: Tensor, codes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy over attributes that the faces show, mean over attributes.

    Args:
        logits: (N, all classes).
        codes: (N, A) int64 of `encode_attributes`; −1 (hidden) does not count.
        weights: (A,) factors of the attributes with mean 1; None weights all alike.
    """
    heads = split_heads(logits)
    losses = [
        F.cross_entropy(head, codes[:, a], ignore_index=-1, reduction="sum")
        / (codes[:, a] >= 0).sum().clamp(min=1)
        for a, head in enumerate(heads)
    ]
    stacked = torch.stack(losses)
    return stacked.mean() if weights is None else (weights * stacked).mean()


def predict(logits: Tensor) -> Tensor:
    """Return the most likely value of each attribute: logits (N, all classes) → (N, A) int64."""
    return torch.stack([head.argmax(1) for head in split_heads(logits)], dim=1)


def build_classifier() -> nn.Sequential:
    """Return the untrained classifier: (N, 3, 128, 128) in [−1, 1] → logits (N, all classes)."""

    def stage(channels: int, out: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        return [convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *stage(3, 16, 2),  # 64×64
        *stage(16, 32, 1),
        *stage(32, 48, 2),  # 32×32
        *stage(48, 64, 1),
        *stage(64, 96, 2),  # 16×16
        *stage(96, 128, 1),
        *stage(128, 128, 2),  # 8×8; the linear layer sees the position of each cell
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128 * 8 * 8, sum(SIZES)),
    )


def roughen(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, blur and add noise to images (N, 3, 128, 128), as autoencoders and generators do."""
    n = len(pixels)
    padded = F.pad(pixels, (3, 3, 3, 3), mode="replicate")
    top, left = torch.randint(0, 7, (2,), generator=generator).tolist()
    pixels = padded[:, :, top : top + 128, left : left + 128]
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(n, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator)
    std = 0.1 * torch.rand(n, 1, 1, 1, generator=generator)
    return pixels.lerp(blurred, amount) + std * noise


def load_records(folder: Path, limit: int | None = None) -> list[dict]:
    """Read the records of the first `limit` faces of a split of `make_faces.py`.

    Raise UserError if the split has not been made.
    """
    index = folder / "faces.jsonl"
    if not index.exists():
        raise UserError(f"{index} is not there; make the faces: python demo/make_faces.py")
    return [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()[:limit]]


def load_faces(folder: Path, limit: int | None = None) -> tuple[Tensor, list[dict]]:
    """Read the first `limit` faces of a split: the images (N, 3, 128, 128) uint8 and their records.

    Raise UserError if the split has not been made.
    """
    records = load_records(folder, limit)
    paths = [path for _, path in list_images(folder / "images")[: len(records)]]
    return torch.cat(list(iterate_batches(paths, 128, CHUNK))), records


def codes_of(records: list[dict]) -> Tensor:
    """Return the attributes of records as numbers, (N, A) int64; see `encode_attributes`."""
    return torch.tensor([encode_attributes(record["attributes"]) for record in records])


@torch.inference_mode()
def classify(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return the attributes that images show: (N, 3, 128, 128) uint8 → (N, A) int64."""
    logits = [classifier(part.float() / 127.5 - 1) for part in images.split(CHUNK)]
    return predict(torch.cat(logits))


def load_classifier(cache: Path, train_folder: Path, epochs: int = 6) -> nn.Module:
    """Return the classifier in the file `cache`; without a file, train (minutes) and write it."""
    classifier = build_classifier()
    if cache.exists():
        classifier.load_state_dict(load_file(cache))
        return classifier.eval()
    images, records = load_faces(train_folder)
    train_classifier(classifier, images, codes_of(records), epochs)
    classifier.to(memory_format=torch.contiguous_format)
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), cache)
    return classifier.eval()


def train_classifier(classifier: nn.Module, images: Tensor, codes: Tensor, epochs: int) -> None:
    """Train the classifier by AdamW with a one-cycle learning rate and batches of 64.

    images: (N, 3, 128, 128) uint8. codes: (N, A) int64.
    """
    batch, peak = 64, 2e-3
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(classifier.parameters(), peak, weight_decay=0.05)
    steps = epochs * (len(images) // batch)
    order = np.concatenate(
        [torch.randperm(len(images), generator=generator).numpy() for _ in range(epochs + 1)]
    )
    classifier.train().to(memory_format=torch.channels_last)
    for step in progress(range(steps), desc="attribute classifier", total=steps, unit="step"):
        lr = peak * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        picked = torch.from_numpy(order[step * batch : (step + 1) * batch])
        pixels = roughen(images[picked].float() / 127.5 - 1, generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier(pixels.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad(set_to_none=True)
        attribute_loss(logits.float(), codes[picked]).backward()
        optimizer.step()


def train_probe(embeddings: Tensor, codes: Tensor, perturb_scale: float, steps: int) -> nn.Module:
    """Train a probe that names attributes from an embedding.

    It is trained on perturbed image embeddings, like the diffusion model, so that it can read text
    embeddings too.

    Args:
        embeddings: (N, D) image embeddings.
        codes: (N, A) int64.
        perturb_scale: standard deviation of the gaussian perturbation.
        steps: training steps of 256 embeddings.
    """
    torch.manual_seed(0)
    probe = nn.Sequential(
        nn.Linear(embeddings.shape[1], 512), nn.GELU(), nn.Dropout(0.1), nn.Linear(512, sum(SIZES))
    )
    optimizer = torch.optim.AdamW(probe.parameters(), 1e-3, weight_decay=0.01)
    for step in progress(range(steps), desc="probe", total=steps, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        picked = torch.randint(len(embeddings), (256,))
        inputs = perturb(embeddings[picked], Perturbation("gaussian", perturb_scale))
        optimizer.zero_grad(set_to_none=True)
        attribute_loss(probe(inputs), codes[picked]).backward()
        optimizer.step()
    return probe.eval()
