"""The comparisons of docs/parity.md: our results beside those of the published code."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from golden_models import GOLDEN_MODELS, golden_denoiser, golden_mask, small_denoiser
from reference_network import denoised as plain_denoised

from models.autoencoder import load_autoencoder
from models.edm import LossRandom, edm_loss
from models.perturbation import perturb_by
from models.samplers import SamplerSettings, SeededNoise, guided, nfe, sample
from models.token_mask import random_mask
from utils.data.images import center_crop
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.schedules import mask_ratio_at

RTOL, ATOL = 1e-4, 1e-5


@dataclass(frozen=True)
class Row:
    """One comparison: its largest deviations, and whether it is close enough.

    `relative` covers the values that are at least a hundredth of the largest one.
    """

    what: str
    values: int
    absolute: float
    relative: float
    passes: bool


def compared(what: str, actual: object, expected: object, *, exact: bool = False) -> Row:
    """Compare two arrays: equal if `exact`, else within RTOL and ATOL.

    Raise ValueError if their shapes differ.
    """
    actual, expected = (np.asarray(values, np.float64) for values in (actual, expected))
    if actual.shape != expected.shape:
        raise ValueError(f"{what}: shape {actual.shape}, reference {expected.shape}")
    deviation, size = np.abs(actual - expected), np.abs(expected)
    large = size >= 0.01 * size.max()
    relative = (deviation[large] / np.maximum(size[large], 1e-300)).max()
    limit = 0 if exact else ATOL + RTOL * size
    passes = bool((deviation <= limit).all())
    return Row(what, expected.size, deviation.max(), relative, passes)


class Golden:
    """Folders of reference files; remembers the files that were asked for and are in none."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = list(folders)
        self.missing: list[str] = []

    def find(self, *names: str) -> tuple[Path, ...]:
        """Return the path of each file, or an empty tuple if one of them is missing."""
        places = [[f / name for f in self.folders if (f / name).exists()] for name in names]
        absent = [name for name, found in zip(names, places, strict=True) if not found]
        self.missing += absent
        return () if absent else tuple(found[0] for found in places)


