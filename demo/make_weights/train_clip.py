"""Train the demo's CLIP on rendered faces and their captions (about an hour on 2 cores).

    python demo/make_weights/train_clip.py    # writes assets/demo/clip, resumes if interrupted
    python demo/make_weights/train_clip.py --steps 200 --out /tmp/clip

Faces come in groups of four that differ in one attribute, and each caption names this attribute.
The model has to see it to match captions and faces. Captions leave things out, so one caption may
be true of several faces of a batch: the target of the contrastive loss is uniform over them.

A linear layer on both embeddings names the attributes: all that an image shows, and all that a
caption states. It makes small features (mouth, eyes, facial hair) count from the start. It reads
perturbed embeddings, as the diffusion model does, so that attributes survive the perturbation. The
layer is thrown away afterwards. Prints held-out retrieval at the end.
"""

from __future__ import annotations

import argparse
import gzip
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from demo.classifier import SIZES, attribute_loss
from demo.make_faces import make_face, render
from demo.make_weights.face_groups import Batch, draw_batch, load_training_faces
from demo.make_weights.resumable import resume, save, set_lr
from models.clip import MERGES_NAME, encode_tokens, load_clip
from models.perturbation import Perturbation, perturb
from utils.base.errors import UserError, one_line_errors
from utils.base.files import write_json
from utils.base.progress import progress
from utils.config.command_line import HelpFormatter

PERTURBATION = Perturbation("gaussian", 1.0)
HEAD_SCALE = 10.0  # factor on the unit-length embeddings that the attribute layer reads

Tokenizer = Callable[[list[str]], Tensor]  # texts → tokens (N, context length) int64


def write_merges(path: Path) -> int:
    """Write those of CLIP's byte-pair merges that the demo's words need; return their number.

    All other words are encoded letter by letter.
    """
    texts = [
        caption["text"] for i in range(2000) for caption in make_face("words", i, 4)[1]["captions"]
    ]
    words = set(re.findall(r"[a-z]+", " ".join(texts)))
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


def clip_config(vocabulary: int) -> dict[str, Any]:
    """Return the CLIP's configuration in open_clip's form, for a `vocabulary` of so many tokens."""
    return {
        "model_cfg": {
            "embed_dim": 256,
            "vision_cfg": {"image_size": 128, "layers": [1, 2, 3, 2], "width": 16},
            "text_cfg": {
                "context_length": 77,
                "width": 128,
                "heads": 4,
                "layers": 3,
                "vocab_size": vocabulary,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }


def build_clip(folder: Path) -> tuple[open_clip.CLIP, Tokenizer]:
    """Return an untrained CLIP and its tokenizer, whose files are written into `folder`."""
    # Each byte as itself and as the end of a word, the merges, and the tokens of start and end.
    vocabulary = 2 * 256 + write_merges(folder / MERGES_NAME) + 2
    config = clip_config(vocabulary)
    write_json(folder / "open_clip_config.json", config)
    model = open_clip.CLIP(**config["model_cfg"])
    model.visual.to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {vocabulary} tokens")
    return model, open_clip.SimpleTokenizer(bpe_path=str(folder / MERGES_NAME))


def truth(codes: np.ndarray, stated: np.ndarray) -> Tensor:
    """Return for each caption and each face whether the caption is true of the face.

    Args:
        codes: (N, A) int, the attributes of face i, which caption i is about.
        stated: (N, A) bool, the attributes that caption i states.

    Returns:
        (N captions, N faces) bool
    """
    agree = codes[:, None, :] == codes[None, :, :]
    return torch.from_numpy((agree | ~stated[:, None, :]).all(axis=2))


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy (Radford 2021) with all true partners as targets.

    Args:
        image, text: (N, D) of unit length.
        scale: inverse temperature.
        true: (N captions, N faces) bool.
    """
    logits = scale * text @ image.T
    to_image = true.float() / true.sum(1, keepdim=True)
    to_text = true.T.float() / true.T.sum(1, keepdim=True)
    return (F.cross_entropy(logits, to_image) + F.cross_entropy(logits.T, to_text)) / 2


def batch_losses(
    model: open_clip.CLIP, head: torch.nn.Linear, tokenize: Tokenizer, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return the contrastive loss, and the loss of naming attributes from both embeddings."""
    tokens = tokenize(batch.texts)
    with torch.autocast("cpu", torch.bfloat16):
        image = model.encode_image(batch.pixels.to(memory_format=torch.channels_last))
        text = encode_tokens(model, tokens)
    image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
    true = truth(batch.shows, batch.stated)
    matching = contrastive_loss(image, text, model.logit_scale.exp().clamp(max=100), true)
    states = np.where(batch.stated, batch.shows, -1)
    blurred = [perturb(y, PERTURBATION) for y in (image, text)]
    naming = attribute_loss(head(HEAD_SCALE * blurred[0]), torch.from_numpy(batch.shows))
    naming = naming + attribute_loss(head(HEAD_SCALE * blurred[1]), torch.from_numpy(states))
    return matching, naming


def build_optimizer(parts: torch.nn.Module, lr: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay for matrices only, not for biases and scales."""
    decay = [p for p in parts.parameters() if p.ndim >= 2]
    rest = [p for p in parts.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )


@torch.no_grad()
def retrieval(folder: Path, count: int = 500) -> float:
    """Return caption → image R@1 in percent among `count` held-out faces.

    The caption of a face is the fullest of its six.
    """
    clip = load_clip(folder)
    records = [make_face("test", i, num_captions=6) for i in range(count)]
    # The caption that states most; short ones are true of many faces.
    texts = [max(r["captions"], key=lambda c: len(c["states"]))["text"] for _, r in records]
    images = np.stack([np.asarray(render(face)) for face, _ in records])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    image = torch.cat([clip.encode_images(part) for part in pixels.split(100)])
    image, text = F.normalize(image, dim=1), F.normalize(clip.encode_texts(texts), dim=1)
    hits = (text @ image.T).argmax(1) == torch.arange(count)
    return 100 * hits.float().mean().item()


def export(model: torch.nn.Module, out: Path) -> None:
    """Write the weights as float16, in the form that `models.clip.load_clip` reads."""
    weights = {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous()
        for k, v in model.state_dict().items()
    }
    save_file(weights, out / "model.safetensors")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
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
    return args


@one_line_errors
def main() -> None:
    """Train the CLIP, write it, and print its held-out retrieval."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, tokenize = build_clip(args.out)
    head = torch.nn.Linear(model.text_projection.shape[1], sum(SIZES))
    parts = torch.nn.ModuleDict({"clip": model, "head": head})
    faces = load_training_faces(args.work / "faces.npy", args.groups)
    optimizer = build_optimizer(parts, args.lr)
    checkpoint = args.work / "checkpoint.pt"
    first = resume(checkpoint, parts, optimizer)

    model.train()
    started = time.time()
    steps = progress(range(first, args.steps), desc="CLIP", total=args.steps - first, unit="step")
    for step in steps:
        set_lr(optimizer, args.lr, step, args.steps)
        matching, naming = batch_losses(model, head, tokenize, draw_batch(faces, step, args.batch))
        optimizer.zero_grad(set_to_none=True)
        (matching + naming).backward()
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
