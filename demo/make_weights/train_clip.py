"""Train the demo's CLIP on rendered faces and their captions (about an hour on 2 cores).

    python demo/make_weights/train_clip.py    # → assets/demo/clip, resumes if interrupted
    python demo/make_weights/train_clip.py --steps 200 --out /tmp/clip

Faces come in groups of four that differ in one attribute, and each caption names it, so that a
batch cannot be told apart without seeing that attribute. Since captions leave things out, one
caption may be true of several faces of the batch; all of them count as its partners (the
target of the contrastive loss is uniform over them). A linear layer that both embeddings share,
and that is thrown away afterwards, has to name the attributes: from an image all that it shows,
from a caption all that it states. It makes the small features (mouth, eyes, facial hair) heard
early on; and since it reads perturbed embeddings, as the diffusion model will, they are written
large enough to survive the perturbation. Prints held-out retrieval at the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import sys
import time
from multiprocessing import Pool, cpu_count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from demo import captions
from demo.classifier import SIZES, attribute_loss
from demo.make_faces import (
    ATTRIBUTES,
    draw_attributes,
    encode_attributes,
    hide,
    make_face,
    render,
)
from demo.make_weights.resumable import resume, save, set_lr
from models.clip import MERGES_NAME, encode_tokens, load_clip
from models.perturbation import Perturbation, perturb
from utils.base.errors import UserError, one_line_errors
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter

CONFIG = {
    "model_cfg": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 128, "layers": [1, 2, 3, 2], "width": 16},
        "text_cfg": {"context_length": 77, "width": 128, "heads": 4, "layers": 3},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
GROUP = 4
PERTURBATION = Perturbation("gaussian", 1.0)
HEAD_SCALE = 10.0  # embeddings of unit length are multiplied by this for the attribute layer

# Attributes whose four variants look alike get more of the groups.
ATTRIBUTE_WEIGHTS = {"expression": 3, "eyes": 2, "facial_hair": 3, "clothes": 3, "glasses": 1.5}


def write_merges(path: Path) -> int:
    """Write the byte-pair merges that the demo's words need, out of CLIP's own; return how many.

    Any other word still has an encoding, letter by letter.
    """
    said = [
        caption["text"] for i in range(2000) for caption in make_face("words", i, 4)[1]["captions"]
    ]
    words = set(re.findall(r"[a-z]+", " ".join(said)))
    tokenizer = open_clip.SimpleTokenizer()
    needed = set()
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pairs = list(zip(pieces, pieces[1:], strict=False))
            pair = min(pairs, key=lambda p: tokenizer.bpe_ranks.get(p, math.inf))
            if pair not in tokenizer.bpe_ranks:
                break
            needed.add(pair)
            at = pairs.index(pair)
            pieces[at : at + 2] = ["".join(pair)]
    merges = sorted(needed, key=tokenizer.bpe_ranks.get)
    body = "\n".join(["#merges used by the demo's captions", *(" ".join(m) for m in merges)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(body.encode(), mtime=0))
    return len(merges)


def make_group(index: int) -> tuple[list[dict[str, str]], str]:
    """Four faces that differ in one attribute, and its name."""
    rng = random.Random(f"clip-{index}")
    face = draw_attributes(rng)
    names = list(ATTRIBUTES)
    name = rng.choices(names, [ATTRIBUTE_WEIGHTS.get(n, 1) for n in names])[0]
    # The attribute must be in sight.
    if name in ("hair_style", "hair_color"):
        face["headwear"] = "none"
    if name == "headwear_color" and face["headwear"] == "none":
        face["headwear"] = rng.choice(ATTRIBUTES["headwear"][1:])
    if name == "eyes" and face["glasses"] == "sunglasses":
        face["glasses"] = rng.choice(["none", "round"])
    values = ATTRIBUTES[name]
    chosen = rng.sample(values, min(GROUP, len(values)))
    chosen += rng.choices(values, k=GROUP - len(chosen))
    return [face | {name: value} for value in chosen], name


def render_group(index: int) -> np.ndarray:
    """(4, 128, 128, 3) uint8"""
    return np.stack([np.asarray(render(face)) for face in make_group(index)[0]])


def render_all(cache: Path, groups: int) -> np.ndarray:
    """All training faces, (groups, 4, 128, 128, 3) uint8, kept in a file for the next start."""
    if cache.exists():
        images = np.load(cache, mmap_mode="r", allow_pickle=False)
        if len(images) >= groups:
            return images[:groups]
    with Pool(cpu_count()) as pool:
        stream = pool.imap(render_group, range(groups), chunksize=32)
        stream = progress(stream, desc="faces in groups", total=groups, unit="group")
        images = np.stack(list(stream))
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, images)
    return images


def truth(codes: np.ndarray, stated: np.ndarray) -> Tensor:
    """Which caption is true of which face.

    Args:
        codes: (N, A) int, value of each attribute of face i (caption i is about face i).
        stated: (N, A) bool, what caption i states.

    Returns:
        (N captions, N faces) bool
    """
    agree = codes[:, None, :] == codes[None, :, :]
    return torch.from_numpy((agree | ~stated[:, None, :]).all(axis=2))


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy with all true partners as targets.

    Args:
        image, text: (N, D) of unit length.
        scale: inverse temperature.
        true: (N captions, N faces) bool.
    """
    logits = scale * text @ image.T
    to_image = true.float() / true.sum(1, keepdim=True)
    to_text = true.T.float() / true.T.sum(1, keepdim=True)
    return (F.cross_entropy(logits, to_image) + F.cross_entropy(logits.T, to_text)) / 2


