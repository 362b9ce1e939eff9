"""Metrics of existing images, against any reference."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import crude_face
from PIL import Image
from tiny import DIM, make_tiny_config

import eval_latent_t2f
from preprocess_scripts import fid_ref
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.evaluation.folder import evaluate_folder
from utils.evaluation.references import Reference, load_stats, save_stats

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = make_tiny_config(tmp_path)
    (tmp_path / "config.yaml").write_text(made.to_yaml())
    return made


@pytest.fixture
def faces(tiny_faces) -> tuple[Path, Path]:
    return tiny_faces(24)


def make_reference(monkeypatch, tmp_path: Path, images: Path, out: str, *flags: object) -> Path:
    given = ["--config", tmp_path / "config.yaml", "--images", images, "--out", tmp_path / out]
    monkeypatch.setattr(sys, "argv", ["fid_ref.py", *map(str, [*given, *flags])])
    fid_ref.main()
    return tmp_path / out


def run(monkeypatch, tmp_path: Path, *flags: object) -> None:
    given = ["--config", tmp_path / "config.yaml", *flags]
    monkeypatch.setattr(sys, "argv", ["eval_latent_t2f.py", *map(str, given)])
    eval_latent_t2f.main()


def test_a_folder_compared_with_itself_has_no_distance(
    config, faces, tmp_path, monkeypatch, capsys
):
    images, captions = faces
    ref = make_reference(monkeypatch, tmp_path, images, "ref.npz", "--features")
    out = tmp_path / "metrics.json"
    flags = ("--images", images, "--ref", ref, "--captions", captions, "--metrics_out", out)
    run(monkeypatch, tmp_path, *flags)
    metrics = json.loads(out.read_text())
    assert metrics["n"] == 24
    assert metrics["frechet_distance_clip"] == pytest.approx(0, abs=1e-6)
    assert metrics["precision_clip"] == metrics["coverage_clip"] == 1
    assert metrics["clip_score"] is not None
    said = capsys.readouterr()
    assert "Fréchet distance" in said.out and "24 images are few" in said.err


def test_missing_captions_are_refused_before_networks_are_loaded(
    config, faces, tmp_path, monkeypatch, capsys
):
    images, _ = faces
    ref = make_reference(monkeypatch, tmp_path, images, "ref.npz")
    flags = ("--images", images, "--ref", ref, "--captions", "gone", "encoders.clip=none")
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, *flags)
    assert "gone: there is no caption folder" in capsys.readouterr().err


def test_archives_and_npz_are_evaluated_as_the_folder_is(config, faces, tmp_path, monkeypatch):
    images, _ = faces
    ref = make_reference(monkeypatch, tmp_path, images, "ref.npz", "--features", "--no_crop")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted(images.iterdir()):
            archive.write(path, path.name)
    pixels = np.stack([np.array(Image.open(path)) for path in sorted(images.iterdir())])
    np.savez(tmp_path / "faces.npz", arr_0=pixels)
    other = make_reference(monkeypatch, tmp_path, tmp_path / "faces.npz", "npz_ref.npz")
    np.testing.assert_array_equal(load_stats(other).mu, load_stats(ref).mu)
    assert load_stats(other).resolution == 32 and load_stats(ref).resolution == 0
    found = [
        evaluate_folder(config, source, [ref])
        for source in (images, tmp_path / "faces.zip", tmp_path / "faces.npz")
    ]
    assert found[0] == found[1] == found[2]


def test_images_are_cropped_as_those_of_the_reference_were(config, faces, tmp_path, monkeypatch):
    images, _ = faces
    ref = make_reference(monkeypatch, tmp_path, images, "ref.npz")
    assert load_stats(ref).resolution == 16
    metrics = evaluate_folder(config, images, [ref])
    assert metrics["frechet_distance_clip"] == pytest.approx(0, abs=1e-6)
    assert metrics["precision_clip"] is None  # the reference has no features


def test_features_are_added_to_a_reference_that_has_none(
    config, faces, tmp_path, monkeypatch, capsys
):
    ref = make_reference(monkeypatch, tmp_path, faces[0], "ref.npz")
    assert load_stats(ref).features is None
    make_reference(monkeypatch, tmp_path, faces[0], "ref.npz", "--features")
    written = ref.stat().st_mtime_ns
    assert load_stats(ref).features.shape == (24, DIM)
    make_reference(monkeypatch, tmp_path, faces[0], "ref.npz")
    assert ref.stat().st_mtime_ns == written
    assert "complete already" in capsys.readouterr().out


def test_a_folder_without_reference_asks_for_one(config, faces, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--images", faces[0], "eval.ref_path=null")
    assert "error: --ref: required, there is neither it nor" in capsys.readouterr().err


def test_bad_input_gives_one_clear_line(config, faces, tmp_path, monkeypatch, capsys):
    images, _ = faces
    ref = make_reference(monkeypatch, tmp_path, images, "ref.npz")
    save_stats(tmp_path / "wide.npz", Reference(np.zeros(9), np.eye(9)))
    save_stats(tmp_path / "other.npz", Reference(np.zeros(9), np.eye(9), network="clip-0"))
    save_stats(tmp_path / "big.npz", Reference(np.zeros(DIM), np.eye(DIM), resolution=64))
    single, torn = tmp_path / "single", tmp_path / "torn"
    for folder in (single, torn):
        folder.mkdir()
        crude_face(0, 32).save(folder / "a.png")
    (torn / "b.png").write_bytes((torn / "a.png").read_bytes()[:90])
    np.savez(tmp_path / "text.npz", arr_0=np.zeros((3, 4)))
    cases = [
        (images, [tmp_path / "wide.npz"], "9 dimensions, the features 16"),
        (images, [tmp_path / "other.npz"], "features are from 'clip-0'"),
        (images, [tmp_path / "big.npz"], "32x32 pixels, too small for"),
        (images, [ref, tmp_path / "big.npz"], "cannot be compared with both"),
        (images, [tmp_path / "none.npz"], "there are no reference statistics"),
        (single, [ref], "at least two images"),
        (torn, [ref], "b.png: unreadable image"),
        (tmp_path / "empty", [ref], "there is no image folder"),
        (tmp_path / "text.npz", [ref], "arr_0 is float64 (3, 4)"),
    ]
    for folder, refs, message in cases:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            flags = [flag for path in refs for flag in ("--ref", path)]
            run(monkeypatch, tmp_path, "--images", folder, *flags)
        assert stop.value.code == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
        assert len(lines) == 1 and message in lines[0], lines


def test_grey_images_are_evaluated_like_others(config, tmp_path, monkeypatch, tiny_faces):
    images, _ = tiny_faces(12)
    ref = make_reference(monkeypatch, tmp_path, images, "ref.npz")
    grey = tmp_path / "grey"
    grey.mkdir()
    for path in images.iterdir():
        Image.open(path).convert("L").save(grey / path.name)
    assert evaluate_folder(config, grey, [ref])["frechet_distance_clip"] > 0


def test_adm_references_keep_their_statistics(config, tmp_path, monkeypatch, capsys):
    arrays = {
        "mu": np.zeros(2048),
        "sigma": np.eye(2048),
        "arr_0": np.zeros((2, 8, 8, 3), np.uint8),
    }
    np.savez(tmp_path / "adm.npz", **arrays)
    with pytest.raises(SystemExit):
        make_reference(monkeypatch, tmp_path, tmp_path / "adm.npz", "out.npz", "--features")
    assert "inception-tf" in capsys.readouterr().err


def test_references_without_network_need_one(config, faces, tmp_path):
    save_stats(tmp_path / "plain.npz", Reference(np.zeros(DIM), np.eye(DIM)))
    metrics = evaluate_folder(config, faces[0], [tmp_path / "plain.npz"])
    assert metrics["network"].startswith("clip")
    with pytest.raises(UserError, match="feature network dinov2 needs"):
        evaluate_folder(config, faces[0], [tmp_path / "plain.npz"], feature_network="dinov2")


@pytest.mark.e2e
def test_two_processes_give_the_metrics_of_one(config, faces, tmp_path, monkeypatch):
    ref = make_reference(monkeypatch, tmp_path, faces[0], "ref.npz", "--features")
    moved = tmp_path / "other"
    moved.mkdir()
    for i in range(40, 63):
        crude_face(i, 40).save(moved / f"{i}.png")
    alone = evaluate_folder(config, moved, [ref])
    out = tmp_path / "metrics.json"
    flags = ["--config", tmp_path / "config.yaml", "--images", moved, "--ref", ref]
    flags += ["--metrics_out", out, "--num_process_per_node", 2, "eval.batchsize=5"]
    done = subprocess.run(
        [sys.executable, "eval_latent_t2f.py", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".evaluation-*"))  # the folder that the processes shared
    together = json.loads(out.read_text())
    for key, value in alone.items():
        numeric = isinstance(value, float)
        assert together[key] == (pytest.approx(value, rel=1e-6) if numeric else value), key
