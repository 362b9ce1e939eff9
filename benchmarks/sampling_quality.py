"""Quality of pictures against the network evaluations that they cost, for each solver.

    python benchmarks/sampling_quality.py --num 500            # all settings; resumes
    python benchmarks/sampling_quality.py --num 1000 --only 'fast;heun 20'
    python benchmarks/sampling_quality.py --num 500 --plot docs/sampling.png

Every setting draws the same captions of the demo's test split from the same seeds with the shipped
network. Judged are the Fréchet distance in CLIP features to the test images, the CLIP score, and
which stated attributes a classifier finds (demo/classifier.py). Intervals are 95 % of a bootstrap
over images; differences to `paper` resample both in the same way, so that they are sharper.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks import timing
from demo.check_prompts import choose_captions
from demo.classifier import classify, codes_of, load_classifier, load_faces
from models.samplers import SamplerSettings
from utils.base.errors import one_line_errors
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter
from utils.config.sections import Sampling
from utils.evaluation.feature_statistics import FeatureStats
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.metrics import clip_similarities
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate, sampler_settings

CHUNK = 50  # images drawn and kept at a time
DRAWS = 200  # of the bootstrap


@dataclass(frozen=True)
class Setting:
    """A way of sampling, and the curve of the plot that it lies on."""

    curve: str
    settings: SamplerSettings
    interval: tuple[float, float] | None = None
    amp: str = "bf16"

    @property
    def cost(self) -> int:
        """Images that the network sees for one picture; guidance counts double."""
        levels = self.settings.formulation().t_steps[:-1]
        low, high = self.interval or (0.0, float("inf"))
        costs = [2 if low < level <= high else 1 for level in levels]
        if self.settings.solver == "heun":
            return sum(costs) + sum(costs[1:])
        return sum(costs)


def settings_to_compare() -> dict[str, Setting]:
    """All settings by name; `paper` and `fast` are the presets."""
    presets = {name: Sampling(preset=name) for name in ("paper", "fast")}
    found = {
        name: Setting(curve, sampler_settings(p), p.guidance_interval, p.amp)
        for (name, p), curve in zip(presets.items(), ("Heun", "preset `fast`"), strict=True)
    }
    for solver, label, steps in (
        ("dpmpp_2m", "DPM-Solver++(2M)", (5, 8, 10, 15, 20)),
        ("heun", "Heun", (5, 10, 20)),
        ("euler", "Euler", (10, 20)),
    ):
        for n in steps:
            found[f"{solver} {n}"] = Setting(label, SamplerSettings(solver, n))
    for name, schedule, scaling in (
        ("vp", "vp", "vp"),
        ("ve", "ve", "none"),
        ("iddpm", "linear", "none"),
    ):
        ablation = SamplerSettings(
            "heun", 10, discretization=name, schedule=schedule, scaling=scaling
        )
        found[f"heun 10, {name}"] = Setting(f"Heun, {name} steps", ablation)
    ten = SamplerSettings("dpmpp_2m", 10)
    for low, high in ((0.3, 100.0), (0.3, 5.0)):
        found[f"dpmpp_2m 10, guided {low:g} to {high:g}"] = Setting("", ten, (low, high))
    return found


class Pictures:
    """Draws and judges pictures of the test captions, keeping what was judged in a folder."""

    def __init__(self, args: argparse.Namespace):
        self.folder, self.num = args.out_dir, args.num
        self.judge_file = args.judge or args.out_dir / "classifier.safetensors"
        self.train_faces = args.data / "train"
        self.denoiser, self.config = load_denoiser(args.ckpt)
        self.vae = load_config_autoencoder(self.config)
        self.clip = load_config_clip(self.config)
        images, records = load_faces(args.data / "test")
        records = records[: self.num]
        texts, self.stated = choose_captions(records)
        self.codes = codes_of(records)
        self.texts = self.clip.encode_texts(texts)
        self.conditions = caption_conditions(self.texts, self.config)
        self.real = FeatureStats()
        self.real.update(torch.cat([self.clip.encode_images(part) for part in images.split(CHUNK)]))

    @cached_property
    def classifier(self) -> torch.nn.Module:
        """The judge of attributes, trained on first use."""
        return load_classifier(self.judge_file, self.train_faces)

    def draw(self, name: str, setting: Setting) -> torch.Tensor:
        """(N, H, W, 3) uint8, those that are not kept already."""
        file = self.folder / f"{name.replace(' ', '_').replace(',', '')}.pt"
        images = torch.load(file, weights_only=True) if file.exists() else torch.zeros(0)
        done = len(images)
        batches = generate(
            self.denoiser,
            self.vae,
            self.conditions[done:],
            range(done, self.num),
            setting.settings,
            cfg_scale=self.config.sampling.cfg_scale,
            interval=setting.interval,
            batch_size=CHUNK,
            amp=setting.amp,
        )
        for _, new in progress(batches, name, -(-max(self.num - done, 0) // CHUNK), "batches"):
            images = torch.cat([images, new]) if len(images) else new
            torch.save(images, file)
        return images[: self.num]

    def judge(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`features` (N, D), and `right` (N, A): which attributes are those of the face."""
        images = images.permute(0, 3, 1, 2)
        features = torch.cat([self.clip.encode_images(part) for part in images.split(CHUNK)])
        return {"features": features, "right": classify(self.classifier, images) == self.codes}

    def figures(self, judged: Mapping[str, torch.Tensor], rows: np.ndarray) -> np.ndarray:
        """Fréchet distance, CLIP score and % of stated attributes shown, of the images `rows`."""
        features = judged["features"][rows]
        ours = FeatureStats()
        ours.update(features)
        distance = frechet_distance(ours.mu, ours.sigma, self.real.mu, self.real.sigma)
        score = clip_similarities(features, self.texts[rows]).mean()
        stated = self.stated[rows]
        shown = 100 * (judged["right"][rows] & stated).sum() / stated.sum()
        return np.array([distance, float(score), float(shown)])


