"""A sweep: evaluates every combination, generates nothing twice, and leaves the right files."""

import contextlib
import json
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.harness import KILLS, Run, environments_of_ranks, fill_disk, seeded, small_disk
from PIL import Image
from tiny import RESOLUTION, make_tiny_checkpoint, make_tiny_config, make_tiny_evaluation_data

import eval_latent_t2f
from utils.evaluation.feature_store import FeatureBlocks
from utils.sampling.image_files import png_text

SCRIPT = "eval_latent_t2f.py"
# Settings and metrics that a repeated run must give again; the seconds differ.
SAME = ("step", "cfg_scale", "num_steps", "solver", "frechet_distance_clip", "clip_score", "n")


@pytest.fixture
def experiment(tmp_path: Path, tiny_faces) -> Path:
    """An experiment folder with two checkpoints, its config beside it, captions as text too."""
    images, captions = tiny_faces(10, RESOLUTION)
    config = make_tiny_config(
        tmp_path,
        eval={"batchsize": 8, "image_dir": images, "caption_dir": captions},
        sampling={"num_steps": 2},
    )
    make_tiny_evaluation_data(config)
    for step in (10, 20):
        make_tiny_checkpoint(tmp_path / "exp" / "checkpoints" / f"{step:07d}.pt", config, step)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    return tmp_path / "exp"


def arguments(experiment: Path, *flags: object) -> list[str]:
    given = ["--config", experiment.parent / "config.yaml", "--experiment_dir", experiment, *flags]
    return [str(word) for word in given]


@pytest.fixture
def sweep(monkeypatch, experiment):
    """`sweep(*flags)` runs the script in this process; returns all records so far."""

    def run(*flags: object) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments(experiment, *flags)])
        eval_latent_t2f.main()
        return records_of(experiment)

    return run


