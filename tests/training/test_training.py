"""Whole trainings: they learn, write their files, continue, and are shared by processes."""

import json
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from losses import loss_of
from PIL import Image
from tiny import DIM, make_tiny_config, make_tiny_evaluation_data, make_tiny_training_data
from trainings import CLOCK_FIELDS, final_state, fresh_process, metrics, run

from models.batch_random import RankSlice
from train_latent_t2f import main
from utils.base.errors import UserError
from utils.config.load import load_config
from utils.data.latent_dataset import open_data
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.checkpoint_files import list_checkpoints
from utils.pretrained.denoisers import load_denoiser
from utils.training.batches import DataOrder, training_batches

pytestmark = pytest.mark.bits  # of `make test-machines`


@pytest.fixture(scope="module")
def finished(faces) -> Path:
    """Return the folder of a finished run of twelve steps; tests that change it take `copy`."""
    return run(faces, faces.parent / "finished")


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """Return a copy of the finished run for one test."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture(scope="module")
def mirrored_faces(faces) -> str:
    """Write latents of mirrored images, all zeros, and return the key that names them."""
    root = faces.parent / "z_xflip"
    with LMDBWriter(root, "z", {}, 40) as writer:
        writer.append(np.zeros((40, 4, 8, 8), np.float32))
    return f"data.mirrored_root={root}"


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_batches_are_functions_of_their_position_however_many_processes_share_them(
    faces, processes, mirrored, mirrored_faces
):
    keys = ["train.xflip=true", mirrored_faces] if mirrored else []
    data = open_data(load_config(faces, keys))
    order, count = DataOrder(data.length, seed=0), 4 // processes
    read = list(islice(training_batches(data, order, 0, RankSlice.whole(4), xflip=True), 20))
    shares = [
        training_batches(data, order, 8, RankSlice(rank * count, count, 4), xflip=True)
        for rank in range(processes)
    ]
    for expected in read[2:]:
        latents, y, _ = zip(*(next(share) for share in shares), strict=True)
        assert torch.equal(torch.cat(latents), expected.latents)
        assert torch.equal(torch.cat(y), expected.y)


class Ramps:
    """Dataset of one image that is dark on the left and bright on the right."""

    has_mirrored = False

    def batch(self, indices, rng, mirrored):
        """Return the latents (N, 4, 8, 8), and None for the embeddings."""
        return torch.arange(8.0).expand(len(indices), 4, 8, 8), None


def test_xflip_mirrors_about_half_of_the_images_left_to_right():
    batches = training_batches(Ramps(), DataOrder(10, seed=0), 0, RankSlice.whole(200), xflip=True)
    rows = next(batches).latents[:, 0, 0]
    mirrored = (rows == torch.arange(8.0).flip(0)).all(dim=1)
    assert (mirrored | (rows == torch.arange(8.0)).all(dim=1)).all()
    assert 70 < mirrored.sum() < 130


def test_xflip_takes_the_latents_of_mirrored_images_where_there_are_some(faces, mirrored_faces):
    data = open_data(load_config(faces, ["train.xflip=true", mirrored_faces]))
    batches = training_batches(data, DataOrder(40, seed=0), 0, RankSlice.whole(200), xflip=True)
    latents = next(batches).latents
    is_mirrored = ~latents.flatten(1).any(dim=1)
    assert 70 < is_mirrored.sum() < 130


def test_data_of_another_shape_than_the_models_is_refused(faces):
    with pytest.raises(UserError, match=r"shape \(4, 8, 8\), but .* \(4, 4, 4\)"):
        open_data(load_config(faces, ["model.in_size=4"]))
    with pytest.raises(UserError, match=f"embeddings of {DIM} numbers, but .* 5"):
        open_data(load_config(faces, ["model.num_classes=5", "data.feat_dim=5"]))


def test_training_learns_logs_and_saves(faces, tmp_path):
    folder = run(
        faces, tmp_path / "run", "train.max_num_steps=120", "train.lr=1e-2", "log.ckpt_every=60",
        "log.log_every=20", "log.sample_every=60", "log.num_samples=3", "log.keep_last=1",
        "log.use_tensorboard=true", "train.grad_accum=1", "train.amp=bf16",
    )  # fmt: skip
    lines = metrics(folder, without=())
    assert [line["step"] for line in lines] == list(range(20, 121, 20))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert [line["mask_ratio"] for line in lines] == [0.5] * 4 + [0, 0]
    logged = {"step", "kimg", "loss", "lr", "mask_ratio", "grad_norm", "skipped", "spikes"}
    assert all(line.keys() == logged | set(CLOCK_FIELDS) for line in lines)
    assert lines[-1]["kimg"] == 120 * 8 / 1000
    assert list(list_checkpoints(folder / "checkpoints")) == [120]
    assert load_config(folder / "config.yaml").train.lr == 1e-2
    assert any((folder / "tensorboard").iterdir())
    log = (folder / "log.txt").read_text()
    assert "step       20 of 120  kimg" in log and " s left" in log
    for step in (60, 120):
        with Image.open(folder / "samples" / f"{step:07d}.png") as grid:
            assert grid.width > 2 * 64
            assert grid.info["Title"] == f"{step:07d}, guidance 2, average of the weights"


def test_a_grid_says_how_much_of_the_initial_weights_it_shows(faces, tmp_path):
    more = ("train.ema_rampup=null", "train.ema_decay=0.99", "log.sample_every=6")
    folder = run(faces, tmp_path / "run", *more, "log.num_samples=2")
    said = (folder / "log.txt").read_text()
    for step, share in ((6, 94), (12, 89)):  # 0.99 to the power of the step
        assert (
            f"samples/{step:07d}.png: generated with the average of the weights; it still" in said
        )
        title = Image.open(folder / "samples" / f"{step:07d}.png").info["Title"]
        assert f"{share} % of the initial weights, which are noise" in title


def test_a_run_that_began_before_its_average_ramped_goes_on_without_a_ramp(faces, tmp_path):
    """Earlier settings without the key meant a constant average, and the folder says so."""
    path = tmp_path / "config.yaml"
    path.write_text(faces.read_text().replace("  ema_rampup: 0.1\n", ""))
    constant = run(faces, tmp_path / "constant", "train.ema_rampup=null")
    folder = Path(shutil.copytree(constant, tmp_path / "run"))
    (folder / "checkpoints" / "0000012.pt").unlink()
    run(path, folder)
    assert load_config(folder / "config.yaml").train.ema_rampup is None
    assert final_state(folder) == final_state(constant)
    with pytest.raises(UserError, match=r"train\.ema_rampup is None there and 0\.1 here"):
        run(path, folder, "train.ema_rampup=0.1")
    new = run(path, tmp_path / "new", "train.max_num_steps=1")
    assert load_config(new / "config.yaml").train.ema_rampup == 0.1


def test_a_run_lists_the_images_that_it_uses_once(faces, tmp_path):
    names = [f"face {i}\udcff" for i in range(40)]  # file names need not be UTF-8
    meta = {"names": names, "names_hash": names_hash(names), "source": "photos"}
    with LMDBWriter(tmp_path / "z", "z", meta, 40) as writer:
        writer.append(np.ones((40, 4, 8, 8)))
    more = (f"data.root={tmp_path / 'z'}", "train.max_num_steps=1")
    folder = run(faces, tmp_path / "run", *more)
    listed = json.loads((folder / "images.json").read_text())
    assert listed == {"database": str(tmp_path / "z"), "count": 40, "content_hash": None, **meta}
    written = (folder / "images.json").stat().st_mtime_ns
    run(faces, folder, *more)
    assert (folder / "images.json").stat().st_mtime_ns == written


def test_checkpoints_are_evaluated_at_every_configured_guidance(tmp_path):
    config = make_tiny_config(
        tmp_path,
        model={"mask_ratio": 0},
        train={"max_num_steps": 2},
        eval={"cfg_scales": [1.0, 2.0], "fid_sample_size": 20, "caption_dir": None},
        log={"ckpt_every": 1, "log_every": 1, "num_samples": 2, "use_tensorboard": True},
    )
    make_tiny_evaluation_data(config)
    make_tiny_training_data(config)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    folder = run(path, tmp_path / "run", enable_eval=True)
    lines = (folder / "evaluation" / "results.jsonl").read_text().splitlines()
    evaluated = [(r["step"], r["cfg_scale"]) for r in map(json.loads, lines)]
    assert evaluated == [(1, 1.0), (1, 2.0), (2, 1.0), (2, 2.0)]
    assert (folder / "evaluation" / "curve.png").exists()
    assert "guidance 2: Fréchet distance" in (folder / "log.txt").read_text()


def test_an_unconditional_model_trains_without_embeddings(faces, tmp_path):
    folder = run(faces, tmp_path / "run", "model.num_classes=0", "data.feat_path=null")
    _, config = load_denoiser(folder / "checkpoints" / "0000012.pt")
    assert config.model.num_classes == 0


def test_a_continued_run_equals_the_uninterrupted_one_bit_for_bit(faces, finished, copy):
    (copy / "checkpoints" / "0000012.pt").write_bytes(b"PK\x03\x04 half a checkp")
    run(faces, copy)
    log = (copy / "log.txt").read_text()
    assert "0000012.pt is truncated" in log and "from step 6" in log
    assert final_state(copy) == final_state(finished)
    assert metrics(copy) == metrics(finished)


def test_starting_a_finished_run_again_changes_no_result(faces, finished, copy):
    run(faces, copy)
    for name in ("metrics.jsonl", "checkpoints/0000012.pt"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()


def test_another_run_in_the_same_folder_is_refused_and_changes_nothing(faces, copy):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"train\.lr is 0\.001 there and 0\.5 here"):
        run(faces, copy, "train.lr=0.5")
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("moved", ["checkpoints/0000012.pt", "checkpoints"])
def test_a_run_whose_checkpoints_are_gone_says_where_it_begins(faces, copy, moved):
    (copy / moved).rename(copy / "elsewhere")
    run(faces, copy)
    lines = (copy / "log.txt").read_text()
    assert (f"{copy} holds no checkpoint; the run" in lines) == (moved == "checkpoints")
    assert (f"continuing {copy} from step 6" in lines) == (moved != "checkpoints")


def test_a_finished_run_can_be_made_longer(faces, copy):
    run(faces, copy, "train.max_num_steps=16", "log.log_every=2")
    assert [line["step"] for line in metrics(copy)] == [4, 8, 12, 14, 16]
    assert list(list_checkpoints(copy / "checkpoints")) == [6, 12, 16]


def test_a_new_run_starts_from_given_weights(faces, finished, tmp_path):
    source = finished / "checkpoints" / "0000012.pt"
    short = ("train.lr=1e-12", "train.max_num_steps=1", "train.ema_rampup=null")
    folder = run(faces, tmp_path / "run", *short, start_from=source)
    for which in ("model", "ema"):
        before, _ = load_denoiser(source, which=which)
        after, _ = load_denoiser(folder / "checkpoints" / "0000013.pt", which=which)
        for a, b in zip(after.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_gradient_accumulation_trains_like_one_batch(faces, finished, tmp_path):
    whole = metrics(run(faces, tmp_path / "run", "train.grad_accum=1"))
    for one, other in zip(whole, metrics(finished), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.5)


def call_main(monkeypatch, *arguments: str) -> int:
    """Run the training script with these arguments; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["train_latent_t2f.py", *arguments])
    try:
        main()
    except SystemExit as exit:
        return exit.code
    return 0


