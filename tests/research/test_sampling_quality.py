"""research/sampling_quality/compare.py: what a setting costs, and which settings are compared."""

import argparse
from pathlib import Path

import pytest
from tiny import make_tiny_checkpoint, make_tiny_config

from research.sampling_quality.compare import selected_settings
from research.sampling_quality.settings import settings_to_compare, student_settings
from utils.base.errors import UserError
from utils.pretrained.denoisers import export_safetensors


@pytest.fixture
def student(tmp_path) -> Path:
    """Make a released student of two sigmas; return its file."""
    checkpoint = make_tiny_checkpoint(tmp_path / "0000001.pt", make_tiny_config(tmp_path))
    values = ("distill.sigmas=[80,1.5]", "sampling.preset=instant", "sampling.cfg_scale=null")
    export_safetensors(checkpoint, tmp_path / "student.safetensors", values)
    return tmp_path / "student.safetensors"


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("paper", 158),  # 79 evaluations, each with both halves of guidance
        ("fast", 18),  # two of ten sigmas lie below the guidance
        ("fast8", 8),
        ("dpmpp_2m 10", 20),
        ("heun 20", 78),
    ],
)
def test_a_setting_costs_its_evaluations_with_guidance_counted_double(name, cost):
    assert settings_to_compare()[name].cost == cost


def test_a_student_costs_one_evaluation_for_each_of_its_sigmas(student):
    ((name, setting),) = student_settings([student]).items()
    assert (name, setting.cost) == ("student 80, 1.5", 2)


def test_a_network_that_is_no_student_is_refused(student):
    with pytest.raises(UserError, match="the network is no student"):
        student_settings([student.with_name("0000001.pt")])


def test_the_reference_comes_first_and_students_are_named_together(student):
    args = argparse.Namespace(student=[student], only="fast;students", reference="heun 20")
    assert list(selected_settings(args)) == ["heun 20", "fast", "student 80, 1.5"]
    args.only = "fast;no such"
    with pytest.raises(UserError, match="there is no setting 'no such', only: paper; fast"):
        selected_settings(args)
