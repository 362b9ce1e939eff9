"""Measure a prior in the space of embeddings: what its samples show, and how varied they are.

    python research/gap/embedding_evaluation.py                                  # the demo's prior
    python research/gap/embedding_evaluation.py --config X.yaml encoders.prior=FILE --freedoms 0.7 1
    python research/gap/embedding_evaluation.py --config configs/others/photos.yaml --world photos

Samples image embeddings of sentences at each freedom, and asks a probe for their attributes. The
probe learns from real image embeddings alone: those of rendered faces, whose attributes are known,
or of photographs, by their captions. No image is generated, so a freedom takes seconds; the probe
does not see that an embedding is unlike every image, and the Fréchet distance does. Needs the
training embeddings (data.feat_path) and the held-out ones (eval.ref_path) of a config.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import add_arguments, report, start
from models.embedding_prior import EmbeddingPrior, RowLinear
from research.attributes.check_handwritten import read_captions
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import SIZES, codes_of, load_records, predict
from research.gap.discriminants import Discriminants
from research.photos.traits import read_sentences
from research.recipes.photos import ALIKE
from research.recipes.worlds import WORLDS, WorldName
from research.variety.measures import PROMPTS, closeness, figures
from utils.config.command_line import ArgumentParser, add_config_arguments
from utils.config.schema import Config
from utils.data.captions import captions_where_there, load_captions
from utils.data.embeddings import read_directions
from utils.data.images import Sample, list_images
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.metrics import spread
from utils.evaluation.references import load_stats
from utils.pretrained.effective_config import config_file, read_config
from utils.pretrained.encoders import load_config_clip
from utils.pretrained.priors import load_config_prior
from utils.sampling.conditions import caption_conditions

MOST = 20_000  # training embeddings that are read
NEAREST = 5  # places among all captions at which the own one counts as found

# Text embeddings as CLIP gives them (N, D), unit normal noise (N, D) -> image embeddings (N, D).
Sampler = Callable[[Tensor, Tensor], Tensor]


def prior_sampler(prior: EmbeddingPrior, config: Config, freedom: float) -> Sampler:
    """Return a sampler that goes the way of `t2f.py`; freedom 0 returns the conditions themselves.

    Its embeddings differ from those of `t2f.py` by rounding: it is three times as fast.
    """
    quick = deepcopy(prior)
    for module in quick.modules():
        if isinstance(module, RowLinear):
            cast(Any, module).__class__ = nn.Linear  # its products are of all rows at once

    def sample(texts: Tensor, noise: Tensor) -> Tensor:
        y = caption_conditions(texts, config)
        if freedom == 0:
            return F.normalize(y, dim=1)
        return quick.sample(y, noise, freedom, candidates=config.sampling.prior_candidates)

    return sample


class EmbeddingEvaluator(ABC):
    """A probe, the embeddings of sentences, and held-out embeddings of images."""

    def __init__(self, config: Config) -> None:
        """Load the embeddings of a config; raise UserError if they are not there."""
        if config.data.feat_path is None or config.eval.ref_path is None:
            raise UserError("data.feat_path and eval.ref_path: both are needed; set them")
        self.reader = LMDBReader(config.data.feat_path)
        self.train = read_directions(self.reader, MOST)  # (N, D)
        held_out = load_stats(config.eval.ref_path, config.words).features
        if held_out is None or held_out.shape[1] != self.train.shape[1]:
            raise UserError(
                f"{config.eval.ref_path}: holds no embeddings of this CLIP; make them with "
                "preprocess_scripts/fid_ref.py --features and eval.feature_network=clip"
            )
        self.held_out = F.normalize(torch.from_numpy(held_out), dim=1)  # (M, D)
        self.clip = load_config_clip(config.encoders)

    @abstractmethod
    def measure(self, sample: Sampler, seed: int = 0) -> dict[str, Any]:
        """Return the figures of a sampler; `seed`: of its noise.

        `stated`: percentage of what short sentences state that the probe sees in their samples.
        `captions`: the same of held-out captions. `variety`: that of a sentence's samples, relative
        to real images of which it is true. The Fréchet distance to held-out embeddings of unit
        length, recall and so on: those of `closeness`, for the captions.
        """

    @abstractmethod
    def measure_real(self) -> dict[str, Any]:
        """Return the figures that real images have, as far as they exist; see `measure`.

        `captions` says how well the probe sees in held-out images what their captions state, and
        the Fréchet distance is that of random training images.
        """

    def _some_of_training(self, count: int) -> Tensor:
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return self.train[order[:count]]


def samples_of(sample: Sampler, texts: Tensor, each: int, seed: int) -> Tensor:
    """Return `each` samples of each text (P, D): (P, each, D)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(texts) * each, texts.shape[1], generator=generator)
    return sample(texts.repeat_interleave(each, dim=0), noise).unflatten(0, (-1, each))