@torch.no_grad()
def retrieval(folder: Path, count: int = 500) -> float:
    """Caption → image R@1 in percent among held-out faces, by the fullest of six captions."""
    clip = load_clip(folder)
    records = [make_face("test", i, num_captions=6) for i in range(count)]
    # The caption that says most: short ones are true of many faces.
    texts = [max(r["captions"], key=lambda c: len(c["states"]))["text"] for _, r in records]
    images = np.stack([np.asarray(render(face)) for face, _ in records])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    image = torch.cat([clip.encode_images(part) for part in pixels.split(100)])
    image, text = F.normalize(image, dim=1), F.normalize(clip.encode_texts(texts), dim=1)
    hits = (text @ image.T).argmax(1) == torch.arange(count)
    return 100 * hits.float().mean().item()


def export(model: torch.nn.Module, out: Path) -> None:
    """float16 weights and the configuration, as `models.clip.load_clip` reads them."""
    weights = {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous()
        for k, v in model.state_dict().items()
    }
    save_file(weights, out / "model.safetensors")


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("assets/demo/clip"), help="folder of the CLIP"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("results/clip"),
        help="folder of its checkpoint and cached faces",
    )
    parser.add_argument("--groups", type=int, default=8000, help="groups of 4 faces")
    parser.add_argument("--steps", type=int, default=4000, help="training steps")
    parser.add_argument("--batch", type=int, default=32, help="groups of 4 faces a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = all")
    args = parser.parse_args()
    if args.groups < args.batch:
        raise UserError(f"--groups {args.groups} is less than one batch of {args.batch}")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    vocabulary = 512 + write_merges(args.out / MERGES_NAME) + 2
    CONFIG["model_cfg"]["text_cfg"]["vocab_size"] = vocabulary
    (args.out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(args.out / MERGES_NAME))
    model = open_clip.CLIP(**CONFIG["model_cfg"])
    model.visual.to(memory_format=torch.channels_last)
    head = torch.nn.Linear(CONFIG["model_cfg"]["embed_dim"], sum(SIZES))
    parts = torch.nn.ModuleDict({"clip": model, "head": head})
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {vocabulary} tokens"
    )

    faces = render_all(args.work / "faces.npy", args.groups)
    groups = [make_group(index) for index in range(args.groups)]
    shown = [[hide(face) for face in variants] for variants, _ in groups]
    codes = np.array([[encode_attributes(face) for face in variants] for variants in shown])

    decay = [p for p in parts.parameters() if p.ndim >= 2]
    rest = [p for p in parts.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    checkpoint = args.work / "checkpoint.pt"
    first = resume(checkpoint, parts, optimizer)

    model.train()
    started = time.time()
    steps = progress(range(first, args.steps), desc="CLIP", total=args.steps - first, unit="step")
    for step in steps:
        set_lr(optimizer, args.lr, step, args.steps)
        rng = random.Random(step)
        picked = rng.sample(range(args.groups), args.batch)
        batch = np.stack([faces[g] for g in picked]).reshape(-1, 128, 128, 3)
        said = [
            captions.make_caption(face, rng, must_name=groups[g][1])
            for g in picked
            for face in shown[g]
        ]
        stated = np.array([[a in caption["states"] for a in ATTRIBUTES] for caption in said])
        shows = codes[picked].reshape(len(said), -1)
        true = truth(shows, stated)
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = tokenizer([caption["text"] for caption in said])
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image(pixels.to(memory_format=torch.channels_last))
            text = encode_tokens(model, tokens)
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        matching = contrastive_loss(image, text, model.logit_scale.exp().clamp(max=100), true)
        states = np.where(stated, shows, -1)
        blurred = [perturb(y, PERTURBATION) for y in (image, text)]
        naming = attribute_loss(head(HEAD_SCALE * blurred[0]), torch.from_numpy(shows))
        naming = naming + attribute_loss(head(HEAD_SCALE * blurred[1]), torch.from_numpy(states))
        loss = matching + naming
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            scale = model.logit_scale.exp().item()
            pace = (time.time() - started) / (step + 1 - first)
            print(
                f"step {step + 1} matching {matching.item():.3f} naming {naming.item():.3f} "
                f"scale {scale:.1f} {pace:.2f} s/step",
                flush=True,
            )
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            save(checkpoint, parts, optimizer, step + 1)
            export(model, args.out)
    print(f"held-out caption → image R@1 among 500, fullest captions: {retrieval(args.out):.1f} %")


if __name__ == "__main__":
    main()
