"""A small project whose preprocessing scripts run in this process."""

import importlib
import json
import sys
from pathlib import Path

import lmdb
import pytest
import torch
import yaml
from tiny import RESOLUTION, make_tiny_config
from trainings import fresh_process

from utils.config.load import load_config
from utils.config.schema import Config
from utils.data.image_batches import iterate_batches
from utils.data.images import list_images
from utils.data.source_files import RECORDS

Z, IMG, TXT = "create_latentspace_lmdb", "clip_encode_img", "clip_encode_text"
N_TRAIN, N_TEST = 9, 5
SIZES = {  # keys that follow from the encoders
    "data": ("feat_dim", "num_channels"),
    "model": ("num_classes", "in_channels", "in_size"),
}


class Project:
    """A config with tiny encoders, train and test faces, and the scripts run in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self._patch = folder, monkeypatch
        text_feat_path = folder / "lmdb" / "train" / "clip_txt"
        self.config = make_tiny_config(folder, data={"text_feat_path": text_feat_path})
        self.yaml = folder / "config.yaml"
        self.yaml.write_text(self.config.to_yaml())
        self.train, self.test = folder / "lmdb" / "train", folder / "lmdb" / "test"

    def run(self, script: str, *options: str) -> None:
        """Run a script with this project's config."""
        argv = [f"{script}.py", "--config", str(self.yaml), "--batch_size", "2", *options]
        self._patch.setattr(sys, "argv", argv)
        importlib.import_module(f"preprocess_scripts.{script}").main()

    def without_sizes(self, **encoders: object) -> None:
        """Rewrite the config without widths and sides, and with other encoders."""
        values = self.config.to_dict()
        for section, keys in SIZES.items():
            for key in keys:
                del values[section][key]
        values["encoders"] |= {name: str(source) for name, source in encoders.items()}
        self.yaml.write_text(yaml.safe_dump(values))

    def train_and_generate(self, *prompts: str) -> tuple[Config, Path]:
        """Encode the images, train for two steps, generate; return the config and the images."""
        self.run(Z, "--with_clip")
        self.run(TXT, "--split", "test")
        where = ["--results_dir", str(self.folder), "--exp_name", "own"]
        steps = ["train.max_num_steps=2", "model.mask_ratio=0", "log.ckpt_every=2"]
        with pytest.raises(SystemExit) as ended:
            self._main(
                "train_latent_t2f", "--config", self.yaml, *where, *steps, "log.num_samples=2"
            )
        assert ended.value.code == 0
        ckpt, out = self.folder / "own" / "checkpoints" / "0000002.pt", self.folder / "generated"
        flags = [part for prompt in prompts for part in ("--prompt", prompt)]
        self._main("t2f", "--ckpt", ckpt, *flags, "--num", 1, "--out", out)
        return load_config(self.folder / "own" / "config.yaml"), out

    def _main(self, script: str, *options: object) -> None:
        self._patch.setattr(sys, "argv", [f"{script}.py", *map(str, options)])
        with fresh_process():
            importlib.import_module(script).main()

    def fails(self, capsys: pytest.CaptureFixture, script: str, *options: str) -> str:
        """Run a command that must end as a user's mistake does; return its one line."""
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            self.run(script, *options)
        assert ended.value.code == 2
        errors = capsys.readouterr().err.partition("error: ")[2].splitlines()
        assert len(errors) == 1
        return errors[0]


def paths_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, in order."""
    return [sample.path for sample in list_images(folder)]


def pixels(folder: Path) -> torch.Tensor:
    """Return the pixels of a folder's images, (N, 3, S, S) uint8."""
    return torch.cat(list(iterate_batches(paths_in(folder), RESOLUTION, 100)))


def forget(database: Path, *keys: str) -> None:
    """Change a database to one of an older version, without entries of `meta` and records."""
    (database / RECORDS).unlink()
    with lmdb.open(str(database)) as env, env.begin(write=True) as txn:
        meta = json.loads(txn.get(b"meta"))
        for key in keys:
            del meta[key]
        txn.put(b"meta", json.dumps(meta).encode())
