"""Edit held-out photographs by words, and ask a probe of their embeddings what changed.

    python research/editing/photos.py --ckpt results/photos/checkpoints/0002400.pt
    python research/editing/photos.py --ckpt FILE --cfg_scale 1.5 --grid docs/editing_photos.jpg

Each trait of research/photos/sentences.yaml is added to the first test images that lack it. The
probe learned from captions of training images (research/gap); the same CLIP moves the embeddings,
so that a trait it sees may still look odd: look at the grid. `kept`: the other traits, seen or not
as before. `cosine`: of the images before and after in the CLIP of rendered faces, which takes no
part.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import add_arguments, report, start
from models.editing import trait_between, with_trait
from models.samplers import guided, invert, sample
from research.editing.compare import spelled
from research.editing.methods import Editor
from research.editing.negatives import shown_text
from research.gap.embedding_evaluation import PhotoEvaluator
from research.recipes.photos import AVATAR_CLIP
from utils.config.command_line import ArgumentParser
from utils.config.parsing import parse_scale
from utils.config.sections import Encoders
from utils.data.image_batches import iterate_batches
from utils.data.images import list_images
from utils.pretrained.encoders import load_config_clip
from utils.sampling.image_files import labelled_grid

PERSON = "a person"
PHOTOS = Path("data/photos")
IN_GRID = 4  # people


@torch.inference_mode()
def edited(editor: Editor, images: Tensor, sentence: str, way: str, scale: float) -> Tensor:
    """Return photographs (N, 3, H, W) uint8 with a trait; way: a key of WAYS."""
    own, clean = editor.embed(images), editor.encode(images)
    y, denoiser = WAYS[way](editor, sentence, own), editor.model.denoiser
    with torch.autocast("cpu", editor.amp):
        noise = invert(guided(denoiser, own), clean, editor.settings)
        denoise = guided(denoiser, y, scale, editor.interval)
        return editor.decode(sample(denoise, noise, editor.settings))


def by_words(editor: Editor, sentence: str, own: Tensor) -> Tensor:
    """Move embeddings as `t2f.py --to` does."""
    return with_trait(own, trait_between(editor.samples(PERSON), editor.samples(sentence)))


def by_texts(editor: Editor, sentence: str, own: Tensor) -> Tensor:
    """Move embeddings along the difference of the sentences' own."""
    return F.normalize(own + editor.text(sentence) - editor.text(PERSON), dim=1)


WAYS = {"words": by_words, "texts": by_texts, "own": lambda editor, sentence, own: own}


@one_line_errors
def main() -> None:
    """Edit, measure, print and write the table; write a grid."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="network for photographs; no default")
    add("--cfg_scale", type=parse_scale, default=2.0, help="guidance scale")
    add("--photos", type=int, default=24, help="photographs for each trait")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to edit")
    add("--grid", type=Path, help="image of the first people with each trait; None = none")
    add_arguments(parser)
    args = parser.parse_args()
    start(args)
    editor = Editor(args.ckpt)
    config = editor.model.config
    evaluator = PhotoEvaluator(config)
    paths = [path for _, path in list_images(PHOTOS / "source" / "test" / "images")]
    size = config.data.resolution
    photos = torch.cat(list(iterate_batches(paths, size, len(paths))))
    with torch.inference_mode():
        before = evaluator.of_traits(editor.embed(photos)) > 0  # (N, T)
    other = load_config_clip(Encoders(clip=AVATAR_CLIP))
    rows, columns = [], [photos[:IN_GRID]]
    for column, (name, trait) in enumerate(evaluator.sentences_state.traits.items()):
        lacking = (~before[:, column]).nonzero()[: args.photos, 0]
        for way in args.ways:
            images = edited(editor, photos[lacking], trait.sentence, way, args.cfg_scale)
            with torch.inference_mode():
                seen = evaluator.of_traits(editor.embed(images)) > 0
                old, new = (other.encode_images(x) for x in (photos[lacking], images))
            same = seen == before[lacking]
            same[:, column] = False
            kept = 100 * same.sum(dim=1) / (same.shape[1] - 1)
            cosines = F.cosine_similarity(old, new)
            found = {"shown": shown_text(seen[:, column]), "kept": spelled([kept.tolist()], 1)}
            found["cosine of another CLIP"] = spelled([cosines.tolist()], 3)
            rows.append({"trait": name, "method": way, "n": len(lacking), **found})
            print(rows[-1], flush=True)
        if args.grid:
            columns.append(
                edited(editor, photos[:IN_GRID], trait.sentence, "words", args.cfg_scale)
            )
    report(args.out, "Edits of held-out photographs, %", rows)
    if args.grid:
        cells = torch.stack(columns, dim=1).flatten(0, 1).permute(0, 2, 3, 1).numpy()
        labels = ["photograph", *evaluator.sentences_state.traits]
        labelled_grid(cells, labels * IN_GRID, len(labels)).save(args.grid, quality=85)


if __name__ == "__main__":
    main()
