"""Networks for tests: those of the reference values in tests/golden, and a small random one."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from models.backbone import Architecture
from models.edm import EDMPrecond, build_denoiser
from models.maskdit import MaskDiT
from models.token_mask import TokenMask

GOLDEN_MODELS = {
    "maskdit_decoder_mae": {},
    "maskdit_cls_token": {"pad_cls_token": True},
    "maskdit_no_decoder": {"use_decoder": False, "mae_loss_coef": 0.0},
}


def golden_denoiser(golden: Path, name: str) -> tuple[EDMPrecond, dict[str, torch.Tensor]]:
    """Return our network with the weights of a reference file, and all tensors of that file.

    The file `{name}.safetensors` was written once with the published MaskDiT code.
    """
    tensors = load_file(golden / f"{name}.safetensors")
    sizes = {"depth": 3, "hidden_size": 64, "patch_size": 2, "num_heads": 4}
    decoder = {"decoder_hidden_size": 48, "decoder_depth": 2, "decoder_num_heads": 4}
    denoiser = EDMPrecond(
        MaskDiT(Architecture(8, 4, 16, **sizes, **decoder, **GOLDEN_MODELS[name]))
    )
    prefix = "state_dict/"
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    denoiser.load_state_dict(weights)
    return denoiser.eval(), tensors


def golden_mask(tensors: dict[str, torch.Tensor]) -> TokenMask:
    """Return the mask that the published network trained with in the reference file."""
    return TokenMask(*(tensors[f"train/{key}"] for key in ("mask", "ids_keep", "ids_restore")))


def assert_golden(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with a reference value, up to the rounding of float32."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def small_denoiser(**options) -> EDMPrecond:
    """Build a network for x (N, 4, 8, 8) and conditions of 6 numbers; no weight stays at zero."""
    torch.manual_seed(0)
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2, "decoder_hidden_size": 16}
    decoder = {"decoder_depth": 1, "decoder_num_heads": 2}
    denoiser = build_denoiser("DiT-T/2", 8, 4, 6, **sizes, **decoder, **options).eval()
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return denoiser
