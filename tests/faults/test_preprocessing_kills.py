"""Preprocessing that is killed and started again: equal files, no finished batch encoded again."""

import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import lmdb
import pytest
from conftest import crude_face
from harness import KILLS, Run, called, count_calls, die_after, seeded, signal_all_within
from tiny import make_tiny_config

from utils.data.celeba_captions import ATTRIBUTES

COUNT, BATCH = 96, 4  # images
WITH_CLIP = "create_latentspace_lmdb --with_clip"
# Command -> files that it makes; its --out names the first.
PRODUCTS = {
    "create_latentspace_lmdb": ["z"],
    WITH_CLIP: ["z", "clip_img"],
    "clip_encode_img": ["clip_img"],
    "clip_encode_text": ["clip_txt"],
    "fid_ref": ["ref.npz"],
}
# Functions that encode a batch -> largest number of images or captions in a call.
ENCODERS = {
    "Autoencoder.encode_moments": BATCH,
    "ClipEncoder.encode_images": BATCH,
    "ClipEncoder.encode_texts": 3 * BATCH,
}
FEATURES = {"FeatureNetwork.__call__": BATCH}


class Whole(NamedTuple):
    """Result of an uninterrupted run."""

    folder: Path
    seconds: float  # from the start
    working: float  # seconds since it began to encode
    encoded: Counter[str]  # function -> images or captions that it encoded


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Return a folder with a config, its tiny encoders, images, and one to three captions each."""
    folder = tmp_path_factory.mktemp("faces")
    images, captions = folder / "train" / "images", folder / "train" / "captions"
    images.mkdir(parents=True)
    captions.mkdir()
    for i in range(COUNT):
        crude_face(i, 32).save(images / f"{i}.png")
        (captions / f"{i}.txt").write_text("".join(f"face {i}, {j}\n" for j in range(1 + i % 3)))
    (folder / "config.yaml").write_text(make_tiny_config(folder).to_yaml())
    # The first start imports everything and takes longer than those that tests measure.
    assert Run("preprocess_scripts/clip_encode_img.py", ["--help"], folder / "help").wait() == 0
    return folder


@pytest.fixture(scope="module")
def whole(faces) -> Callable[[str], Whole]:
    """Return `whole(command)`, which runs a command once without interruption."""

    @cache
    def make(command: str) -> Whole:
        folder = faces / command.replace(" ", "")
        started = time.monotonic()
        run = start(command, faces, folder)
        wait_for_work(run, folder)
        began = time.monotonic()
        assert run.wait() == 0
        assert samples_in(command, folder) == COUNT
        ended, encoded = time.monotonic(), called(folder.with_suffix(".calls"))
        return Whole(folder, ended - started, ended - began, encoded)

    return make


def start(
    command: str, faces: Path, folder: Path, *flags: object, die: tuple[str, int] | None = None
) -> Run:
    """Start a command; write its output and its calls of encoders to files beside `folder`.

    `die`: kill the process by die_after with these arguments, and count no calls.
    """
    folder.mkdir(exist_ok=True)
    script, *more = command.split()
    arguments = ["--config", faces / "config.yaml", "--split", "train", "--num_workers", "2"]
    arguments += ["--batch_size", BATCH, "--out", folder / PRODUCTS[command][0], *more, *flags]
    encoders = FEATURES if command == "fid_ref" else ENCODERS
    before = partial(count_calls, folder.with_suffix(".calls"), set(encoders))
    return Run(
        f"preprocess_scripts/{script}.py",
        [*arguments, "data.text_feat_path=x"],
        folder.with_suffix(".txt"),
        before=partial(die_after, *die) if die else before,
    )


def wait_for_work(run: Run, folder: Path) -> None:
    """Wait until a run has encoded a batch or ends."""
    calls = folder.with_suffix(".calls")
    before = called(calls).total()
    run.wait_until(lambda: called(calls).total() >= before + BATCH)


def records(database: Path) -> dict[bytes, bytes]:
    """Return the keys and values of a database; an empty dict if there is no database yet."""
    try:
        with lmdb.open(str(database), readonly=True, lock=False) as env, env.begin() as txn:
            return {bytes(key): bytes(value) for key, value in txn.cursor()}
    except lmdb.Error:
        return {}


def content(folder: Path) -> dict[str, object]:
    """Return path -> content of all in a folder, without locks and unfinished files."""
    left_out = {"writer.lock", "lock.mdb"}
    return {
        str(path.relative_to(folder)): records(path.parent)
        if path.name == "data.mdb"
        else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
        if path.name not in left_out and not path.name.endswith(".tmp")
    }


def samples_in(command: str, folder: Path) -> int:
    """Return the number of samples that every product of a command holds."""
    if command == "fid_ref":
        if (folder / "ref.npz").exists():
            return COUNT
        return BATCH * len(list((folder / "ref.npz.partial").glob("*.safetensors")))
    keys = [records(folder / name) for name in PRODUCTS[command]]
    return min(len({key.split(b"-")[1] for key in found if b"-" in key}) for found in keys)


@pytest.mark.e2e
@pytest.mark.parametrize("command", PRODUCTS)
def test_killed_at_random_moments_it_makes_the_same_files(command, faces, whole, tmp_path):
    rng = seeded(command)
    expected, cut = whole(command), tmp_path / "cut"
    kills, completed, finished = 0, 0, False
    while kills < KILLS or not finished:
        if finished:
            shutil.rmtree(cut)
        done = 0 if finished or not cut.exists() else samples_in(command, cut)
        cut.with_suffix(".txt").unlink(missing_ok=True)
        run = start(command, faces, cut)
        within = expected.seconds
        if rng.random() < 0.75:  # kill it while it encodes, otherwise at any moment after its start
            wait_for_work(run, cut)
            within = expected.working
        code = run.signal_within(within, rng) if kills < KILLS else run.wait()
        assert code in (0, -signal.SIGKILL), run.said()
        kills, completed, finished = kills + (code != 0), completed + (code == 0), code == 0
        # The bar starts after the samples that were there: none of them is encoded again.
        if bar := re.search(rf" (\d+)/{COUNT} ", run.said()):
            assert int(bar[1]) == done
        there = samples_in(command, cut)
        assert there >= done and (there % BATCH == 0 or there == COUNT)
        if finished:
            assert content(cut) == content(expected.folder)
    encoded = called(cut.with_suffix(".calls"))
    assert encoded.keys() == expected.encoded.keys()
    for encoder, once in expected.encoded.items():  # a kill costs at most the batch in hand
        again = encoded[encoder] - completed * once
        print(f"{kills} kills, {completed} times completed: {encoder} encoded {again} again")
        assert 0 <= again <= kills * (ENCODERS | FEATURES)[encoder]


@pytest.mark.e2e
def test_a_reference_whose_end_was_killed_leaves_nothing_behind(faces, whole, tmp_path):
    killed = start("fid_ref", faces, tmp_path / "cut", die=("rmtree", 20))
    assert killed.wait() == -signal.SIGKILL
    assert (tmp_path / "cut" / "ref.npz.partial").exists()
    assert start("fid_ref", faces, tmp_path / "cut").wait() == 0
    assert content(tmp_path / "cut") == content(whole("fid_ref").folder)


@pytest.mark.e2e
def test_shards_killed_at_random_moments_and_while_they_are_merged_make_the_same_database(
    faces, whole, tmp_path
):
    rng = seeded("shards")
    expected, cut, ready = whole(WITH_CLIP), tmp_path / "cut", tmp_path / "ready"

    def shard(number: int, **more) -> Run:
        """Start one of the two shards."""
        return start(WITH_CLIP, faces, cut, "--num_shards", 2, "--shard", number, **more)

    kills = 0
    while kills < KILLS:
        runs = [shard(0), shard(1)]
        codes = signal_all_within(expected.seconds, rng, signal.SIGKILL, runs)
        assert set(codes) <= {0, -signal.SIGKILL}, runs[0].said()
        kills += any(codes)
        if not any(codes):
            assert content(cut) == content(expected.folder)
            shutil.rmtree(cut)
    if not (cut / "z" / "data.mdb").exists():  # otherwise the last kill came during the merge
        assert shard(0).wait() == 0
        assert shard(1, die=("_merge", 0)).wait() == -signal.SIGKILL
    shutil.copytree(cut, ready)

    kills = 0
    while kills < KILLS:
        code = shard(1, die=("_merge", int(10 ** rng.uniform(0, 3.5)))).wait()
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if code == 0 or kills == KILLS:
            assert code == 0 or shard(1).wait() == 0
            assert content(cut) == content(expected.folder)
            shutil.rmtree(cut)
            shutil.copytree(ready, cut)


@pytest.mark.e2e
def test_captions_killed_at_random_moments_are_the_same_and_none_is_written_twice(tmp_path):
    rng = seeded("captions")
    names = sorted(ATTRIBUTES)
    rows = [f"{i}.jpg " + " ".join(rng.choice(["1", "-1"]) for _ in names) for i in range(600)]
    attributes = tmp_path / "attributes.txt"
    attributes.write_text("\n".join([str(len(rows)), " ".join(names), *rows, ""]))

    def run(out: Path) -> Run:
        """Start to write all captions into `out`."""
        given = ["--attributes", attributes, "--out", out]
        return Run("preprocess_scripts/celeba_captions.py", given, tmp_path / "said.txt")

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    started = time.monotonic()
    assert run(whole).wait() == 0
    seconds = time.monotonic() - started
    kills, code = 0, None
    while kills < KILLS or code != 0:
        before = {path: path.stat().st_mtime_ns for path in cut.glob("*.txt")}
        code = run(cut).signal_within(seconds, rng) if kills < KILLS else run(cut).wait()
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        assert all(path.stat().st_mtime_ns == written for path, written in before.items())
        if code == 0:
            assert content(cut) == content(whole)
            shutil.rmtree(cut)
