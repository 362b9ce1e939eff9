"""Files of priors of image embeddings, which `train_prior.py` writes and the sampler reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from models.embedding_prior import EmbeddingPrior
from models.finite import first_not_finite
from models.weights import read_tensors
from utils.base.errors import UserError, refusing
from utils.base.files import write_whole
from utils.base.finite import require_finite
from utils.config.schema import Config

TRAIN = "train one with python train_prior.py --config X.yaml"
DIVERGED_PRIOR = "the prior's training has diverged: start it again with a lower prior.lr"
CLIP = "clip"  # entry of the metadata: identity of the CLIP that made the embeddings
MADE_FROM = "embeddings"  # entry of the metadata: identity of the embeddings, where it is known
TRAINED_ON = "trained_on"  # entry of the metadata: hash of the numbers of the embeddings
OPTIONS = "options"  # entry of the metadata: JSON of the `prior` section of the training
REPORT = "report"  # entry of the metadata: JSON of utils/evaluation/prior_report.py


def save_prior(
    prior: EmbeddingPrior,
    path: Path,
    clip: str,
    made_from: str = "",
    training: Mapping[str, str] | None = None,
) -> None:
    """Write a prior's weights as float16, and the identities of the embeddings and their CLIP.

    training: TRAINED_ON and OPTIONS, by which a later start finds that this prior is finished.
    Raises UserError if a weight is not finite in float16.
    """
    half = {name: weight.half().contiguous() for name, weight in prior.state_dict().items()}
    require_finite(half, path, DIVERGED_PRIOR)
    about = {CLIP: clip, MADE_FROM: made_from, **(training or {})}
    write_whole(path, lambda temporary: save_file(half, temporary, metadata=about))


def add_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report into a prior's file, whose weights stay as they are."""
    weights, about = read_tensors(path), prior_about(path)
    about[REPORT] = json.dumps(report)
    write_whole(path, lambda temporary: save_file(weights, temporary, metadata=about))


def read_prior(path: Path) -> tuple[EmbeddingPrior, str]:
    """Read a prior in float32 and eval mode, and the identity of its CLIP.

    Raises UserError if the file is not there, damaged, or holds no prior.
    """
    _require_file(path)
    with refusing(f"encoders.prior: {path} holds no prior; {TRAIN}"):
        weights = {name: weight.float() for name, weight in read_tensors(path).items()}
        width, dim = weights["embed_x.weight"].shape
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        with torch.device("meta"):
            prior = EmbeddingPrior(dim, width, depth)
        prior.load_state_dict(weights, assign=True)
        if (name := first_not_finite(weights)) or not prior.std > 0:
            raise ValueError(f"{name or 'std'} is not a usable number")
        clip = prior_about(path)[CLIP]
    return prior.eval().requires_grad_(False), clip


def prior_about(path: Path) -> dict[str, str]:
    """Return the metadata of a prior's file, {} if it has none."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def prior_made_from(path: Path) -> str:
    """Return the identity of the embeddings that a prior was trained on; empty if not recorded."""
    return prior_about(path).get(MADE_FROM, "")


def prior_report(path: Path) -> dict[str, Any]:
    """Return the report that `train_prior.py` wrote into a prior's file; {} if there is none.

    utils/evaluation/prior_report.py lists its entries. Raises UserError if the file is damaged.
    """
    with refusing(f"encoders.prior: {path} holds no prior; {TRAIN}"):
        return dict(json.loads(prior_about(path).get(REPORT, "{}")))


def with_proposed_freedom(config: Config) -> Config:
    """Return a config whose `sampling.freedom` is a number; for `auto`, its prior's proposal.

    Raises UserError for `auto` if there is no prior, or if it proposes none.
    """
    if config.sampling.freedom != "auto":
        return config
    path = _config_prior(config)
    _require_file(path)
    if (freedom := prior_report(path).get("freedom")) is None:
        raise UserError(
            f"sampling.freedom=auto: {path} proposes none, as it was written by an earlier "
            "version; start python train_prior.py --config X.yaml again, which keeps the prior and "
            "adds its report, or set sampling.freedom to a number, e.g. 0.7"
        )
    sampling = config.sampling.model_copy(update={"freedom": float(freedom)})
    return config.model_copy(update={"sampling": sampling})


def load_config_prior(
    config: Config, clip: str | None, device: torch.device | str = "cpu"
) -> EmbeddingPrior | None:
    """Load the prior at `encoders.prior`, or return None if `sampling.freedom` is zero.

    clip: identity of the CLIP that embeds the sentences; None = unknown. Raises UserError if there
    is no prior, or it was made for another CLIP or another width of conditions.
    """
    if config.sampling.freedom == 0:
        return None
    path = _config_prior(config)
    prior, made_for = read_prior(path)
    width = config.model.num_classes or config.model.ext_feature_dim
    if len(prior.mean) != width:
        raise UserError(
            f"encoders.prior: {path} samples embeddings of {len(prior.mean)} numbers, and the "
            f"network's conditions have {width} (model.num_classes); {TRAIN}, or set "
            "sampling.freedom=0"
        )
    if made_for != (clip or made_for):
        raise UserError(
            f"encoders.prior: {path} was trained for another CLIP ({made_for}) than "
            f"encoders.clip ({clip}); {TRAIN}, or set sampling.freedom=0"
        )
    return prior.to(device)


def _config_prior(config: Config) -> Path:
    """Return the place of the prior that `sampling.freedom` needs; raise UserError without one."""
    if config.encoders.prior is None:
        freedom = config.sampling.freedom
        raise UserError(
            f"sampling.freedom={freedom if isinstance(freedom, str) else format(freedom, 'g')} "
            f"needs a prior: {TRAIN} and name its file in encoders.prior, or set sampling.freedom=0"
        )
    return config.encoders.prior


def _require_file(path: Path) -> None:
    """Raise UserError if a prior is not there."""
    if not path.is_file():
        raise UserError(
            f"encoders.prior: {path} is not there; {TRAIN}, or copy it there or beside the "
            "checkpoint that names it, or set sampling.freedom=0"
        )
