"""Train the demo's CLIP on rendered faces and sentences about them: first images, then texts.

    python research/demo_weights/train_clip.py    # writes assets/demo/clip, resumes if interrupted
    python research/demo_weights/train_clip.py --image_steps 20 --text_steps 20 --out /tmp/clip

Faces come in groups of four that differ in one attribute, and each text names this attribute. Texts
leave things out, so one text may be true of several faces of a batch: the target of the contrastive
loss is uniform over them.

The image tower learns first. Its partner is not yet the text tower but a table with a vector for
each value of each attribute, whose sums stand for texts. A linear layer names the attributes of all
embeddings, also of perturbed ones, because the diffusion model reads these. Small parts of the
image weigh more in this loss.

Then the image tower is locked, the table is fitted to its embeddings, and the text tower learns
(Zhai 2022, "LiT"): to match texts and images, to write the sums of the table, and to be read by the
linear layer. Table and layer are not kept. The texts are the captions of the data set
and free sentences (`free_captions.py`). Prints held-out retrieval at the end.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.captions import choose_attributes, make_caption
from demo.make_faces import make_face, render
from research.demo_weights.clip_losses import AttributeTeacher, contrastive_loss, truth
from research.demo_weights.face_groups import (
    GROUP,
    Batch,
    TrainingFaces,
    load_training_faces,
    random_batch,
    read_pixels,
)
from research.demo_weights.free_captions import write_free_caption
from research.demo_weights.resumable import resume, save, set_lr
from utils.base.progress import progress
from utils.config.command_line import ArgumentParser

if TYPE_CHECKING:
    import open_clip

    from models.tokenizers import Tokenizer

WARM_UP = 50  # steps
TEACHER_PACE = 10.0  # learning rate of table and layer, in units of that of the image tower
FREE = 0.65  # fraction of free sentences; the rest are captions of the data set's grammar
NAMING_IMAGES = 3.0  # weight of naming the attributes of images
TEACHING = 10.0  # weight of the distance between a text and the sum of its attributes
SAVE_EVERY = 100  # steps
IMAGE_PARTS = ("clip.visual.", "clip.logit_scale", "teacher.")
TEXT_PARTS = ("clip.token_embedding", "clip.positional_embedding", "clip.transformer",
              "clip.ln_final", "clip.text_projection", "clip.logit_scale")  # fmt: skip


def write_nothing(attributes: dict[str, str], rng: random.Random, must_name: str) -> dict[str, Any]:
    """Choose the attributes that a text would state, and write no text."""
    return {"text": "", "states": sorted(choose_attributes(attributes, rng, must_name))}


def write_text(attributes: dict[str, str], rng: random.Random, must_name: str) -> dict[str, Any]:
    """Write a free sentence, or a caption in the words of the data set."""
    write = write_free_caption if rng.random() < FREE else make_caption
    return write(attributes, rng, must_name)


def stated_codes(batch: Batch) -> Tensor:
    """Return the attributes that the texts of a batch state, (N, A) int64; −1 = not stated."""
    return torch.from_numpy(np.where(batch.stated, batch.shows, -1))


def match(model: open_clip.CLIP, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
    """Return the contrastive loss of a batch's embeddings, (N, D) of unit length each."""
    scale = model.logit_scale.exp().clamp(max=100)
    return contrastive_loss(image, text, scale, truth(batch.shows, batch.stated))


def image_loss(model: open_clip.CLIP, teacher: AttributeTeacher, batch: Batch, x: Tensor) -> Tensor:
    """Return the loss of the image tower and of its teacher.

    x: pixels (N, 3, 128, 128).
    """
    with torch.autocast("cpu", torch.bfloat16):
        y = model.encode_image(x.to(memory_format=torch.channels_last))
    image, text = F.normalize(y.float(), dim=1), teacher.embed(stated_codes(batch))
    naming = teacher.naming_loss(image, torch.from_numpy(batch.shows))
    naming = NAMING_IMAGES * naming + teacher.naming_loss(text, stated_codes(batch))
    return match(model, image, text, batch) + naming


def text_loss(
    model: open_clip.CLIP, teacher: AttributeTeacher, batch: Batch, tokens: Tensor, image: Tensor
) -> Tensor:
    """Return the loss of the text tower.

    tokens: (N, context length).
    image: (N, D) embeddings of the locked image tower, of unit length.
    """
    from models.clip import encode_tokens  # imported here: --help need not wait for open_clip

    with torch.autocast("cpu", torch.bfloat16):
        y = encode_tokens(model, tokens)
    text, codes = F.normalize(y.float(), dim=1), stated_codes(batch)
    distance = 1 - (text * teacher.embed(codes)).sum(1).mean()
    naming = teacher.naming_loss(text, codes)
    return match(model, image, text, batch) + TEACHING * distance + naming


