"""The research tools, run as scripts."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import RESOLUTION, make_tiny_clip, make_tiny_config, make_tiny_evaluation_data

from models.clip import load_clip
from research.gap import angle, modality_gap
from tools import clip_similarity
from utils.data.lmdb_writer import LMDBWriter
from utils.sampling.image_files import save_png

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Call a script's main() with flags; returns the folder it wrote into."""

    def call(script, *flags: object) -> Path:
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, flags), "--out", str(out)])
        script.main()
        return out

    return call


def error_of(run, capsys, script, *flags: object) -> str:
    """Return the one line that a user's mistake prints; the exit code is 2."""
    with pytest.raises(SystemExit) as stop:
        run(script, *flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def write_embeddings(path: Path, y: np.ndarray, **meta: object) -> Path:
    """A database of embeddings (N, n, D) or (N, D), n for each sample."""
    with LMDBWriter(path, "y", {"encoder": "tiny", **meta}, len(y)) as writer:
        writer.append(y if y.ndim == 3 else y[:, None])
    return path


def random_embeddings(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


# Angles


def test_published_angles_are_met(run, golden):
    data = np.load(golden / "perturbation.npz")
    settings = {"gaussian:1.2": "1p2", "gaussian:1.5": "1p5", "fixed:0.8": "", "uniform:0.8": ""}
    out = run(angle, *settings, "--dim", 512, "--num", 8000)
    records = json.loads((out / "angles.json").read_text())["angles"]
    for record in records:
        name = record["perturbation"].replace(" ", "_").replace(".", "p")
        expected = data[f"angle_deg_mean_std_p5_p50_p95/{name}"]
        ours = [record[key] for key in ("mean", "std", "p5", "p50", "p95")]
        assert ours == pytest.approx(expected.tolist(), abs=1)
    assert len(records) == len(settings)


def test_angles_are_plotted_and_listed(run, capsys):
    out = run(angle, "truncated:1.2:-0.3:0.3", "fixed:0.4", "--dim", 64, "--num", 500)
    assert Image.open(out / "angles.png").width > 500
    with open(out / "angles.csv", newline="") as file:
        truncated, fixed = csv.DictReader(file)
    # atan 0.3 = 16.7 degrees for noise at a right angle, somewhat more if it points backwards
    assert float(truncated["max"]) < 20 < float(fixed["p50"]) < 24
    assert "truncated 1.2 [-0.3, 0.3]" in capsys.readouterr().out


def test_angles_of_a_setting_do_not_depend_on_the_others(run):
    found = []
    for settings in (["fixed:0.8"], ["gaussian:1.2", "fixed:0.8"]):
        out = run(angle, *settings, "--dim", 32, "--num", 50)
        found.append(json.loads((out / "angles.json").read_text())["angles"][-1])
    assert found[0] == found[1]


def test_a_database_is_measured_with_all_its_embeddings(run, tmp_path):
    y = random_embeddings(60, 16).reshape(30, 2, 16)
    path = write_embeddings(tmp_path / "y", y)
    out = run(angle, "fixed:0", "--embeddings", path)
    report = json.loads((out / "angles.json").read_text())
    assert report["n"] == 30
    assert report["embeddings"] == f"{path}, 16 dimensions"
    assert report["angles"][0]["max"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["gausian:1.2"], "perturbation 'gausian:1.2': should look like"),
        (["gaussian"], "should look like"),
        (["gaussian:high"], "should look like"),
        (["fixed:-1"], "should look like"),
        (["truncated:1:1:0"], "trunc_a < trunc_b"),
        (["learnable:1"], "learns its angles"),
        (["--num", 0], "--num must be at least 1"),
        (["--embeddings", "nowhere"], "nowhere: no database there"),
    ],
)
def test_angle_mistakes_give_one_clear_line(run, capsys, flags, message):
    assert message in error_of(run, capsys, angle, *flags)


# Modality gap


@pytest.fixture
def databases(tmp_path) -> tuple[Path, Path]:
    """Image and text embeddings, 60 degrees apart, two texts an image."""
    common = np.zeros(64, np.float32)
    common[0] = 1
    images = random_embeddings(100, 64)
    images[:, 0] = 0
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = 0.5 * images + np.sqrt(0.75) * common
    paths = tmp_path / "clip_img", tmp_path / "clip_txt"
    write_embeddings(paths[0], images, names_hash="a")
    write_embeddings(paths[1], np.stack([texts, 3 * texts], axis=1), names_hash="a")
    return paths


