"""NaN and infinite numbers are noticed in every type, and JSON files hold none."""

import json
import math

import numpy as np
import pytest
import torch

from models.finite import first_not_finite, is_finite
from utils.base.errors import UserError
from utils.base.files import write_json
from utils.base.finite import require_finite
from utils.evaluation.results import Results

BAD = [math.nan, math.inf, -math.inf]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_number_is_noticed_in_every_type(dtype, bad):
    numbers = torch.arange(100).to(dtype)
    assert is_finite(numbers)
    numbers[77] = bad
    assert not is_finite(numbers)


@pytest.mark.parametrize(
    "numbers", [np.ones(3), np.zeros(0), torch.zeros(0, 4), torch.ones(2).int()]
)
def test_whole_numbers_and_no_numbers_are_finite(numbers):
    assert is_finite(numbers)


def test_the_first_bad_entry_is_named_with_its_place_and_the_remedy():
    numbers = {"a": torch.ones(2), "b": np.array([1, math.inf]), "c": torch.tensor(math.nan)}
    assert first_not_finite(numbers) == "b"
    with pytest.raises(UserError, match="^file: b holds NaN or infinite numbers; do this$"):
        require_finite(numbers, "file", "do this")


def strict(text: str):
    """Parse JSON as its standard has it, without NaN and Infinity."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bad", BAD)
def test_json_files_hold_null_instead(tmp_path, bad):
    write_json(tmp_path / "a.json", {"a": [bad, (1.5, bad)], "b": {"c": bad}, "d": "NaN"})
    found = strict((tmp_path / "a.json").read_text())
    assert found == {"a": [None, [1.5, None]], "b": {"c": None}, "d": "NaN"}


def test_results_are_json_and_are_found_again(tmp_path):
    settings = {"guidance_interval": (0.3, math.inf), "n": 8}
    config = {"sampling": {"S_max": math.inf}}
    Results(tmp_path).add({**settings, "frechet_distance": 1.0, "kid": math.nan, "config": config})
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert strict(line)["kid"] is None
    found = Results(tmp_path).find(settings)
    assert found is not None and found["frechet_distance"] == 1.0


def test_results_of_earlier_versions_are_found_again(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"guidance_interval": [0.3, Infinity], "n": 8}\n')
    assert Results(tmp_path).find({"guidance_interval": (0.3, math.inf)}) is not None
