"""Random weights for the FID Inception network, in the format of pytorch-fid's weights file."""

from pathlib import Path

import pytest
import pytorch_fid.inception
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class _Unloaded(FeatureExtractorInceptionV3):
    """The network with the weights of its constructor."""

    def load_state_dict(self, state_dict: object) -> None:
        """Keep the random weights."""


def make_inception_weights(path: Path) -> Path:
    """Write random weights and batch statistics, so that every part of the network matters."""
    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Unloaded("inception", ["2048"], str(path))
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None and layer.running_var is not None
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.7, 1.3)
                layer.weight.uniform_(0.8, 1.2)
                layer.bias.normal_(0, 0.1)
    torch.save(network.state_dict(), path)
    return path


def published_network(weights: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Build pytorch-fid's network with these weights instead of those that it would download."""
    monkeypatch.setattr(
        pytorch_fid.inception,
        "load_state_dict_from_url",
        lambda url, progress: torch.load(weights, weights_only=True),
    )
    return pytorch_fid.inception.InceptionV3().eval()
