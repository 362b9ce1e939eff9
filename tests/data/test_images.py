"""Image folders: order, decoding, cropping, captions; and the images that sampling writes."""

from pathlib import Path

import numpy as np
import pytest
from conftest import crude_face
from PIL import Image

from utils.base.errors import UserError
from utils.data.captions import load_captions
from utils.data.image_batches import iterate_batches
from utils.data.images import (
    center_crop,
    find_unreadable,
    list_images,
    load_image,
    to_uint8_array,
)
from utils.sampling.image_files import labelled_grid, save_png


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def paths_in(folder: Path) -> list[Path]:
    return [sample.path for sample in list_images(folder)]


def test_numbers_in_names_count_as_numbers(tmp_path):
    touch(tmp_path, "b10.jpg", "b2.jpg", "a/z.webp", "b1.png", "b2/x3.jpeg", "b2/x12.JPG")
    names = [p.relative_to(tmp_path).as_posix() for p in paths_in(tmp_path)]
    assert names == ["a/z.webp", "b1.png", "b2.jpg", "b2/x3.jpeg", "b2/x12.JPG", "b10.jpg"]


def test_integer_stems_are_ordered_by_value_across_folders(tmp_path):
    touch(tmp_path, "b/1.png", "a/10.png", "00002.jpg", "a/003.jpg")
    assert [p.stem for p in paths_in(tmp_path)] == ["1", "00002", "003", "10"]


def test_other_and_hidden_files_are_not_images(tmp_path):
    touch(tmp_path, "1.png", "1.txt", "._1.png", ".cache/2.png", "notes.md")
    assert [p.name for p in paths_in(tmp_path)] == ["1.png"]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_folder_without_images_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=str(tmp_path / name)):
        list_images(tmp_path / name)


def test_sample_names_do_not_depend_on_the_file_type(tmp_path):
    touch(tmp_path, "a/1.png", "2.jpg")
    assert [name for name, _ in list_images(tmp_path)] == ["a/1", "2"]
    assert [sample.file_name for sample in list_images(tmp_path)] == ["a/1.png", "2.jpg"]


def test_center_crop_is_exactly_adms(golden):
    with np.load(golden / "center_crop.npz") as stored:
        for i in range(5):
            ours = center_crop(Image.fromarray(stored[f"in_{i}"]), 64)
            np.testing.assert_array_equal(np.asarray(ours), stored[f"out64_{i}"])


def test_photo_is_turned_upright(tmp_path):
    image = Image.new("RGB", (20, 10), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # rotate clockwise to see it upright
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (10, 20)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_every_png_mode_becomes_the_same_rgb(tmp_path, mode):
    grey = Image.new("RGB", (8, 8), (255, 255, 255))
    grey.paste((0, 0, 0), (0, 0, 4, 8))
    grey.convert(mode).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(grey))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = np.asarray(load_image(tmp_path / "a.jpg"))[4, 4]
    assert red > 200 > 60 > max(green, blue)


def test_transparent_pixels_lie_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert (np.asarray(load_image(tmp_path / "a.png")) == 255).all()


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_broken_image_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    crude_face(0, 64).save(path)
    path.write_bytes(path.read_bytes()[:300] if content == "cut" else content)
    with pytest.raises(UserError, match=f"{path}: unreadable image"):
        load_image(path)


def test_batches_hold_the_images_in_order(tiny_faces):
    folder, _ = tiny_faces(n=10, size=40)
    paths = paths_in(folder)
    batches = list(iterate_batches(paths, 16, batch_size=4, workers=3))
    assert [tuple(b.shape) for b in batches] == [(4, 3, 16, 16), (4, 3, 16, 16), (2, 3, 16, 16)]
    pixels = np.concatenate([b.permute(0, 2, 3, 1).numpy() for b in batches])
    for path, ours in zip(paths, pixels, strict=True):
        np.testing.assert_array_equal(ours, to_uint8_array(path, 16))


def test_batches_before_a_broken_image_are_delivered(tiny_faces):
    folder, _ = tiny_faces(n=10)
    (folder / "000005.png").write_bytes(b"broken")
    batches = iterate_batches(paths_in(folder), 16, batch_size=2)
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(UserError, match=r"000005\.png"):
        next(batches)


def test_unreadable_images_are_found(tiny_faces):
    folder, _ = tiny_faces(n=5)
    (folder / "000003.png").write_bytes(b"broken")
    found = [error is not None for error in find_unreadable(paths_in(folder))]
    assert found == [False, False, False, True, False]