class FaceEvaluator(EmbeddingEvaluator):
    """The evaluator of rendered faces, whose attributes are known."""

    def __init__(
        self, config: Config, data: Path = Path("data/demo"), each: int = 24, captions: int = 1000
    ) -> None:
        """`each`: samples of a short sentence. `captions`: held-out faces, one caption of each."""
        super().__init__(config)
        by_name = {f"{record['id']:06d}": record for record in load_records(data / "train")}
        names = self.reader.info.meta["names"]
        if len(names) > MOST or not by_name.keys() >= set(names):
            raise UserError(f"{self.reader.path}: not of the faces in {data / 'train'}")
        codes = codes_of([by_name[name] for name in names])
        values = [codes[:, [a]] == torch.arange(size) for a, size in enumerate(SIZES)]
        self.probe = Discriminants(self.train, torch.cat(values, dim=1))
        records = load_records(data / "test", captions)
        self.codes, self.each = codes_of(records), each
        texts, self.stated = choose_captions(records)
        self.captions = self.clip.encode_texts(texts)
        sentences, self.sentences_state = read_captions(PROMPTS)
        self.sentences = self.clip.encode_texts(sentences)

    def _of_captions(self, embeddings: Tensor) -> float:
        return agreement(predict(self.probe(embeddings)), self.codes, self.stated)["mean"]

    def measure(self, sample: Sampler, seed: int = 0) -> dict[str, Any]:
        """Return the figures of a sampler, and `overlap` of open attributes with the data's."""
        of_sentences = samples_of(sample, self.sentences, self.each, seed)
        codes = predict(self.probe(of_sentences.flatten(0, 1))).unflatten(0, (-1, self.each))
        found = figures(codes, self.sentences_state)
        of_captions = samples_of(sample, self.captions, 1, seed)[:, 0]
        return {
            "stated": found["stated"],
            "captions": self._of_captions(of_captions),
            "variety": found["ratio"],
            "overlap": found["overlap"],
            **closeness(of_captions, self.held_out),
        }

    def measure_real(self) -> dict[str, Any]:
        """Return the figures of real faces; `texts`: what the probe sees in the captions."""
        count = len(self.codes)
        return {
            "captions": self._of_captions(self.held_out[:count]),
            "texts": self._of_captions(F.normalize(self.captions, dim=1)),
            **closeness(self._some_of_training(count), self.held_out),
        }


