"""Everything that an evaluation loads: test captions, reference statistics and networks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.samplers import SeededNoise
from utils.base.errors import UserError, note
from utils.base.out_of_memory import OomBatchSplitter
from utils.config.schema import Config
from utils.data.embeddings import check_image_mean, check_prior, other_encoders
from utils.data.lmdb_reader import LMDBReader
from utils.data.preprocess_jobs import naming_commands
from utils.evaluation.copy_check import CopyCheck
from utils.evaluation.feature_networks import FeatureNetwork, kind_of, load_feature_network
from utils.evaluation.feature_store import Rows
from utils.evaluation.image_set import ImageSet
from utils.evaluation.references import Reference, check_comparable, half_of, load_stats
from utils.pretrained.encoders import (
    load_config_autoencoder,
    load_config_clip,
    require_encoders,
)
from utils.pretrained.priors import load_config_prior
from utils.sampling.conditions import check_test_captions

if TYPE_CHECKING:
    from models.clip import ClipEncoder


class Evaluator:
    """Test captions, references and networks of a config, loaded once; computes the metrics."""

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        """Raise UserError if a file is missing or was made with another encoder or network."""
        model = config.model
        has_captions = bool(model.num_classes or model.ext_feature_dim)
        has_captions &= not config.samples_classes
        _required(config.eval.ref_path, "eval.ref_path")  # before the slow imports of encoders
        feat_path = _required(config.eval.feat_path, "eval.feat_path") if has_captions else None
        classes, wanted = model.num_classes if config.samples_classes else 0, config.eval.class_idx
        if wanted is not None and wanted >= classes:
            raise UserError(
                f"eval.class_idx: {wanted}, but the model has {classes or 'no'} classes"
            )
        if config.eval.variety_captions and not has_captions:
            raise UserError(
                "eval.variety_captions: the model does not sample from captions; set it to 0"
            )
        self.device = torch.device(device)
        with naming_commands(config):
            self.captions = None if feat_path is None else LMDBReader(feat_path)
            if self.captions is not None:
                check_test_captions(config, self.captions)
        require_encoders(config.encoders)
        load_config_prior(config, None)  # faults that need no CLIP come before one is loaded
        self.references = load_references(config)
        self.clip = load_config_clip(config.encoders, device)
        self.networks = load_networks(config, self.references, device, self.clip)
        self.network, self.reference = self.networks[0], self.references[0]
        if self.captions is not None:
            made_by = self.captions.info.meta.get("encoder", self.clip.identity)
            if made_by != self.clip.identity or self.captions.info.shape != (self.clip.dim,):
                raise UserError(
                    f"{feat_path}: embeddings are not from {config.encoders.clip}; "
                    "make them again with python preprocess_scripts/clip_encode_text.py"
                )
        self.copies = CopyCheck(config, self.clip)
        self.autoencoder = load_config_autoencoder(config, device)
        for line in other_encoders(config, self.autoencoder.identity, self.clip.identity):
            note(line)
        check_image_mean(config, self.clip.identity)
        check_prior(config)
        self.prior = load_config_prior(config, self.clip.identity, device)
        self.in_memory = OomBatchSplitter("sampling")
        self.first, self.every = 0, 1  # of the test images, whose captions are chosen

    def half(self, which: int) -> Evaluator:
        """Return this evaluation on half of the test images: every second one, from `which` on.

        Its captions are theirs, and its references are the features of every second image.
        Raises UserError if a reference holds no features.
        """
        part = copy.copy(self)
        part.first, part.every = which, 2
        part.references = [half_of(reference, which) for reference in self.references]
        part.reference = part.references[0]
        return part

    def choose_captions(self, noise: SeededNoise) -> Tensor:
        """Choose a test image, then one of its captions, for each of B seeds: (B, 2) int64."""
        assert self.captions is not None
        info = self.captions.info
        images = len(range(self.first, info.length, self.every))
        image, caption = (noise.randint(count).cpu() for count in (images, info.n_features))
        return torch.stack([self.first + self.every * image, caption], dim=1)

    def features(self, images: Tensor, captions: Tensor | None) -> Rows:
        """Run the networks on images (B, H, W, 3) uint8 with caption embeddings (B, D)."""
        return ImageSet(self.networks, self.clip).features(images.permute(0, 3, 1, 2), captions)

    def metrics(self, batches: Iterable[tuple[Tensor, Rows]]) -> dict[str, Any]:
        """Compute the metrics of all images, from the positions (B,) and rows of their batches."""
        images = ImageSet(self.networks, self.clip).add_batches(batches)
        return images.metrics(self.references)


def load_references(config: Config) -> list[Reference]:
    """Load `eval.ref_path` and `eval.more_ref_paths`; raise UserError if a file is missing."""
    references = [load_stats(_required(config.eval.ref_path, "eval.ref_path"), config.words)]
    for path in config.eval.more_ref_paths:
        references.append(load_stats(path, config.words))
        if references[-1].network is None:
            raise UserError(
                f"{path}: does not name its feature network, so it can only be eval.ref_path"
            )
    return references


def load_networks(
    config: Config,
    references: Sequence[Reference],
    device: torch.device | str = "cpu",
    clip: ClipEncoder | None = None,
) -> list[FeatureNetwork]:
    """Load the feature network of each of a config's references.

    The first one is `eval.feature_network`; the files of all others name theirs. `clip`: the
    config's CLIP, if it is loaded already. Raises UserError if one does not fit its reference.
    """
    networks = [load_feature_network(config, device, clip)]
    for reference in references[1:]:
        assert reference.network is not None  # load_references has raised otherwise
        networks.append(load_feature_network(config, device, clip, kind_of(reference.network)))
    for network, reference in zip(networks, references, strict=True):
        check_comparable(reference, network.name, config.data.resolution)
    kinds = [kind_of(network.name) for network in networks]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"eval.more_ref_paths: two references of the network {kinds[-1]}")
    return networks


def _required(path: Path | None, key: str) -> Path:
    """Return the path; raise UserError if the config does not set it."""
    if path is None:
        raise UserError(f"{key}: required for evaluation, but not set in the config")
    return path
