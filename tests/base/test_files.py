"""Files are written whole, with the permissions of any other new file."""

import os

import pytest
import torch
from safetensors.torch import save_file

from utils.base.files import read_json_lines, write_folder_whole, write_whole

WEIGHTS = {"weight": torch.zeros(2)}


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mode(request):
    """Permissions of a new file under a mask of the process."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def test_a_file_of_weights_can_be_read_by_whom_the_mask_allows(tmp_path, mode):
    write_whole(tmp_path / "x.safetensors", lambda path: save_file(WEIGHTS, path))
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode


def test_files_of_a_folder_can_be_read_by_whom_the_mask_allows(tmp_path, mode):
    def write(folder):
        (folder / "part").mkdir()
        save_file(WEIGHTS, folder / "part" / "x.safetensors")

    write_folder_whole(tmp_path / "model", write)
    assert (tmp_path / "model/part/x.safetensors").stat().st_mode & 0o777 == mode


def test_after_an_error_nothing_is_left(tmp_path):
    def write(path):
        path.write_text("half")
        raise ValueError

    with pytest.raises(ValueError, match="^$"):
        write_whole(tmp_path / "x.txt", write)
    assert not list(tmp_path.iterdir())


DAMAGED = {
    "cut short": b'{"step": 2, "lo',
    "cut in a character": '{"name": "é"}'.encode()[:11],
    "zeros of a power cut": b"\0" * 40,
    "no record": b"[]",
    "a number": b"17",
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_torn_line_of_records_is_reported_and_skipped(tmp_path, damage, end):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(b'{"step": 1}\n' + DAMAGED[damage] + end)
    assert read_json_lines(path, said.append) == [{"step": 1}]
    is_whole = DAMAGED[damage] + end == b""
    assert said == ([] if is_whole else [f"{path}:2: not a whole record, skipped"])


def test_records_after_a_torn_line_are_read_and_no_file_has_none(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"a": "\xe2\x80\xa8"}\n{"b\n{"c": 3}\n')
    assert read_json_lines(path) == [{"a": "\u2028"}, {"c": 3}]
    assert read_json_lines(tmp_path / "none.jsonl") == []
