"""The plot of variety against attention to the sentence."""

import json

import pytest
from matplotlib.figure import Figure
from PIL import Image

from research.variety.check import add_point
from research.variety.plot import means, plot_panel, plot_trade, read_points
from utils.base.errors import UserError


def point(method: str, strength: float, ratio: float, stated: float, seed: int = 0, **captions):
    return {
        "model": "dit.safetensors",
        "settings": [f"sampling.seed={seed}"],
        "method": method,
        "strength": strength,
        "ratio": ratio,
        "stated": stated,
        "captions": captions or None,
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "points.json"
    add_point(point("noise", 1.0, 0.7, 84, attributes=80.0, frechet_distance=81.0), path)
    add_point(point("noise", 0.5, 0.4, 94), path)
    add_point(point("prior", 0.7, 0.6, 92), path)
    add_point(point("prior", 0.7, 0.8, 96, seed=1, attributes=87.0, frechet_distance=89.0), path)
    return path


def test_a_curve_joins_the_strengths_of_a_method_and_averages_seeds(file):
    curves = means(read_points(file), "stated")
    assert list(curves) == ["noise", "prior"]
    assert curves["noise"].tolist() == [[0.5, 0.4, 94, 94, 94], [1.0, 0.7, 84, 84, 84]]
    assert curves["prior"].tolist() == [[0.7, pytest.approx(0.7), 94, 92, 96]]


def test_points_without_captions_are_left_out_of_their_panels(file):
    curves = means(read_points(file), "frechet_distance")
    assert curves["noise"].tolist() == [[1.0, 0.7, 81, 81, 81]]
    assert curves["prior"].tolist() == [[0.7, 0.8, 89, 89, 89]]


def test_each_method_is_a_line_and_each_strength_has_its_number(file):
    axis = Figure().subplots()
    plot_panel(axis, read_points(file), "stated")
    assert axis.get_legend_handles_labels()[1] == ["noise", "prior"]
    assert [text.get_text() for text in axis.texts] == ["0.5", "1"]


def test_the_plot_has_a_panel_for_each_figure_that_is_there(file, tmp_path):
    points = read_points(file)
    plot_trade(points, tmp_path / "three.png")
    plot_trade([p for p in points if p["attributes"] is None], tmp_path / "one.png")
    with Image.open(tmp_path / "three.png") as three, Image.open(tmp_path / "one.png") as one:
        assert three.width == 3 * one.width and three.height == one.height


def test_a_point_measured_again_takes_the_place_of_the_old_one(file):
    add_point(point("noise", 0.5, 0.45, 95), file)
    rows = json.loads(file.read_text())
    assert len(rows) == 4 and rows[-1]["ratio"] == 0.45


@pytest.mark.parametrize("text", ["not json", '[{"method": "noise"}]', '{"method": "noise"}'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "points.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"points\.json: not a list of research/variety/check\.py"):
        read_points(path)
