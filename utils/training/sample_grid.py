"""Sample grids of a training: always with the same captions and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.edm import EDMPrecond
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError
from utils.config.parsing import seeds_from
from utils.config.schema import Config
from utils.data.embeddings import check_image_mean, check_prior, other_encoders
from utils.data.lmdb_reader import LMDBReader
from utils.data.preprocess_jobs import naming_commands
from utils.pretrained.encoders import load_config_autoencoder, load_config_preview
from utils.pretrained.priors import load_config_prior, with_proposed_freedom
from utils.sampling.conditions import caption_conditions, captions_of, check_test_captions
from utils.sampling.generate import generate, sampler_settings
from utils.sampling.image_files import labelled_grid, save_png
from utils.training.speed import best_amp

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder


class SampleGrid:
    """Grid of images for the first `log.num_samples` test captions, with fixed seeds."""

    def __init__(
        self,
        config: Config,
        autoencoder: Autoencoder,
        conds: torch.Tensor | None,
        captions: list[str] | None,
        device: torch.device | str,
        prior: EmbeddingPrior | None = None,
    ) -> None:
        self.config, self.autoencoder, self.device = config, autoencoder, device
        self.conds, self.captions, self.prior = conds, captions, prior
        # Raises now rather than at the first checkpoint.
        sampler_settings(config.sampling, config.distill.sigmas)
        count = config.log.num_samples if conds is None else len(conds)
        self.seeds = seeds_from(config.sampling.seed, count)
        amp = best_amp(config.train.amp)
        self.sampling = config.sampling.model_copy(update={"amp": amp})

    @classmethod
    def from_config(cls, config: Config, device: torch.device | str) -> SampleGrid | None:
        """Prepare the grid; return None without embeddings of captions, or if `log.sample_every=0`.

        Raises UserError if a file that the config names is not there, or if other encoders made the
        training data.
        """
        conds = captions = prior = clip = None
        if config.log.sample_every == 0:
            return None
        if config.samples_classes:
            count = min(config.log.num_samples, config.model.num_classes)
            conds = torch.eye(config.model.num_classes)[:count]
            captions = [f"class {i}" for i in range(count)]
        elif config.model.num_classes or config.model.ext_feature_dim:
            if config.eval.feat_path is None:
                return None
            with naming_commands(config):
                reader = LMDBReader(config.eval.feat_path)
                check_test_captions(config, reader)
            rows = range(min(config.log.num_samples, reader.info.length))
            conds = caption_conditions(torch.from_numpy(reader.read(rows)), config)
            firsts = torch.tensor([(row, 0) for row in rows])
            captions = captions_of(config, reader, firsts)
            clip = reader.info.meta.get("encoder")
            check_image_mean(config, clip)
            check_prior(config)
            config = with_proposed_freedom(config)
            prior = load_config_prior(config, clip, device)
        vae = load_config_autoencoder(config, device)
        if faults := other_encoders(config, vae.identity, clip):
            raise UserError("\n".join(faults))
        decoder = load_config_preview(config, vae) or vae
        return cls(config, decoder, conds, captions, device, prior)

    def save(self, denoiser: EDMPrecond, path: Path, weights: str) -> None:
        """Sample with the configured settings and write the PNG `path`.

        weights: says which weights `denoiser` holds; it stands in the title.
        """
        batches = generate(
            denoiser,
            self.autoencoder,
            self.conds,
            self.seeds,
            self.sampling,
            prior=self.prior,
            batch_size=self.config.eval.batchsize,
        )
        images = torch.cat([images for _, images in batches])
        scale = self.sampling.cfg_scale
        guidance = "no guidance" if scale is None else f"guidance {scale:g}"
        title = f"{path.stem}, {guidance}, {weights}"
        if self.config.sampling.preview is not None:
            title += ", decoded by sampling.preview"
        grid = labelled_grid(images.numpy(), self.captions, title=title)
        save_png(grid, path, {"Title": title})
