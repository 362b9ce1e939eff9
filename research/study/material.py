"""Material of the study: sets of faces and captions with their databases, and priors.

Each thing is made when a recipe names it below FOLDER of the demo's data, e.g.

    data/demo/study/first_1000/clip_img     databases of the first 1,000 training faces
    data/demo/study/ten/clip_txt            ten captions of each training face instead of six
    data/demo/study/short/clip_txt          captions that state one or two attributes
    data/demo/study/wrong/clip_txt          captions of faces some of whose attributes are others
    data/demo/study/mixed/clip_txt          each image's own embedding as often as a caption's
    data/demo/study/narrow/z                faces of few kinds, for a transfer to all kinds
    data/demo/study/wide/clip               a CLIP whose texts lie far from their images
    data/demo/study/wide/clip_img           embeddings of this CLIP
    data/demo/study/prior_pairs.safetensors a prior that is trained on pairs
    data/demo/study/first_1000/clip_img/prior.safetensors
    data/demo/lmdb/train/features           patch features of the training faces

All are made by the project's scripts, which go on where they were stopped.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.timing import ROOT
from demo.captions import make_caption
from demo.make_faces import hide, make_face, random_attributes, render
from research.study.pairs_prior import train_pairs_prior
from utils.base.errors import UserError
from utils.base.files import write_text, write_whole
from utils.base.progress import progress
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_reader import LMDBReader, is_complete
from utils.data.lmdb_writer import LMDBWriter

FOLDER = "study"
CAPTIONS, MORE_CAPTIONS = 6, 10  # of each face
WRONG = 0.3  # fraction of a caption's attributes that are replaced at random
NARROW_FACES = 10_000
NARROW = {  # values that the faces of a narrow set have
    "headwear": ("none",),
    "glasses": ("none",),
    "facial_hair": ("none",),
    "hair_color": ("black", "brown"),
    "expression": ("smiling", "serious"),
    "background": ("white", "grey"),
}
WIDE = "8e76b8f"  # the commit whose CLIP has a wide gap
CLIP_FILES = ("merges.txt.gz", "model.safetensors", "open_clip_config.json")
FEATURES = "features"  # of patches, beside the latents
PRIOR_OF_PAIRS = "prior_pairs.safetensors"
REFERENCE = "ref_clip_test.npz"
ENCODERS = {
    "z": "create_latentspace_lmdb.py",
    "clip_img": "clip_encode_img.py",
    "clip_txt": "clip_encode_text.py",
}


def prepare(paths: Iterable[Path], data: Path) -> None:
    """Make those of `paths` that lie in the folder `study` of the demo's `data`, and are not there.

    The patch features of the training faces are made too. Raises UserError for a path that this
    module does not know, or if a script stops.
    """
    study = data / FOLDER
    for path in paths:
        if path == data / "lmdb" / "train" / FEATURES and not is_there(path):
            options = ["--images", str(data / "train" / "images")]
            options += ["--out", str(path.parent / "z"), "--with_features"]
            run_script(f"preprocess_scripts/{ENCODERS['z']}", *options)
        if not path.is_relative_to(study) or is_there(path):
            continue
        print(f"making {path}", flush=True)
        parts = path.relative_to(study).parts
        if parts == (PRIOR_OF_PAIRS,):
            train = data / "lmdb" / "train"
            train_pairs_prior(train / "clip_img", train / "clip_txt", path)
        elif parts == ("wide", "clip"):
            _take_clip(path)
        elif parts == ("wide", REFERENCE):
            prepare([path.parent / "clip"], data)
            options = [_clip_of(path.parent), "--features", "--out", str(path)]
            run_script("preprocess_scripts/fid_ref.py", *options)
        elif len(parts) == 3 and parts[1:] == ("clip_img", "prior.safetensors"):
            prepare([path.parent], data)
            run_script("train_prior.py", f"data.feat_path={path.parent}")
        elif len(parts) == 2 and parts[1] in ENCODERS:
            _make_database(path, data)
        else:
            raise UserError(f"{path}: the study has no such material; see {__file__}")


def short_captions(index: int) -> list[str]:
    """Return captions of training face `index` that state one or two attributes that it shows."""
    face, _ = make_face("train", index, 1)
    rng, shown, texts = random.Random(f"short-{index}"), hide(face), []
    for _ in range(CAPTIONS):
        kept = rng.sample([n for n, v in shown.items() if v not in ("hidden", "none")], 2)
        attributes = {name: v if name in kept else "hidden" for name, v in shown.items()}
        texts.append(make_caption(attributes, rng, must_name=kept[0])["text"])
    return texts


def wrong_captions(index: int) -> list[str]:
    """Return captions of training face `index`; WRONG of its attributes are replaced at random."""
    face, _ = make_face("train", index, 1)
    rng, texts = random.Random(f"wrong-{index}"), []
    for _ in range(CAPTIONS):
        other = random_attributes(rng)
        mixed = {n: other[n] if rng.random() < WRONG else value for n, value in face.items()}
        texts.append(make_caption(hide(mixed), rng)["text"])
    return texts


def more_captions(index: int) -> list[str]:
    """Return MORE_CAPTIONS captions of training face `index`; the first are those of the demo."""
    captions = make_face("train", index, MORE_CAPTIONS)[1]["captions"]
    return [caption["text"] for caption in captions]


def narrow_face(index: int) -> dict[str, str]:
    """Return the attributes of face `index` of the narrow set."""
    rng = random.Random(f"narrow-{index}")
    face = random_attributes(rng)
    return face | {name: rng.choice(values) for name, values in NARROW.items()}


WRITERS: dict[str, Callable[[int], list[str]]] = {
    "ten": more_captions,
    "short": short_captions,
    "wrong": wrong_captions,
}


def _make_database(path: Path, data: Path) -> None:
    """Make the database `path` = study/NAME/PRODUCT."""
    name, product = path.parent.name, path.name
    images, captions = data / "train" / "images", data / "train" / "captions"
    if name == "mixed":
        train = data / "lmdb" / "train"
        mix(train / "clip_txt", train / "clip_img", path)
        return
    options: list[str] = []
    if name in WRITERS:
        captions = path.parent / "captions"
        _write_captions(captions, WRITERS[name], sum(1 for _ in images.iterdir()))
    elif name == "wide":
        prepare([path.parent / "clip"], data)
        options.append(_clip_of(path.parent))
    elif name == "narrow":
        images = path.parent / "images"
        _render_narrow(images)
    elif (count := name.removeprefix("first_")).isdigit():
        names = path.parent / "names.txt"
        write_text(names, "".join(f"{index:06d}\n" for index in range(int(count))))
        options += ["--split_file", str(names)]
    else:
        raise UserError(f"{path}: the study has no set of faces {name}; see {__file__}")
    options += ["--images", str(images), "--out", str(path)]
    if product == "clip_txt":
        options += ["--captions", str(captions)]
    run_script(f"preprocess_scripts/{ENCODERS[product]}", *options)


def is_there(path: Path) -> bool:
    """Return True if a file, a complete database, or a CLIP is at `path`."""
    return path.is_file() or is_complete(path) or (path / CLIP_FILES[-1]).is_file()


def _clip_of(folder: Path) -> str:
    return f"encoders.clip={folder / 'clip'}"


def _take_clip(folder: Path) -> None:
    """Take the CLIP of the commit WIDE from the history of this repository."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CLIP_FILES:
        command = ["git", "show", f"{WIDE}:assets/demo/clip/{name}"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if found.returncode:
            raise UserError(f"{folder}: {' '.join(command)} fails; this needs a clone with history")
        write_whole(folder / name, partial(_write_bytes, found.stdout))


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def run_script(script: str, *options: str, shown: bool = True) -> None:
    """Run a script of the project; raise UserError if it stops.

    shown: what it prints is seen. Otherwise the error has the end of it.
    """
    command = [sys.executable, script, *options]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=not shown, text=True)
    if done.returncode:
        end = "" if shown else f": {done.stderr.strip()[-400:]}"
        raise UserError(f"{script} stopped; the same command goes on{end}")


