"""Files of version 0.2 load unchanged: a config, the config in a model file, and old names."""

import pytest
import yaml
from conftest import ROOT

from utils.config.load import load_config
from utils.config.published import RENAMED_KEYS
from utils.pretrained.checkpoint_files import stored_config
from utils.pretrained.denoisers import load_denoiser
from utils.pretrained.effective_config import read_config

WRITTEN = ROOT / "tests" / "golden" / "config_0_2.yaml"  # config.yaml of a run of the demo


def test_a_config_keeps_every_value_and_one_note_names_each_renamed_key(capsys):
    values, config = yaml.safe_load(WRITTEN.read_text()), load_config(WRITTEN)
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f"note: {old} is now called {new}" for old, new in RENAMED_KEYS.items()]
    assert config.prior.noise_range == (2, 9)
    for old, new in RENAMED_KEYS.items():
        (section, old_name), (_, new_name) = old.split("."), new.split(".")
        values[section][new_name] = values[section].pop(old_name)
    now = config.to_dict()
    assert {name: now[name] | keys for name, keys in values.items()} == now


def test_an_override_may_use_the_old_name(capsys):
    assert load_config(WRITTEN, ["prior.levels=[3,4]"]).prior.noise_range == (3, 4)
    assert "note: prior.levels is now called prior.noise_range" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dit", "student"])
def test_a_model_file_loads_with_the_config_in_it(name, capsys):
    path = ROOT / "assets" / "demo" / f"{name}.safetensors"
    assert "prior" in stored_config(path) or "sampling" in stored_config(path)
    load_denoiser(path, config=read_config(path))
    assert "is now called" not in capsys.readouterr().err