def draw_plot(rows: list[dict], band: tuple[float, float], path: Path, title: str) -> None:
    """Fréchet distance and attribute accuracy against the cost of a picture."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    keys = ("Fréchet distance", "attributes shown, %")
    for axis, key in zip(axes, keys, strict=True):
        for curve in dict.fromkeys(row["curve"] for row in rows if row["curve"]):
            points = sorted((r["cost"], r[key]) for r in rows if r["curve"] == curve)
            label, style = curve.replace("`", ""), "*" if "fast" in curve else "o-"
            size = 11 if "fast" in curve else 4
            axis.plot(*zip(*points, strict=True), style, markersize=size, label=label)
        axis.set_xscale("log")
        axis.set_xticks([10, 20, 40, 80, 160], ["10", "20", "40", "80", "160"])
        axis.minorticks_off()
        axis.set_xlabel("network evaluations a picture, guidance counted double")
        axis.set_ylabel(key)
        axis.grid(alpha=0.3)
    # Settings that fail would hide the differences among those that do not.
    paper = next(row for row in rows if row["setting"] == "paper")
    axes[0].set_ylim(0.5 * paper[keys[0]], 2.5 * paper[keys[0]])
    axes[1].set_ylim(paper[keys[1]] - 14, paper[keys[1]] + 4)
    axes[0].axhspan(*band, color="gray", alpha=0.2, label="40 Heun steps, 95 %")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--num", type=int, default=500, help="pictures of each setting")
    parser.add_argument("--only", help="names of settings, separated by semicolons; None = all")
    parser.add_argument("--only_draw", action="store_true", help="keep pictures, judge later")
    parser.add_argument(
        "--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="network to ask"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder that make_faces.py wrote"
    )
    parser.add_argument(
        "--judge", type=Path, help="trained classifier; None = in --out_dir, trained on first use"
    )
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("results/sampling_quality"),
        help="where pictures are kept",
    )
    parser.add_argument("--plot", type=Path, help="PNG to write; None = none")
    parser.add_argument("--out", type=Path, help="JSON of the table to write; None = none")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    settings = settings_to_compare()
    if args.only:
        names = args.only.split(";")
        names = names if args.only_draw else dict.fromkeys(["paper", *names])
        settings = {name: settings[name] for name in names}
    pictures = Pictures(args)
    drawn = {name: pictures.draw(name, setting) for name, setting in settings.items()}
    if args.only_draw:
        return
    judged = {name: pictures.judge(images) for name, images in drawn.items()}

    everything, rng = np.arange(args.num), np.random.default_rng(0)
    draws = [rng.integers(args.num, size=args.num) for _ in range(DRAWS)]
    bootstrap = {
        name: np.stack([pictures.figures(found, draw) for draw in draws])
        for name, found in judged.items()
    }
    rows = []
    for name, setting in settings.items():
        distance, score, shown = pictures.figures(judged[name], everything)
        apart = np.percentile(bootstrap[name] - bootstrap["paper"], [2.5, 97.5], axis=0)
        low, high = (apart.T[:, i] for i in (0, 1))
        rows.append(
            {
                "setting": name,
                "cost": setting.cost,
                "Fréchet distance": distance,
                "against paper": f"{low[0]:+.1f} … {high[0]:+.1f}",
                "CLIP score": score,
                "its difference": f"{low[1]:+.2f} … {high[1]:+.2f}",
                "attributes shown, %": shown,
                "theirs": f"{low[2]:+.1f} … {high[2]:+.1f}",
            }
        )
    # A bootstrap repeats images, which shifts the distance; its spread is what counts.
    spread = np.percentile(bootstrap["paper"][:, 0], [2.5, 50, 97.5])
    centre = rows[0]["Fréchet distance"]
    band = centre + spread[0] - spread[1], centre + spread[2] - spread[1]
    scale = pictures.config.sampling.cfg_scale
    title = f"{args.num} pictures of test captions, guidance {scale:g}, shipped network"
    notes = [f"Distance of `paper`, 95 %: {band[0]:.1f} … {band[1]:.1f} (bootstrap over images)."]
    timing.report(args.out, f"Quality of sampling: {title}", rows, notes)
    if args.plot:
        with_curves = [{**row, "curve": settings[row["setting"]].curve} for row in rows]
        draw_plot(with_curves, band, args.plot, title)


if __name__ == "__main__":
    main()
