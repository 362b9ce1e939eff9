"""Material of the photographs: databases, sets of images with captions, and priors.

Each thing is made when a recipe names it below the folder DATA of this world, e.g.

    data/photos/source                      link to the photographs; `make photos` makes it
    data/photos/lmdb/train/z                databases of all training images
    data/photos/lmdb/train/clip_img
    data/photos/lmdb/train/features         patch features, for recipes that align to them
    data/photos/study/captioned/clip_txt    of the images that have captions
    data/photos/study/quarter/clip_txt      of a quarter of them
    data/photos/study/mixed/clip_txt        images, and captions where there are some
    data/photos/study/mixed_quarter/clip_txt
    data/photos/study/prior_pairs.safetensors
    data/photos/…/clip_img/prior.safetensors

All are made by the project's scripts, which go on where they were stopped.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from research.study.material import (
    ENCODERS,
    FEATURES,
    FOLDER,
    PRIOR_OF_PAIRS,
    is_there,
    mix,
    run_script,
)
from research.study.pairs_prior import train_pairs_prior
from utils.base.errors import UserError
from utils.base.files import write_text
from utils.data.images import list_images
from utils.data.latent_statistics import LATENT_STATISTICS

CONFIG = "configs/others/photos.yaml"
CAPTIONED, QUARTER = "captioned", "quarter"
MIXED = {"mixed": CAPTIONED, "mixed_quarter": QUARTER}  # name -> the images whose captions it has


def prepare(paths: Iterable[Path], data: Path) -> None:
    """Make those of `paths` that lie below `data`, and are not there.

    Raises UserError for a path that this module does not know, or if a script stops.
    """
    train, study = data / "lmdb" / "train", data / FOLDER
    for path in paths:
        if not path.is_relative_to(data) or is_there(path):
            continue
        if path.is_relative_to(data / "source") or not (data / "source").exists():
            raise UserError(
                f"{data / 'source'}: no photographs are there; make photos PHOTOS=FOLDER, or "
                f"link their folder: ln -s FOLDER {data / 'source'}"
            )
        print(f"making {path}", flush=True)
        folder, product = path.parent, path.name
        if path == study / PRIOR_OF_PAIRS:
            images, texts = (study / CAPTIONED / name for name in ("clip_img", "clip_txt"))
            prepare([images, texts], data)
            train_pairs_prior(images, texts, path)
        elif folder.name == "clip_img" and product == "prior.safetensors":
            prepare([folder], data)
            run_script("train_prior.py", "--config", CONFIG, f"data.feat_path={folder}")
        elif folder.parent == study and folder.name in MIXED and product == "clip_txt":
            images, texts = train / "clip_img", study / MIXED[folder.name] / "clip_txt"
            prepare([images, texts], data)
            mix(texts, images, path)
        elif folder.name == "z" and product == LATENT_STATISTICS:
            _make_database(folder, data)  # the script writes both
        elif folder == train or folder.parent == study and folder.name in (CAPTIONED, QUARTER):
            _make_database(path, data)
        else:
            raise UserError(f"{path}: the photographs have no such material; see {__file__}")


def _make_database(path: Path, data: Path) -> None:
    """Make the database `path` of all training images, or of those of a set of the study."""
    source, product = data / "source", path.name
    if product not in ENCODERS and product != FEATURES:
        raise UserError(f"{path}: no database is called so; there are {', '.join(ENCODERS)}")
    images, captions = (source / "train" / name for name in ("images", "captions"))
    out = path.with_name("z") if product == FEATURES else path
    options = ["--config", CONFIG, "--images", str(images), "--out", str(out)]
    options += ["--with_features"] if product == FEATURES else []
    options += [f"encoders.{name}={source / name}" for name in ("vae", "clip")]
    if path.parent.parent == data / FOLDER:
        names = path.parent / "names.txt"
        chosen = captioned_names(images, captions, 4 if path.parent.name == QUARTER else 1)
        write_text(names, "".join(f"{name}\n" for name in chosen))
        options += ["--split_file", str(names)]
    if product == "clip_txt":
        options += ["--captions", str(captions)]
    script = ENCODERS.get(product, ENCODERS["z"])
    run_script(f"preprocess_scripts/{script}", *options)


def captioned_names(images: Path, captions: Path, part: int = 1) -> list[str]:
    """Return the names of the images that have captions, or of a random 1/`part` of them."""
    names = [s.name for s in list_images(images) if (captions / f"{s.name}.txt").is_file()]
    chosen = set(random.Random("captions").sample(names, len(names) // part))
    return [name for name in names if name in chosen]
