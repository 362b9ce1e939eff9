"""Power-function averages in a training: they change nothing else, and continue bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_tiny_config, make_tiny_training_data
from trainings import final_state, metrics, run

from models.power_average import exponent
from utils.config.load import config_from_dict
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.checkpoint import list_checkpoints
from utils.training.comparison import differences

ON = "train.power_ema=[0.05,0.1]"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The file of a config for six steps on random latents, a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("averages")
    config = make_tiny_config(
        folder,
        model={"mask_ratio": 0},
        train={"max_num_steps": 6},
        log={"ckpt_every": 1, "log_every": 2, "sample_every": 0, "use_tensorboard": False},
        eval={"feat_path": None},
    )
    make_tiny_training_data(config, 20, seed=0)
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture(scope="module")
def averaged(config, tmp_path_factory) -> Path:
    return run(config, tmp_path_factory.mktemp("run") / "averaged", ON)


def states(folder: Path) -> list[dict]:
    return [load_checkpoint(path) for path in list_checkpoints(folder / "checkpoints").values()]


def test_they_change_no_weight_and_no_random_number(config, averaged, tmp_path):
    plain = run(config, tmp_path / "plain")
    without = final_state(plain)
    assert without.pop("/power_ema") is None
    own = {k: v for k, v in final_state(averaged).items() if not k.startswith("/power_ema")}
    changed = {key for key in own if own[key] != without.get(key)}
    assert changed == {"/config/train/power_ema/0", "/config/train/power_ema/1"}
    assert metrics(plain) == metrics(averaged)


def test_they_hold_the_weights_of_all_steps_by_a_power_of_the_time(averaged):
    saved, steps = states(averaged), 6
    kept = saved[-1]["power_ema"]
    assert kept["widths"] == [0.05, 0.1] and kept["steps"] == steps
    name = next(n for n, w in saved[0]["model"].items() if not torch.equal(w, saved[1]["model"][n]))
    path = torch.stack([state["model"][name].double() for state in saved])
    for width, weights in zip(kept["widths"], kept["weights"], strict=True):
        each = np.diff((np.arange(steps + 1) / steps) ** (exponent(width) + 1))
        wanted = torch.tensordot(torch.from_numpy(each), path, 1)
        torch.testing.assert_close(weights[name].double(), wanted, rtol=0, atol=1e-6)


def test_a_continued_run_equals_the_uninterrupted_one(config, averaged, tmp_path):
    continued = run(config, tmp_path / "run", ON, "train.max_num_steps=3")
    run(config, continued, ON)
    assert final_state(continued) == final_state(averaged)


def test_a_run_that_exists_may_begin_and_end_them(config, tmp_path):
    folder = run(config, tmp_path / "run", "train.max_num_steps=2")
    run(config, folder, ON, "train.max_num_steps=5")
    begun = states(folder)[-1]["power_ema"]
    assert begun["steps"] == 3
    run(config, folder)
    assert states(folder)[-1]["power_ema"] is None


def test_a_finetuned_network_begins_its_own(config, averaged, tmp_path):
    source = averaged / "checkpoints" / "0000006.pt"
    folder = run(config, tmp_path / "run", ON, "train.max_num_steps=2", start_from=source)
    first, last = (state for state in states(folder))
    assert (last["step"], last["power_ema"]["steps"]) == (8, 2)
    for name, weight in first["model"].items():
        assert torch.equal(first["power_ema"]["weights"][0][name], weight)


@pytest.mark.parametrize("widths", [[0.05], [0.1, 0.05], [0.05, 0.3], [0.0, 0.1]])
def test_other_widths_are_refused(widths):
    with pytest.raises(Exception, match="power_ema"):
        config_from_dict({"train": {"power_ema": widths}}, "a config")


def test_they_are_no_other_run():
    off = config_from_dict({}, "a config")
    on = config_from_dict({"train": {"power_ema": [0.05, 0.1]}}, "a config")
    assert differences(off, on) == []
