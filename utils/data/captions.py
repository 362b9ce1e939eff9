"""Captions of an image folder, from text files beside the images."""

from collections.abc import Sequence
from pathlib import Path

from utils.base.errors import UserError, note
from utils.data.archive_files import list_files, read_bytes
from utils.data.images import sample_names


def load_captions(
    image_paths: Sequence[Path],
    image_dir: str | Path,
    caption_dir: str | Path,
    *,
    all_images: bool = True,
) -> list[list[str]]:
    """The captions of each image: the lines of `<stem>.txt` at the same place below `caption_dir`.

    Raises a UserError if a file is missing, empty or no UTF-8 text. Caption files of none of the
    images are left unused, and this is said, unless there are more images than these.
    """
    found = list_files(caption_dir, {".txt"}, "caption")
    names = [f"{name}.txt" for name in sample_names(image_paths, image_dir)]
    if missing := [i for i, name in enumerate(names) if name not in found]:
        raise UserError(
            f"{caption_dir}: {_of(len(missing), len(names), 'images')} without caption file; "
            f"{image_paths[missing[0]]} needs {Path(caption_dir, names[missing[0]])}"
        )
    files = [found[name] for name in names]
    captions = [_caption_lines(file) for file in files]
    if empty := [file for file, lines in zip(files, captions, strict=True) if not lines]:
        raise UserError(
            f"{empty[0]}: holds no caption ({_of(len(empty), len(files), 'files')} like this); "
            "write one caption a line"
        )
    if all_images and (unused := sorted(found.keys() - set(names))):
        note(f"{caption_dir}: captions without image, not used: {len(unused)} ({unused[0]}, …)")
    return captions


def _caption_lines(file: Path) -> list[str]:
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text; save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without its mark is valid UTF-8
        raise UserError(f"{file}: is not text, it holds NUL bytes; save it as UTF-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _of(part: int, whole: int, what: str) -> str:
    return f"{part} of {whole} {what}"
