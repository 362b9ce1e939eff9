"""Variety of the images of one caption, compared with training images near the caption.

Metrics of a whole set cannot show if a caption gives many images or always the same one: in the
set, each caption has one image. Here, some captions have several seeds each.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.edm import EDMPrecond
from models.samplers import SeededNoise
from utils.base.errors import note
from utils.config.schema import Config
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.feature_networks import ClipFeatures
from utils.evaluation.feature_store import FeatureBlocks, Rows
from utils.evaluation.generated import Generated, fill_blocks, generate_seeds, seeds_to_evaluate
from utils.evaluation.kept_images import KeptImages
from utils.evaluation.metrics import spread, vendi_score
from utils.evaluation.neighbours import nearest, open_training_embeddings
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import latent_shape

FOLDER = "variety"  # of the unfinished evaluation, for the blocks of these images


class CaptionVariety:
    """Images of `eval.variety_captions` captions with `eval.variety_seeds` seeds each.

    The captions are those of the first images of the evaluation, the seeds its first seeds. Image
    c · S + s has caption c and seed s; it depends on these two, weights and settings alone.
    """

    def __init__(
        self,
        denoiser: EDMPrecond,
        config: Config,
        evaluator: Evaluator,
        partial: Path,
        kept: KeptImages | None = None,
    ) -> None:
        """`partial`: folder of the unfinished evaluation. `kept`: writes the first few images."""
        self.denoiser, self.config, self.evaluator, self.kept = denoiser, config, evaluator, kept
        captions, self.size = config.eval.variety_captions, config.eval.variety_seeds
        seeds = seeds_to_evaluate(config)
        self.seeds = seeds[: self.size]
        noise = SeededNoise(seeds[:captions])
        noise.randn(latent_shape(denoiser))  # a seed gives the latent first, then the caption
        self.caption_ids = evaluator.choose_captions(noise)  # (C, 2)
        self.blocks = FeatureBlocks(partial / FOLDER, captions * self.size)
        self.tower = ClipFeatures(evaluator.clip)

    def generate(self) -> float:
        """Generate the images that are missing; return the seconds that earlier calls took.

        All processes call this.
        """
        device, size = self.evaluator.device, self.config.eval.batchsize
        name = "variety per caption"
        return fill_blocks(self.blocks, self._images, self._features, device, size, name)

    def _images(self, positions: list[int]) -> Generated:
        seeds = [self.seeds[position % self.size] for position in positions]
        captions = self.caption_ids[[position // self.size for position in positions]]
        return generate_seeds(self.denoiser, self.config, self.evaluator, seeds, captions)

    def _features(self, positions: list[int], generated: Generated) -> Rows:
        if self.kept is not None:
            places = [divmod(position, self.size) for position in positions]
            self.kept.save_variety(places, self.seeds, generated)
        return {"embeddings": self.tower(generated.images.permute(0, 3, 1, 2)).pooled}

    def metrics(self) -> dict[str, float | None]:
        """Compute the metrics of all images; the main process calls this after `generate`.

        Returns `spread`, the mean over captions of the spread of one caption's images;
        `vendi_score`, the mean of their Vendi scores; `spread_alike` and `vendi_alike`, those of as
        many training images, the nearest to the caption's condition; and `variety`, spread /
        spread_alike. The last three are None without embeddings of training images.
        """
        batches = [(positions, rows["embeddings"]) for positions, rows in self.blocks]
        order = torch.cat([positions for positions, _ in batches]).argsort()
        embeddings = torch.cat([part for _, part in batches])[order]
        generated = embeddings.unflatten(0, (-1, self.size))  # (C, S, D)
        alike = self._alike_images()
        width, usual = spread(generated), None if alike is None else spread(alike)
        return {
            "spread": width,
            "vendi_score": vendi_score(generated),
            "spread_alike": usual,
            "vendi_alike": None if alike is None else vendi_score(alike),
            "variety": width / usual if usual else None,
        }

    def _alike_images(self) -> Tensor | None:
        """Return embeddings of the training images nearest to each caption, (C, S, D), or None."""
        clip, size = self.evaluator.clip, self.size
        reader = open_training_embeddings(self.config.data.feat_path, clip.identity, clip.dim)
        if reader is None or reader.info.length < size:
            note(
                "variety per caption is not compared with real images: data.feat_path holds too "
                "few embeddings of training images by this CLIP"
            )
            return None
        assert self.evaluator.captions is not None  # Evaluator refuses variety without captions
        captions = torch.from_numpy(self.evaluator.captions.read(*self.caption_ids.T.numpy()))
        conditions = caption_conditions(captions, self.config)
        indices, _ = nearest(conditions, reader, count=size)  # (C, S)
        return torch.from_numpy(reader.read(indices.flatten().numpy())).unflatten(0, (-1, size))
