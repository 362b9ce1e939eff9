"""The frozen teacher of a distillation."""

from __future__ import annotations

from pathlib import Path

import torch

from models.distillation import Segments
from models.samplers import Denoise, guided
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.config.sections import Distill
from utils.pretrained.checkpoint_files import stored_config
from utils.pretrained.denoisers import load_denoiser
from utils.sampling.generate import sampler_settings


class Teacher:
    """The averaged weights of `distill.teacher`, with their guidance, and the path's segments.

    It may be a student of more steps, which has learned its guidance. Every process holds it whole,
    also where the student is sharded.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        """Load the network.

        Raises UserError if it is missing, no denoiser, or of another shape, or if the student would
        be sampled with other settings than it learns.
        """
        self.options = options = config.distill
        if options.teacher is None or options.sigmas is None:
            raise UserError(
                "distill: set distill.teacher (or --teacher) to the checkpoint to learn from, and "
                "distill.sigmas to the noise levels of the student, e.g. [80,1.5]"
            )
        if config.train.adapt != "all":
            raise UserError("train.adapt: a student learns with all weights; set it to all")
        if config.learns_perturbation:
            raise UserError("distill: a network with a learned perturbation cannot be a teacher")
        sampler_settings(config.sampling, options.sigmas)
        theirs = distilled_sigmas(options.teacher)
        if theirs is not None and options.cfg_scale not in (None, 1):
            raise UserError(
                f"distill.cfg_scale={options.cfg_scale:g}: {options.teacher} is a student, which "
                "has learned its guidance; set distill.cfg_scale=null"
            )
        try:
            self.segments = Segments(
                options.sigmas, options.teacher_steps, options.sigma_min, theirs
            )
        except ValueError as fault:
            raise UserError(f"distill.sigmas: {fault}") from fault
        as_teacher = config.model_copy(update={"distill": Distill(sigmas=theirs)})
        self.network, _ = load_denoiser(
            options.teacher, device, config=as_teacher, adapters=options.adapters
        )

    def bind(self, cond: torch.Tensor | None) -> Denoise:
        """Bind the guided network to conditions (N, D), or None."""
        options = self.options
        return guided(
            self.network,
            cond,
            options.cfg_scale,
            options.guidance_interval,
            self.network.model.cond_dim,
        )


def distilled_sigmas(path: Path) -> tuple[float, ...] | None:
    """Return the noise levels of the student in a checkpoint; None = it is none."""
    stored = stored_config(path)
    return None if stored is None else config_from_dict(stored, str(path)).distill.sigmas
