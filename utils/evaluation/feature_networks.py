"""Feature networks: images in, the numbers that metrics compare out. The first of three steps.

A network runs once per image and what it gives (`Outputs`) serves all metrics. It always sees
blocks of BLOCK images, the last one filled up: matrix products round differently for other batch
sizes, so that features would otherwise depend on how images came in (by about 2e-7).
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from models.choices import FeatureNetworkKind
from models.clip import ClipEncoder
from models.weights import read_tensors
from utils.base.errors import UserError, note
from utils.base.out_of_memory import Halving
from utils.config.schema import Config
from utils.pretrained.assets import advice
from utils.pretrained.encoders import load_config_clip

BLOCK = 16  # images


class Outputs(NamedTuple):
    """What a network gives for B images, float32 on the CPU."""

    pooled: Tensor  # (B, D), what distances are measured in
    logits: Tensor | None = None  # (B, 1008), of classes, without the last layer's bias
    spatial: Tensor | None = None  # (B, 2023), an early map that keeps where things are


class FeatureNetwork(ABC):
    """A frozen network; two of the same `name` give the same features."""

    name: str
    device: torch.device

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of any size -> the network's input, each image for itself."""

    @abstractmethod
    def run(self, inputs: Tensor) -> Outputs:
        """Prepared (BLOCK, 3, S, S) -> outputs; fewer at once where memory runs out."""

    @cached_property
    def in_memory(self) -> Halving:
        """How many images fit."""
        return Halving(f"features of {self.name}")

    @torch.inference_mode()
    def __call__(self, images: Tensor | Sequence[Tensor]) -> Outputs:
        """`images`: uint8 (B, 3, H, W), or a (3, H, W) for each image if sizes differ."""
        parts = []
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            if not isinstance(block, Tensor):
                inputs = torch.cat([self.prepare(image[None]) for image in block])
            else:
                inputs = self.prepare(block)
            filling = inputs[:1].expand(BLOCK - len(inputs), -1, -1, -1)
            parts += self.in_memory(self._run_to_cpu, torch.cat([inputs, filling]))

        def join(values: Sequence[Tensor | None]) -> Tensor | None:
            return None if values[0] is None else torch.cat(values)[: len(images)]

        return Outputs(*map(join, zip(*parts, strict=True)))

    def _run_to_cpu(self, inputs: Tensor) -> Outputs:
        return Outputs(*(None if x is None else x.float().cpu() for x in self.run(inputs)))


class ClipFeatures(FeatureNetwork):
    """The image tower of a CLIP: its embeddings, not normalised."""

    def __init__(self, clip: ClipEncoder):
        self.clip = clip
        self.name = clip.identity
        self.device = clip.device

    def prepare(self, images: Tensor) -> Tensor:
        return self.clip.resized(images)

    def run(self, inputs: Tensor) -> Outputs:
        return Outputs(self.clip.encode_images(inputs))


class InceptionFeatures(FeatureNetwork):
    """The FID Inception network of 2015: 2048 pooled features, class logits, spatial features.

    It is fed as `pytorch-fid` does it (bilinear resize to 299x299 without antialiasing, values in
    [-1, 1]) or, with `like_tensorflow`, as TensorFlow's original is, which torch-fidelity, ADM and
    EDM follow (TF1's bilinear resize, (x - 128) / 128). Spatial features are those of sFID (Nash
    2021) as ADM's evaluator takes them: seven channels of the layer `mixed_6/conv`, 17x17.
    """

    def __init__(
        self,
        weights: str | Path,
        device: torch.device | str = "cpu",
        *,
        like_tensorflow: bool = False,
    ):
        """`weights`: *-inception-2015-12-05-*.pth as published for either of the two projects."""
        # Costs a second at import, and most runs never need it.
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            # torch-fidelity would unpickle the file; it gets a copy that holds tensors only.
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
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )

        x, size = images.to(self.device).float(), (299, 299)
        if self.name == "inception-tf":
            x = interpolate_bilinear_2d_like_tensorflow1x(x, size, align_corners=False)
            return (x - 128) / 128
        return 2 * F.interpolate(x / 255, size, mode="bilinear", align_corners=False) - 1

    def run(self, inputs: Tensor) -> Outputs:
        self.mixed_6.clear()  # of a run that memory did not suffice for
        pooled = self.layers(inputs)
        spatial = self.mixed_6.pop().permute(0, 2, 3, 1).flatten(1)  # in TensorFlow's order
        return Outputs(pooled, pooled @ self.class_weights, spatial)


class DinoFeatures(FeatureNetwork):
    """The class token of a DINOv2 (Oquab 2023).

    Of all networks its distances agree best with people's judgement (Stein 2023); as in that study
    images are resized to 224x224 with antialiased bicubic interpolation.
    """

    SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by width

    def __init__(self, weights: str | Path, device: torch.device | str = "cpu"):
        """`weights`: DINOv2's own .pth or timm's safetensors, of any size."""
        import timm  # slow to import, and most runs never need it
        from timm.models.vision_transformer import checkpoint_filter_fn

        try:
            tensors = read_tensors(Path(weights))
            size = self.SIZES[tensors["cls_token"].shape[-1]]
            registers = "_reg4" if {"reg_token", "register_tokens"} & tensors.keys() else ""
            model = timm.create_model(
                f"vit_{size}_patch14{registers}_dinov2", num_classes=0, img_size=224
            )
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
        mean, std = (model.pretrained_cfg[key] for key in ("mean", "std"))
        self.mean, self.std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))

    def prepare(self, images: Tensor) -> Tensor:
        resized = tvf.resize(images, [224, 224], InterpolationMode.BICUBIC, antialias=True)
        return (resized.to(self.device).float() / 255 - self.mean) / self.std

    def run(self, inputs: Tensor) -> Outputs:
        return Outputs(self.model(inputs))


def load_feature_network(
    config: Config,
    device: torch.device | str = "cpu",
    clip: ClipEncoder | None = None,
    kind: FeatureNetworkKind | None = None,
) -> FeatureNetwork:
    """The network `kind`, by default the one that `eval.feature_network` asks for.

    CLIP stands in where that one is Inception and its weights are missing; this is said, and
    `.name` tells which network it is. `clip`: the config's CLIP where it is already loaded.

    Raises UserError if weights are missing, or are of another network.
    """
    wanted = kind or config.eval.feature_network
    if wanted == "clip":
        return ClipFeatures(clip or load_config_clip(config, device))
    key = "dinov2" if wanted == "dinov2" else "inception"
    weights: Path | None = getattr(config.encoders, key)
    if weights and weights.is_file():
        if wanted == "dinov2":
            return DinoFeatures(weights, device)
        return InceptionFeatures(weights, device, like_tensorflow=wanted == "inception-tf")
    missing = f"{weights} is not there" if weights else f"encoders.{key} is not set"
    if wanted == "inception" and kind is None:
        note(f"{missing}: the feature network is the CLIP image tower, figures are not FID")
        return ClipFeatures(clip or load_config_clip(config, device))
    hint = advice(weights) if weights else ""
    raise UserError(
        f"{missing}: the feature network {wanted} needs its weights there{hint}, "
        f"or set encoders.{key}=FILE"
    )


def kind_of(name: str) -> FeatureNetworkKind:
    """Which kind of network has that `FeatureNetwork.name`; raises UserError if none has."""
    kinds: tuple[FeatureNetworkKind, ...] = ("inception-tf", "inception", "dinov2", "clip")
    for kind in kinds:
        if name == kind or name.startswith(f"{kind}-"):
            return kind
    raise UserError(f"'{name}' is no feature network that is known here: {', '.join(kinds)}")
