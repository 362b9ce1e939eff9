"""A config that starts from another one by `base:`."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from utils.base.errors import UserError
from utils.config.load import load_config


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def faults(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def test_a_variant_of_five_lines_has_all_other_settings_of_its_base(tmp_path):
    base = ROOT / "configs" / "others" / "own_images.yaml"
    text = f"base: {base}\nmodel: {{model_type: DiT-S/2}}\ntrain:\n  batchsize: 32\n"
    small, plain = load_config(write(tmp_path / "small.yaml", text)), load_config(base)
    assert (small.model.model_type, small.train.batchsize) == ("DiT-S/2", 32)
    overrides = ["model.model_type=DiT-S/2", "train.batchsize=32"]
    assert small == load_config(base, overrides) != plain


def test_bases_chain_each_relative_to_its_file_and_the_nearest_wins(tmp_path):
    write(tmp_path / "a.yaml", "train: {lr: 1, epochs: 1, batchsize: 1}\nlog: {tag: a}")
    write(tmp_path / "deep" / "b.yaml", "base: ../a.yaml\ntrain: {epochs: 2, batchsize: 2}")
    top = write(tmp_path / "c.yaml", "base: deep/b.yaml\ntrain: {batchsize: 3, epochs: null}\nlog:")
    config = load_config(top, ["train.seed=4"])
    train = config.train
    assert (train.lr, train.epochs, train.batchsize, train.seed) == (1, None, 3, 4)
    assert config.log.tag == "a"


def test_the_resolved_config_is_whole_and_names_no_base(tmp_path):
    write(tmp_path / "a.yaml", "train: {lr: 0.5}")
    config = load_config(write(tmp_path / "b.yaml", "base: a.yaml"))
    assert "base" not in yaml.safe_load(config.to_yaml())
    assert load_config(write(tmp_path / "elsewhere" / "c.yaml", config.to_yaml())) == config


def test_a_variants_preset_wins_over_what_its_base_sets_instead_of_a_preset(tmp_path):
    write(tmp_path / "a.yaml", "sampling: {preset: fast, num_steps: 7, cfg_scale: 3}")
    sampling = load_config(write(tmp_path / "b.yaml", "base: a.yaml\nsampling: {preset: paper}"))
    assert sampling.sampling.num_steps == 40
    assert sampling.sampling.cfg_scale == 3
    text = "base: a.yaml\nsampling: {preset: paper, num_steps: 9}"
    assert load_config(write(tmp_path / "c.yaml", text)).sampling.num_steps == 9


def test_a_fault_names_the_file_in_which_the_key_stands(tmp_path):
    base = write(tmp_path / "a.yaml", "train: {lrr: 1, lr: fast}\nmodle: {}")
    top = write(tmp_path / "b.yaml", "base: a.yaml\ntrain: {batchsize: 0}")
    assert sorted(faults(top, "train.epochs=x")) == sorted(
        [
            f"{base}: train.lr: should be a valid number, got 'fast'",
            f"{base}: train.lrr: unknown key; did you mean train.lr?",
            f"{base}: modle: unknown key; did you mean model?",
            f"{top}: train.batchsize: should be greater than 0, got 0",
            "override train.epochs: should be a valid integer, got 'x'",
        ]
    )


def test_a_missing_base_is_one_line_with_both_names(tmp_path):
    top = write(tmp_path / "b.yaml", "base: none.yaml")
    assert faults(top) == [
        f"{tmp_path / 'none.yaml'}: cannot be read (No such file or directory); "
        f"{top} names it as its base"
    ]


@pytest.mark.parametrize("bases", [("a",), ("b", "a"), ("b", "c", "b")])
def test_a_circle_of_bases_is_one_line_with_both_names(tmp_path, bases):
    for name, base in zip("abc", bases, strict=False):
        write(tmp_path / f"{name}.yaml", f"base: {base}.yaml")
    last, back = "abc"[len(bases) - 1], bases[-1]
    (line,) = faults(tmp_path / "a.yaml")
    assert line.startswith(f"{tmp_path / last}.yaml: base: {tmp_path / back}.yaml leads back")


@pytest.mark.parametrize("value", ["[a.yaml]", "null", "5", "''"])
def test_a_base_that_is_no_path_is_one_line(tmp_path, value):
    (line,) = faults(write(tmp_path / "b.yaml", f"base: {value}"))
    assert line.startswith(f"{tmp_path / 'b.yaml'}: base: should be the path of a YAML file, got ")
