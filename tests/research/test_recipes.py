"""Recipes of research/recipes/compare.py: files, steps from cost, results, table."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from tiny import DIM, LATENT_SIZE, make_tiny_denoiser

from benchmarks.timing import free_cores, report
from models.edm import LossRandom, edm_loss
from research.recipes.compare import read_run_list, recipe_file
from research.recipes.evaluation import LOSS_SIGMAS, held_out_losses
from research.recipes.recipe import read_recipe, read_recipes
from research.recipes.results import Results
from research.recipes.training import (
    PROBE_STEPS,
    Costs,
    cost_of_step,
    training_seconds,
)
from research.recipes.worlds import WORLDS
from utils.base.errors import UserError
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.load import load_config

FOLDER = WORLDS["avatars"].recipes[0]
SETUP = {"seconds": 400.0, "unit": "processor s", "images": 500, "network": "clip-1"}


def write_recipe(path: Path, text: str = "") -> Path:
    """Write a recipe that starts from v0_2.yaml."""
    path.write_text(f"# A recipe.\n# It is small.\n\nbase: {FOLDER / 'v0_2.yaml'}\n{text}")
    return path


def test_a_benchmark_takes_a_core_to_which_no_other_one_is_restricted():
    own = os.sched_getaffinity(0)
    (first,) = free_cores(1)
    others = [subprocess.Popen(["sleep", "60"]) for _ in range(5)]
    try:
        for other in others:
            os.sched_setaffinity(other.pid, {first})
        assert free_cores(len(own))[-1] == first
        assert len(own) == 1 or free_cores(1) != [first]
    finally:
        for other in others:
            other.kill()
            other.wait()


# Files


def test_v0_2_states_every_setting_of_the_demo_so_that_it_stays_when_the_demo_changes():
    demo = yaml.safe_load((ROOT / "configs/demo/demo.yaml").read_text())
    v0_2 = yaml.safe_load((FOLDER / "v0_2.yaml").read_text())
    of_data = {"in_size", "in_channels", "num_classes"}  # they follow from encoders and data
    for section, free in (
        ("model", of_data),
        ("train", {"max_num_steps"}),
        ("sampling", {"freedom"}),
        ("encoders", {"vae", "clip", "prior"}),
    ):
        assert set(demo[section]) - free <= set(v0_2[section]), section


def test_the_demo_trains_and_samples_by_the_recipe_no_decoder_gelu():
    recipe, demo = read_recipe(FOLDER / "no_decoder_gelu.yaml").config, load_config(DEFAULT_CONFIG)
    assert (recipe.model, recipe.encoders) == (demo.model, demo.encoders)
    assert (recipe.train, recipe.sampling) == (demo.train, demo.sampling)


def test_published_has_the_published_settings_and_the_network_of_v0_2():
    published, v0_2 = (read_recipe(FOLDER / f"{n}.yaml").config for n in ("published", "v0_2"))
    train = published.train
    assert (train.lr, train.lr_schedule, train.betas) == (1e-4, "constant", (0.9, 0.999))
    assert (train.ema_decay, train.ema_rampup, train.grad_clip) == (0.9999, None, None)
    assert (train.P_mean, train.P_std, train.perturbation) == (-1.2, 1.2, 1.2)
    assert (train.lr_rampup_kimg, train.batchsize) == (0, v0_2.train.batchsize)
    assert (published.model.unmasked_tail, published.model.cond_init_std) == (0, 0.02)
    assert published.encoders.image_mean is None
    same = {"unmasked_tail": 0.2, "cond_init_std": 1.0}
    assert published.model.model_copy(update=same) == v0_2.model
    assert published.sampling == v0_2.sampling


def test_a_recipe_is_named_after_its_file_and_described_by_its_head(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "new.yaml", "train: {lr: 3.0e-3, seed: 5}"))
    assert (recipe.name, recipe.about) == ("new", "A recipe. It is small.")
    assert recipe.settings["train.lr"] == 3e-3
    assert not {"train.seed", "train.max_num_steps", "log.tag"} & set(recipe.settings)


def test_recipes_with_other_encoders_are_refused(tmp_path):
    v0_2 = write_recipe(tmp_path / "v0_2.yaml")
    vae = write_recipe(tmp_path / "vae.yaml", "encoders: {vae: elsewhere}")
    with pytest.raises(UserError, match="encoders.vae is elsewhere, but .*all recipes agree"):
        read_recipes([v0_2, vae])
    assert list(read_recipes([v0_2])) == ["v0_2"]


@pytest.mark.parametrize(
    ("lists", "world", "kind"),
    [
        (("recipes/recipes", "recipes/own"), "avatars", 0),
        (("recipes/recipes_photos",), "photos", 0),
        (("study/study_photos",), "photos", 1),
    ],
)
def test_the_lists_name_every_recipe_of_a_folder(lists, world, kind):
    folder, named = WORLDS[world].recipes[kind], set()
    for file in (ROOT / "research" / f"{name}.yaml" for name in lists):
        runs = read_run_list(file)
        assert runs.world == world
        recipes = read_recipes([recipe_file(n, file, WORLDS[world]) for n in runs.seeds])
        assert {recipe.file.parent for recipe in recipes.values()} == {folder}
        named |= recipes.keys()
    assert named == {path.stem for path in folder.glob("*.yaml")}


def test_the_first_recipe_of_both_worlds_has_the_demos_settings():
    ours, demo = (
        read_recipe(WORLDS[world].recipes[0] / f"{name}.yaml").settings
        for world, name in (("photos", "base"), ("avatars", "no_decoder_gelu"))
    )
    assert ours.pop("model.in_channels") == 32
    assert "model.sigma_data" not in ours  # 0.5, the default
    assert demo.pop("model.sigma_data") == 1.0
    sections = ("model.", "train.", "sampling.")
    ours, demo = ({k: v for k, v in s.items() if k.startswith(sections)} for s in (ours, demo))
    assert ours == demo


@pytest.mark.parametrize("name", ["adamw", "decoder", "mask_0", "xflip"])
def test_a_recipe_changes_the_same_keys_in_both_worlds(name):
    changes = []
    for world, base in (("photos", "base"), ("avatars", "no_decoder_gelu")):
        plain, other = (
            read_recipe(WORLDS[world].recipes[0] / f"{n}.yaml").settings for n in (base, name)
        )
        keys = plain.keys() | other.keys()
        changes.append({k: other.get(k) for k in keys if plain.get(k) != other.get(k)})
    assert changes[0] == changes[1] != {}


# Steps from cost


def test_each_part_of_the_schedule_counts_with_its_fastest_window_and_the_start_not_at_all():
    masked, tail = [2.0] * 8, [3.0] * 2
    quiet, busy = [9.0, *masked[1:], *tail], [8.0, *masked[1:-1], 5.0, 7.0, 3.0]
    assert cost_of_step([busy, quiet]) == pytest.approx((8 * 2 + 2 * 3) / PROBE_STEPS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="times are wall-clock seconds on a GPU")
def test_a_training_takes_the_processor_seconds_of_the_steps():
    lines = [{"step": 10, "cpu_s": 4.0}, {"step": 20, "cpu_s": 5.0}, {"step": 23, "cpu_s": 1.0}]
    assert training_seconds(lines, batchsize=64) == 10.0


def test_a_recipe_that_changed_after_it_was_measured_is_refused(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "a.yaml"))
    (tmp_path / "work" / "a").mkdir(parents=True)
    kept = {"settings": recipe.settings, "unit": "of another machine", "probes": [[1.0] * 10] * 3}
    (tmp_path / "work" / "a" / "probes.json").write_text(json.dumps(kept))
    costs = Costs(tmp_path / "work")
    assert costs.cost(recipe) == pytest.approx(10 / PROBE_STEPS)  # trains nothing
    assert costs.steps(recipe, [recipe], seconds=40) == 4 * PROBE_STEPS
    assert costs.unit == "of another machine"
    changed = read_recipe(write_recipe(tmp_path / "a.yaml", "train: {lr: 0.5}"))
    with pytest.raises(UserError, match=r"a.yaml: train.lr changed after .*another name"):
        costs.cost(changed)


# Loss of held-out faces


def test_the_held_out_loss_is_the_training_loss_without_mask_at_each_sigma():
    denoiser = make_tiny_denoiser()
    latents, cond = torch.randn(6, 4, LATENT_SIZE, LATENT_SIZE), torch.randn(6, DIM)
    losses = held_out_losses(denoiser, latents, cond)
    generator = torch.Generator().manual_seed(0)
    for sigma, found in zip(LOSS_SIGMAS, losses, strict=True):
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


def run_of(recipe: str, distance: float | None, seed: int = 0) -> dict:
    """Return a run with this Fréchet distance; None = it diverged."""
    facts = {"recipe": recipe, "seed": seed, "steps": 200, "machine": "m"}
    metrics = {"frechet_distance": distance, "attributes": 70.0, "recall": 0.25, "loss": 0.5}
    is_lost = distance is None
    return {**facts, "diverged": is_lost, "metrics": {} if is_lost else metrics}


def saved(results: Results) -> Results:
    """Write the JSON, and read it again."""
    report(results.path, "title", results.rows(), results.notes(), data=results.to_dict())
    return Results(results.path, results.setup)


def test_the_table_has_means_over_seeds_and_their_range(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    results.add(recipe_of(tmp_path, "old"), run_of("old", 240))
    results.add(recipe_of(tmp_path, "new"), run_of("new", 100))
    results.add(recipe_of(tmp_path, "new"), run_of("new", 120, seed=1))
    best, other = saved(results).rows()
    assert (best["recipe"], best["seeds"]) == ("new", 2)
    assert best["Fréchet distance"] == "110.0 (100.0 … 120.0)"
    assert (other["steps"], other["Fréchet distance"]) == (200, "240.0")
    assert (other["recall"], other["held-out loss"]) == ("0.25", "0.5000")


def test_a_recipe_without_its_yaml_keeps_its_row_and_settings(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    results.add(recipe_of(tmp_path, "poor", "train: {lr: 0.5}"), run_of("poor", 500))
    (tmp_path / "poor.yaml").unlink()
    again = saved(results)
    assert again.recipes["poor"]["settings"]["train.lr"] == 0.5
    again.add(recipe_of(tmp_path, "new"), run_of("new", 300))
    assert [row["recipe"] for row in saved(again).rows()] == ["new", "poor"]


def test_a_repeated_run_replaces_the_earlier_one_and_a_changed_recipe_all_of_its_runs(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    recipe = recipe_of(tmp_path, "a")
    results.add(recipe, run_of("a", 300))
    results.add(recipe, run_of("a", 200))
    results.add(recipe, run_of("a", 250, seed=1))
    (row,) = saved(results).rows()
    assert row["Fréchet distance"] == "225.0 (200.0 … 250.0)"
    changed = recipe_of(tmp_path, "a", "train: {lr: 0.5}")
    results.add(changed, run_of("a", 100, seed=2))
    assert [run["seed"] for run in results.runs] == [2]


def test_a_recipe_that_diverged_is_last_and_says_so(tmp_path):
    results = Results(tmp_path / "out.json", SETUP)
    results.add(recipe_of(tmp_path, "half"), run_of("half", 100))
    results.add(recipe_of(tmp_path, "half"), run_of("half", None, seed=1))
    results.add(recipe_of(tmp_path, "good"), run_of("good", 240))
    shown = {row["recipe"]: row["Fréchet distance"] for row in saved(results).rows()}
    assert list(shown.items()) == [("good", "240.0"), ("half", "1 diverged")]


def test_results_of_another_setup_are_refused(tmp_path):
    path = tmp_path / "out.json"
    results = Results(path, SETUP)
    results.add(recipe_of(tmp_path, "a"), run_of("a", 9))
    saved(results)
    with pytest.raises(UserError, match="its runs have images = 500, these have 300"):
        Results(path, SETUP | {"images": 300})
    path.write_text("{")
    with pytest.raises(UserError, match="not readable as results; give another --out"):
        Results(path, SETUP)


@pytest.mark.parametrize("stem", ["study", "study_wide"])
def test_the_committed_runs_are_those_of_the_list_and_of_its_recipes_settings(stem):
    file = ROOT / "research" / "study" / f"{stem}.yaml"
    path = ROOT / "docs" / "benchmarks" / f"{stem}.json"
    content, runs = json.loads(path.read_text()), read_run_list(file)
    found = Results(path, content["setup"])
    assert content["rows"] == found.rows()
    seeds = {(run["recipe"], run["seed"]) for run in found.runs}
    assert seeds == {(name, seed) for name, several in runs.seeds.items() for seed in several}
    for name in runs.seeds:
        settings = read_recipe(recipe_file(name, file)).settings
        assert found.recipes[name]["settings"] == settings, name