def guided_at_own_noise(denoiser: torch.nn.Module, t: dict[str, torch.Tensor]) -> torch.Tensor:
    """Denoise with guidance 4 and another sigma for each image, as the reference does."""

    def denoise(x: torch.Tensor, _: float, cond: torch.Tensor) -> torch.Tensor:
        return denoiser(x, t["sigma"].repeat(len(x) // len(t["sigma"])), cond)

    return guided(denoise, t["labels"], 4.0)(t["x"], 1.0)


def golden_loss(
    name: str, denoiser: torch.nn.Module, t: dict[str, torch.Tensor], masked: bool
) -> torch.Tensor:
    """Return the training loss of each image, (N,), with the reference's random numbers."""
    mask = golden_mask(t) if masked else None
    random = LossRandom(t["loss/rnd_normal"], t["loss/noise"], mask)
    coef = GOLDEN_MODELS[name].get("mae_loss_coef", 0.1)
    return edm_loss(denoiser, t["loss/clean"], t["labels"], random, mae_loss_coef=coef)


def network_values(
    path: Path, device: str = "cpu"
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield a label, the output of our network and that of the published one, for each check."""
    name = path.stem
    denoiser, t = golden_denoiser(path.parent, name)
    denoiser, t = denoiser.to(device), {key: tensor.to(device) for key, tensor in t.items()}
    x, sigma, labels = t["x"], t["sigma"], t["labels"]
    with torch.no_grad():
        yield "denoised", denoiser(x, sigma, labels), t["eval/denoised"]
        yield "no condition", denoiser(x, sigma), t["eval/denoised_unconditional"]
        yield "one sigma", denoiser(x, 1.5, labels), t["eval/denoised_scalar_sigma"]
        yield "guidance 4", guided_at_own_noise(denoiser, t), t["eval/cfg_scale_4"]
        masked = denoiser(x, sigma, labels, golden_mask(t))
        yield "masked forward", masked, t["train/denoised_masked"]
        if "loss/per_sample_unmasked" in t:
            loss = golden_loss(name, denoiser, t, masked=False)
            yield "loss, no mask", loss, t["loss/per_sample_unmasked"]
    loss = golden_loss(name, denoiser, t, masked=True)
    yield "loss, masked", loss.detach(), t["loss/per_sample_masked"]
    loss.mean().backward()
    norms = [p.grad.norm() for p in denoiser.parameters() if p.grad is not None]
    yield "its gradient's norm", torch.stack(norms).norm(), t["loss/grad_norm_masked"]


def network_rows(
    golden: Golden, amp: torch.dtype = torch.float32, device: str = "cpu"
) -> Iterator[Row]:
    """Compare the three networks in float32, or under autocast to another type."""
    for name in GOLDEN_MODELS:
        for path in golden.find(f"{name}.safetensors"):
            with torch.autocast(torch.device(device).type, amp, enabled=amp != torch.float32):
                for what, ours, theirs in network_values(path, device):
                    yield compared(f"`{name}`: {what}", ours.float().cpu(), theirs.cpu())


def gaussian_denoiser(
    x: torch.Tensor, sigma: float, cond: torch.Tensor | None = None
) -> torch.Tensor:
    """Denoise images ~ N(mean of the condition, 0.5²) in closed form, as the reference does."""
    mean = 0 if cond is None else cond.double().mean(dim=1)[:, None, None, None]
    return (0.25 * x.double() + sigma**2 * mean) / (0.25 + sigma**2)


def sampler_rows(golden: Golden, device: str = "cpu") -> Iterator[Row]:
    """Compare the result and the number of network evaluations of every sampler setting."""
    for path in golden.find("samplers.safetensors"):
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            settings = {n: text for n, text in sorted(file.metadata().items()) if n in tensors}
        for name, text in settings.items():
            options = json.loads(text)
            evaluations, cfg_scale = options.pop("nfe"), options.pop("cfg_scale", None)
            del options["fn"], options["noise_draws"]
            settings = SamplerSettings(**options)
            noise = torch.Generator().manual_seed(123)
            denoise = guided(gaussian_denoiser, tensors["labels"].to(device), cfg_scale)

            def randn(x: torch.Tensor, noise: torch.Generator = noise) -> torch.Tensor:
                return torch.randn(x.shape, generator=noise, dtype=x.dtype).to(device)

            images = sample(denoise, tensors["latents"].to(device), settings, randn)
            yield compared(f"`{name}`", images.cpu(), tensors[name])
            yield compared(f"`{name}`: evaluations", [nfe(settings)], [evaluations], exact=True)


def noise_rows(golden: Golden) -> Iterator[Row]:
    """Compare the random numbers of each seed."""
    for path in golden.find("per_seed_noise.safetensors"):
        t = load_file(path)
        noise = SeededNoise(t["seeds"])
        for what in ("first", "second"):
            expected = t[f"{what}_randn_4x8x8"]
            yield compared(f"{what} normal numbers", noise.randn((4, 8, 8)), expected, exact=True)
        generated = noise.randint(100)
        yield compared("integers", generated, t["then_randint_100"].flatten(), exact=True)


def vae_rows(golden: Golden) -> Iterator[Row]:
    """Compare an autoencoder whose weights have the names of LDM (Rombach 2022)."""
    if found := golden.find("ldm_vae_tiny.pth", "ldm_vae_tiny_io.safetensors"):
        vae, t = load_autoencoder(found[0]), load_file(found[1])
        yield compared("moments", vae.encode_moments(t["image"]), t["moments"])
        yield compared("decoded", vae.decode(t["scaled_latent"]), t["decoded"].clamp(-1, 1))


def database_rows(golden: Golden) -> Iterator[Row]:
    """Compare what is read from a published database, and from one that we write."""
    if found := golden.find("lmdb_seed_format", "lmdb_seed_format_expected.npz"):
        with np.load(found[1]) as stored:
            z, y = stored["z"], stored["y"]
        latents, texts = (LMDBReader(found[0] / part) for part in ("z", "clip_txt"))
        yield compared("latents", latents.read(range(len(z))), z, exact=True)
        rows, features = np.indices(y.shape[:2]).reshape(2, -1)
        read = texts.read(rows, features).reshape(y.shape)
        yield compared("embeddings", read, y, exact=True)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "y"
            with LMDBWriter(path, "y", {}, len(y)) as writer:
                writer.append(y)
            read = LMDBReader(path).read(rows, features).reshape(y.shape)
        yield compared("embeddings, written by us", read, y, exact=True)


def checkpoint_rows(golden: Golden) -> Iterator[Row]:
    """Compare the weights of a published checkpoint with those of our network that loads it."""
    if found := golden.find("0000100.pt", "maskdit_decoder_mae.safetensors"):
        state = load_checkpoint(found[0])
        denoiser, _ = golden_denoiser(found[1].parent, found[1].stem)
        for which in ("model", "ema"):
            denoiser.load_state_dict(state[which])
            pairs = [(v, state[which][name]) for name, v in denoiser.state_dict().items()]
            ours, theirs = (torch.cat([p[i].flatten() for p in pairs]) for i in (0, 1))
            yield compared(f"`{which}` weights", ours, theirs, exact=True)


def perturbation_rows(golden: Golden) -> Iterator[Row]:
    """Compare the perturbed condition with the reference's random numbers."""
    for path in golden.find("perturbation.npz"):
        t = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
        ours = perturb_by(t["embedding"].double(), t["noise"], t["level"].view(-1, 1))
        yield compared("perturbed embeddings", ours, t["perturbed"])


def small_rows(golden: Golden) -> Iterator[Row]:
    """Compare mask schedules and crops."""
    for path in golden.find("mask_schedules.json"):
        t = json.loads(path.read_text())
        for schedule, values in t["value"].items():
            ours = [mask_ratio_at(schedule, x, t["ratio"], t["ratio_min"]) for x in t["x"]]
            yield compared(f"mask ratio, {schedule}", ours, values)
    for path in golden.find("center_crop.npz"):
        with np.load(path) as t:
            for i in range(5):
                ours = center_crop(Image.fromarray(t[f"in_{i}"]), 64)
                height, width, _ = t[f"in_{i}"].shape
                what = f"centre crop of {width} x {height}"
                yield compared(what, np.asarray(ours), t[f"out64_{i}"], exact=True)


def formula_rows() -> Iterator[Row]:
    """Compare each network option with tests/helpers/reference_network.py, and a full mask."""
    generator = torch.Generator().manual_seed(0)
    x, cond, noise, features = (
        torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 6), (2, 6), (2, 5))
    )
    sigma = torch.tensor([0.1, 3.0])
    for name, options in {
        "decoder": {},
        "`pad_cls_token`": {"pad_cls_token": True},
        "`self_cond`": {"self_cond": True},
        "`ext_feature_dim`": {"ext_feature_dim": 5},
        "learned perturbation": {"perturbation": True},
    }.items():
        denoiser = small_denoiser(**options)
        extra = features if "ext_feature_dim" in options else None
        given = noise if "perturbation" in options else None
        both = cond if extra is None else torch.cat([cond, extra], dim=1)
        weights = denoiser.state_dict()
        expected = plain_denoised(weights, x, sigma, cond, extra, given, heads=2, decoder_heads=2)
        ours = denoiser(x, sigma, both, cond_noise=given)
        yield compared(f"{name}: plain formulas", ours.detach(), expected.detach())
    denoiser = small_denoiser(pad_cls_token=True)
    all_kept = denoiser(x, sigma, cond, random_mask(2, 16, 0.0)).detach()
    expected = denoiser(x, sigma, cond).detach()
    yield compared("a mask that keeps every token: no mask", all_kept, expected)
