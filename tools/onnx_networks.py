"""The three networks of a sampler as ONNX files, and CLIP's tokenizer as JSON."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import bytes_to_unicode
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.clip import ClipEncoder
from models.edm import EDMPrecond
from utils.base.errors import UserError
from utils.base.files import write_json
from utils.sampling.generate import latent_shape

ONE_FILE = 1_800_000_000  # bytes; larger weights lie beside the .onnx file, as ONNX demands


class Decoder(nn.Module):
    """The decoder: scaled latents -> images in [-1, 1]."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.vae, self.unscaled = autoencoder.vae, autoencoder.unscaled

    def forward(self, latents: Tensor) -> Tensor:
        """Decode (N, C, h, w) -> (N, 3, H, W)."""
        return self.vae.decode(self.unscaled(latents)).clamp(-1, 1)


class TextTower(nn.Module):
    """The text tower: tokens -> embeddings, not normalised."""

    def __init__(self, clip: ClipEncoder) -> None:
        super().__init__()
        self.model = clip.model

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed (N, context length) int64 -> (N, D)."""
        y: Tensor = self.model.encode_text(tokens)
        return y


def export_networks(
    denoiser: EDMPrecond, autoencoder: Autoencoder, clip: ClipEncoder, folder: Path
) -> None:
    """Write denoiser.onnx, decoder.onnx and text.onnx, in float32, for any number of images."""
    latents = torch.randn(2, *latent_shape(denoiser))
    cond = torch.randn(2, denoiser.model.cond_width)
    tokens = clip.tokenizer(["a", "a face"])
    with torch.inference_mode():
        _export(denoiser, {"x": latents, "sigma": torch.ones(2), "cond": cond}, folder / "denoiser")
        _export(Decoder(autoencoder), {"latents": latents}, folder / "decoder")
        _export(TextTower(clip), {"tokens": tokens}, folder / "text")


def _export(network: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    """Write one network; the first dimension of all inputs may have any length."""
    batch = torch.export.Dim("batch", min=1)
    size = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    with _silence():
        torch.onnx.export(
            network.eval(),
            (),
            path.with_suffix(".onnx"),
            kwargs=inputs,
            input_names=list(inputs),
            dynamic_shapes={name: {0: batch} for name in inputs},
            external_data=size > ONE_FILE,
            dynamo=True,
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's progress and warnings of its own code off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def export_tokenizer(clip: ClipEncoder, path: Path) -> None:
    """Write what tools/onnx_files/clip_tokenizer.py reads.

    Raises UserError if the tokenizer is not CLIP's own one.
    """
    tokenizer = clip.tokenizer
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise UserError(
            f"the ONNX sampler knows CLIP's own tokenizer only, not {type(tokenizer).__name__}"
        )
    start, end = (tokenizer.decoder[number] for number in tokenizer.all_special_ids[:2])
    symbols = bytes_to_unicode()
    content = {
        "context_length": clip.context_length,
        "start": start,
        "end": end,
        "bytes": [symbols[byte] for byte in range(256)],
        "vocabulary": tokenizer.encoder,
        "merges": list(tokenizer.bpe_ranks),
    }
    write_json(path, content)
