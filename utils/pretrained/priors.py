"""Files of priors of image embeddings, which `train_prior.py` writes and the sampler reads."""

from __future__ import annotations

from pathlib import Path

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


def save_prior(prior: EmbeddingPrior, path: Path, clip: str, made_from: str = "") -> None:
    """Write a prior's weights as float16, and the identities of the embeddings and their CLIP.

    Raises UserError if a weight is not finite in float16.
    """
    half = {name: weight.half().contiguous() for name, weight in prior.state_dict().items()}
    require_finite(half, path, DIVERGED_PRIOR)
    about = {CLIP: clip, MADE_FROM: made_from}
    write_whole(path, lambda temporary: save_file(half, temporary, metadata=about))


def read_prior(path: Path) -> tuple[EmbeddingPrior, str]:
    """Read a prior in float32 and eval mode, and the identity of its CLIP.

    Raises UserError if the file is not there, damaged, or holds no prior.
    """
    if not path.is_file():
        raise UserError(
            f"encoders.prior: {path} is not there; {TRAIN}, or copy it there or beside the "
            "checkpoint that names it, or set sampling.freedom=0"
        )
    with refusing(f"encoders.prior: {path} holds no prior; {TRAIN}"):
        weights = {name: weight.float() for name, weight in read_tensors(path).items()}
        width, dim = weights["embed_x.weight"].shape
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        with torch.device("meta"):
            prior = EmbeddingPrior(dim, width, depth)
        prior.load_state_dict(weights, assign=True)
        if (name := first_not_finite(weights)) or not prior.std > 0:
            raise ValueError(f"{name or 'std'} is not a usable number")
        with safe_open(path, "pt") as file:
            clip = (file.metadata() or {})[CLIP]
    return prior.eval().requires_grad_(False), clip


def prior_made_from(path: Path) -> str:
    """Return the identity of the embeddings that a prior was trained on; empty if not recorded."""
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get(MADE_FROM, ""))


def load_config_prior(
    config: Config, clip: str | None, device: torch.device | str = "cpu"
) -> EmbeddingPrior | None:
    """Load the prior at `encoders.prior`, or return None if `sampling.freedom` is zero.

    clip: identity of the CLIP that embeds the sentences; None = unknown. Raises UserError if there
    is no prior, or it was made for another CLIP or another width of conditions.
    """
    if config.sampling.freedom == 0:
        return None
    path = config.encoders.prior
    if path is None:
        raise UserError(
            f"sampling.freedom={config.sampling.freedom:g} needs a prior: {TRAIN} and name its "
            "file in encoders.prior, or set sampling.freedom=0"
        )
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