def _write_captions(folder: Path, writer: Callable[[int], list[str]], count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in progress(range(count), f"captions {folder.parent.name}", count, "face"):
        (folder / f"{index:06d}.txt").write_text("\n".join(writer(index)) + "\n")


def _render_narrow(folder: Path) -> None:
    """Render the narrow set into `folder`; faces that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool() as pool:
        stream = pool.imap(partial(_render_face, folder), range(NARROW_FACES), chunksize=64)
        for _ in progress(stream, "narrow faces", NARROW_FACES, "face"):
            pass


def _render_face(folder: Path, index: int) -> None:
    image, part = folder / f"{index:06d}.png", folder / f"{index:06d}.part"
    if not image.exists():
        render(narrow_face(index)).save(part, "png", compress_level=3)
        part.replace(image)


def mix(captions: Path, images: Path, out: Path) -> None:
    """Write a database in which each image's own embedding is as frequent as its captions' are.

    A sample's embeddings are its captions', and as many times that of its image. An image without
    captions has its own embedding alone.
    """
    texts, faces = LMDBReader(captions), LMDBReader(images)
    names = faces.info.meta["names"]
    meta = {
        **{key: texts.info.meta[key] for key in ("encoder", "source")},
        "names": names,
        "names_hash": names_hash(names),
        "y_holds": "captions and images",
    }
    lines = (one.copy() for batch in texts.all_samples() for one in batch)
    of_name = dict(zip(texts.info.meta["names"], lines, strict=True))
    with LMDBWriter(out, "y", meta, len(names)) as writer:
        for batch in faces.all_samples(writer.done):
            rows = [(own, of_name.get(names[i])) for i, own in enumerate(batch, writer.done)]
            writer.append(
                [o if t is None else np.concatenate([t, o.repeat(len(t), 0)]) for o, t in rows]
            )
