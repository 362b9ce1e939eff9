"""The checks of benchmarks/gpu_check.py: each yields what it finds on a device."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity"), str(ROOT / "tests" / "helpers")]

import torch
from parity_checks import Golden, network_rows, network_values, sampler_rows
from PIL import Image

from benchmarks import sampling, timing, train_step
from benchmarks.device_trainings import STEPS, Workplace
from utils.config.sampling_sections import Sampling
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import generate
from utils.training.distributed import allow_tf32

# Largest deviation, relative to the largest reference value of a comparison, that is met.
AMP_LIMITS = {torch.bfloat16: 0.05, torch.float16: 0.01}
LOSS_LIMIT = 0.02  # relative, between variants of one training
PROMPTS = ("a bald man with glasses", "a woman with long red hair", "a person in a blue hoodie")


class Finding(NamedTuple):
    """A thing that a check found; `met` is None for what is measured only, or cannot be checked."""

    what: str
    value: str
    met: bool | None = None


@dataclass(frozen=True)
class Device:
    """The device to check, and the faces for trainings on it."""

    name: str
    work: Workplace

    @property
    def is_gpu(self) -> bool:
        """True on a GPU; on a CPU each check does its least."""
        return self.name != "cpu"


def reference_values(device: Device) -> Iterator[Finding]:
    """Compare networks and samplers with the published values, by the bounds of docs/parity.md."""
    folder = ROOT / "tests" / "golden"
    golden = Golden([folder])
    allow_tf32(False)
    for what, rows in (
        ("network, float32", list(network_rows(golden, device=device.name))),
        ("samplers, float64", list(sampler_rows(golden, device.name))),
    ):
        beyond = [row.what for row in rows if not row.passes]
        largest = max(row.absolute for row in rows)
        value = f"{len(rows)} comparisons, largest deviation {largest:.1e}"
        yield Finding(what, value + "".join(f"; beyond: {name}" for name in beyond), not beyond)
    for dtype, limit in AMP_LIMITS.items():
        name = str(dtype).removeprefix("torch.")
        if dtype == torch.float16 and not device.is_gpu:
            yield Finding(f"network, {name}", "not on a CPU")
            continue
        worst = 0.0
        for path in sorted(folder.glob("maskdit_*.safetensors")):
            with torch.autocast(torch.device(device.name).type, dtype):
                for _, ours, theirs in network_values(path, device.name):
                    difference = (ours.float() - theirs).abs().max() / theirs.abs().max()
                    worst = max(worst, float(difference.detach().nan_to_num(math.inf)))
        yield Finding(f"network, {name}", f"largest deviation {worst:.2%}", worst < limit)


def images(device: Device) -> Iterator[Finding]:
    """Generate images with the shipped network on the device in three types, and on the CPU."""
    allow_tf32(False)
    expected = generated("cpu", "no")
    for amp, limit in (("no", 0.05), ("bf16", 4.0), ("fp16", 1.0)):
        if amp == "fp16" and not device.is_gpu:
            yield Finding(amp, "not on a CPU")
            continue
        difference = (generated(device.name, amp) - expected).abs().mean().item()
        value = f"pixels differ from the CPU's in float32 by {difference:.3f} of 255 on average"
        yield Finding(amp.replace("no", "float32"), value, difference < limit)


def generated(device: str, amp: str) -> torch.Tensor:
    """Generate PROMPTS with the shipped networks, (N, H, W, 3) float32 from 0 to 255."""
    denoiser, config = load_denoiser(ROOT / "assets" / "demo" / "dit.safetensors", device)
    y = load_config_clip(config.encoders, device).encode_texts(PROMPTS)
    vae = load_config_autoencoder(config, device)
    settings = Sampling(preset="paper", num_steps=10, cfg_scale=1.5, amp=amp)
    conds = caption_conditions(y, config)
    seeds = range(len(PROMPTS))
    batches = generate(denoiser, vae, conds, seeds, settings, batch_size=8)
    return torch.cat([batch for _, batch in batches]).float()


def end_to_end(device: Device) -> Iterator[Finding]:
    """Render faces, encode them, train, and generate from the last checkpoint."""
    work = device.work
    losses = work.whole()
    value = f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {STEPS} steps"
    yield Finding("faces, latents, training", value, losses[-1] < losses[0])
    out = work.folder / "generated"
    flags = ["--prompt", PROMPTS[0], "--num", 1, "--out", out, "--device", device.name]
    work.run("t2f.py", "--ckpt", work.checkpoint("whole"), *flags)
    with Image.open(out / "00_000.png") as image:
        yield Finding("image of the last checkpoint", f"{image.width} x {image.height}", True)


def abilities(device: Device) -> Iterator[Finding]:
    """Train an adapter and a U-ViT, generate with the adapter, and edit that image by words."""
    work = device.work
    work.whole()
    base, adapter = work.checkpoint("whole"), work.folder / "adapter.safetensors"
    networks: dict[str, list[object]] = {
        "LoRA": ["--ckpt_path", base, "train.adapt=lora", "train.lr=1e-2"],
        "U-ViT": ["model.model_type=UViT-T/2"],
    }
    for name, options in networks.items():
        losses = work.train(name, *options)
        value = f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {STEPS} steps"
        yield Finding(name, value, losses[-1] < losses[0])
    export = ["--export_adapter", adapter, "--ckpt_path", work.checkpoint("LoRA")]
    work.run("train_latent_t2f.py", *export)
    first, second = work.folder / "adapted", work.folder / "edited"
    source = ["--ckpt", base, "--adapter", adapter, "--device", device.name]
    work.run("t2f.py", *source, "--prompt", PROMPTS[0], "--num", 1, "--out", first)
    shipped = ["--device", device.name, "--image", first / "00_000.png"]
    work.run("t2f.py", *shipped, "--add", "round glasses", "--out", second)
    with Image.open(first / "00_000.png") as before, Image.open(second / "00_000.png") as after:
        yield Finding("image edited by words", f"{after.width} x {after.height}", before != after)


def training_variants(device: Device) -> Iterator[Finding]:
    """Do one training resumed, compiled and on several processes, with equal losses."""
    work = device.work
    expected = work.whole()
    work.train_on_from_half("whole", "resumed")
    difference = (work.weights("resumed") - work.weights("whole")).abs().max().item()
    value = "weights equal the uninterrupted ones"
    value += " bit for bit" if difference == 0 else f" up to {difference:.1e}"
    yield Finding("resumed at half", value, difference < 1e-4)
    count = min(torch.cuda.device_count(), 4) if device.is_gpu else 2
    several, by = ["--num_process_per_node", count], "NCCL" if device.is_gpu else "gloo"
    variants: list[tuple[str, list[object]]] = [("compiled", ["train.compile=true"])]
    if device.is_gpu:
        variants.append(("fp16 with a loss scaler", ["train.amp=fp16"]))
    if count > 1:
        variants.append((f"{count} processes ({by})", several))
        variants.append((f"{count} processes, sharded (FSDP)", [*several, "train.shard=true"]))
    else:
        yield Finding("several processes (NCCL, FSDP)", "not checked: there is one GPU")
    for name, options in variants:
        try:
            losses = work.train(name.split(",")[0].replace(" ", "_") + str(len(options)), *options)
        except RuntimeError as fault:
            yield Finding(name, str(fault), False)
            continue
        worst = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
        yield Finding(name, f"losses of {STEPS} steps differ by {worst:.1e}", worst < LOSS_LIMIT)


def step_speed(device: Device) -> Iterator[Finding]:
    """Time a training step of S, B and XL beside the plain network's."""
    allow_tf32(True)
    rates = {"float32": 1.0, "bf16": timing.matmul_rate(torch.bfloat16)}
    batch, repeats = (32, 10) if device.is_gpu else (1, 1)
    for size in ("S", "B", "XL") if device.is_gpu else ("S",):
        for kind in ("autocast", "ours" if device.is_gpu else "eager"):
            name = f"DiT-{size}/2, batch {batch}, {train_step.VARIANTS[kind]}"
            case = train_step.Case(size, 0.5, batch=batch)
            try:
                (row,) = train_step.measure(case, [kind], repeats, 1, rates)
            except RuntimeError as fault:  # the process of a variant has ended, e.g. out of memory
                yield Finding(name, str(fault), False)
                continue
            value = f"{row['images/s']:.4g} images/s, {row['peak GB']:.3g} GB"
            yield Finding(name, f"{value}, {row['of the matrix rate']} of the matrix rate")


def sampling_speed(device: Device) -> Iterator[Finding]:
    """Time the sampling from seeds to pixels: the shipped network, and the published size."""
    networks = {sampling.SHIPPED: 64 if device.is_gpu else 2}
    if device.is_gpu:
        networks["DiT-XL/2"] = 16
    for network, count in networks.items():
        for name, settings in sampling.VARIANTS.items():
            if "`" not in name or "float32" in name and network == sampling.SHIPPED:
                continue
            work = sampling.setup(network, settings, count)
            seconds, _ = timing.timed(work)
            value = f"{count / seconds:.3g} images/s, {count} at once"
            shown = Path(network).stem if network == sampling.SHIPPED else network
            yield Finding(f"{shown}, {name}", value)


Check = Callable[[Device], Iterator[Finding]]
CHECKS: dict[str, Check] = {
    "reference values": reference_values,
    "images": images,
    "end to end": end_to_end,
    "abilities": abilities,
    "variants of training": training_variants,
    "speed of a step": step_speed,
    "speed of sampling": sampling_speed,
}
