"""Compare FID with pytorch-fid, its distance with SciPy's matrix root; measure memory.

python benchmarks/metrics.py --repeats 3 --out docs/benchmarks/metrics.json

Needs requirements-dev.txt, which brings pytorch-fid.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from pytorch_fid.fid_score import calculate_fid_given_paths

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from inception import make_inception_weights

from benchmarks import timing
from utils.config.command_line import HelpFormatter
from utils.config.load import config_from_dict
from utils.data.image_batches import image_batches
from utils.evaluation.feature_networks import FeatureNetwork, Outputs, load_feature_network
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.image_set import ImageSet
from utils.evaluation.metric_names import distance_of
from utils.evaluation.references import Reference

INCEPTION = 2048  # dimensions of the distance
CHEAP = 512  # dimensions of the features of the memory runs
COUNTS = (5_000, 10_000, 20_000, 50_000)
BATCH = 250
PICTURES = 128  # in each of two folders whose FID is measured


class CheapFeatures(FeatureNetwork):
    """Pixels as features, so that only the metrics take time and memory."""

    name = "clip-cheap"
    device = torch.device("cpu")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Scale uint8 to [0, 1]."""
        return images.float() / 255

    def run(self, inputs: torch.Tensor) -> Outputs:
        """Return the first CHEAP values of each image."""
        return Outputs(inputs.flatten(1)[:, :CHEAP])


def images_of(start: int) -> torch.Tensor:
    """Make the batch of random images that starts at an index: uint8 (BATCH, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(start)
    size = (BATCH, 3, 16, 16)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)


def evaluation(count: int) -> timing.Work:
    """Return work that computes all metrics of `count` images in batches."""
    reference = Reference(np.full(CHEAP, 0.5), np.eye(CHEAP) / 10)

    def work() -> float:
        images = ImageSet([CheapFeatures()])
        for start in range(0, count, BATCH):
            images.update(images_of(start), range(start, start + BATCH))
        return distance_of(images.metrics([reference]))

    return work


def all_at_once(count: int) -> timing.Work:
    """Return work of the usual way: keep every feature, then compute mean and covariance."""
    network, reference = CheapFeatures(), (np.full(CHEAP, 0.5), np.eye(CHEAP) / 10)

    def work() -> float:
        batches = [network(images_of(start)).pooled for start in range(0, count, BATCH)]
        features = torch.cat(batches).double().numpy()
        return frechet_distance(features.mean(axis=0), np.cov(features, rowvar=False), *reference)

    return work


def statistics(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and covariance of non-negative random features of different scales."""
    generator = np.random.default_rng(seed)
    scale = np.exp(-3 * np.arange(INCEPTION) / INCEPTION)
    features = np.maximum(generator.normal(0.1 * seed, size=(count, INCEPTION)), 0) * scale
    return features.mean(axis=0), np.cov(features, rowvar=False)


def by_sqrtm(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Compute the Fréchet distance by SciPy's matrix root."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1 + sigma2) - 2 * np.trace(root).real)


def seconds_row(what: str, ways: Mapping[str, timing.Work], repeats: int) -> dict[str, Any]:
    """Time two ways to compute one number, and return the row of the table."""
    taken = timing.interleaved(ways, repeats, warmup=0)
    ours, usual = taken["ours"], taken["usual"]
    return {
        "what": f"{what}: seconds",
        "ours": ours.median,
        "usual": usual.median,
        "usual / ours": usual.median / ours.median,
        "relative difference": f"{abs(ours.result / usual.result - 1):.1e}",
    }


def draw(folder: Path, seed: int) -> Path:
    """Fill a folder with random smooth pictures of 256x256."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(PICTURES):
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}.png")
    return folder


def by_pytorch_fid(folders: list[Path], weights: Path, threads: int) -> float:
    """Compute FID by pytorch-fid, with the given weights instead of its download."""
    tensors = torch.load(weights, weights_only=True)
    with patch("pytorch_fid.inception.load_state_dict_from_url", lambda url, progress: tensors):
        given = list(map(str, folders))
        return float(calculate_fid_given_paths(given, 50, "cpu", INCEPTION, threads))


def by_us(folders: list[Path], weights: Path, threads: int) -> float:
    """Compute FID by our code, with all other metrics of the features."""
    sections = {"eval": {"feature_network": "inception"}, "encoders": {"inception": str(weights)}}
    network = load_feature_network(config_from_dict(sections, "benchmark"))
    generated, reference = ImageSet([network]), ImageSet([network])
    for images, folder in zip((generated, reference), folders, strict=True):
        for indices, batch in image_batches(sorted(folder.iterdir()), None, 48, threads):
            images.update(batch, indices)
    return float(generated.metrics(reference.references())["frechet_distance"])


def main() -> None:
    """Run all comparisons, print the table, write it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    timing.add_arguments(parser)
    args = parser.parse_args()
    timing.start(args)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folders = [draw(folder / str(seed), seed) for seed in (0, 1)]
        weights = make_inception_weights(folder / "inception.pth")
        ways = {
            "ours": partial(by_us, folders, weights, args.threads),
            "usual": partial(by_pytorch_fid, folders, weights, args.threads),
        }
        rows.append(seconds_row(f"FID of 2 x {PICTURES} pictures", ways, args.repeats))
    for count in (4000, 500):
        given = (*statistics(count, 0), *statistics(count, 1))
        ways = {"ours": partial(frechet_distance, *given), "usual": partial(by_sqrtm, *given)}
        what = f"Fréchet distance, {INCEPTION} dimensions, of {count} images"
        rows.append(seconds_row(what, ways, args.repeats))
    for count in COUNTS:
        setups = {"ours": partial(evaluation, count), "usual": partial(all_at_once, count)}
        taken = timing.compare(setups, repeats=1, warmup=0)
        ours, usual = taken["ours"], taken["usual"]
        rows.append(
            {
                "what": f"evaluation of {count:,} images: peak memory, MB",
                "ours": ours.peak / 1e6,
                "usual": usual.peak / 1e6,
                "usual / ours": usual.peak / ours.peak,
                "relative difference": f"{abs(ours.result / usual.result - 1):.1e}",
            }
        )
    notes = [
        "Usual: pytorch-fid, with equal random weights; SciPy's sqrtm of S1 S2; all features held "
        "at once. Ours also computes all other metrics of the features.",
        f"Memory: {CHEAP} cheap features an image. Ours computes all metrics that need no features "
        "of the reference, and keeps the features of up to 10,000 images; usual computes the "
        "distance alone. Memory of Python and PyTorch is included.",
    ]
    timing.report(args.out, "Metrics", rows, notes)


if __name__ == "__main__":
    main()
