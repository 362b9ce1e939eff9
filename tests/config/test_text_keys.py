"""Keys of type text or path take what is written, on the command line and in files."""

from pathlib import Path

import pytest

from utils.base.errors import UserError
from utils.config.load import config_from_dict, load_config
from utils.config.text_keys import is_text

# What YAML reads as something else: comments, numbers, switches, null, dates, lists, marks.
WRITTEN = [
    "a #1", "2024", "0012", "007", "1e5", "1e3", "0x10", "1_000", "12:30", "1.10", "2024-01-01",
    "no", "yes", "on", "True", "[x]", "{y}", "set: one", "a:b", "Anna's", '"quoted"', "@home",
    "*.x", "&z", "!t", "%h", "-x", "x,y", " a b ", "=", "<<", "- a", "| a", "été 日本", "a=b",
    "a\nb", "caf\udce9", "\u2028", "`x`", "?", "...", "---",
]  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
def test_a_path_and_a_text_on_the_command_line_are_read_as_written_and_survive_the_file(
    text, tmp_path
):
    config = config_from_dict({}, overrides=[f"data.image_dir={text}", f"log.tag={text}"])
    assert (str(config.data.image_dir), config.log.tag) == (text, text)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "text", ["0012", "2024", "no", "1e3", "12:30", "2024-01-01", "0x10", "1.10"]
)
def test_a_text_without_quotes_in_a_file_is_read_as_written(text, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        f"data:\n  image_dir: {text} # why\nlog:\n  tag: {text}\n"
        f"eval:\n  more_ref_paths: [{text}]\n"
    )
    config = load_config(file)
    assert (str(config.data.image_dir), config.log.tag) == (text, text)
    assert config.eval.more_ref_paths == [Path(text)]


@pytest.mark.parametrize("word", ["", "null", "None"])
def test_an_optional_path_may_be_null_and_a_text_that_may_not_is_the_word(word):
    values = {"data": {"image_dir": "x"}, "log": {"tag": "x"}}
    config = config_from_dict(values, overrides=[f"data.image_dir={word}", f"log.tag={word}"])
    assert (config.data.image_dir, config.log.tag) == (None, word)


def test_a_home_folder_is_found():
    assert config_from_dict({}, overrides=["data.root=~/x"]).data.root == Path.home() / "x"


def test_lists_of_paths_keep_their_words_and_other_keys_stay_yaml():
    overrides = ["eval.more_ref_paths=[007, no, 'a #1']", "train.lr=1e-3", "eval.num_steps=[4, 8]"]
    overrides += ["train.compile=auto", "data.norm_feature=yes", "sampling.sigmas=null"]
    config = config_from_dict({}, overrides=overrides)
    assert config.eval.more_ref_paths == [Path("007"), Path("no"), Path("a #1")]
    assert (config.train.lr, config.eval.num_steps) == (1e-3, [4, 8])
    assert (config.train.compile, config.data.norm_feature) == ("auto", True)
    assert config.sampling.sigmas is None


def test_a_mark_of_yaml_in_a_file_is_not_lost(tmp_path):
    (tmp_path / "c.yaml").write_text("data:\n  image_dir: !t\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "c.yaml")


def test_keys_of_text_are_told_from_words_of_a_list_and_switches():
    assert all(
        map(is_text, ("encoders.vae", "log.tag", "data.root", "eval.seeds", "model.model_type"))
    )
    assert not any(map(is_text, ("train.lr", "train.compile", "sampling.preset", "eval.solvers")))


@pytest.mark.parametrize(
    ("key", "text", "number"),
    [
        ("train.max_num_steps", "010", 8),
        ("data.resolution", "0400", 256),
        ("train.seed", "1:30", 90),
    ],
)
def test_a_number_that_yaml_reads_in_another_base_is_refused(tmp_path, key, text, number):
    said = f"YAML reads {text} as {number}; write plain digits"
    with pytest.raises(UserError, match=said):
        config_from_dict({}, overrides=[f"{key}={text}"])
    section, name = key.split(".")
    (tmp_path / "c.yaml").write_text(f"{section}:\n  {name}: {text}\n")
    with pytest.raises(UserError, match=said):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("text", ["0", "+8", "1_000", "0x10", "0b11", "007"])
def test_other_whole_numbers_of_yaml_stay(text):
    config = config_from_dict({}, overrides=[f"train.seed={text}"])
    assert config.train.seed == int(text, 16 if "x" in text else 2 if "b" in text else 10)
