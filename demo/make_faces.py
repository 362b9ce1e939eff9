"""Render the demo's faces, with captions and attributes.

    python demo/make_faces.py             # 10,000 train and 1,000 test faces
    python demo/make_faces.py --out data/more --num_train 50000

A face depends on its split and its index alone. The art is "Avataaars" by Pablo Stanley (free for
personal and commercial use), put together by DiceBear and rasterised by resvg.

    data/demo/train/images/000000.png      128×128 RGB
    data/demo/train/captions/000000.txt    several captions, one a line
    data/demo/train/faces.jsonl            a line each: {"id", "attributes", "captions"}
"""

from __future__ import annotations

import io
import json
import random
import sys
from functools import cache
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: from here on, Ctrl-C ends the script with one line.
from utils.base.errors import UserError
from utils.base.script import one_line_errors

# isort: split
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from demo.captions import make_caption
from utils.base.files import write_text
from utils.base.progress import progress
from utils.base.threads import processors
from utils.config.command_line import ArgumentParser

SIZE = 128  # side of the images, pixels
# The visible window of the 280×280 artwork: head, hat and shoulders.
VIEW_BOX = "16 10 248 248"

# For each attribute: value → the artwork's name or colour for it.
HAIR_STYLE = {
    "long straight": "straight01",
    "long wavy": "bigHair",
    "bob": "bob",
    "bun": "bun",
    "afro": "fro",
    "dreadlocks": "dreads",
    "short": "shortFlat",
    "quiff": "frizzle",
}
HEADWEAR = {
    "none": None,
    "hat": "hat",
    "beanie": "winterHat03",
    "turban": "turban",
    "earflap hat": "winterHat02",
}
HAIR_COLOR = {
    "black": "#241714",
    "brown": "#7a4526",
    "blond": "#e6c15a",
    "red": "#cf3a12",
    "grey": "#b3b3b3",
    "pink": "#f781b0",
}
FABRIC_COLOR = {
    "red": "#e03535",
    "blue": "#3f78e0",
    "green": "#36a05a",
    "yellow": "#f6d02f",
    "black": "#262e33",
    "white": "#f2f2f2",
    "purple": "#8d55cc",
}
GLASSES = {"none": None, "round": "round", "sunglasses": "kurt"}
FACIAL_HAIR = {"none": None, "moustache": "moustacheMagnum", "beard": "beardMedium"}
SKIN = {"pale": "#ffdbb4", "tan": "#dfa06c", "brown": "#b4693a", "dark": "#704632"}
EYES = {
    "open": "default",
    "closed": "closed",
    "hearts": "hearts",
    "wink": "wink",
    "wide": "surprised",
}
EXPRESSION = {  # mouth, eyebrows
    "smiling": ("smile", "defaultNatural"),
    "sad": ("sad", "sadConcernedNatural"),
    "tongue out": ("tongue", "raisedExcitedNatural"),
    "serious": ("serious", "flatNatural"),
    "angry": ("grimace", "angryNatural"),
    "shouting": ("screamOpen", "raisedExcited"),
}
CLOTHES = {
    "hoodie": "hoodie",
    "t-shirt": "shirtCrewNeck",
    "overalls": "overall",
    "blazer": "blazerAndShirt",
    "sweater": "collarAndSweater",
}
BACKGROUND = {
    "white": "#ffffff",
    "blue": "#a9d8f5",
    "pink": "#ffb9d2",
    "green": "#b3e6b0",
    "yellow": "#fff0a3",
    "lavender": "#cbbcf2",
    "grey": "#8f959b",
}
# The values of each attribute. A face may hide an attribute, whose value is then "hidden":
# hair under headwear, the colour of absent headwear, eyes behind sunglasses.
ATTRIBUTES = {
    "hair_style": tuple(HAIR_STYLE),
    "hair_color": tuple(HAIR_COLOR),
    "headwear": tuple(HEADWEAR),
    "headwear_color": tuple(FABRIC_COLOR),
    "glasses": tuple(GLASSES),
    "facial_hair": tuple(FACIAL_HAIR),
    "skin": tuple(SKIN),
    "expression": tuple(EXPRESSION),
    "eyes": tuple(EYES),
    "clothes": tuple(CLOTHES),
    "clothes_color": tuple(FABRIC_COLOR),
    "background": tuple(BACKGROUND),
}
LONG_HAIR = {"long straight", "long wavy", "bob"}


def random_attributes(rng: random.Random) -> dict[str, str]:
    """Choose the attributes of one face: uniform, but less headwear (1 in 3), glasses, beards."""
    face = {name: rng.choice(values) for name, values in ATTRIBUTES.items()}
    if rng.random() < 0.58:
        face["headwear"] = "none"
    if rng.random() < 0.25:
        face["glasses"] = "none"
    if rng.random() < (0.8 if face["hair_style"] in LONG_HAIR else 0.2):
        face["facial_hair"] = "none"
    return face


def hide(face: dict[str, str]) -> dict[str, str]:
    """Return the attributes of a face with "hidden" for those that the image cannot show."""
    shown = dict(face)
    if face["headwear"] == "none":
        shown["headwear_color"] = "hidden"
    else:
        shown["hair_style"] = "hidden"
        if face["facial_hair"] == "none":
            shown["hair_color"] = "hidden"
    if face["glasses"] == "sunglasses":
        shown["eyes"] = "hidden"
    return shown


