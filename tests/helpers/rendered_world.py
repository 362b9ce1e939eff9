"""A small world of real data: rendered faces, or photographs, as databases of real encoders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT

from demo.make_faces import make_split
from models.clip import ClipEncoder
from utils.config.load import load_config
from utils.config.schema import Config
from utils.data.images import to_uint8_array
from utils.data.latent_dataset import open_data
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.training.batches import training_batches
from utils.training.data_faults import data_faults
from utils.training.distributed import Processes
from utils.training.observation import Observer
from utils.training.rate_faults import average_fault
from utils.training.state import TrainingState
from utils.training.train_step import train_step

TRAIN, TEST = 96, 80  # images
ASSETS = (f"encoders.vae={ROOT / 'assets/demo/vae'}", f"encoders.clip={ROOT / 'assets/demo/clip'}")
SMALL = (  # sizes of a network that trains in seconds
    "model.hidden_size=64",
    "model.depth=2",
    "model.num_heads=2",
    "model.decoder_hidden_size=32",
    "model.decoder_depth=1",
    "model.decoder_num_heads=2",
    "train.batchsize=8",
    "train.lr_rampup_kimg=0.75",  # as many steps as with the demo's batch
    "train.amp=no",
    "encoders.latent_statistics=null",
    "log.observe_every=100000",
)


def write(path: Path, kind: str, samples, **meta) -> Path:
    """Write a database of images without names."""
    with LMDBWriter(path, kind, meta, len(samples)) as writer:
        writer.append(np.asarray(samples, np.float32))
    return path


@torch.inference_mode()
def make_world(folder: Path, source: Path | None = None, encoders: Sequence[str] = ASSETS) -> Path:
    """Encode the first images and captions of both splits of `source`; return the folder.

    source: holds `images` and `captions` of each split; None = rendered faces.
    """
    if source is None:
        for split, count in (("train", TRAIN), ("test", TEST)):
            make_split(folder, split, count, 1, 1)
    config = configured("demo/demo.yaml", folder, *encoders)
    vae, clip = load_config_autoencoder(config, "cpu"), load_config_clip(config.encoders)
    for split, count in (("train", TRAIN), ("test", TEST)):
        images = sorted(((source or folder) / split / "images").iterdir())[:count]
        pixels = torch.from_numpy(np.stack([to_uint8_array(file, 128) for file in images]))
        pixels = pixels.permute(0, 3, 1, 2)
        parts = [vae.encode_moments(part.float() / 127.5 - 1) for part in pixels.split(8)]
        write(folder / "lmdb" / split / "z", "z", vae.mean_latents(torch.cat(parts)))
        write(folder / "lmdb" / split / "clip_img", "y", clip.encode_images(pixels)[:, None])
    captions = [(images[0].parents[1] / "captions" / f"{file.stem}.txt") for file in images]
    write_captions(folder, clip, [file.read_text().splitlines()[0] for file in captions])
    return folder


def write_captions(folder: Path, clip: ClipEncoder, captions: Sequence[str]) -> Path:
    """Write the database of test captions."""
    return write(folder / "lmdb/test/clip_txt", "y", clip.encode_texts(captions)[:, None])


def configured(name: str, folder: Path, *overrides: str) -> Config:
    """Return a published config on the databases in `folder`, of a network that is small."""
    databases = {
        "data.root": "train/z",
        "data.feat_path": "train/clip_img",
        "eval.root": "test/z",
        "eval.image_feat_path": "test/clip_img",
        "eval.feat_path": "test/clip_txt",
    }
    places = [f"{key}={folder / 'lmdb' / place}" for key, place in databases.items()]
    sizes = (
        "data.resolution=128",
        "model.in_size=16",
        "data.feat_dim=256",
        "model.num_classes=256",
    )
    images = (f"data.image_dir={folder / 'train/images'}", "data.split_file=null")
    return load_config(
        ROOT / "configs" / name, [*places, *sizes, *images, *ASSETS, *SMALL, *overrides]
    )


def warnings_of(config: Config, steps: int = 100) -> list[str]:
    """Return the warnings of the first steps of a training; it ends with the first one."""
    data, processes = open_data(config), Processes(config)
    state = TrainingState(config, processes, data.length, data.identity)
    state.make_ready()
    found = data_faults(config, data, load_config_autoencoder(config, "cpu"))
    found += [fault] if (fault := average_fault(config, state)) else []
    observer = Observer(config, data, state)
    batches = training_batches(data, state.order, 0, processes.rank_slice)
    while not found and state.step < steps:
        train_step(state, batches)
        found += [fault] if (fault := observer.rate_fault()) else []
    return found
