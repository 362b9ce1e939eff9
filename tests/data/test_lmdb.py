"""Databases of latents and embeddings: the published layout, resuming, and damage."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from small_databases import META, Y, Z, write

from utils.base.errors import UserError
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter

ROOT = Path(__file__).resolve().parents[2]


def raw(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as txn:
        return {bytes(k): bytes(v) for k, v in txn.cursor()}


@pytest.fixture
def expected(golden) -> dict[str, np.ndarray]:
    with np.load(golden / "lmdb_seed_format_expected.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize("in_memory", [True, False])
def test_published_latents_are_read(golden, expected, in_memory):
    reader = LMDBReader(golden / "lmdb_seed_format" / "z")
    if in_memory:
        reader.load()
    assert (reader.info.length, reader.info.shape, reader.info.meta) == (12, (4, 8, 8), {})
    order = [7, 0, 11, 7]
    np.testing.assert_array_equal(reader.read(order), expected["z"][order])


@pytest.mark.parametrize("in_memory", [True, False])
def test_published_embeddings_are_read(golden, expected, in_memory):
    reader = LMDBReader(golden / "lmdb_seed_format" / "clip_txt")
    if in_memory:
        reader.load()
    assert (reader.info.length, reader.info.n_features, reader.info.shape) == (12, 3, (16,))
    samples, features = [3, 11, 0], [2, 0, 1]
    np.testing.assert_array_equal(reader.read(samples, features), expected["y"][samples, features])
    np.testing.assert_array_equal(reader.read(samples, 1), expected["y"][samples, 1])


def test_we_write_the_published_layout(golden, expected, tmp_path):
    write(tmp_path / "z", "z", expected["z"])
    write(tmp_path / "y", "y", expected["y"])
    for ours, theirs in (("z", "z"), ("y", "clip_txt")):
        content = raw(tmp_path / ours)
        assert content.pop(b"meta")
        assert content == raw(golden / "lmdb_seed_format" / theirs)


def test_captions_may_differ_in_number(tmp_path):
    ragged = [Y[i, : 1 + i % 3] for i in range(12)]
    info = LMDBReader(write(tmp_path / "y", "y", ragged)).info
    assert info.n_features == 1
    assert info.counts.tolist() == [1, 2, 3] * 4
    for load in (False, True):
        reader = LMDBReader(tmp_path / "y")
        if load:
            reader.load()
        np.testing.assert_array_equal(reader.read([5, 1], [2, 1]), Y[[5, 1], [2, 1]])


def test_a_database_is_complete_only_with_its_last_sample(tmp_path):
    with LMDBWriter(tmp_path / "z", "z", META, 12) as writer:
        writer.append(Z[:11])
        assert not writer.complete
    with pytest.raises(UserError, match=r"incomplete database \(11 of 12 samples\)"):
        LMDBReader(tmp_path / "z")
    with LMDBWriter(tmp_path / "z", "z", META, 12) as writer:
        assert writer.done == 11
        writer.append(Z[11:])
        assert writer.complete
    np.testing.assert_array_equal(LMDBReader(tmp_path / "z").read(range(12)), Z)


def test_the_map_grows_by_itself_and_goes_on_from_there_in_the_next_run(tmp_path):
    big = np.random.default_rng(0).standard_normal((18, 4, 512, 512), np.float32)  # 75 MB of 64
    with LMDBWriter(tmp_path / "z", "z", {}, 22) as writer:
        writer.append(big)
    with LMDBWriter(tmp_path / "z", "z", {}, 22) as writer:
        assert writer.done == 18
        writer.append(big[:4])
    np.testing.assert_array_equal(LMDBReader(tmp_path / "z").read([17, 21]), big[[17, 3]])


@pytest.mark.parametrize("complete", [True, False])
def test_a_database_cut_anywhere_is_refused_and_stays_as_it_is(tmp_path, complete):
    path, data = tmp_path / "z", tmp_path / "z" / "data.mdb"
    with LMDBWriter(path, "z", META, 12) as writer:
        writer.append(Z[:5])
        writer.append(Z[5:] if complete else Z[5:8])
    whole = data.read_bytes()
    for size in random.Random(0).sample(range(8192, len(whole)), 12):  # behind LMDB's two headers
        data.write_bytes(whole[:size])
        for use in (LMDBReader, lambda p: LMDBWriter(p, "z", META, 12)):
            with pytest.raises(UserError, match=f"truncated, {size} of {len(whole)} bytes"):
                use(path)
        assert data.read_bytes() == whole[:size]
    data.write_bytes(whole)
    with LMDBWriter(path, "z", META, 12) as writer:
        assert (writer.done, writer.complete) == ((12, True) if complete else (8, False))


def test_two_writers_of_one_database_do_not_mix(tmp_path):
    with LMDBWriter(tmp_path / "z", "z", META, 12) as first:
        first.append(Z[:5])
        code = (
            "from utils.data.lmdb_writer import LMDBWriter\n"
            f"LMDBWriter({str(tmp_path / 'z')!r}, 'z', {{}}, 12)\n"
        )
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert f"this database is being written by process {os.getpid()} on host" in run.stderr
        first.append(Z[5:])
    np.testing.assert_array_equal(LMDBReader(tmp_path / "z").read(range(12)), Z)


def test_reading_a_database_that_is_being_written_is_refused(tmp_path):
    with LMDBWriter(tmp_path / "z", "z", META, 12) as writer:
        writer.append(Z[:5])
        with pytest.raises(
            UserError, match=f"being written by process {os.getpid()} on host .*; w"
        ):
            LMDBReader(tmp_path / "z")
    with pytest.raises(UserError, match=r"incomplete database \(5 of 12 samples\)"):
        LMDBReader(tmp_path / "z")


def test_a_complete_database_is_read_while_a_second_run_looks_at_it(tmp_path):
    write(tmp_path / "z", "z", Z)
    code = (
        "import sys; from utils.data.lmdb_writer import LMDBWriter\n"
        f"writer = LMDBWriter({str(tmp_path / 'z')!r}, 'z', {{}}, 12)\n"
        "print(writer.complete, flush=True); sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "True\n"
        np.testing.assert_array_equal(LMDBReader(tmp_path / "z").read(range(12)), Z)
        process.stdin.close()


def test_a_killed_writer_keeps_whole_batches(tmp_path):
    code = (
        "import os, numpy as np\n"
        "from utils.data.lmdb_writer import LMDBWriter\n"
        f"writer = LMDBWriter({str(tmp_path / 'y')!r}, 'y', {{}}, 12)\n"
        "writer.append([np.ones((1 + i, 16)) for i in range(5)])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    with LMDBWriter(tmp_path / "y", "y", {}, 12) as writer:
        assert writer.done == 5
        writer.append([np.ones((2, 16))] * 7)
    assert LMDBReader(tmp_path / "y").info.counts.tolist() == [1, 2, 3, 4, 5] + [2] * 7


def test_a_full_disk_keeps_what_was_written(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from utils.base.errors import UserError\n"
        "from utils.data.lmdb_writer import LMDBWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"writer = LMDBWriter({str(tmp_path / 'z')!r}, 'z', {{}}, 100)\n"
        "try:\n"
        "    for _ in range(100): writer.append(np.ones((1, 4, 64, 64)))\n"
        "except UserError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "make room on the disk and start again" in run.stdout
    with LMDBWriter(tmp_path / "z", "z", {}, 100) as writer:
        assert 5 < writer.done < 20
        writer.append(np.ones((100 - writer.done, 4, 64, 64)))
    assert LMDBReader(tmp_path / "z").info.length == 100


@pytest.mark.parametrize("written", [5, 12])
def test_another_origin_is_refused(tmp_path, written):
    with LMDBWriter(tmp_path / "z", "z", META, 12) as writer:
        writer.append(Z[:written])
    with pytest.raises(UserError, match=r"encoder a there, b now.*delete it or choose another"):
        LMDBWriter(tmp_path / "z", "z", META | {"encoder": "b"}, 12)


def test_samples_not_reached_yet_may_change(tmp_path):
    with LMDBWriter(tmp_path / "z", "z", META, 12) as writer:
        writer.append(Z[:5])
    names = META["names"][:8]
    fewer = META | {"names": names, "names_hash": names_hash(names)}
    with LMDBWriter(tmp_path / "z", "z", fewer, 8) as writer:
        assert writer.done == 5
        writer.append(Z[5:8])
    info = LMDBReader(tmp_path / "z").info
    assert (info.length, info.meta["names_hash"]) == (8, fewer["names_hash"])


def test_samples_that_are_written_may_not_change(tmp_path):
    with LMDBWriter(tmp_path / "z", "z", META, 12) as writer:
        writer.append(Z[:5])
    names = ["other", *META["names"][1:]]
    with pytest.raises(UserError, match="images: 1 added, the first is other, 1 removed"):
        LMDBWriter(
            tmp_path / "z", "z", META | {"names": names, "names_hash": names_hash(names)}, 12
        )


def test_a_database_without_origin_is_not_overwritten(golden, tmp_path):
    (tmp_path / "z").mkdir()
    published = (golden / "lmdb_seed_format" / "z" / "data.mdb").read_bytes()
    (tmp_path / "z" / "data.mdb").write_bytes(published)
    with pytest.raises(UserError, match="unknown origin"):
        LMDBWriter(tmp_path / "z", "z", META, 12)


def missing(path: Path) -> None:
    pass


def garbage(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(b"x" * 9999)


def cut(path: Path) -> None:
    write(path, "z", Z)
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size - 1)


def hole(path: Path) -> None:
    write(path, "z", Z)
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.delete(b"z-3")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (missing, "no database there"),
        (garbage, "not a readable database"),
        (cut, "data.mdb is truncated, .* bytes are there; copy it again"),
        (hole, "z-3 is missing or damaged"),
    ],
)
def test_a_bad_database_is_named(tmp_path, make: Callable[[Path], None], said):
    make(tmp_path / "z")
    with pytest.raises(UserError, match=f"{tmp_path / 'z'}: {said}"):
        LMDBReader(tmp_path / "z").read([2, 3])


@pytest.mark.parametrize("name", ["été 日本", "caf\udce9", "a #1"], ids=ascii)
def test_a_folder_of_any_name_holds_a_database(tmp_path, name):
    with LMDBWriter(tmp_path / name / "train", "z", META, len(Z)) as writer:
        writer.append(Z)
    reader = LMDBReader(tmp_path / name)
    assert reader.folder == tmp_path / name / "train"
    assert np.array_equal(reader.read([0]), Z[:1])
