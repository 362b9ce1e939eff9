"""A small project whose preprocessing scripts run in this process."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny import RESOLUTION, make_tiny_config

from utils.data.image_batches import iterate_batches
from utils.data.images import list_images

Z, IMG, TXT = "create_latentspace_lmdb", "clip_encode_img", "clip_encode_text"
N_TRAIN, N_TEST = 9, 5


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