def records_of(experiment: Path) -> list[dict]:
    lines = (experiment / "evaluation" / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def metrics_of(records: list[dict]) -> list[dict]:
    return [{key: record[key] for key in SAME} for record in records]


def generated_so_far(experiment: Path) -> int:
    """Images that evaluations have begun, while they may be writing."""
    folder, begun = experiment / "evaluation", 0
    for file in (folder / "partial").glob("*/begun-*.txt"):
        with contextlib.suppress(FileNotFoundError):
            begun += sum(map(int, file.read_text().split()))
    results = folder / "results.jsonl"
    records = results.read_text().split("\n")[:-1] if results.exists() else []
    return begun + sum(json.loads(record)["images_drawn"] for record in records)


# --- What is evaluated


def test_lists_of_scales_steps_and_solvers_are_evaluated_in_every_combination(sweep):
    records = sweep(
        "--ckpt_ids", 20, "--cfg_scale", "None,2", "--num_steps", "1,2", "--solver", "heun,dpmpp_2m"
    )
    settings = [(r["solver"], r["num_steps"], r["cfg_scale"]) for r in records]
    assert settings == [(s, n, c) for s in ("heun", "dpmpp_2m") for n in (1, 2) for c in (None, 2)]
    assert {record["step"] for record in records} == {20}


def test_lists_may_stand_in_the_config(sweep):
    records = sweep("--ckpt_ids", 10, "eval.num_steps=[2,3]", "eval.solvers=[euler]")
    assert [(r["num_steps"], r["solver"]) for r in records] == [(2, "euler"), (3, "euler")]


def test_a_record_says_with_which_config_and_file_it_was_made(sweep):
    (record,) = sweep("--ckpt_ids", "10-15", "--num_expected", 8)
    assert record["config"]["eval"]["fid_sample_size"] == 8
    assert len(record["checkpoint_sha256"]) == 16 and record["seconds"] > 0
    assert record["images_drawn"] == record["n"] == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt_ids", "10,15"], "no checkpoint of step 15; there are 2, from 10 to 20"),
        (["--ckpt_ids", "11-19"], "no checkpoint of steps 11-19, from step 10 to 20"),
        (["--ckpt_ids", "20-10"], "--ckpt_ids '20-10': should look like 300,600-900"),
        (["--ckpt_ids", "10,,20"], "--ckpt_ids '10,,20': should look like"),
        (["--solver", "heun,rk4"], "--solver eval.solvers.1: should be 'heun'"),
        (["--num_steps", "2,few"], "--num_steps eval.num_steps.1: should be a valid integer"),
        (["--num_steps", "2,"], "--num_steps eval.num_steps.1: should be a valid integer"),
        (["--cfg_scale", "1.5,,2"], "guidance scale '': should be a number or None"),
        (["--solver", "dpmpp_2m,heun", "--S_churn", 3], "'dpmpp_2m' takes no S_churn"),
        (["eval.save_images=jpeg"], "eval.save_images: should be 'png' or 'npz'"),
    ],
)
def test_mistakes_give_one_clear_line(sweep, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        sweep(*flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_sweep_that_cannot_finish_is_refused_before_it_begins(sweep, experiment):
    with pytest.raises(SystemExit):
        sweep("--solver", "heun,dpmpp_2m", "--S_churn", 3)
    assert not (experiment / "evaluation").exists()


# --- What is kept


def test_the_first_images_are_kept_with_their_captions(sweep, experiment):
    (record,) = sweep("--ckpt_ids", 10)
    images = sorted((experiment / "evaluation" / record["images"]).iterdir())
    assert [path.name for path in images] == [f"{seed:06d}.png" for seed in range(18)]
    about = png_text(images[7])
    generator = torch.Generator().manual_seed(7)
    torch.randn(4, 2, 2, generator=generator)
    image, line = (int(torch.randint(n, (1,), generator=generator)) for n in (10, 2))
    assert about["caption"] == f"test image {image}, caption {line}"
    assert about["prompt"] == ["a rendered face", f"face number {image}"][line]


def test_all_images_are_kept_on_request(sweep, experiment):
    sweep("--ckpt_ids", 10, "--save_images", "png", "--subdirs", "--seeds", "990-1013")
    images = (experiment / "evaluation" / "images").rglob("*.png")
    expected = [f"{s - s % 1000:06d}/{s:06d}" for s in range(990, 1014)]
    assert sorted(f"{p.parent.name}/{p.stem}" for p in images) == expected


def test_an_npz_holds_all_images_in_order(sweep, experiment):
    before, after = (sweep("--ckpt_ids", 10, *more) for more in ((), ("--save_images", "npz")))
    folder = experiment / "evaluation" / after[-1]["images"]
    images = np.load(folder / "images.npz")["arr_0"]
    assert images.shape == (24, RESOLUTION, RESOLUTION, 3)
    assert np.array_equal(images[17], np.asarray(Image.open(folder / "000017.png")))
    assert metrics_of(after) == 2 * metrics_of(before)


# --- Nothing is generated twice


@pytest.mark.e2e
def test_a_sweep_killed_at_any_moment_goes_on_and_gives_the_same(sweep, experiment, tmp_path):
    rng = seeded("sweep")
    count = 40 * KILLS  # images of each of two guidance scales
    flags = ("--cfg_scale", "None,2", "--num_expected", count, "--ckpt_ids", 10)
    kills = 0
    for _ in range(KILLS):
        goal = generated_so_far(experiment) + 8 * rng.randrange(1, 10)
        with Run(SCRIPT, arguments(experiment, *flags), tmp_path / "said.txt") as run:
            there = run.wait_until(lambda goal=goal: generated_so_far(experiment) >= goal)
            if there:
                kills += run.signal_within(0.05, rng, signal.SIGKILL) == -signal.SIGKILL
    print(f"killed {kills} times")
    assert kills > 0
    resumed = sweep(*flags)
    generated = sum(record["images_drawn"] for record in resumed)
    assert generated <= 2 * count + 8 * kills  # at most a batch of eight is lost each time
    assert not list((experiment / "evaluation" / "partial").iterdir())
    (experiment / "evaluation" / "results.jsonl").unlink()
    assert metrics_of(resumed) == metrics_of(sweep(*flags))


@pytest.mark.e2e
def test_another_number_of_processes_may_finish_and_gives_the_same(sweep, experiment, tmp_path):
    keys = ("eval.variety_captions=3", "eval.variety_seeds=4")
    flags = ("--num_expected", 120, "--ckpt_ids", 10, *keys)

    def start_two() -> list[Run]:
        said = [tmp_path / f"said_{rank}.txt" for rank in range(2)]
        return [
            Run(SCRIPT, arguments(experiment, *flags), file, environment=environment)
            for file, environment in zip(said, environments_of_ranks(2), strict=True)
        ]

    first, second = start_two()
    assert first.wait_until(lambda: generated_so_far(experiment) >= 40), first.said()
    for process in (first, second):
        process.kill()
    (alone,) = sweep(*flags)
    assert 120 <= alone["images_drawn"] <= 120 + 2 * 8
    (experiment / "evaluation" / "results.jsonl").unlink()
    first, second = start_two()
    assert [first.wait(), second.wait()] == [0, 0], first.said()
    (both,) = records_of(experiment)
    assert metrics_of([both]) == metrics_of([alone])
    for key in ("spread", "vendi_score"):
        assert both[key] == alone[key] > 0


def test_a_damaged_part_is_named_and_made_again(sweep, experiment, monkeypatch, capsys):
    kept = {}
    add = FeatureBlocks.add

    def stop_at_the_fourth(self, positions, rows, took):
        add(self, positions, rows, took)
        kept["folder"] = self.folder
        if positions[0] == 24:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(FeatureBlocks, "add", stop_at_the_fourth)
        sweep("--ckpt_ids", 10, "--num_expected", 40)
    cut, changed = (kept["folder"] / f"{first:08d}.safetensors" for first in (8, 16))
    cut.write_bytes(cut.read_bytes()[:-10])
    content = bytearray(changed.read_bytes())
    content[-5] ^= 1
    changed.write_bytes(content)
    (kept["folder"] / "begun-0.txt").rename(kept["folder"] / "drawn-0.txt")  # 0.2 names it so
    capsys.readouterr()
    (record,) = sweep("--ckpt_ids", 10, "--num_expected", 40)
    notes = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert [str(path) in line for path, line in zip((cut, changed), notes, strict=True)] == [1, 1]
    assert record["images_drawn"] == 40 + 16
    (experiment / "evaluation" / "results.jsonl").unlink()
    assert metrics_of([record]) == metrics_of(sweep("--ckpt_ids", 10, "--num_expected", 40))


def test_a_full_disk_is_one_line_and_loses_nothing(sweep, experiment, capsys):
    with small_disk(experiment / "evaluation", 800_000) as disk:
        filler = fill_disk(disk, leave=120_000)
        with pytest.raises(SystemExit) as stop:
            sweep("--ckpt_ids", 10, "--num_expected", 400)
        assert stop.value.code == 2
        assert "No space left on device); make room" in capsys.readouterr().err
        before = generated_so_far(experiment)
        filler.unlink()
        (record,) = sweep("--ckpt_ids", 10, "--num_expected", 400)
        assert before >= 16 and record["images_drawn"] <= 400 + 8


def test_blocks_come_back_in_order_whatever_the_order_in_which_they_were_made(tmp_path):
    rows = torch.randn(20, 3)
    order = [range(12, 20), range(0, 5), range(5, 12)]
    random.Random(0).shuffle(order)
    blocks = FeatureBlocks(tmp_path / "blocks", 20)
    for number, positions in enumerate(order):
        assert len(blocks.check()[0]) == 20 - sum(map(len, order[:number]))
        blocks.add(positions, {"features": rows[positions]}, 0.5)
    back = list(blocks)
    assert torch.equal(torch.cat([part["features"] for _, part in back]), rows)
    assert torch.equal(torch.cat([positions for positions, _ in back]), torch.arange(20))
    assert blocks.check() == ([], 1.5)
