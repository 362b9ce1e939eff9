"""Preprocessing killed at any moment and started again: the same databases, nothing done twice."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import lmdb
import pytest
from conftest import draw_face
from harness import Run, seeded
from tiny import make_tiny_config

KILLS = int(os.environ.get("FAULT_KILLS", "3"))  # of each script; `make soak` asks for more
COUNT, BATCH = 96, 4  # images
SCRIPTS = {
    "create_latentspace_lmdb": "z",
    "clip_encode_img": "clip_img",
    "clip_encode_text": "clip_txt",
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """A folder with a config, its tiny encoders, images and captions of differing number."""
    folder = tmp_path_factory.mktemp("faces")
    images, captions = folder / "train" / "images", folder / "train" / "captions"
    images.mkdir(parents=True)
    captions.mkdir()
    for i in range(COUNT):
        draw_face(i, 32).save(images / f"{i}.png")
        (captions / f"{i}.txt").write_text("".join(f"face {i}, {j}\n" for j in range(1 + i % 3)))
    (folder / "config.yaml").write_text(make_tiny_config(folder).to_yaml())
    # The first start imports everything, and would be no measure of how long a run takes.
    assert Run("preprocess_scripts/clip_encode_img.py", ["--help"], folder / "help").wait() == 0
    return folder


def start(script: str, faces: Path, out: Path) -> Run:
    arguments = ["--config", faces / "config.yaml", "--split", "train", "--num_workers", "2"]
    arguments += ["--batch_size", str(BATCH), "--out", out, "data.text_feat_path=x"]
    return Run(f"preprocess_scripts/{script}.py", arguments, out.with_suffix(".txt"))


def content(database: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(database), readonly=True, lock=False) as env, env.begin() as txn:
        return {bytes(key): bytes(value) for key, value in txn.cursor()}


def samples_in(database: Path) -> int:
    """How many samples are there, 0 if there is no database yet."""
    try:
        keys = content(database)
    except lmdb.Error:
        return 0
    return len({key.split(b"-")[1] for key in keys if b"-" in key})


@pytest.mark.e2e
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_at_random_moments_it_makes_the_same_database(script, faces, tmp_path):
    rng = seeded(script)
    whole, cut = tmp_path / "whole" / SCRIPTS[script], tmp_path / "cut" / SCRIPTS[script]
    for database in (whole, cut):
        database.parent.mkdir()
    started = time.monotonic()
    assert start(script, faces, whole).wait() == 0
    seconds = time.monotonic() - started
    assert samples_in(whole) == COUNT

    kills = done = 0
    while kills < KILLS or done < COUNT:
        cut.with_suffix(".txt").unlink(missing_ok=True)
        run = start(script, faces, cut)
        code = run.signal_within(seconds, rng) if kills < KILLS else run.wait()
        assert code in (0, -signal.SIGKILL), run.said()
        kills += code != 0
        # The bar starts at the first sample that is encoded: none of those that were there.
        if bar := re.search(rf" (\d+)/{COUNT} ", run.said()):
            assert int(bar[1]) == done
        there = samples_in(cut)
        assert there >= done and (there % BATCH == 0 or there == COUNT)
        done = there
        if code == 0:
            assert content(cut) == content(whole)
            if kills < KILLS:
                shutil.rmtree(cut)
                done = 0
    names = [sorted(path.name for path in folder.iterdir()) for folder in (cut, whole)]
    assert names[0] == names[1]
    for name in set(names[0]) - {"data.mdb", "lock.mdb"}:
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
