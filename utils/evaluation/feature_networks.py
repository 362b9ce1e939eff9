"""Feature networks: images in, features for the metrics out. The first of three steps.

A network runs once per image, and its `Outputs` serve all metrics. It always runs on blocks of
BLOCK images, the last one filled up: matrix products of another batch size round differently, so
that features would depend on the batches (by about 2e-7).
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from models.choices import FeatureNetworkKind
from models.weights import read_tensors
from utils.base.errors import UserError, note
from utils.base.out_of_memory import OomBatchSplitter
from utils.config.schema import Config
from utils.evaluation.metric_names import kind_of_network
from utils.pretrained.assets import advice
from utils.pretrained.encoders import load_config_clip

if TYPE_CHECKING:
    from models.clip import ClipEncoder

BLOCK = 16  # images
Batch = TypeVar("Batch", bound=tuple[Tensor | None, ...])


class Outputs(NamedTuple):
    """Outputs of a network for B images, float32 on the CPU."""

    pooled: Tensor  # (B, D), features for distances
    logits: Tensor | None = None  # (B, 1008), of classes, without the last layer's bias
    spatial: Tensor | None = None  # (B, 2023), an early map, which keeps positions


class FeatureNetwork(ABC):
    """A frozen network. Networks with an equal `name` give equal features."""

    name: str
    device: torch.device

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """Make the network's input of uint8 (B, 3, H, W) of any size, each image by itself."""

    @abstractmethod
    def run(self, inputs: Tensor) -> Outputs:
        """Run on prepared images (BLOCK, 3, S, S), or fewer if memory runs out."""

    @cached_property
    def in_memory(self) -> OomBatchSplitter:
        """Runs batches, and halves them when memory runs out."""
        return OomBatchSplitter(f"features of {self.name}")

    @torch.inference_mode()
    def __call__(self, images: Tensor | Sequence[Tensor]) -> Outputs:
        """Run on uint8 (B, 3, H, W), or on a (3, H, W) for each image if sizes differ."""
        parts: list[Outputs] = []
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            if not isinstance(block, Tensor):
                inputs = torch.cat([self.prepare(image[None]) for image in block])
            else:
                inputs = self.prepare(block)
            filling = inputs[:1].expand(BLOCK - len(inputs), -1, -1, -1)
            parts += self.in_memory(self._run_to_cpu, torch.cat([inputs, filling]))

        return joined(parts, len(images))

    def _run_to_cpu(self, inputs: Tensor) -> Outputs:
        pooled, *others = self.run(inputs)
        return Outputs(pooled.float().cpu(), *(x if x is None else x.float().cpu() for x in others))


def joined(parts: Sequence[Batch], count: int) -> Batch:
    """Join the named tuples of several batches, field by field; keep the first `count` rows."""
    make: Any = type(parts[0])  # an optional field is None in all parts or in none
    columns = zip(*parts, strict=True)
    return make(*(None if column[0] is None else torch.cat(column)[:count] for column in columns))


class ClipFeatures(FeatureNetwork):
    """The image tower of a CLIP: its embeddings, not normalised."""

    def __init__(self, clip: ClipEncoder) -> None:
        self.clip = clip
        self.name = clip.identity
        self.device = clip.device

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and crop uint8 (B, 3, H, W) to the tower's size."""
        return self.clip.resized(images)

    def run(self, inputs: Tensor) -> Outputs:
        """Return the embeddings of uint8 (B, 3, S, S)."""
        return Outputs(self.clip.encode_images(inputs))


class InceptionFeatures(FeatureNetwork):
    """The FID Inception network of 2015: 2048 pooled features, class logits, spatial features.

    Its input is prepared by the method of `pytorch-fid` (bilinear resize to 299x299 without
    antialiasing, values in [-1, 1]) or, with `like_tensorflow`, by that of TensorFlow's original,
    torch-fidelity, ADM and EDM (TF1's bilinear resize, (x - 128) / 128). Spatial features are those
    of sFID (Nash 2021) in ADM's evaluator: seven channels of the layer `mixed_6/conv`, 17x17.
    """

    def __init__(
        self,
        weights: str | Path,
        device: torch.device | str = "cpu",
        *,
        like_tensorflow: bool = False,
    ) -> None:
        """`weights`: *-inception-2015-12-05-*.pth of pytorch-fid or of torch-fidelity.

        Raises UserError if the file holds other weights.
        """
        # Its import takes a second, and most runs never need it.
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            # torch-fidelity unpickles the file, so it gets a copy that holds only tensors.
            tensors_only = io.BytesIO()
            torch.save(read_tensors(Path(weights)), tensors_only)
            tensors_only.seek(0)
            network = FeatureExtractorInceptionV3("inception", ["2048"], tensors_only)
        except (ValueError, RuntimeError) as fault:
            reason = str(fault).splitlines()[0]
            raise UserError(f"{weights}: not the FID Inception weights ({reason})") from fault
        self.name = "inception-tf" if like_tensorflow else "inception"
        self.device = torch.device(device)
        layers = [layer for name, layer in network.named_children() if name != "fc"]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Flatten()).eval().to(self.device)
        self.class_weights = network.fc.weight.T.to(self.device)  # (2048, 1008)
        self.mixed_6: list[Tensor] = []
        network.Mixed_6d.branch1x1.register_forward_hook(
            lambda layer, inputs, output: self.mixed_6.append(output[:, :7])
        )

    def prepare(self, images: Tensor) -> Tensor:
        """Resize uint8 (B, 3, H, W) to float32 (B, 3, 299, 299)."""
        # Its import takes a second, and most runs never need it.
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )

        x, size = images.to(self.device).float(), (299, 299)
        if self.name == "inception-tf":
            x = interpolate_bilinear_2d_like_tensorflow1x(x, size, align_corners=False)
            return (x - 128) / 128
        return 2 * F.interpolate(x / 255, size, mode="bilinear", align_corners=False) - 1

    def run(self, inputs: Tensor) -> Outputs:
        """Return pooled features, class logits and spatial features of (B, 3, 299, 299)."""
        self.mixed_6.clear()  # left by a run for which memory did not suffice
        pooled = self.layers(inputs)
        spatial = self.mixed_6.pop().permute(0, 2, 3, 1).flatten(1)  # in TensorFlow's order
        return Outputs(pooled, pooled @ self.class_weights, spatial)


