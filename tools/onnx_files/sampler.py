"""From sentences and seeds to faces, with numpy and onnxruntime alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from clip_tokenizer import Tokenizer
from onnxruntime import InferenceSession


def randn(shape: Sequence[int], seed: int) -> np.ndarray:
    """Return what `torch.randn` gives on a CPU from a new generator of this seed, up to rounding.

    The Mersenne Twister gives 24-bit fractions; Box & Muller 1958 makes normal numbers of them, of
    each eight and the next eight. Hence shape should have a multiple of 16 elements.
    Raises ValueError for seeds outside [0, 2^32).
    """
    bits = np.frombuffer(np.random.RandomState(seed).bytes(4 * math.prod(shape)), "<u4")
    u, v = ((bits & 0xFFFFFF) / 2**24).reshape(-1, 2, 8).transpose(1, 0, 2)
    waves = np.stack([np.cos(2 * np.pi * v), np.sin(2 * np.pi * v)], axis=1)
    return (np.sqrt(-2 * np.log(1 - u))[:, None] * waves).reshape(shape)


class Sampler:
    """The networks and settings in a folder that tools/export_onnx.py wrote."""

    def __init__(self, folder: Path) -> None:
        self.settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.tokens = Tokenizer(folder / "tokenizer.json")
        self.networks = {path.stem: InferenceSession(path) for path in folder.glob("*.onnx")}

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        return np.asarray(self.networks[name].run(None, inputs)[0], np.float64)

    def condition(self, prompt: str) -> np.ndarray:
        (y,) = self.run("text", tokens=np.array([self.tokens(prompt)]))
        if mean := self.settings["image_mean"]:
            y = y / np.linalg.norm(y) + mean
        return y / np.linalg.norm(y) if mean or self.settings["norm_feature"] else y

    def denoise(self, x: np.ndarray, sigma: float, cond: np.ndarray) -> np.ndarray:
        scale, (low, high) = self.settings["cfg_scale"], self.settings["guidance_interval"]
        is_guided = scale not in (None, 1) and low < sigma <= high
        if is_guided:  # zeros are "no condition"
            x, cond = np.tile(x, (2, 1, 1, 1)), np.concatenate([0 * cond, cond])
        inputs = {"x": x, "sigma": np.full(len(x), sigma), "cond": cond}
        clean = self.run("denoiser", **{k: v.astype(np.float32) for k, v in inputs.items()})
        without, given = np.split(clean, 2) if is_guided else (clean, clean)
        return without + (scale or 1) * (given - without)

    def sample(self, x: np.ndarray, cond: np.ndarray) -> np.ndarray:
        """Go down the sigmas to 0 by Heun, Euler (Karras 2022) or DPM-Solver++(2M) (Lu 2022)."""
        solver, sigmas, last, last_h = self.settings["solver"], self.settings["sigmas"], None, 0.0
        x = x * sigmas[0]
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            clean = target = self.denoise(x, sigma, cond)
            if solver == "dpmpp_2m" and after:
                h = math.log(sigma / after)
                target = clean if last is None else clean + h / (2 * last_h) * (clean - last)
                last, last_h = clean, h
            step = (after - sigma) / sigma * (x - target)
            if solver == "heun" and after:
                slope = (x + step - self.denoise(x + step, after, cond)) / after
                step = (step + (after - sigma) * slope) / 2
            x = x + step
        return x

    def generate(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
        """Return images (N, H, W, 3) uint8, for a prompt and a seed each."""
        noise = np.stack([randn(self.settings["latent"], seed) for seed in seeds])
        latents = self.sample(noise, np.stack([self.condition(prompt) for prompt in prompts]))
        images = self.run("decoder", latents=latents.astype(np.float32))  # (N, 3, H, W)
        return (images * 127.5 + 127.5).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
