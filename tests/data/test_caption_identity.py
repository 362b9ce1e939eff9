"""Captions and their embeddings: what was embedded for each image is known, and compared."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from preprocessing import TXT, forget

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.kept_images import KeptImages
from utils.sampling.conditions import captions_of, check_test_captions
from utils.training.sample_grid import SampleGrid


@pytest.fixture
def captions(project) -> Path:
    """The folder of the test captions: two lines for each of five images, embedded."""
    folder = project.folder / "test" / "captions"
    for i in range(5):
        (folder / f"{i:06d}.txt").write_text(f"one of {i}\ntwo of {i}\n")
    project.run(TXT, "--split", "test")
    return folder


def move_a_line(captions: Path) -> None:
    first, second = captions / "000001.txt", captions / "000002.txt"
    first.write_text("one of 1\n")
    second.write_text("two of 1\n" + second.read_text())


def remove_a_line(captions: Path) -> None:
    (captions / "000001.txt").write_text("one of 1\n")


def add_a_line(captions: Path) -> None:
    (captions / "000001.txt").write_text("one of 1\ntwo of 1\nthree of 1\n")


def rewrite(captions: Path) -> None:
    (captions / "000001.txt").write_text("ONE of 1\ntwo of 1\n")


def reverse_lines(captions: Path) -> None:
    (captions / "000001.txt").write_text("two of 1\none of 1\n")


def swap_files(captions: Path) -> None:
    first, second = captions / "000001.txt", captions / "000002.txt"
    first.rename(captions / "x")
    second.rename(first)
    (captions / "x").rename(second)


CHANGES = [move_a_line, remove_a_line, add_a_line, rewrite, reverse_lines, swap_files]


@pytest.mark.parametrize("change", CHANGES)
def test_captions_changed_after_their_embedding_are_refused(project, captions, capsys, change):
    change(captions)
    count = 2 if change in (move_a_line, swap_files) else 1
    said = f"{count} of 5 caption files have changed since they were "
    first = f", the first is {captions / '000001.txt'}; delete"
    message = project.fails(capsys, TXT, "--split", "test")
    assert f"{said}encoded{first} what was made from them (rm -r " in message
    config, reader = load_config(project.yaml), LMDBReader(project.test / "clip_txt")
    with pytest.raises(UserError, match=f"{said}embedded{first} this database and make it again"):
        check_test_captions(config, reader)
    with pytest.raises(UserError, match="have changed since they were embedded"):
        captions_of(config, reader, torch.tensor([[0, 0], [1, 1], [2, 0]]))


def touch(project, captions: Path) -> Path:
    os.utime(captions / "000001.txt", (1, 1))
    return captions


def write_other_line_ends(project, captions: Path) -> Path:
    (captions / "000001.txt").write_bytes(b"\xef\xbb\xbfone of 1\r\n\r\ntwo of 1")
    return captions


def move(project, captions: Path) -> Path:
    return Path(shutil.copytree(captions, project.folder / "elsewhere"))


@pytest.mark.parametrize("change", [touch, write_other_line_ends, move])
def test_equal_captions_go_on(project, captions, capsys, change):
    key = f"eval.caption_dir={change(project, captions)}"
    project.run(TXT, "--split", "test", key)
    assert "complete already" in capsys.readouterr().out
    check_test_captions(load_config(project.yaml, [key]), LMDBReader(project.test / "clip_txt"))


@pytest.mark.parametrize("change", [move_a_line, remove_a_line, rewrite, swap_files])
def test_databases_of_captions_without_records_are_compared_by_hash_and_counts(
    project, captions, change
):
    forget(project.test / "clip_txt", "content_hash")
    config, reader = load_config(project.yaml), LMDBReader(project.test / "clip_txt")
    check_test_captions(config, reader)
    change(captions)
    with pytest.raises(UserError, match="have changed since they were embedded"):
        check_test_captions(config, reader)


def test_captions_that_published_databases_have_and_files_lack_are_refused(project, captions):
    forget(project.test / "clip_txt", "content_hash", "captions_hash")
    remove_a_line(captions)
    with pytest.raises(UserError, match="1 of 5 caption files have changed"):
        captions_of(
            load_config(project.yaml),
            LMDBReader(project.test / "clip_txt"),
            torch.tensor([[0, 0], [1, 1], [2, 0], [3, 0], [4, 0]]),
        )


def test_evaluation_and_sample_grids_refuse_changed_captions(project, captions):
    rewrite(captions)
    config = load_config(project.yaml)
    for make in (Evaluator, lambda c: SampleGrid.from_config(c, "cpu")):
        with pytest.raises(UserError, match="1 of 5 caption files .*clip_encode_text.py"):
            make(config)


def test_captions_that_are_not_on_this_machine_are_not_compared(project, captions):
    shutil.rmtree(captions)
    config, reader = load_config(project.yaml), LMDBReader(project.test / "clip_txt")
    check_test_captions(config, reader)
    assert not KeptImages(project.folder / "kept", config, reader).has_texts
