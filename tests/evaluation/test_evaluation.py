"""Evaluation of checkpoints: metrics, skipped work, and bad input."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import (
    RESOLUTION,
    make_tiny_checkpoint,
    make_tiny_clip,
    make_tiny_config,
    make_tiny_denoiser,
    make_tiny_evaluation_data,
)

import eval_latent_t2f
from models.samplers import SeededNoise
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.evaluation import generated
from utils.evaluation.checkpoints import evaluate_checkpoint
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.generated import generate_from_captions
from utils.evaluation.metric_names import metrics_text
from utils.evaluation.metrics import clip_similarities
from utils.sampling.generate import latent_shape, sample_images


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = make_tiny_config(tmp_path)
    make_tiny_evaluation_data(made)
    return made


@pytest.fixture
def experiment(tmp_path: Path, config: Config) -> Path:
    """An experiment folder with three checkpoints, its config beside it."""
    for step in (10, 20, 30):
        make_tiny_checkpoint(tmp_path / "exp" / "checkpoints" / f"{step:07d}.pt", config, step)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    return tmp_path / "exp"


def with_eval(config: Config, **changes) -> Config:
    return config.model_copy(update={"eval": config.eval.model_copy(update=changes)})


def run(monkeypatch, experiment: Path, *flags: object) -> None:
    given = ["--config", experiment.parent / "config.yaml", "--experiment_dir", experiment, *flags]
    monkeypatch.setattr(sys, "argv", ["eval_latent_t2f.py", *map(str, given)])
    eval_latent_t2f.main()


def error_of(monkeypatch, capsys, experiment: Path, *flags: object) -> str:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, experiment, *flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def records_of(experiment: Path) -> list[dict]:
    lines = (experiment / "evaluation" / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_metrics_are_those_of_the_images_and_captions_themselves(config, tmp_path):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    images, captions, *_ = generate_from_captions(
        denoiser, config, evaluator, SeededNoise(range(24))
    )
    embeddings = evaluator.clip.encode_images(images.permute(0, 3, 1, 2))
    features = embeddings.double().numpy()
    expected = frechet_distance(
        features.mean(axis=0),
        torch.cov(embeddings.double().T).numpy(),
        evaluator.reference.mu,
        evaluator.reference.sigma,
    )
    metrics = evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "partial")
    assert metrics["n"] == 24
    assert metrics["frechet_distance_clip"] == pytest.approx(expected, rel=1e-3)
    score = float(clip_similarities(embeddings, captions).mean())
    assert metrics["clip_score"] == pytest.approx(score, rel=1e-3)
    assert metrics["network"].startswith("clip")


def test_metrics_do_not_depend_on_the_batch_size(config, tmp_path):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    metrics = [
        evaluate_checkpoint(
            denoiser, with_eval(config, batchsize=size), evaluator, tmp_path / str(size)
        )
        for size in (1, 5, 24)
    ]
    for key in ("frechet_distance_clip", "clip_score"):
        values = [found[key] for found in metrics]
        assert values == pytest.approx(values[:1] * 3, rel=1e-9)


def test_metrics_are_the_same_if_a_thread_generates_the_next_batch(config, tmp_path, monkeypatch):
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    config = with_eval(config, batchsize=8)
    metrics = []
    for ahead in (True, False):
        monkeypatch.setattr(generated, "generates_ahead", lambda device, ahead=ahead: ahead)
        metrics.append(evaluate_checkpoint(denoiser, config, evaluator, tmp_path / str(ahead)))
        del metrics[-1]["seconds"]
    assert metrics[0] == metrics[1]


def test_a_seed_gives_latent_then_image_then_caption(config):
    evaluator, shape = Evaluator(config), latent_shape(make_tiny_denoiser())
    noise = SeededNoise([3, 8])
    noise.randn(shape)
    caption_ids = evaluator.choose_captions(noise)
    captions = torch.from_numpy(evaluator.captions.read(*caption_ids.T.numpy()))
    for seed, caption in zip((3, 8), captions, strict=True):
        generator = torch.Generator().manual_seed(seed)
        torch.randn(shape, generator=generator)
        image = int(torch.randint(10, (1,), generator=generator))
        line = int(torch.randint(2, (1,), generator=generator))
        text = [f"face {image}", f"a face with the number {image}"][line]
        torch.testing.assert_close(caption, evaluator.clip.encode_texts([text])[0])


def test_what_is_needed_but_not_configured_is_named(config):
    with pytest.raises(UserError, match=r"eval\.ref_path: required"):
        Evaluator(with_eval(config, ref_path=None))


def test_captions_of_another_clip_are_refused(config, tmp_path):
    make_tiny_clip(tmp_path / "other", seed=1)
    encoders = config.encoders.model_copy(update={"clip": str(tmp_path / "other")})
    with pytest.raises(UserError, match="other"):
        Evaluator(config.model_copy(update={"encoders": encoders}))


def test_a_sweep_gives_records_table_and_curve(experiment, monkeypatch, capsys):
    run(monkeypatch, experiment, "--cfg_scale", "3,None")
    records = records_of(experiment)
    assert [(r["step"], r["cfg_scale"]) for r in records] == [
        (step, scale) for step in (10, 20, 30) for scale in (3, None)
    ]
    assert all(math.isfinite(r["frechet_distance_clip"]) and r["n"] == 24 for r in records)
    with open(experiment / "evaluation" / "results.csv", newline="") as file:
        assert [float(row["clip_score"]) for row in csv.DictReader(file)] == [
            r["clip_score"] for r in records
        ]
    assert Image.open(experiment / "evaluation" / "curve.png").width > 800
    best = min(records, key=lambda r: r["frechet_distance_clip"])
    assert f"best: {experiment}/checkpoints/{best['step']:07d}.pt" in capsys.readouterr().out


def test_different_weights_and_guidance_give_different_metrics(experiment, monkeypatch):
    run(monkeypatch, experiment, "--cfg_scale", "3,None")
    assert len({r["frechet_distance_clip"] for r in records_of(experiment)}) == 6


def test_only_checkpoints_in_the_range_are_evaluated(experiment, monkeypatch):
    run(monkeypatch, experiment, "--ckpt_id_start", 15, "--ckpt_id_end", 20)
    assert [r["step"] for r in records_of(experiment)] == [20]


def test_what_is_done_is_not_computed_again(experiment, monkeypatch, capsys):
    run(monkeypatch, experiment, "--ckpt_id_end", 20)
    before = records_of(experiment)
    capsys.readouterr()
    run(monkeypatch, experiment)
    assert records_of(experiment)[:2] == before
    assert len(records_of(experiment)) == 3
    assert capsys.readouterr().out.count("there already") == 2


@pytest.mark.parametrize(
    "flags", [("--num_steps", 2), ("--num_expected", 20), ("--solver", "euler")]
)
def test_other_settings_are_computed_anew(experiment, monkeypatch, flags):
    run(monkeypatch, experiment, "--ckpt_id_end", 10)
    run(monkeypatch, experiment, "--ckpt_id_end", 10, *flags)
    assert len(records_of(experiment)) == 2


def test_a_checkpoint_written_anew_is_computed_anew(experiment, config, monkeypatch):
    run(monkeypatch, experiment, "--ckpt_id_end", 10)
    make_tiny_checkpoint(experiment / "checkpoints" / "0000010.pt", config, seed=77)
    run(monkeypatch, experiment, "--ckpt_id_end", 10)
    first, second = records_of(experiment)
    assert first["frechet_distance_clip"] != second["frechet_distance_clip"]


def test_a_record_torn_by_a_crash_is_made_again(experiment, monkeypatch):
    run(monkeypatch, experiment, "--ckpt_id_end", 20)
    path = experiment / "evaluation" / "results.jsonl"
    path.write_text(path.read_text()[:-40])
    run(monkeypatch, experiment, "--ckpt_id_end", 20)
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["step"] == 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt_id_start", 31], "no checkpoint from step 31"),
        (["--experiment_dir", "nowhere"], "nowhere/checkpoints: holds no checkpoints"),
        (["--cfg_scale", "2,high"], "should be a number or None"),
        (["--num_expected", 1], "1 is too few"),
        (["model.num_classes=8", "data.feat_dim=8"], "model.num_classes=16"),
        (["data.norm_feature=false"], "data.norm_feature=True"),
        (["data.resolution=32"], f"{RESOLUTION} pixels"),
        (["eval.ref_path=gone.npz"], "fid_ref.py"),
        (["eval.ref_path=null"], "eval.ref_path: required"),
        (["eval.feat_path=gone"], "gone: no database there"),
        (["--class_idx", 3], "eval.class_idx: 3, but the model has no classes"),
    ],
)
def test_mistakes_give_one_clear_line(experiment, monkeypatch, capsys, flags, message):
    assert message in error_of(monkeypatch, capsys, experiment, *flags)


@pytest.mark.parametrize(("classes", "wanted"), [(0, None), (5, None), (5, 3)])
def test_models_without_captions_are_evaluated_by_their_images_alone(tmp_path, classes, wanted):
    config = make_tiny_config(tmp_path)
    make_tiny_evaluation_data(config)
    config = make_tiny_config(
        tmp_path,
        model={"num_classes": classes},
        data={"feat_path": None},
        eval={"feat_path": None, "class_idx": wanted},
    )
    denoiser, evaluator = make_tiny_denoiser(cond_dim=classes), Evaluator(config)
    metrics = evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "partial")
    assert metrics["clip_score"] is None
    assert math.isfinite(metrics["frechet_distance_clip"])
    assert metrics_text(metrics).count(",") == 0
    images = generate_from_captions(denoiser, config, evaluator, SeededNoise([7])).images
    noise = SeededNoise([7])
    latents = noise.randn(latent_shape(denoiser))
    conds = None
    if classes:
        of_seed = noise.randint(classes)
        conds = torch.eye(classes)[of_seed if wanted is None else [wanted]]
    expected = sample_images(
        denoiser, evaluator.autoencoder, noise, latents, conds, config.sampling
    )
    assert torch.equal(images, expected)