def test_the_gap_of_two_databases_is_measured(run, databases, capsys):
    out = run(modality_gap, "--images", databases[0], "--texts", databases[1])
    report = json.loads((out / "gap.json").read_text())
    pairs = {record["what"]: record for record in report["pairs"]}
    assert report["n"] == 100
    assert pairs["image, its text"]["mean"] == pytest.approx(0.5, abs=1e-4)
    assert pairs["image, other text"]["mean"] == pytest.approx(0, abs=0.02)
    assert pairs["two texts"]["mean"] == pytest.approx(0.75, abs=0.02)
    assert pairs["angle image, its text (degrees)"]["p50"] == pytest.approx(60, abs=0.01)
    assert report["distance_of_means"] == pytest.approx(np.sqrt(0.75), abs=0.02)
    assert Image.open(out / "gap.png").width > 500
    assert "0.866" in capsys.readouterr().out


def test_perturbations_that_cover_the_gap_are_suggested(run, databases):
    out = run(modality_gap, "--images", databases[0], "--texts", databases[1], "--fraction", 0.2)
    report = json.loads((out / "gap.json").read_text())
    # tan 60° = 1.732, and 80 % of a normal distribution lie within 1.2816 deviations
    assert report["suggested"] == ["fixed 1.732", "gaussian 1.352"]
    fractions = report["fraction_of_training_angles_above_median"]
    assert fractions["fixed 0.8"] == 0
    assert fractions["fixed 1.732"] == pytest.approx(0.5, abs=0.15)
    assert fractions["gaussian 1.352"] == pytest.approx(0.2, abs=0.12)


def test_texts_that_lie_opposite_get_no_suggestion(run, databases, tmp_path, capsys):
    y = random_embeddings(20, 16)
    images, texts = write_embeddings(tmp_path / "i", y), write_embeddings(tmp_path / "t", -y)
    out = run(modality_gap, "--images", images, "--texts", texts)
    assert json.loads((out / "gap.json").read_text())["suggested"] == []
    assert "no suggestion" in capsys.readouterr().err


def test_the_config_names_the_databases(run, tmp_path):
    config = make_tiny_config(tmp_path)
    make_tiny_evaluation_data(config)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    out = run(modality_gap, "--config", tmp_path / "tiny.yaml")
    assert json.loads((out / "gap.json").read_text())["n"] == 10


def test_databases_of_different_images_or_clips_are_refused(run, databases, tmp_path, capsys):
    others = {
        "made from different images": {"names_hash": "b"},
        "make both with the same CLIP": {"names_hash": "a", "encoder": "another"},
    }
    for number, (message, meta) in enumerate(others.items()):
        texts = write_embeddings(tmp_path / f"t{number}", random_embeddings(100, 64), **meta)
        flags = ("--images", databases[0], "--texts", texts)
        assert message in error_of(run, capsys, modality_gap, *flags)


def test_embeddings_of_another_length_are_refused(run, databases, tmp_path, capsys):
    texts = write_embeddings(tmp_path / "t", random_embeddings(100, 32), names_hash="a")
    line = error_of(run, capsys, modality_gap, "--images", databases[0], "--texts", texts)
    assert "of 64 numbers" in line
    assert "of 32" in line


def test_an_unnamed_database_is_asked_for(run, tmp_path, capsys):
    config = make_tiny_config(tmp_path)
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    flags = ("--config", tmp_path / "tiny.yaml", "--split", "train", "--images", "x")
    line = error_of(run, capsys, modality_gap, *flags)
    assert "no database" in line


# CLIP similarity


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


