"""Measure how often images show what a negative sentence names.

    python research/editing/negatives.py

Generates "a person" with a negative sentence, and asks the attribute classifier. `moved`: the
prior's embeddings that look like it are moved, as `t2f.py --negative` does. `sentence`: guidance
leads away from the sentence's own embedding, as it does with freedom 0. `images`: from the mean of
the prior's images of the sentence. `none`: neither. `alike`: other attributes that `moved` leaves
as they are in `none`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.script import one_line_errors

# isort: split
import torch
from torch.nn import functional as F

from benchmarks.timing import add_arguments, report, start
from demo.make_faces import ATTRIBUTES
from models.editing import AgainstCondition, PriorUnlike, trait_between
from models.embedding_prior import EmbeddingPrior
from research.attributes.classifier import add_classifier_arguments, classify, load_classifier
from research.attributes.model import Model
from research.editing.methods import Editor
from research.photos.traits import rate
from utils.config.command_line import ArgumentParser
from utils.sampling.traits import PERSON

TRAITS = {  # sentence -> attribute and value
    "a person with a beard": ("facial_hair", "beard"),
    "a person with sunglasses": ("glasses", "sunglasses"),
    "a person with a hat": ("headwear", "hat"),
    "a smiling person": ("expression", "smiling"),
    "a person with black hair": ("hair_color", "black"),
}


KINDS = ("sentence", "images", "moved")


def avoiding(editor: Editor, text: str, kind: str) -> Model:
    """Return a model whose images do not look like a sentence, by a way of KINDS."""
    model = editor.model
    if kind == "moved":
        assert isinstance(model.prior, EmbeddingPrior)
        trait = trait_between(editor.samples(text), editor.samples(PERSON))
        return replace(model, prior=PriorUnlike(model.prior, trait))
    y = model.conditions([text])[0]
    if kind == "images":
        y = F.normalize(editor.samples(text).mean(dim=0), dim=0)
    return replace(model, denoiser=AgainstCondition(model.denoiser, y))


@one_line_errors
def main() -> None:
    """Generate, classify, print and write the table."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt", type=Path, default=Path("assets/demo/dit.safetensors"), help="network")
    add("--seeds", type=int, default=40, help="images of each sentence")
    add("--scales", type=float, nargs="+", default=[2], help="guidance scales")
    add("--freedom", type=float, default=0.7, help="sampling.freedom")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="ways to lead away")
    add_classifier_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args()
    start(args)
    editor = Editor(args.ckpt)
    model, rows = editor.model, []
    classifier = load_classifier(args.classifier, args.data / "train")
    condition = model.conditions(["a person"]).expand(args.seeds, -1)
    for scale in args.scales:
        changes = {"cfg_scale": scale, "freedom": args.freedom}
        sampling = model.config.sampling.model_copy(update=changes)
        plain = classify(classifier, model.generate(condition, range(args.seeds), sampling))
        for text, (name, value) in TRAITS.items():
            column, wanted = list(ATTRIBUTES).index(name), ATTRIBUTES[name].index(value)
            shown = {"none": plain[:, column] == wanted}
            for kind in args.kinds:
                images = avoiding(editor, text, kind).generate(
                    condition, range(args.seeds), sampling
                )
                found = classify(classifier, images)
                shown[kind] = found[:, column] == wanted
                if kind == "moved":
                    others = torch.arange(len(ATTRIBUTES)) != column
                    alike = (found == plain)[:, others]
            cells = {kind: shown_text(hits) for kind, hits in shown.items()}
            cells |= {"alike": shown_text(alike.flatten())} if "moved" in shown else {}
            about = {"freedom": args.freedom, "guidance": scale, "negative sentence": text}
            rows.append(about | cells)
            print(rows[-1], flush=True)
    report(args.out, 'Images of "a person" that show what the negative sentence names, %', rows)


def shown_text(hits: torch.Tensor) -> str:
    """Return a percentage with its interval."""
    found = rate(hits)
    return f"{found['rate']:.0f} ({found['low']:.0f} … {found['high']:.0f})"


if __name__ == "__main__":
    main()