class PhotoEvaluator(EmbeddingEvaluator):
    """The evaluator of photographs, of which captions say something."""

    def __init__(
        self, config: Config, data: Path = Path("data/photos"), each: int = 24, captions: int = 1000
    ) -> None:
        """`each`: samples of a short sentence. `captions`: about the number of all captions'."""
        super().__init__(config)
        source = data / "source"
        names = [Sample(name, Path(name)) for name in self.reader.info.meta["names"]]
        if len(names) != len(self.train):
            raise UserError(f"{self.reader.path}: holds more than {MOST} embeddings")
        lines = captions_where_there(names, source / "train" / "captions")
        train = self.train[torch.tensor([bool(texts) for texts in lines])]
        lines = [texts for texts in lines if texts]
        held_out = list_images(source / "test" / "images")
        own = load_captions(held_out, source / "test" / "captions", all_images=False)
        texts = sorted({text for texts in own for text in texts})
        self.own = torch.tensor([texts.index(texts_of[0]) for texts_of in own])
        self.captions = self.clip.encode_texts(texts)
        self.sentences_state, traits = read_sentences(), read_sentences().traits.values()
        self.of_captions = Discriminants(train, _holding(lines, [[text] for text in texts]))
        self.of_traits = Discriminants(train, _holding(lines, [trait.captions for trait in traits]))
        self.shown = _holding(own, [trait.captions for trait in traits])
        self.sentences = self.clip.encode_texts(list(self.sentences_state.stated))
        self.each, self.of_each = each, max(1, captions // len(own))

    def _of_captions(self, embeddings: Tensor) -> float:
        """Return how often the own caption of (N, S, D) is among the likeliest, percent."""
        scores = self.of_captions(embeddings)  # (N, S, C)
        own = scores.gather(2, self.own[:, None, None].expand(*scores.shape[:2], 1))
        places = (scores > own).sum(dim=2)
        return 100 * (places < NEAREST).double().mean().item()

    def _variety(self, embeddings: Tensor) -> float:
        """Return the mean spread of a caption's samples, relative to that of its real images."""
        rows = [self.own == text for text in range(len(self.captions))]
        return statistics.fmean(
            spread(embeddings[of_text].flatten(0, 1)) / spread(self.held_out[of_text])
            for of_text in rows
            if of_text.sum() >= ALIKE
        )

    def measure(self, sample: Sampler, seed: int = 0) -> dict[str, Any]:
        """Return the figures of a sampler.

        Beside them, `unseen`: of sentences that no caption holds; `combined`: of sentences that
        state two traits. A caption is seen if it is among the NEAREST likeliest.
        """
        seen = self.of_traits(samples_of(sample, self.sentences, self.each, seed)) > 0
        state = self.sentences_state
        of_captions = samples_of(sample, self.captions[self.own], self.of_each, seed)
        return {
            "stated": self._shown(seen, [trait.sentence for trait in state.traits.values()]),
            "captions": self._of_captions(of_captions),
            "variety": self._variety(of_captions),
            "unseen": self._shown(seen, list(state.unseen)),
            "combined": self._shown(seen, list(state.combined)),
            **closeness(of_captions.flatten(0, 1), self.held_out),
        }

    def _shown(self, seen: Tensor, texts: Sequence[str]) -> float:
        """Return the percentage of what some sentences state that is seen, (P, S, T) bool."""
        state, names = self.sentences_state, list(self.sentences_state.traits)
        order = list(state.stated)
        hits = [
            seen[order.index(text), :, names.index(trait)].double().mean().item()
            for text in texts
            for trait in state.stated[text]
        ]
        return 100 * statistics.fmean(hits)

    def measure_real(self) -> dict[str, Any]:
        """Return the figures of real photographs; `stated`: of those whose caption has a trait."""
        seen = self.of_traits(self.held_out) > 0
        rates = [
            seen[shown, trait].double().mean().item() for trait, shown in enumerate(self.shown.T)
        ]
        count = self.of_each * len(self.own)
        return {
            "stated": 100 * statistics.fmean(rates),
            "captions": self._of_captions(self.held_out[:, None]),
            "variety": 1.0,
            **closeness(self._some_of_training(count), self.held_out),
        }


def _holding(lines: Sequence[Sequence[str]], groups: Sequence[Sequence[str]]) -> Tensor:
    """Return the images of which a caption is in a group of captions, (N, G) bool."""
    of_groups = [set(group) for group in groups]
    return torch.tensor([[bool(group & set(texts)) for group in of_groups] for texts in lines])


EVALUATORS: dict[WorldName, type[FaceEvaluator] | type[PhotoEvaluator]] = {
    "avatars": FaceEvaluator,
    "photos": PhotoEvaluator,
}
COLUMNS = {
    "stated": "stated by short sentences, %",
    "captions": "captions, %",
    "variety": "variety, of the data's",
    "frechet_distance": "Fréchet distance",
    "recall": "recall",
}


def parse_args() -> argparse.Namespace:
    """Read the command line; raise UserError for a number that is too small."""
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    add = parser.add_argument
    add("--world", choices=get_args(WorldName), default="avatars", help="what the images are")
    add("--data", type=Path, help="folder of the world's images; None = the world's own")
    add(
        "--freedoms", type=float, nargs="+", default=[0, 0.5, 0.7, 1, 1.2, 1.4], metavar="F",
        help="freedoms to measure; 0 = the embeddings of the sentences",
    )  # fmt: skip
    add("--each", type=int, default=24, help="samples of each short sentence")
    add("--captions", type=int, default=1000, help="samples of held-out captions")
    add("--seeds", type=int, default=1, help="times that each freedom is measured")
    add_arguments(parser)
    args = parser.parse_intermixed_args()
    if min(args.freedoms) < 0 or min(args.each - 1, args.captions - 9, args.seeds) < 1:
        raise UserError("--freedoms from 0 on, --each from 2, --captions from 10, --seeds from 1")
    return args


def mean_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of figures with equal keys."""
    return {key: statistics.fmean(one[key] for one in found) for key in found[0]}


@one_line_errors
def main() -> None:
    """Measure the prior of a config at each freedom; print and write the table."""
    args = parse_args()
    start(args)
    config = read_config(config_file(args.config), args.overrides)
    evaluator = EVALUATORS[args.world](
        config, args.data or WORLDS[args.world].data, args.each, args.captions
    )
    free = config.model_copy(update={"sampling": config.sampling.model_copy()})
    free.sampling.freedom = 1.0  # so that the prior is read
    prior = load_config_prior(free, evaluator.clip.identity)
    assert prior is not None
    points: dict[str, Any] = {"real images": evaluator.measure_real()}
    for freedom in args.freedoms:
        sample = prior_sampler(prior, config, freedom)
        points[f"{freedom:g}"] = mean_of([evaluator.measure(sample, s) for s in range(args.seeds)])
    rows = [
        {"freedom": name, **{title: found.get(key, "–") for key, title in COLUMNS.items()}}
        for name, found in points.items()
    ]
    notes = [f"{len(evaluator.held_out)} held-out embeddings, of unit length."]
    report(args.out, f"{config.encoders.prior}", rows, notes, data={"points": points})


if __name__ == "__main__":
    main()