def noise(seed: int) -> np.ndarray:
    shape = (RESOLUTION, RESOLUTION, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected_scores(clip_folder: Path, seeds: list[int], prompt: str) -> list[float]:
    """Return cosine x 100, computed by hand."""
    clip = load_clip(clip_folder)
    images = torch.from_numpy(np.stack([noise(seed) for seed in seeds])).permute(0, 3, 1, 2)
    x, y = clip.encode_images(images).double(), clip.encode_texts([prompt]).double()
    return (100 * (x @ y.T)[:, 0] / (x.norm(dim=1) * y.norm())).tolist()


def records_of(out: Path) -> dict[tuple[str, str], dict]:
    records = json.loads((out / "clip_similarity.json").read_text())["records"]
    return {(Path(record["folder"]).name, record["prompt"]): record for record in records}


def test_prompts_are_read_from_the_pngs(run, tmp_path, clip_folder):
    folder = tmp_path / "made"
    for seed in range(5):
        prompt = "red hair" if seed < 3 else "a hat"
        save_png(noise(seed), folder / f"00_{seed:03d}.png", {"prompt": prompt})
    save_png(noise(9), folder / "grid.png", {"prompt": "red hair\na hat"})
    records = records_of(run(clip_similarity, folder, "--clip", clip_folder, "--batch_size", 2))
    scores = expected_scores(clip_folder, [0, 1, 2], "red hair")
    red = records["made", "red hair"]
    assert red["n"] == 3
    values = [red["mean"], red["max"], red["min"]]
    assert values == pytest.approx([np.mean(scores), max(scores), min(scores)], abs=1e-3)
    assert red["best"] == f"00_{int(np.argmax(scores)):03d}.png"
    everything = [*scores, *expected_scores(clip_folder, [3, 4], "a hat")]
    assert records["made", "all prompts"]["n"] == 5
    assert records["made", "all prompts"]["mean"] == pytest.approx(np.mean(everything), abs=1e-3)


@pytest.mark.parametrize("name", ["description_{}/7.png", "{}/x.png", "{:02d}_003.png"])
def test_prompts_of_a_file_are_found_by_number(run, tmp_path, clip_folder, name):
    (tmp_path / "prompts.txt").write_text("red hair\na hat\n")
    for number in (0, 1):
        save_png(noise(number), tmp_path / "made" / name.format(number))
    flags = ("--prompts", tmp_path / "prompts.txt", "--clip", clip_folder)
    records = records_of(run(clip_similarity, tmp_path / "made", *flags))
    (score,) = expected_scores(clip_folder, [1], "a hat")
    assert records["made", "a hat"]["mean"] == pytest.approx(score, abs=1e-3)


def test_a_single_prompt_is_that_of_all_images(run, tmp_path, clip_folder):
    (tmp_path / "prompts.txt").write_text("red hair\n")
    for name in ("a.png", "b.png"):
        save_png(noise(0), tmp_path / "made" / name)
    flags = ("--prompts", tmp_path / "prompts.txt", "--clip", clip_folder)
    assert records_of(run(clip_similarity, tmp_path / "made", *flags))["made", "red hair"]["n"] == 2


def test_folders_stand_side_by_side(run, tmp_path, clip_folder, capsys):
    for folder, prompts in (("one", ["red hair", "a hat"]), ("two", ["a hat"])):
        for number, prompt in enumerate(prompts):
            save_png(noise(0), tmp_path / folder / f"{number:02d}_000.png", {"prompt": prompt})
    out = run(clip_similarity, tmp_path / "one", tmp_path / "two", "--clip", clip_folder)
    lines = capsys.readouterr().out.splitlines()
    (red,) = (line.split() for line in lines if line.startswith("red hair"))
    assert red[2] == "1"
    assert red[-4:] == ["–"] * 4
    with open(out / "clip_similarity.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["folder"]).name for row in rows] == ["one"] * 3 + ["two"] * 2


def test_images_of_mixtures_are_left_out_with_a_note(run, tmp_path, clip_folder, capsys):
    folder = tmp_path / "made"
    save_png(noise(0), folder / "00_000.png", {"prompt": "a hat"})
    save_png(noise(1), folder / "01_000.png", {"prompt": "a hat", "mix": "[]"})
    save_png(noise(2), folder / "02_000.png", {"image": "face.png"})
    records = records_of(run(clip_similarity, folder, "--clip", clip_folder))
    assert records["made", "all prompts"]["n"] == 1
    assert "left out 2 images" in capsys.readouterr().err


def test_similarity_mistakes_give_one_clear_line(run, tmp_path, clip_folder, capsys):
    save_png(noise(0), tmp_path / "plain" / "face.png")
    save_png(noise(0), tmp_path / "third" / "02_000.png")
    save_png(noise(0), tmp_path / "images" / "00_000.png", {"image": "face.png"})
    (tmp_path / "images" / "grid.png").write_bytes(b"")
    (tmp_path / "two.txt").write_text("red hair\na hat\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "00_000.png").write_bytes(b"not an image")
    two = ("--prompts", tmp_path / "two.txt")
    for flags, message in (
        ((tmp_path / "plain",), "does not hold its prompt"),
        ((tmp_path / "plain", *two), "02_000.png, or in its folder"),
        ((tmp_path / "third", *two), "is of prompt 2, but there are only 2"),
        ((tmp_path / "nowhere",), "there is no image folder"),
        ((tmp_path / "broken",), "unreadable image"),
        ((tmp_path / "plain", "--prompts", tmp_path / "none.txt"), "holds no prompt"),
        ((tmp_path / "plain", "--prompts", tmp_path / "gone.txt"), "cannot be read"),
        ((tmp_path / "plain", "--device", "toaster"), "--device toaster"),
        ((tmp_path / "plain", "--batch_size", 0), "--batch_size must be at least 1"),
    ):
        assert message in error_of(run, capsys, clip_similarity, *flags, "--clip", clip_folder)
    with pytest.raises(SystemExit):
        run(clip_similarity, tmp_path / "images", "--clip", clip_folder)
    assert "holds no image that was generated from a prompt" in capsys.readouterr().err