def test_export_writes_a_model_that_loads(finished, tmp_path, monkeypatch):
    source, out = finished / "checkpoints" / "0000012.pt", tmp_path / "dit.safetensors"
    assert call_main(monkeypatch, "--export", str(out), "--ckpt_path", str(source)) == 0
    released, config = load_denoiser(out)
    assert config.model.in_size == 8
    clean, cond = torch.randn(2, 4, 8, 8), torch.randn(2, DIM)
    assert loss_of(released, clean, cond).isfinite().all()


def test_a_named_run_goes_on_with_its_own_settings(copy, monkeypatch, capsys):
    flags = ("--results_dir", str(copy.parent), "--exp_name", "copy")
    with fresh_process():
        assert call_main(monkeypatch, *flags, "train.max_num_steps=16") == 0
    assert f"the settings are those of {copy}/config.yaml" in capsys.readouterr().err
    assert list(list_checkpoints(copy / "checkpoints")) == [6, 12, 16]


def test_a_run_from_a_checkpoint_takes_its_settings(finished, tmp_path, monkeypatch, capsys):
    source = finished / "checkpoints" / "0000012.pt"
    flags = ("--results_dir", str(tmp_path), "--exp_name", "next", "--ckpt_path", str(source))
    with fresh_process():
        assert call_main(monkeypatch, *flags, "train.max_num_steps=2") == 0
    assert f"the settings are those of {source}" in capsys.readouterr().err
    assert load_config(tmp_path / "next" / "config.yaml").model.hidden_size == 32


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["data.root=null"], "data.root: required"),
        (["--num_process_per_node", "0"], "--num_process_per_node"),
        (["--export", "x.safetensors"], "--export x.safetensors: name the checkpoint to export"),
        (["--export_adapter", "x.safetensors"], "--export_adapter x.safetensors: name the check"),
        (["--export", "x.safetensors", "--ckpt_path", "nothing.pt"], "nothing.pt does not exist"),
    ],
)
def test_faulty_settings_end_with_one_line(faces, extra, part, monkeypatch, capsys):
    assert call_main(monkeypatch, "--config", str(faces), *extra) == 2
    message = capsys.readouterr().err
    assert part in message and message.startswith("error: ") and message.count("\n") == 1
