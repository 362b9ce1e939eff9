"""The whole configuration: all sections, and what follows from several of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator

from utils.config.fields import Section
from utils.config.sampling_sections import Eval, Sampling
from utils.config.sections import Data, Distill, Encoders, Log, Model, Prior, Train

# Sections that decide what a database holds and where it lies.
SECTIONS_OF_DATABASES = ("data.", "encoders.", "model.", "eval.")


class Config(Section):
    """All sections. `utils/data/derived_sizes.py` fills in sizes, and checks that they agree."""

    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    distill: Distill = Distill()
    eval: Eval = Eval()
    log: Log = Log()
    encoders: Encoders = Encoders()
    sampling: Sampling = Sampling()
    prior: Prior = Prior()
    _words: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """Words of a command line that ask for this configuration; () if none does."""
        return self._words

    def asked_by(self, file: Path, overrides: Sequence[str]) -> "Config":
        """Return this configuration, with the words for commands that make its databases."""
        needed = [text for text in overrides if text.startswith(SECTIONS_OF_DATABASES)]
        self._words = ("--config", str(file), *needed)
        return self

    @model_validator(mode="after")
    def _sigmas_of_student(self) -> "Config":
        """Give the preset `instant` the sigmas of the student."""
        if self.sampling.preset == "instant" and self.sampling.sigmas is None:
            if self.distill.sigmas is None:
                raise ValueError(
                    "sampling.preset: instant is for a student, which names its sigmas in "
                    "distill.sigmas; use fast or paper"
                )
            sigmas = {"sigmas": self.distill.sigmas, "num_steps": len(self.distill.sigmas)}
            self.sampling = self.sampling.model_copy(update=sigmas)
        return self

    @property
    def is_distilled(self) -> bool:
        """True if the network is a student; see models/distillation.py."""
        return self.distill.sigmas is not None

    @property
    def is_aligned(self) -> bool:
        """True if training aligns tokens to patch features; a student learns from its teacher."""
        return self.train.align_coef > 0 and not self.is_distilled

    @property
    def learns_perturbation(self) -> bool:
        """True if the network perturbs its condition by weights that are trained with it."""
        train = self.train
        by_type = train.perturbation > 0 and train.perturbation_type == "learnable"
        return self.model.perturbation or by_type

    @property
    def samples_classes(self) -> bool:
        """True if images are sampled from random class labels, as there are no embeddings."""
        no_embeddings = self.data.feat_path is None and self.eval.feat_path is None
        return self.model.num_classes > 0 and no_embeddings

    def to_dict(self) -> dict[str, Any]:
        """Return plain builtins only (paths as strings), which `config_from_dict` reads back."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return every key with its resolved value; reading it back gives an equal config."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)
