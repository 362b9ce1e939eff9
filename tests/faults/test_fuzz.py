"""A few seconds of fuzz_readers.py with fixed seeds; `make soak` runs it longer, with new seeds."""

import random

import pytest
from fuzz_readers import IMAGES, damaged_head, fuzz, write_images

from utils.data.images import UnreadableImage, load_image


def test_damaged_files_are_refused_with_a_users_error(tmp_path, capsys):
    tried, faults = fuzz([], seconds=8, first_seed=0, folder=tmp_path)
    assert tried > 15
    assert faults == 0, capsys.readouterr().out


@pytest.mark.parametrize("suffix", IMAGES)
def test_an_image_with_a_damaged_head_is_read_or_unreadable(tmp_path, suffix):
    write_images(tmp_path)
    content, path = (tmp_path / f"face.{suffix}").read_bytes(), tmp_path / "damaged"
    outcomes = set()
    for seed in range(60):
        path.write_bytes(damaged_head(content, random.Random(f"{seed}/{suffix}")))
        try:
            outcomes.add(load_image(path).mode)
        except UnreadableImage as error:
            assert str(error).startswith(f"{path}: ")
            outcomes.add("unreadable")
    assert outcomes == {"RGB", "unreadable"}