def build_optimizer(parts: nn.Module, lr: float, learning: tuple[str, ...]) -> torch.optim.AdamW:
    """Let the named parts learn and no others; return their AdamW.

    Weight decay is for the matrices of the CLIP only.
    """
    groups: dict[str, list[Tensor]] = {"matrices": [], "rest": [], "teacher": []}
    for name, parameter in parts.named_parameters():
        parameter.requires_grad_(name.startswith(learning))
        if parameter.requires_grad:
            kind = "matrices" if parameter.ndim >= 2 else "rest"
            groups["teacher" if name.startswith("teacher.") else kind].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups["matrices"], "weight_decay": 0.05},
            {"params": groups["rest"], "weight_decay": 0.0},
            {"params": groups["teacher"], "weight_decay": 0.0, "pace": TEACHER_PACE},
        ],
        lr=lr,
        betas=(0.9, 0.98),
    )


def run_stage(
    name: str, parts: nn.ModuleDict, learning: tuple[str, ...], args: argparse.Namespace,
    loss_at: Callable[[int], Tensor],
) -> None:  # fmt: skip
    """Train parts on the loss of each step, from where an earlier run stopped.

    name: "image" or "text"; names the checkpoint, and the options with steps and learning rate.
    """
    steps, lr = getattr(args, f"{name}_steps"), getattr(args, f"{name}_lr")
    checkpoint = args.work / f"{name}.pt"
    optimizer = build_optimizer(parts, lr, learning)
    first = resume(checkpoint, parts, optimizer)
    bar = progress(range(first, steps), desc=f"CLIP, {name}s", total=steps - first, unit="step")
    for step in bar:
        set_lr(optimizer, lr, step, steps, WARM_UP)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in parts.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            print(f"{name} step {step + 1}: loss {loss.item():.3f}", flush=True)
            save(checkpoint, parts, optimizer, step + 1)
            from research.demo_weights.clip_model import export

            export(parts["clip"], args.out)


@torch.no_grad()
def embed_faces(model: open_clip.CLIP, faces: TrainingFaces) -> Tensor:
    """Return the image embeddings of all training faces, (groups, 4, D) of unit length."""
    parts = []
    for first in progress(range(0, len(faces.images), 25), desc="embeddings", unit="batch"):
        images = torch.from_numpy(faces.images[first : first + 25].reshape(-1, 128, 128, 3))
        x = (images.permute(0, 3, 1, 2).float() / 127.5 - 1).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(F.normalize(model.encode_image(x).float(), dim=1))
    return torch.cat(parts).unflatten(0, (-1, GROUP))


def train(
    model: open_clip.CLIP, tokenize: Tokenizer, faces: TrainingFaces, args: argparse.Namespace
) -> None:
    """Train the image tower, then the text tower; write both into `args.out`."""
    teacher = AttributeTeacher(model.text_projection.shape[1])
    parts = nn.ModuleDict({"clip": model, "teacher": teacher})

    def loss_of_images(step: int) -> Tensor:
        batch = random_batch(faces, step, args.batch, write_nothing)
        return image_loss(model, teacher, batch, read_pixels(faces, batch))

    model.train()
    run_stage("image", parts, IMAGE_PARTS, args, loss_of_images)
    model.eval()
    embeddings = embed_faces(model, faces)
    teacher.fit(embeddings.flatten(0, 1), torch.from_numpy(faces.codes).flatten(0, 1))

    def loss_of_texts(step: int) -> Tensor:
        batch = random_batch(faces, step, args.batch, write_text)
        group, place = torch.from_numpy(batch.faces).unbind(1)
        return text_loss(model, teacher, batch, tokenize(batch.texts), embeddings[group, place])

    run_stage("text", parts, TEXT_PARTS, args, loss_of_texts)


@torch.no_grad()
def retrieval(folder: Path, count: int) -> float:
    """Return caption → image R@1 in percent among `count` held-out faces.

    The caption of a face is the fullest of its six.
    """
    from models.clip import load_clip

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


def parse_args() -> argparse.Namespace:
    """Read the command line; raise UserError if there are fewer groups than a batch takes."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("assets/demo/clip"), help="folder of the CLIP")
    add("--work", type=Path, default=Path("results/clip"),
        help="folder of its checkpoints and cached faces")  # fmt: skip
    add("--groups", type=int, default=8000, help="groups of 4 faces")
    add("--image_steps", type=int, default=3000, help="steps of the image tower")
    add("--text_steps", type=int, default=3000, help="steps of the text tower")
    add("--batch", type=int, default=32, help="groups of 4 faces a step")
    add("--image_lr", type=float, default=1e-3, help="peak learning rate of the image tower")
    add("--text_lr", type=float, default=1e-3, help="peak learning rate of the text tower")
    add("--held_out", type=int, default=500, help="held-out faces to check the CLIP with")
    add("--threads", type=int, default=0, help="CPU threads, 0 = all")
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
    from research.demo_weights.clip_model import build_clip

    model, tokenizer = build_clip(args.out)
    train(model, tokenizer, load_training_faces(args.work / "groups.npy", args.groups), args)
    found = retrieval(args.out, args.held_out)
    print(f"held-out caption → image R@1 among {args.held_out}, fullest captions: {found:.1f} %")


if __name__ == "__main__":
    main()
