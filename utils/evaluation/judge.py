"""Everything that judges generated images: captions, reference statistics, networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from models.samplers import SeededNoise
from utils.base.errors import UserError
from utils.base.out_of_memory import Halving
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.feature_store import Rows
from utils.evaluation.image_set import ImageSet, load_judges
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip


class Judge:
    """What a config's images are judged with: test captions, reference, networks; loaded once."""

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        """Raises UserError if something is missing or was made with another encoder or network."""
        model = config.model
        has_captions = bool(model.num_classes or model.ext_feature_dim)
        has_captions &= not config.samples_classes
        for key in ("ref_path", "feat_path") if has_captions else ("ref_path",):
            if getattr(config.eval, key) is None:
                raise UserError(f"eval.{key}: required for evaluation, but not set in the config")
        classes, wanted = model.num_classes if config.samples_classes else 0, config.eval.class_idx
        if wanted is not None and wanted >= classes:
            raise UserError(
                f"eval.class_idx: {wanted}, but the model has {classes or 'no'} classes"
            )
        self.device = torch.device(device)
        self.ref_path = config.eval.ref_path
        self.captions = LMDBReader(config.eval.feat_path) if has_captions else None
        self.clip = load_config_clip(config, device)
        self.networks, self.references = load_judges(config, device, self.clip)
        self.network, self.reference = self.networks[0], self.references[0]
        if self.captions is not None:
            made_by = self.captions.info.meta.get("encoder", self.clip.identity)
            if made_by != self.clip.identity or self.captions.info.shape != (self.clip.dim,):
                raise UserError(
                    f"{config.eval.feat_path}: embeddings are not from {config.encoders.clip}; "
                    "make them again with python preprocess_scripts/clip_encode_text.py"
                )
        self.autoencoder = load_config_autoencoder(config, device)
        self.in_memory = Halving("sampling")

    def choose_captions(self, noise: SeededNoise) -> torch.Tensor:
        """(B, 2): each seed draws a test image, then which of its captions."""
        info = self.captions.info
        drawn = [noise.randint(count).cpu() for count in (info.length, info.n_features)]
        return torch.stack(drawn, dim=1)

    def rows(self, images: torch.Tensor, captions: torch.Tensor | None) -> Rows:
        """(B, H, W, 3) uint8, (B, D) -> what the networks say of them, a row for each image."""
        return ImageSet(self.networks, self.clip).features(images.permute(0, 3, 1, 2), captions)

    def figures(self, batches: Iterable[tuple[torch.Tensor, Rows]]) -> dict[str, Any]:
        """Figures of all images, from the positions (B,) and rows of their batches."""
        images = ImageSet(self.networks, self.clip)
        for positions, rows in batches:
            images.add(rows, positions)
        return images.figures(self.references)
