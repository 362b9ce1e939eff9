"""Write captions for CelebAMask-HQ from its attributes: ten sentences for each face, `text/N.txt`.

python preprocess_scripts/celeba_captions.py --attributes CelebAMask-HQ-attribute-anno.txt

MM-CelebA-HQ's captions were also made from these attributes, but are no longer hosted. The
sentences written here are different ones. A face's captions depend on its name and attributes
alone. CelebA's own list_attr_celeba.txt has the same form and works too.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.base.errors import UserError
from utils.base.progress import progress
from utils.base.script import one_line_errors
from utils.config.command_line import ArgumentParser
from utils.data.celeba_captions import make_captions, read_attributes


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--attributes",
        type=Path,
        default=Path("data/mmceleb/CelebAMask-HQ-attribute-anno.txt"),
        help="annotation file",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/mmceleb/text"), help="folder to write"
    )
    parser.add_argument("--num_captions", type=int, default=10, help="sentences for each face")
    return parser.parse_args()


def write_captions(file: Path, captions: list[str]) -> None:
    """Write one caption a line; raise a UserError if the file holds other captions."""
    text = "".join(f"{caption}\n" for caption in captions)
    if file.exists():
        if file.read_text(encoding="utf-8") != text:
            raise UserError(f"{file}: holds other captions already; choose another --out")
        return
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


@one_line_errors
def main() -> None:
    """Write the captions of each face into a file of its own."""
    args = parse_args()
    if args.num_captions < 1:
        raise UserError(f"--num_captions: should be at least 1, is {args.num_captions}")
    faces = list(read_attributes(args.attributes))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, attributes in progress(faces, "captions", len(faces), "face"):
        captions = make_captions(name, attributes, args.num_captions)
        write_captions(args.out / f"{Path(name).stem}.txt", captions)
    print(f"{args.out}: {args.num_captions} captions for each of {len(faces)} faces")


if __name__ == "__main__":
    main()
