"""Networks of which a few weights are trained: LoRA, DiffFit, or the layer of the condition alone.

An adapted layer keeps its weights under their names, and has a few new ones beside them.
`plain_weights` gives the weights of a plain network that computes the same.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.choices import Adaptation
from models.edm import EDMPrecond

MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of a block, which LoRA adapts
SCALED = ("attn.proj", "mlp.fc2")  # of a block, whose outputs DiffFit scales
# Layers that read the condition, of either network.
CONDITION = tuple(
    f"model.{layer}." for layer in ("y_embedder", "feat_embedder", "context_embed", "label_emb")
)
LORA_A, LORA_B, GAMMA = ".lora_A.weight", ".lora_B.weight", ".gamma"
SAMPLED = 4096  # numbers of each weight that a fingerprint reads


class LoraLinear(nn.Linear):
    """Linear layer W x + b + B A x (Hu et al. 2021, "LoRA", eq. 3), with A (r, in) and B (out, r).

    B begins at zero. The names are those of the library peft; its `lora_alpha` is r here.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Take over the weights of `linear`."""
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        device = linear.weight.device
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (…, in) -> (…, out)."""
        update: Tensor = self.lora_B(self.lora_A(x))
        return super().forward(x) + update


class ScaledLinear(nn.Linear):
    """Linear layer gamma (W x + b), whose scales gamma (out,) begin at one (Xie et al. 2023)."""

    def __init__(self, linear: nn.Linear) -> None:
        """Take over the weights of `linear`."""
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.gamma = nn.Parameter(torch.ones(linear.out_features, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (…, in) -> (…, out)."""
        return super().forward(x) * self.gamma


def adapt(denoiser: EDMPrecond, how: Adaptation, rank: int) -> None:
    """Let a network train only the weights that `how` names, in place; new ones change no output.

    all: every weight; the network stays as it is.
    lora: A and B of each matrix of MATRICES, of this rank.
    difffit: biases, normalisations that have weights, and the scales of SCALED, as DiffFit does
        (Xie et al. 2023, section 3.1).
    condition: the layers that read the condition.
    """
    if how == "all":
        return
    kinds = how.split("+")
    denoiser.requires_grad_(False)
    for block in denoiser.model.all_blocks():
        for name in MATRICES:
            part, _, layer = name.partition(".")
            owner = getattr(block, part)
            if "lora" in kinds:
                setattr(owner, layer, LoraLinear(getattr(owner, layer), rank))
            elif "difffit" in kinds and name in SCALED:
                setattr(owner, layer, ScaledLinear(getattr(owner, layer)))
    for module in denoiser.modules():
        if "difffit" in kinds and isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    for name, parameter in denoiser.named_parameters():
        is_bias = "difffit" in kinds and name.endswith(".bias")
        if is_bias or ("condition" in kinds and name.startswith(CONDITION)):
            parameter.requires_grad_(True)


def is_new(name: str) -> bool:
    """Return True if an adapted network has this weight and the plain one does not."""
    return name.endswith((LORA_A, LORA_B, GAMMA))


def plain_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return plain weights that compute the same as those of an adapted network, by name."""
    plain = {name: tensor for name, tensor in weights.items() if not is_new(name)}
    for name, tensor in weights.items():
        if name.endswith(LORA_A):
            layer = name.removesuffix(LORA_A)
            matrix = plain[f"{layer}.weight"]
            update = weights[f"{layer}{LORA_B}"].float() @ tensor.float()
            plain[f"{layer}.weight"] = (matrix.float() + update).to(matrix.dtype)
        elif name.endswith(GAMMA):
            layer = name.removesuffix(GAMMA)
            matrix, bias = plain[f"{layer}.weight"], plain[f"{layer}.bias"]
            plain[f"{layer}.weight"] = (matrix * tensor[:, None]).to(matrix.dtype)
            plain[f"{layer}.bias"] = (bias * tensor).to(bias.dtype)
    return plain


def mixed(
    base: Mapping[str, Tensor], adapters: Sequence[tuple[Mapping[str, Tensor], float]]
) -> dict[str, Tensor]:
    """Return base + sum of w (adapted - base) over adapters, each given as weights and its w.

    Weights that change are float32, all others those of the base.
    """
    mixture = dict(base)
    for weights, amount in adapters:
        own = {name: base[name].float() for new in weights for name in _changed_by(new)}
        given = {n: t.to(next(iter(own.values())).device) for n, t in weights.items()}
        for name, tensor in plain_weights({**own, **given}).items():
            mixture[name] = mixture[name].float() + amount * (tensor.float() - own[name])
    return mixture


def _changed_by(name: str) -> list[str]:
    """Return the plain weights that a weight of an adapter changes."""
    for ending, changed in ((LORA_A, (".weight",)), (LORA_B, ()), (GAMMA, (".weight", ".bias"))):
        if name.endswith(ending):
            return [name.removesuffix(ending) + plain for plain in changed]
    return [name]


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that identify plain weights; those in float16 have the same.

    It reads names, shapes, and up to SAMPLED numbers of each weight.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        numbers = tensor.detach().flatten()
        some = numbers[:: -(-len(numbers) // SAMPLED)].half().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
