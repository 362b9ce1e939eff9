"""Short trainings on the demo's faces, run as users run them, for benchmarks/gpu_check.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.base.files import read_json_lines
from utils.config.load import load_config
from utils.pretrained.checkpoint_files import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
SETTINGS = [
    "train.optimizer=adamw",  # in float32, so that losses can be compared closely
    "train.batchsize=32",
    f"train.max_num_steps={STEPS}",
    "train.lr_rampup_kimg=0",
    "log.log_every=1",
    f"log.ckpt_every={STEPS // 2}",
    "log.sample_every=0",
    "log.use_tensorboard=false",
]
LEAST = [  # for a quick run on a CPU: a small network, and one number of tokens to compile for
    "model.depth=2",
    "model.hidden_size=64",
    "model.num_heads=2",
    "model.unmasked_tail=0",
    "train.amp=no",
    "train.lr=3e-3",
]


@dataclass
class Workplace:
    """A temporary folder with faces, their databases and a config; trainings go into it.

    deadline: of time.monotonic(); a command that would end later is stopped.
    is_quick: the trainings do their least.
    variables: further environment variables of the commands.
    """

    folder: Path
    deadline: float
    is_quick: bool
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, script: str, *options: object) -> str:
        """Run a script of the project and return its output.

        Raises RuntimeError with its last line if it fails, or if the time is over.
        """
        command = [sys.executable, str(ROOT / script), *map(str, options)]
        left = max(self.deadline - time.monotonic(), 1)
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | self.variables,
                capture_output=True,
                text=True,
                timeout=left,
            )
        except subprocess.TimeoutExpired as fault:
            raise RuntimeError(f"{script} was stopped: the time is over") from fault
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
            errors = [line for line in said if line.startswith("error: ")]
            raise RuntimeError(f"{script}: {(errors or said)[-1]}")
        return done.stdout

    def whole(self) -> list[float]:
        """Return the losses of the plain, uninterrupted training, which is done once."""
        if not self.config.exists():
            self._prepare()
        if not self.checkpoint("whole").exists():
            self.train("whole")
        return self.losses("whole")

    def _prepare(self) -> None:
        """Render faces, encode them, and write the config of the trainings."""
        data, lmdb = self.folder / "demo", self.folder / "lmdb"
        faces = 32 if self.is_quick else 512
        counts = ["--num_train", faces, "--num_test", 8, "--num_captions", 1]
        self.run("demo/make_faces.py", "--out", data, *counts)
        places = {
            "data.image_dir": data / "train" / "images",
            "data.caption_dir": data / "train" / "captions",
            "data.root": lmdb / "z",
            "data.feat_path": lmdb / "clip_img",
        }
        overrides = [f"{key}={path}" for key, path in places.items()]
        overrides += [f"eval.{key}=null" for key in ("root", "feat_path", "image_feat_path")]
        overrides += [*SETTINGS, *(LEAST if self.is_quick else [])]
        config = load_config(ROOT / "configs" / "demo" / "demo.yaml", overrides)
        config_file = self.folder / "encode.yaml"
        config_file.write_text(config.to_yaml(), encoding="utf-8")
        encode = "preprocess_scripts/create_latentspace_lmdb.py"
        self.run(encode, "--config", config_file, "--split", "train", "--with_clip")
        config_file.rename(self.config)  # now everything is there

    @property
    def config(self) -> Path:
        """The config of the trainings."""
        return self.folder / "config.yaml"

    def train(self, name: str, *options: object) -> list[float]:
        """Train STEPS steps into a folder of this name; return the loss of each step."""
        where = ["--results_dir", self.folder, "--exp_name", name]
        self.run("train_latent_t2f.py", "--config", self.config, *where, *options)
        return self.losses(name)

    def losses(self, name: str) -> list[float]:
        """Return the loss of each step of a training."""
        return [line["loss"] for line in read_json_lines(self.folder / name / "metrics.jsonl")]

    def train_on_from_half(self, source: str, name: str) -> list[float]:
        """Continue a copy of a training, with its checkpoint of half the steps alone."""
        half = f"{STEPS // 2:07d}.pt"
        (self.folder / name / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", f"checkpoints/{half}"):
            shutil.copy(self.folder / source / file, self.folder / name / file)
        return self.train(name)

    def weights(self, name: str) -> torch.Tensor:
        """Return the last weights of a training as one vector."""
        state: dict[str, Any] = load_checkpoint(self.checkpoint(name))
        return torch.cat([tensor.flatten() for tensor in state["model"].values()])

    def checkpoint(self, name: str) -> Path:
        """Return the last checkpoint of a training."""
        return self.folder / name / "checkpoints" / f"{STEPS:07d}.pt"


def use_no_gpu() -> None:
    """Hide the GPUs from this process and those that it starts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
