"""How often does the picture show what the sentence asked, and where is it lost?

    python demo/check_prompts.py                                   # the shipped model
    python demo/check_prompts.py --ckpt results/demo/checkpoints/0000900.pt --cfg_scale None,1.5,2
    python demo/check_prompts.py --only_encoders                   # no model needed

Held-out faces go down the chain, and after each link a judge names their attributes; what
counts is how often it agrees with what the caption states:

    renders → their VAE reconstructions → a probe on CLIP image embeddings → the same probe on
    caption embeddings → pictures from the image's own embedding → pictures from the caption

Prints a table per attribute and draws it (chain.png). The judge is trained on first use and kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from demo.classifier import (
    classify,
    codes_of,
    load_classifier,
    load_faces,
    predict,
    train_probe,
)
from demo.make_faces import ATTRIBUTES
from utils.base.errors import UserError, one_line_errors
from utils.base.progress import progress
from utils.config.command_line import DEFAULT_CONFIG, HelpFormatter
from utils.config.load import load_config
from utils.config.parsing import parse_scale
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate, sampler_settings

COARSE = ("hair_style", "hair_color", "headwear", "skin", "background", "clothes_color")
CHUNK = 200  # images encoded at a time


def agreement(predicted: Tensor, codes: Tensor, stated: Tensor) -> dict[str, float]:
    """Percent of the stated attributes that are as stated.

    Args:
        predicted, codes: (N, A) int64.
        stated: (N, A) bool.

    Returns:
        attribute → percent, and the means over all and over the coarse ones.
    """
    right = ((predicted == codes) & stated).sum(0) / stated.sum(0).clamp(min=1)
    row = {name: 100 * right[a].item() for a, name in enumerate(ATTRIBUTES)}
    row["mean"] = sum(row[name] for name in ATTRIBUTES) / len(ATTRIBUTES)
    row["coarse mean"] = sum(row[name] for name in COARSE) / len(COARSE)
    return row


def choose_captions(records: list[dict]) -> tuple[list[str], Tensor]:
    """A caption for each face, in turn its first, second, …: texts, and (N, A) bool stated."""
    chosen = [r["captions"][i % len(r["captions"])] for i, r in enumerate(records)]
    stated = [[name in caption["states"] for name in ATTRIBUTES] for caption in chosen]
    return [caption["text"] for caption in chosen], torch.tensor(stated)


def draw_chain(chain: dict[str, dict[str, float]], path: Path, title: str) -> None:
    """The table as a picture: a row for each attribute, a column for each link."""
    names = [*ATTRIBUTES, "mean", "coarse mean"]
    values = [[row[name] for row in chain.values()] for name in names]
    figure, axes = plt.subplots(figsize=(1.5 * len(chain) + 2.2, 6.2), layout="constrained")
    axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=130, aspect="auto")
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            weight = "bold" if names[r] in ("mean", "coarse mean") else "normal"
            axes.text(c, r, f"{value:.0f}", ha="center", va="center", weight=weight)
    axes.set_xticks(range(len(chain)), list(chain), fontsize=9)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.xaxis.tick_top()
    axes.axhline(len(ATTRIBUTES) - 0.5, color="white", linewidth=3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(title, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def print_chain(chain: dict[str, dict[str, float]]) -> None:
    columns = [label.replace("\n", " ") for label in chain]
    for number, column in enumerate(columns, start=1):
        print(f"  ({number}) {column}")
    print(
        f"\n{'stated attribute':<18}" + "".join(f"{f'({n})':>8}" for n in range(1, len(chain) + 1))
    )
    for name in [*ATTRIBUTES, "mean", "coarse mean"]:
        print(f"{name:<18}" + "".join(f"{row[name]:8.1f}" for row in chain.values()))


@torch.inference_mode()
def encoder_chain(
    config, classifier, images: Tensor, records: list[dict], train: tuple[Tensor, list[dict]]
) -> tuple[dict[str, dict[str, float]], Tensor, Tensor]:
    """The links before the diffusion model; also image and caption embeddings (N, D)."""
    codes = codes_of(records)
    texts, stated = choose_captions(records)
    vae, clip = load_config_autoencoder(config), load_config_clip(config)

    def reconstruct(part: Tensor) -> Tensor:
        decoded = vae.decode(vae.mean_latents(vae.encode_moments(part.float() / 127.5 - 1)))
        return (decoded * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)

    def embed(pictures: Tensor, name: str) -> Tensor:
        parts = pictures.split(CHUNK)
        bar = progress(parts, desc=f"CLIP, {name} faces", total=len(parts), unit="batch")
        return torch.cat([clip.encode_images(part) for part in bar])

    rebuilt = torch.cat([reconstruct(part) for part in images.split(50)])
    train_images, train_records = train
    image_embeddings = embed(images, "held-out")
    text_embeddings = clip.encode_texts(texts)
    with torch.inference_mode(False):
        train_embeddings = embed(train_images, "training").clone()
        scale = config.train.perturbation
        probe = train_probe(train_embeddings, codes_of(train_records), scale, steps=3000)

    def ask(embeddings: Tensor) -> Tensor:
        return predict(probe(F.normalize(embeddings, dim=1)))

    chain = {
        "renders": agreement(classify(classifier, images), codes, stated),
        "VAE\nreconstructions": agreement(classify(classifier, rebuilt), codes, stated),
        "CLIP image\nembeddings": agreement(ask(image_embeddings), codes, stated),
        "CLIP caption\nembeddings": agreement(ask(text_embeddings), codes, stated),
    }
    return chain, image_embeddings, text_embeddings


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"),
                        help="model to check")  # fmt: skip
    parser.add_argument(
        "--cfg_scale", help="guidance scales, e.g. None,1.5,2 (default: the config's)"
    )
    parser.add_argument("--num_steps", type=int, help="sampler steps (default: the config's)")
    parser.add_argument("--num", type=int, default=500, help="held-out captions")
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="folder that make_faces.py wrote"
    )
    parser.add_argument("--only_encoders", action="store_true", help="stop before the model")
    parser.add_argument(
        "--out", type=Path, default=Path("results/check_prompts"), help="folder to write into"
    )
    args = parser.parse_args()
    if args.num < 1:
        raise UserError(f"--num must be at least 1, not {args.num}")

    if args.only_encoders:
        config = load_config(DEFAULT_CONFIG)
    else:
        denoiser, config = load_denoiser(args.ckpt)
    train = load_faces(args.data / "train")
    images, records = load_faces(args.data / "test", args.num)
    classifier = load_classifier(args.out / "classifier.safetensors", args.data / "train")
    chain, image_embeddings, text_embeddings = encoder_chain(
        config, classifier, images, records, train
    )

    if not args.only_encoders:
        codes, (_, stated) = codes_of(records), choose_captions(records)
        settings = sampler_settings(config.sampling)
        if args.num_steps:
            settings = replace(settings, num_steps=args.num_steps)
        scales = [config.sampling.cfg_scale]
        if args.cfg_scale:
            scales = [parse_scale(text) for text in args.cfg_scale.split(",")]
        vae = load_config_autoencoder(config)
        conditions_of = {
            "image": F.normalize(image_embeddings, dim=1),
            "caption": caption_conditions(text_embeddings, config),
        }
        for scale in scales:
            for source, conditions in conditions_of.items():
                batches = generate(
                    denoiser,
                    vae,
                    conditions,
                    range(len(records)),
                    settings,
                    cfg_scale=scale,
                    interval=config.sampling.guidance_interval,
                    batch_size=50,
                    amp="bf16",
                )
                total = -(-len(records) // 50)
                label = f"pictures from\n{source}, w={scale}"
                bar = progress(batches, desc=label.replace("\n", " "), total=total, unit="batch")
                pictures = torch.cat([batch for _, batch in bar]).permute(0, 3, 1, 2)
                chain[label] = agreement(classify(classifier, pictures), codes, stated)

    print(f"\nstated attributes shown, % of {len(records)} held-out faces")
    print_chain(chain)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "chain.json").write_text(json.dumps(chain, indent=2) + "\n")
    what = "encoders" if args.only_encoders else str(args.ckpt)
    title = f"stated attributes shown, % of {len(records)} held-out faces, {what}"
    draw_chain(chain, args.out / "chain.png", title)
    print(f"plot: {args.out / 'chain.png'}")


if __name__ == "__main__":
    main()