def encode_attributes(shown: dict[str, str]) -> list[int]:
    """Return the index of each attribute's value in `ATTRIBUTES`, −1 for hidden ones."""
    return [
        values.index(shown[name]) if shown[name] != "hidden" else -1
        for name, values in ATTRIBUTES.items()
    ]


@cache
def _style() -> Style:
    definition = files("dicebear_styles").joinpath("avataaars.json").read_text("utf-8")
    return Style(json.loads(definition))


def render(face: dict[str, str], size: int = SIZE) -> Image.Image:
    """Render a face, `size`×`size` RGB, from the attributes of `random_attributes`."""
    mouth, eyebrows = EXPRESSION[face["expression"]]
    options = {
        "seed": "face",
        "topVariant": HEADWEAR[face["headwear"]] or HAIR_STYLE[face["hair_style"]],
        "hairColor": HAIR_COLOR[face["hair_color"]],
        "hatColor": FABRIC_COLOR[face["headwear_color"]],
        "accessoriesColor": "#262e33",
        "accessoriesProbability": 0,
        "facialHairColor": HAIR_COLOR[face["hair_color"]],
        "facialHairProbability": 0,
        "skinColor": SKIN[face["skin"]],
        "mouthVariant": mouth,
        "eyebrowsVariant": eyebrows,
        "eyesVariant": EYES[face["eyes"]],
        "clothesVariant": CLOTHES[face["clothes"]],
        "clothesColor": FABRIC_COLOR[face["clothes_color"]],
        "backgroundColor": BACKGROUND[face["background"]],
    }
    if glasses := GLASSES[face["glasses"]]:
        options |= {"accessoriesVariant": glasses, "accessoriesProbability": 100}
    if facial_hair := FACIAL_HAIR[face["facial_hair"]]:
        options |= {"facialHairVariant": facial_hair, "facialHairProbability": 100}
    svg = Avatar(_style(), options).to_string()
    svg = svg.replace('viewBox="0 0 280 280"', f'viewBox="{VIEW_BOX}"', 1)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def make_face(split: str, index: int, num_captions: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the attributes to render and the record to write for face `index` of a split."""
    rng = random.Random(f"{split}-{index}")
    face = random_attributes(rng)
    shown = hide(face)
    captions = [make_caption(shown, rng) for _ in range(num_captions)]
    return face, {"id": index, "attributes": shown, "captions": captions}


def write_face(job: tuple[Path, str, int, int]) -> str:
    """Write one image, unless it is complete already, and its captions; return the JSON line.

    job: (folder of the split, split, index of the face, number of captions).
    """
    folder, split, index, num_captions = job
    face, record = make_face(split, index, num_captions)
    image = folder / "images" / f"{index:06d}.png"
    captions = folder / "captions" / f"{index:06d}.txt"
    if not (image.exists() and captions.exists()):
        render(face).save(image, compress_level=3)
    # The captions are written last, so that an image with captions is whole.
    text = "".join(f"{caption['text']}\n" for caption in record["captions"])
    captions.write_text(text, encoding="utf-8")
    return json.dumps(record)


def require_no_others(folder: Path, count: int, num_captions: int) -> None:
    """Raise UserError if a split's folder holds faces that this run does not make."""
    advice = "name another folder with --out, or delete it"
    there = len(list((folder / "images").glob("*.png")))
    if there > count:
        raise UserError(f"{folder}: holds {there} faces, and {count} are asked for; {advice}")
    index_file = folder / "faces.jsonl"
    if not index_file.exists():
        return  # an unfinished split, whose captions are written anew
    with index_file.open(encoding="utf-8") as lines:
        captions = len(json.loads(next(lines))["captions"])
    if captions != num_captions:
        raise UserError(
            f"{folder}: its faces have {captions} captions, and {num_captions} are asked for; "
            f"{advice}"
        )


def make_split(out: Path, split: str, count: int, num_captions: int, workers: int) -> None:
    """Write a split of `count` faces into `out`/`split`, unless it is complete already.

    Raises UserError if more faces, or faces with another number of captions, are there.
    """
    folder = out / split
    index_file = folder / "faces.jsonl"
    require_no_others(folder, count, num_captions)
    if index_file.exists() and sum(1 for _ in index_file.open(encoding="utf-8")) == count:
        print(f"{folder}: {count} faces are there already")
        return
    for name in ("images", "captions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    jobs = [(folder, split, index, num_captions) for index in range(count)]
    # A forked process of a program with threads may wait for a lock for ever.
    with get_context("spawn").Pool(workers) as pool:
        stream = pool.imap(write_face, jobs, chunksize=64)
        lines = list(progress(stream, desc=f"faces {split}", total=count, unit="face"))
    write_text(index_file, "\n".join(lines) + "\n")


@one_line_errors
def main() -> None:
    """Write both splits."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder to write into")
    parser.add_argument("--num_train", type=int, default=10_000, help="training faces")
    parser.add_argument("--num_test", type=int, default=1_000, help="held-out faces")
    parser.add_argument("--num_captions", type=int, default=6, help="captions per face")
    parser.add_argument("--workers", type=int, default=processors(), help="processes that render")
    args = parser.parse_args()
    for name in ("num_train", "num_test", "num_captions", "workers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    make_split(args.out, "train", args.num_train, args.num_captions, args.workers)
    make_split(args.out, "test", args.num_test, args.num_captions, args.workers)


if __name__ == "__main__":
    main()