def test_captions_are_the_lines_that_are_not_blank(tiny_faces):
    images, captions = tiny_faces(n=2)
    (captions / "000001.txt").write_text("\ufeffone \n\n  two\r\n \n", encoding="utf-8")
    loaded = load_captions(list_images(images), captions)
    assert loaded == [["a rendered face", "face number 0"], ["one", "two"]]


def test_captions_of_nested_images_lie_in_the_same_subfolder(tmp_path):
    touch(tmp_path, "images/a/1.png", "images/b/2.jpg", "captions/a/1.txt", "captions/b/2.txt")
    (tmp_path / "captions/a/1.txt").write_text("one")
    (tmp_path / "captions/b/2.txt").write_text("two")
    samples = list_images(tmp_path / "images")
    assert load_captions(samples, tmp_path / "captions") == [["one"], ["two"]]


def test_image_without_caption_is_named(tiny_faces):
    images, captions = tiny_faces(n=3)
    (captions / "000001.txt").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images without caption file.*000001\.txt"):
        load_captions(list_images(images), captions)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\n \n", "holds no caption"), (b"\xff\xfe\xfa", "is not UTF-8")]
)
def test_bad_caption_file_is_named(tiny_faces, content, said):
    images, captions = tiny_faces(n=3)
    (captions / "000002.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"000002.txt: {said}"):
        load_captions(list_images(images), captions)


def test_caption_without_image_is_said(tiny_faces, capsys):
    images, captions = tiny_faces(n=2)
    (captions / "x.txt").write_text("nobody")
    load_captions(list_images(images), captions)
    assert "captions without image, not used: 1 (x.txt" in capsys.readouterr().err


def test_png_keeps_pixels_and_text(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_png(pixels, tmp_path / "new" / "a.png", {"prompt": "smile ☺", "seed": "3"})
    with Image.open(tmp_path / "new" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert image.text == {"prompt": "smile ☺", "seed": "3"}


def colour_boxes(path: Path, colours: list[tuple[int, int, int]]) -> list[tuple[int, ...]]:
    """Return the box of each colour in an image: (left, top, right, bottom)."""
    pixels = np.asarray(Image.open(path))
    boxes = []
    for colour in colours:
        ys, xs = np.nonzero((pixels == colour).all(-1))
        boxes.append((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    return boxes


COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]


def plain(n: int, size: int) -> np.ndarray:
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in COLOURS[:n]])


def test_grid_keeps_pixels_order_and_even_margins(tmp_path):
    labelled_grid(plain(4, 160), None, columns=2).save(tmp_path / "g.png")
    a, b, c, d = colour_boxes(tmp_path / "g.png", COLOURS[:4])
    gap = a[0]
    assert a == (gap, gap, gap + 160, gap + 160)
    assert b[0] - a[2] == c[1] - a[3] == gap
    assert (c[0], d[0], d[1]) == (a[0], b[0], c[1])
    assert Image.open(tmp_path / "g.png").size == (d[2] + gap, d[3] + gap)


def test_grid_makes_room_for_the_longest_caption_of_a_row(tmp_path):
    captions = ["short", "word " * 20, "x", "y", "z"]
    labelled_grid(plain(5, 160), captions, columns=2).save(tmp_path / "g.png")
    first, _, third, fourth, fifth = colour_boxes(tmp_path / "g.png", COLOURS)
    below_first_row, below_second_row = third[1] - first[3], fifth[1] - third[3]
    assert below_first_row > below_second_row > fourth[0] - third[2]


def test_grid_says_a_common_caption_once(tmp_path):
    shared, single = tmp_path / "shared.png", tmp_path / "single.png"
    labelled_grid(plain(4, 160), ["the same"] * 4, columns=2).save(shared)
    labelled_grid(plain(4, 160), ["the same", "another"] * 2, columns=2).save(single)
    first, _, third, _ = colour_boxes(shared, COLOURS[:4])
    assert third[1] - first[3] == first[0]  # no caption between the rows
    assert Image.open(shared).height < Image.open(single).height


def test_small_images_are_enlarged_in_a_grid(tmp_path):
    labelled_grid(plain(1, 32), ["a face"]).save(tmp_path / "g.png")
    left, _, right, _ = colour_boxes(tmp_path / "g.png", COLOURS[:1])[0]
    assert right - left == 160
