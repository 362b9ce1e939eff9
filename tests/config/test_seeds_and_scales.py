"""One limit for seeds, and one for guidance scales, wherever they are given."""

import argparse
import sys

import numpy as np
import pytest

from research.gap.angle import parse_args as parse_angle_args
from utils.base.errors import UserError
from utils.config.command_line import add_config_arguments
from utils.config.load import config_from_dict
from utils.config.parsing import parse_scale, parse_seed, parse_seeds
from utils.config.published import SAMPLING, add_published_flags, flag_settings
from utils.config.schema import Config
from utils.evaluation.generated import seeds_to_evaluate
from utils.sampling.prompts import resolve_seeds

BAD_SEEDS = [
    "4294967296", "18446744073709551616", "-1", "1.5", "1e3", "nan", "true", "x", "9" * 5000
]  # fmt: skip
SEED_KEYS = ["train.seed", "sampling.seed", "prior.seed"]


@pytest.mark.parametrize("key", SEED_KEYS)
@pytest.mark.parametrize("text", BAD_SEEDS)
def test_a_seed_beyond_the_limit_is_one_line_for_every_key(key, text):
    with pytest.raises(UserError, match=rf"override '?{key}") as fault:
        config_from_dict({}, overrides=[f"{key}={text}"])
    assert len(str(fault.value)) < 300
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("key", SEED_KEYS)
def test_the_last_seed_is_taken(key):
    section, name = key.split(".")
    config = config_from_dict({}, overrides=[f"{key}=4294967295"])
    assert getattr(getattr(config, section), name) == 2**32 - 1


@pytest.mark.parametrize("text", [*BAD_SEEDS, ""])
def test_a_seed_beyond_the_limit_is_one_line_for_flags(text, monkeypatch):
    with pytest.raises(UserError, match=r"^seeds? .*should"):
        parse_seeds(text)
    with pytest.raises(UserError, match=r"^seed .*: should be a whole number from 0 to 4294967295"):
        parse_seed(text)
    monkeypatch.setattr(sys, "argv", ["angle.py", f"--seed={text}"])
    with pytest.raises(UserError, match=r"^seed "):
        parse_angle_args()


def test_seeds_that_follow_the_first_one_stay_below_the_limit_too():
    values = {"sampling": {"seed": 2**32 - 4}, "eval": {"fid_sample_size": 4}}
    config = config_from_dict(values)
    assert list(seeds_to_evaluate(config)) == resolve_seeds(None, 4, config.sampling)
    over = config_from_dict({**values, "eval": {"fid_sample_size": 5}})
    for ask in (lambda: seeds_to_evaluate(over), lambda: resolve_seeds(None, 5, over.sampling)):
        with pytest.raises(UserError, match=r"^seeds 4294967292 and the 4 after it: should be"):
            ask()


@pytest.mark.parametrize("seeds", [2**32, [0, 2**32], -1, 1.5, [1.5], np.int64(-1), [True, 2**64]])
def test_seeds_of_a_call_have_the_same_limit(seeds):
    with pytest.raises(UserError, match="should be whole numbers from 0 to"):
        resolve_seeds(seeds, 1, Config().sampling)


@pytest.mark.parametrize("seeds", [5, np.int64(5), (5,), np.array([5]), range(5, 6)])
def test_a_seed_is_any_whole_number_or_some_of_them(seeds):
    assert resolve_seeds(seeds, 1, Config().sampling) == [5]


def read_flags(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    add_published_flags(parser, SAMPLING)
    add_config_arguments(parser)
    return flag_settings(parser.parse_intermixed_args(words))


@pytest.mark.parametrize(
    ("text", "scales"),
    [("-1,2", [-1, 2]), ("-.5", [-0.5]), ("-1e3,None", [-1000, None]), ("2,-3,0", [2, -3, 0])],
)
def test_negative_guidance_needs_no_equals_sign(text, scales):
    assert read_flags("--cfg_scale", text, "train.lr=1")["--cfg_scale"]["eval.cfg_scales"] == scales


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e38", "-1e7", "", "x"])
def test_guidance_that_ends_in_black_images_is_refused(text):
    with pytest.raises(UserError, match=r"^guidance scale .*should be a number"):
        parse_scale(text)
    for key, value in (("sampling.cfg_scale", text), ("eval.cfg_scales", f"[{text}]")):
        if text:
            with pytest.raises(UserError, match=rf"override {key}.* should be"):
                config_from_dict({}, overrides=[f"{key}={value}".replace("inf", ".inf")])
