"""Recipes of research/recipes/time_to_quality.py: files, steps from cost, results, table, plot."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image
from tiny import DIM, LATENT_SIZE, make_tiny_denoiser

from benchmarks.timing import report
from models.edm import LossRandom, edm_loss
from research.recipes.evaluation import LOSS_LEVELS, held_out_losses
from research.recipes.plot import draw
from research.recipes.recipe import FOLDER, read_recipe, read_recipes
from research.recipes.results import Results
from research.recipes.table import notes, reached, rows
from research.recipes.trainings import PROBE_STEPS, Costs, clock, cost_of_step, steps_within
from utils.base.errors import UserError
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.load import load_config

SETUP = {"seconds": 400.0, "unit": "processor s", "pictures": 500, "network": "clip-1"}


def write_recipe(path: Path, text: str = "") -> Path:
    """Write a recipe that starts from today.yaml."""
    path.write_text(f"# A recipe.\n# It is small.\n\nbase: {FOLDER / 'today.yaml'}\n{text}")
    return path


# Files


def test_today_states_every_setting_of_the_demo_so_that_it_stays_when_the_demo_changes():
    demo = yaml.safe_load((ROOT / "configs/demo/demo.yaml").read_text())
    today = yaml.safe_load((FOLDER / "today.yaml").read_text())
    of_data = {"in_size", "in_channels", "num_classes"}  # they follow from encoders and data
    for section, free in (
        ("model", of_data),
        ("train", {"max_num_steps"}),
        ("sampling", {"freedom"}),
        ("encoders", {"vae", "clip", "prior"}),
    ):
        assert set(demo[section]) - free <= set(today[section]), section


def test_the_demo_trains_and_draws_by_the_recipe_quick():
    recipe, demo = read_recipe(FOLDER / "quick.yaml").config, load_config(DEFAULT_CONFIG)
    assert (recipe.model, recipe.encoders) == (demo.model, demo.encoders)
    assert (recipe.train, recipe.sampling) == (demo.train, demo.sampling)


def test_published_has_the_published_settings_and_the_network_of_today():
    published, today = (read_recipe(FOLDER / f"{n}.yaml").config for n in ("published", "today"))
    train = published.train
    assert (train.lr, train.lr_schedule, train.betas) == (1e-4, "constant", (0.9, 0.999))
    assert (train.ema_decay, train.ema_rampup, train.grad_clip) == (0.9999, None, None)
    assert (train.P_mean, train.P_std, train.perturbation) == (-1.2, 1.2, 1.2)
    assert (train.lr_rampup_kimg, train.batchsize) == (0, today.train.batchsize)
    assert (published.model.unmasked_tail, published.model.cond_init_std) == (0, 0.02)
    assert published.encoders.image_mean is None
    same = {"unmasked_tail": 0.2, "cond_init_std": 1.0}
    assert published.model.model_copy(update=same) == today.model
    assert published.sampling == today.sampling


def test_a_recipe_is_named_after_its_file_and_described_by_its_head(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "fast.yaml", "train: {lr: 3.0e-3, seed: 5}"))
    assert (recipe.name, recipe.about) == ("fast", "A recipe. It is small.")
    assert recipe.settings["train.lr"] == 3e-3
    assert not {"train.seed", "train.max_num_steps", "log.tag"} & set(recipe.settings)


def test_recipes_of_one_name_or_with_other_encoders_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    today = write_recipe(tmp_path / "today.yaml")
    twice = write_recipe(tmp_path / "other" / "today.yaml")
    with pytest.raises(UserError, match="has the name of .*give one of them another name"):
        read_recipes([today, twice])
    vae = write_recipe(tmp_path / "vae.yaml", "encoders: {vae: elsewhere}")
    with pytest.raises(UserError, match="encoders.vae is elsewhere, but .*all recipes agree"):
        read_recipes([today, vae])
    assert [recipe.name for recipe in read_recipes([today])] == ["today"]


# Steps from cost


def test_each_part_of_the_schedule_counts_with_its_fastest_window_and_the_start_not_at_all():
    masked, tail = [2.0] * 8, [3.0] * 2
    quiet, busy = [9.0, *masked[1:], *tail], [8.0, *masked[1:-1], 5.0, 7.0, 3.0]
    assert cost_of_step([busy, quiet]) == pytest.approx((8 * 2 + 2 * 3) / PROBE_STEPS)


def test_as_many_steps_as_fit_into_the_time():
    assert steps_within(400, 0.5) == 800
    assert steps_within(1, 5.0) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="times are wall-clock seconds on a GPU")
def test_the_clock_adds_the_processor_seconds_of_the_steps():
    lines = [{"step": 10, "cpu_s": 4.0}, {"step": 20, "cpu_s": 5.0}, {"step": 23, "cpu_s": 1.0}]
    assert clock(lines, batchsize=64) == {10: 4.0, 20: 9.0, 23: 10.0}


def test_a_recipe_that_changed_after_it_was_measured_is_refused(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "a.yaml"))
    (tmp_path / "work" / "a").mkdir(parents=True)
    kept = {"settings": recipe.settings, "probes": [[1.0] * 10] * 3}
    (tmp_path / "work" / "a" / "probes.json").write_text(json.dumps(kept))
    costs = Costs(tmp_path / "work")
    assert costs.measure([recipe]) == {"a": pytest.approx(10 / PROBE_STEPS)}  # trains nothing
    changed = read_recipe(write_recipe(tmp_path / "a.yaml", "train: {lr: 0.5}"))
    with pytest.raises(UserError, match=r"a.yaml: train.lr changed after .*another name"):
        costs.measure([changed])


# Loss of held-out faces


def test_the_held_out_loss_is_the_training_loss_without_mask_at_each_level():
    denoiser = make_tiny_denoiser()
    latents, cond = torch.randn(6, 4, LATENT_SIZE, LATENT_SIZE), torch.randn(6, DIM)
    losses = held_out_losses(denoiser, latents, cond)
    generator = torch.Generator().manual_seed(0)
    for sigma, found in zip(LOSS_LEVELS, losses, strict=True):
        noise = torch.randn(latents.shape, generator=generator)
        normal = sigma.log().expand(6, 1, 1, 1)
        with torch.no_grad():
            random = LossRandom(normal, noise)
            loss = edm_loss(denoiser, latents, cond, random, P_mean=0.0, P_std=1.0)
        assert found == pytest.approx(float(loss.mean()), rel=1e-5)
    assert losses == held_out_losses(denoiser, latents, cond)


# Results


def recipe_of(folder: Path, name: str, text: str = ""):
    """Write a recipe and read it."""
    return read_recipe(write_recipe(folder / f"{name}.yaml", text))


def run_of(recipe: str, *distances: float, seed: int = 0, ending: str = "", **values) -> dict:
    """Return a run whose checkpoints, 100 s apart, have these distances; none = it diverged."""
    points = [
        {
            "step": 50 * place,
            "seconds": 100.0 * place,
            "frechet_distance": distance,
            "frechet_distance_low": distance - 10,
            "frechet_distance_high": distance + 12,
            "attributes": 70.0,
            "coarse": 80.0,
            "recall": 0.25,
            "loss": 0.5,
        }
        for place, distance in enumerate(distances, start=1)
    ]
    facts = {"recipe": recipe, "label": recipe + ending, "seed": seed, "steps": 200}
    rate = {"machine": "m", "images_per_second": 128.0, "diverged": not distances}
    return {**facts, **rate, "points": points, **values}


def saved(results: Results) -> Results:
    """Write the JSON, and read it again."""
    report(results.path, "title", rows(results), notes(results), data=results.to_dict())
    return Results(results.path, results.setup)


def test_the_table_has_means_over_seeds_intervals_and_the_time_to_the_distance_of_today(
    tmp_path,
):
    results = Results(tmp_path / "out.json", SETUP)
    results.add(recipe_of(tmp_path, "today"), [run_of("today", 400, 300, 250, 240)])
    results.add(recipe_of(tmp_path, "new"), [run_of("new", 300, 200, 150, 100)])
    results.add(recipe_of(tmp_path, "new"), [run_of("new", 120, seed=1)])
    best, other = rows(saved(results))
    assert (best["recipe"], best["seeds"], best["Fréchet distance"]) == ("new", "0, 1", "110.0")
    assert best["95 %, pictures"] == "100.0 … 122.0"
    assert best["seeds, lowest … highest"] == "100.0 … 120.0"
    assert best["processor s to 240 (today)"] == "160"
    assert other["processor s to 240 (today)"] == "400"
    assert (other["attributes, %"], other["coarse, %"]) == ("70.0", "80.0")
    assert (other["recall"], other["held-out loss"]) == ("0.250", "0.5000")
    assert (other["steps"], other["images / processor s"]) == (200, "128")
    assert other["seeds, lowest … highest"] == "–"


def test_a_recipe_without_its_yaml_is_dropped_and_keeps_its_row_and_settings(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    results.add(recipe_of(tmp_path, "today"), [run_of("today", 240)])
    results.add(recipe_of(tmp_path, "poor", "train: {lr: 0.5}"), [run_of("poor", 500)])
    (tmp_path / "poor.yaml").unlink()
    again = saved(results)
    assert [row["recipe"] for row in rows(again)] == ["today", "poor (dropped)"]
    assert again.recipes["poor"]["settings"]["train.lr"] == 0.5
    assert any(note.startswith("Dropped: tried") for note in notes(again))
    again.add(recipe_of(tmp_path, "new"), [run_of("new", 300)])
    assert [row["recipe"] for row in rows(saved(again))] == ["today", "new", "poor (dropped)"]


def test_a_repeated_run_replaces_the_earlier_one_and_a_changed_recipe_all_of_its_runs(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    recipe = recipe_of(tmp_path, "a")
    raw = run_of("a", 900, ending=", not averaged")
    results.add(recipe, [run_of("a", 300), raw])
    results.add(recipe, [run_of("a", 200)])
    results.add(recipe, [run_of("a", 250, seed=1)])
    assert [row["recipe"] for row in rows(saved(results))] == ["a", "a, not averaged"]
    assert len(results.runs) == 3
    changed = recipe_of(tmp_path, "a", "train: {lr: 0.5}")
    results.add(changed, [run_of("a", 100, seed=2)])
    assert [run["seed"] for run in results.runs] == [2]


def test_a_recipe_that_diverged_is_last_and_says_so(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    results.add(recipe_of(tmp_path, "half"), [run_of("half", 100), run_of("half", seed=1)])
    results.add(recipe_of(tmp_path, "lost"), [run_of("lost")])
    results.add(recipe_of(tmp_path, "today"), [run_of("today", 400, 240)])
    shown = {row["recipe"]: row["Fréchet distance"] for row in rows(saved(results))}
    assert shown == {"today": "240.0", "half": "1 diverged", "lost": "diverged"}
    assert next(iter(shown)) == "today"


def test_results_of_another_setup_are_refused_and_an_older_table_is_replaced(tmp_path):
    path = tmp_path / "out.json"
    path.write_text(json.dumps({"title": "a table", "rows": [{"recipe": "ours"}]}))
    results = Results(path, SETUP)
    assert results.runs == []
    results.add(recipe_of(tmp_path, "a"), [run_of("a", 9)])
    saved(results)
    with pytest.raises(UserError, match="its runs have pictures = 500, these have 300"):
        Results(path, SETUP | {"pictures": 300})
    path.write_text("{")
    with pytest.raises(UserError, match="not readable as results; give another --out"):
        Results(path, SETUP)


def test_a_distance_between_two_checkpoints_is_reached_on_the_line_between_them():
    curve = run_of("a", 300, 200, 150)["points"]
    assert reached(curve, 250) == 150
    assert reached(curve, 300) == 100
    assert reached(curve, 100) == math.inf


def test_the_plot_is_drawn_also_with_runs_that_diverged_or_have_one_point(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    results.add(recipe_of(tmp_path, "lost"), [run_of("lost")])
    draw(results, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()
    results.add(recipe_of(tmp_path, "today"), [run_of("today", 400, 240)])
    for number in range(10):
        name = f"r{number}"
        results.add(recipe_of(tmp_path, name), [run_of(name, 300 + number, seed=number)])
    draw(results, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 2000
