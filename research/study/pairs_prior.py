"""A prior that is trained on pairs of captions and images, as unCLIP's (Ramesh 2022) is.

The study compares it with train_prior.py, which sees images alone. Network, steps and flow are
equal; the condition is the embedding of one of the image's captions instead of a mean of images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.batch_random import BatchRandom
from models.embedding_prior import flow_loss
from utils.config.sections import Prior
from utils.data.embeddings import read_directions
from utils.data.lmdb_reader import LMDBReader
from utils.training.prior import MOST, Training, train

FREEDOM = 1.0  # with which the prior reads a caption, in training and at test time


class PairsTraining(Training):
    """A training whose conditions are captions."""

    def __init__(self, y: Tensor, captions: LMDBReader, options: Prior) -> None:
        """y: image embeddings (N, D) of unit length; captions: embeddings of the same images."""
        super().__init__(y, options)
        self.captions = captions

    def losses(self, batch: Tensor, bank: Tensor, rng: BatchRandom) -> Tensor:
        """Return the losses (B,) of the images at `batch`; `bank` is not used."""
        rows = batch.numpy()
        which = rng.rand((len(batch),)) * torch.from_numpy(self.captions.info.counts[rows])
        texts = torch.from_numpy(self.captions.read(rows, which.long().numpy()))
        offset = self.prior.offset_from_mean(texts, FREEDOM)
        return flow_loss(self.prior, self.y[batch], offset, rng)


def train_pairs_prior(images: Path, captions: Path, out: Path) -> None:
    """Train a prior on databases of image and caption embeddings, and write it to `out`."""
    reader, texts = LMDBReader(images), LMDBReader(captions)
    texts.load()
    training = PairsTraining(read_directions(reader, MOST), texts, Prior())
    train(training, out, reader.info.meta.get("encoder", "unknown"))
