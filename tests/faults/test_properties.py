"""Properties that hold for any input: configs, lists of seeds, lists of names, databases."""

import contextlib
import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from utils.base.errors import UserError
from utils.config.load import config_from_dict, load_config
from utils.config.parsing import parse_scale, parse_seeds
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.data.name_lists import load_pickled_strings, read_names

SECTIONS = {name: field.annotation.model_fields for name, field in Config.model_fields.items()}
KEYS = [f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys]
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("None")
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3)
)
keys = st.sampled_from(KEYS) | st.text(max_size=8).map(lambda text: f"data.{text}")


def faults_of(read, *arguments) -> list[str]:
    """Return the lines of the UserError that `read` raises; an empty list if it raises none."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            read(*arguments)
        except UserError as error:
            assert str(error)
            return str(error).split("\n")
    return []


@given(entries=st.dictionaries(keys, values, max_size=6))
def test_any_config_is_valid_or_every_fault_is_a_line_that_names_the_file(entries):
    config: dict = {}
    for key, value in entries.items():
        section, _, name = key.partition(".")
        config.setdefault(section, {})[name] = value
    for line in faults_of(config_from_dict, config, "x.yaml"):
        assert line.startswith("x.yaml: ") and len(line) < 600


@given(text=st.text(st.sampled_from("abx:-[]{}&*!'\"|>%@#? \n\t0.,dataroot"), max_size=60))
def test_any_text_is_a_config_or_a_users_error(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.yaml")
        path.write_text(text, encoding="utf-8")
        assert all(line.startswith(str(path)) for line in faults_of(load_config, path))


@given(name=st.text(min_size=1, max_size=30), section=st.sampled_from([*SECTIONS, None]))
def test_an_unknown_key_is_always_one_line(name, section):
    if name in SECTIONS.get(section, SECTIONS):
        return
    config = {section: {name: 1}} if section else {name: {"a": 1}}
    faults = faults_of(config_from_dict, config, "x.yaml")
    ignored = {"truncation", "wandb", "total_num", "random_flip", "cond_mask_ratio", "fid_every"}
    known = name in ignored or (section, name) == ("model", "perturbation")
    assert known or len(faults) == 1, faults
    assert all("unknown key" in line for line in faults)


@given(
    lr=st.floats(1e-9, 1e-1),
    batchsize=st.integers(1, 10**6),
    root=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
    scales=st.lists(st.floats(0, 20), min_size=1, max_size=4),
    tag=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20),
)
@example(lr=0.1, batchsize=1, root="~nobody-of-that-name/z", scales=[1.0], tag="")
def test_a_config_comes_back_from_its_yaml(lr, batchsize, root, scales, tag):
    entries = {"train": {"lr": lr, "batchsize": batchsize}, "eval": {"cfg_scales": scales}}
    entries |= {"data": {"root": root}, "log": {"tag": tag}}
    if faults_of(config_from_dict, entries):
        return
    config = config_from_dict(entries)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.yaml")
        path.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(path) == config
    assert config_from_dict(yaml.safe_load(config.to_yaml())).to_dict() == config.to_dict()


ranges = st.tuples(st.integers(0, 2**32 - 200), st.integers(0, 99))


@given(parts=st.lists(ranges, min_size=1, max_size=5), space=st.sampled_from(["", " "]))
def test_seeds_are_those_of_the_ranges_each_once_in_order(parts, space):
    text = ",".join(f"{space}{a}-{space}{a + n}" if n else f"{a}" for a, n in parts)
    expected = [seed for a, n in parts for seed in range(a, a + n + 1)]
    assert parse_seeds(text) == list(dict.fromkeys(expected))


@given(text=st.text(max_size=20) | st.text("0123456789-, ", max_size=12))
def test_any_text_is_a_list_of_seeds_and_a_scale_or_neither(text):
    for parse in (parse_seeds, parse_scale):
        assert len(faults_of(parse, text)) <= 1 + text.count("\n")


@given(content=st.binary(max_size=60))
def test_any_bytes_are_a_list_of_names_or_a_users_error(content):
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("txt", "json", "pickle"):
            path = Path(folder, f"names.{suffix}")
            path.write_bytes(content)
            faults_of(read_names, path)


@given(names=st.lists(st.text(), max_size=5), protocol=st.integers(0, 5))
def test_any_pickled_list_of_strings_is_read(names, protocol):
    try:
        pickled = pickle.dumps(names, protocol)
    except UnicodeEncodeError:  # one half of a surrogate pair cannot be pickled
        return
    assert load_pickled_strings(pickled) == names


def in_batches(draw: st.DrawFn, length: int) -> list[int]:
    """Choose sizes of batches that sum to `length`."""
    sizes = []
    while sum(sizes) < length:
        sizes.append(draw(st.integers(1, length - sum(sizes))))
    return sizes


@st.composite
def databases(draw: st.DrawFn):
    """Choose (kind, samples, sizes of batches, batches before which the writer restarts)."""
    kind = draw(st.sampled_from("zy"))
    length, dim = draw(st.integers(1, 30)), draw(st.sampled_from([1, 3, 16, 500, 2000]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if kind == "z":
        channels, side = draw(st.integers(1, 4)), draw(st.integers(1, 9))
        samples = list(rng.standard_normal((length, channels, side, side), np.float32))
    else:
        counts = draw(st.lists(st.integers(1, 4), min_size=length, max_size=length))
        samples = [rng.standard_normal((count, dim), np.float32) for count in counts]
    batches = in_batches(draw, length)
    restarts = draw(st.sets(st.integers(0, len(batches) - 1)))
    return kind, samples, batches, restarts


@given(database=databases(), seed=st.integers(0, 99))
def test_what_is_written_is_read_however_it_was_split_and_resumed(database, seed):
    kind, samples, batches, restarts = database
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path, length = Path(folder, "db"), len(samples)

        def open_writer() -> LMDBWriter:
            stack.close()
            return stack.enter_context(LMDBWriter(path, kind, {"names": []}, length))

        writer, done = open_writer(), 0
        for number, size in enumerate(batches):
            if number in restarts:
                with pytest.raises(UserError, match="being written by"):
                    LMDBReader(path)
                writer = open_writer()
                assert (writer.done, writer.complete) == (done, False)
            writer.append(samples[done : done + size])
            done += size
        stack.close()
        reader = LMDBReader(path)
        order = np.random.default_rng(seed).permutation(length)
        for _ in range(2):  # from disk, then from memory
            for j in range(reader.info.counts.max()):
                rows = [i for i in order if j < reader.info.counts[i]]
                stored = [samples[i] if kind == "z" else samples[i][j] for i in rows]
                np.testing.assert_array_equal(reader.read(rows, j), np.stack(stored))
            reader.load()
