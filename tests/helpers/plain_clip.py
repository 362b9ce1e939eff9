"""Comparison of our CLIP encoder with open_clip used directly."""

import numpy as np
import open_clip
import torch
from PIL import Image

from models.clip import ClipEncoder

TEXTS = ["a face", "a person with long red hair, round glasses and a blue hoodie, smiling"]


def as_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as uint8 (1, 3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def open_clip_embeddings(
    model: torch.nn.Module, image: Image.Image
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of an image (1, D) and of TEXTS (2, D), made by open_clip alone."""
    config = open_clip.get_model_preprocess_cfg(model)
    transform = open_clip.image_transform(config["size"], is_train=False)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
        return model.encode_image(transform(image)[None]), model.encode_text(tokens)


def assert_same_as(clip: ClipEncoder, plain: torch.nn.Module, image: Image.Image) -> None:
    """Compare the encoder with open_clip's model: images to the bit, texts up to rounding."""
    expected_image, expected_texts = open_clip_embeddings(plain, image)
    assert torch.equal(clip.encode_images(as_tensor(image)), expected_image)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected_texts, rtol=1e-4, atol=1e-5)