class DinoFeatures(FeatureNetwork):
    """The class token of a DINOv2 (Oquab 2023).

    Its distances agree better with people than those of other networks (Stein 2023).
    Images are resized to 224x224 with antialiased bicubic interpolation, the method of that study.
    """

    SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by width

    def __init__(self, weights: str | Path, device: torch.device | str = "cpu") -> None:
        """`weights`: DINOv2's own .pth or timm's safetensors, of any size.

        Raises UserError if the file holds other weights.
        """
        import timm  # its import is slow, and most runs never need it
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

        try:
            tensors = read_tensors(Path(weights))
            size = self.SIZES[tensors["cls_token"].shape[-1]]
            registers = "_reg4" if {"reg_token", "register_tokens"} & tensors.keys() else ""
            model = timm.create_model(
                f"vit_{size}_patch14{registers}_dinov2", num_classes=0, img_size=224
            )
            assert isinstance(model, VisionTransformer)
            model.load_state_dict(checkpoint_filter_fn(tensors, model))
        except (ValueError, LookupError, RuntimeError) as fault:
            reason = str(fault).splitlines()[0]
            raise UserError(f"{weights}: not DINOv2 weights ({reason})") from fault
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(tensors[name].float().numpy().tobytes())
        self.name = f"dinov2-{size}-{digest.hexdigest()[:12]}"
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(3, 1, 1)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise uint8 (B, 3, H, W) to float32 (B, 3, 224, 224)."""
        from torchvision.transforms import InterpolationMode  # imported here: slow, others do not
        from torchvision.transforms.v2 import functional as tvf  # need it

        resized: Tensor = tvf.resize(images, [224, 224], InterpolationMode.BICUBIC, antialias=True)
        return (resized.to(self.device).float() / 255 - self.mean) / self.std

    def run(self, inputs: Tensor) -> Outputs:
        """Return the class tokens of (B, 3, 224, 224)."""
        return Outputs(self.model(inputs))

    @torch.inference_mode()
    def patch_maps(self, images: Tensor) -> Tensor:
        """Return the normalised patch tokens of uint8 (N, 3, H, W) as maps (N, D, 16, 16)."""
        maps = self.model.forward_intermediates(
            self.prepare(images), indices=1, norm=True, intermediates_only=True
        )
        assert isinstance(maps, list)
        return maps[-1].float()


def load_feature_network(
    config: Config,
    device: torch.device | str = "cpu",
    clip: ClipEncoder | None = None,
    kind: FeatureNetworkKind | None = None,
) -> FeatureNetwork:
    """Load the network of a kind, by default of `eval.feature_network`.

    If that key is `inception` and its weights are missing, CLIP replaces it, with a note; `.name`
    identifies the network. `clip`: the config's CLIP, if it is loaded already.

    Raises UserError if weights are missing, or are of another network.
    """
    wanted = kind or config.eval.feature_network
    key = "dinov2" if wanted == "dinov2" else "inception"
    weights: Path | None = getattr(config.encoders, key)
    if wanted != "clip" and weights and weights.is_file():
        if wanted == "dinov2":
            return DinoFeatures(weights, device)
        return InceptionFeatures(weights, device, like_tensorflow=wanted == "inception-tf")
    missing = f"{weights} is not there" if weights else f"encoders.{key} is not set"
    if wanted == "inception" and kind is None:
        note(f"{missing}: the feature network is the CLIP image tower, distances are not FID")
    elif wanted != "clip":
        hint = advice(weights) if weights else ""
        raise UserError(
            f"{missing}: the feature network {wanted} needs its weights there{hint}, "
            f"or set encoders.{key}=FILE"
        )
    return ClipFeatures(clip or load_config_clip(config.encoders, device))


def kind_of(name: str) -> FeatureNetworkKind:
    """Return the kind of the network with this `FeatureNetwork.name`; UserError if unknown."""
    kind = kind_of_network(name)
    if kind is None:
        known = ", ".join(get_args(FeatureNetworkKind))
        raise UserError(f"'{name}' is no known feature network; there are {known}")
    return kind
