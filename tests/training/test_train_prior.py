"""`train_prior.py`: it reads images alone, goes on bit for bit, and refuses what does not fit."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from tiny import DIM, make_tiny_config

import train_prior
from models.clip import load_clip
from utils.config.sections import Prior
from utils.data.embeddings import read_directions
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.pretrained.priors import prior_report, read_prior, save_prior
from utils.training.prior import Training, split

pytestmark = pytest.mark.bits  # of `make test-machines`

LONG = "prior.max_num_steps=520"


@pytest.fixture
def images(tmp_path) -> Path:
    """Write a config and a database of 40 image embeddings; return the database's folder."""
    config = make_tiny_config(tmp_path)
    values = config.to_dict()
    values["prior"] |= {"width": 8, "depth": 1, "batchsize": 8, "bank": 16}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    y = np.random.default_rng(0).normal(1, 1, (40, 1, DIM)).astype(np.float32)
    with LMDBWriter(config.data.feat_path, "y", {"encoder": "clip-a"}, 40) as writer:
        writer.append(y)
    return config.data.feat_path


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return a function that runs the script with `key=value` settings and flags."""

    def run(*words: str) -> None:
        config = ["--config", str(tmp_path / "config.yaml"), "prior.max_num_steps=6"]
        monkeypatch.setattr(sys, "argv", ["train_prior.py", *config, *words])
        train_prior.main()

    return run


def test_the_prior_lies_beside_the_embeddings_and_names_their_clip(images, script, capsys):
    script()
    prior, clip = read_prior(images / "prior.safetensors")
    assert clip == "clip-a"
    generated = prior.sample(torch.randn(3, DIM), torch.randn(3, DIM), freedom=0.8)
    torch.testing.assert_close(generated.norm(dim=1), torch.ones(3))
    assert "encoders.prior" in capsys.readouterr().out
    assert {path.name for path in images.iterdir()} == {
        "data.mdb", "prior.safetensors",
    }  # fmt: skip


def test_no_caption_is_read(images, script, tmp_path):
    # Neither caption files nor their embeddings exist, and the settings name places for both.
    text = f"data.text_feat_path={tmp_path / 'gone'}"
    assert not (tmp_path / "train").exists() and not (tmp_path / "lmdb" / "test").exists()
    script(text)
    assert (images / "prior.safetensors").exists()


@pytest.fixture
def killed(images, tmp_path):
    """Kill a training of 520 steps, a process of its own, after its first save; return its file."""
    out = tmp_path / "killed.safetensors"
    command = [sys.executable, train_prior.__file__, "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen([*command, LONG, "--out", str(out)], stderr=subprocess.DEVNULL)
    saved = out.with_name(f"{out.name}.partial")
    while not saved.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert saved.exists() and not out.exists()
    return out


def contents(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:  # the order of its metadata differs from file to file
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def test_a_killed_training_goes_on_bit_for_bit(killed, script, tmp_path, capsys):
    script(LONG, "--out", str(tmp_path / "whole.safetensors"))
    capsys.readouterr()
    script(LONG, "--out", str(killed))
    assert "continuing from step" in capsys.readouterr().out
    (tensors, about), (expected, meant) = map(contents, (killed, tmp_path / "whole.safetensors"))
    assert about == meant and tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_killed_training_is_not_continued_with_other_options(killed, script, capsys):
    with pytest.raises(SystemExit) as end:
        script(LONG, "prior.lr=1e-4", "--out", str(killed))
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "other `prior` options" in error and "rm " in error


@pytest.mark.parametrize(
    ("meta", "count", "message"),
    [
        ({"captions_hash": "a"}, 40, "holds embeddings of captions"),
        ({}, 1, "a prior needs many"),
    ],
)
def test_other_databases_are_refused(tmp_path, script, images, capsys, meta, count, message):
    other = tmp_path / "other"
    with LMDBWriter(other, "y", meta, count) as writer:
        writer.append(np.ones((count, 1, DIM), np.float32))
    with pytest.raises(SystemExit) as end:
        script(f"data.feat_path={other}")
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-6])
def test_images_that_are_all_alike_are_refused_before_anything_is_written(
    tmp_path, script, images, capsys, noise
):
    rng, other = np.random.default_rng(0), tmp_path / "other"
    y = rng.normal(size=DIM) + noise * rng.normal(size=(4, 1, DIM))
    with LMDBWriter(other, "y", {}, 4) as writer:
        writer.append(y)
    with pytest.raises(SystemExit) as end:
        script(f"data.feat_path={other}")
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and f"{other}: all 4 embeddings are alike" in error[0]
    assert [path.name for path in other.iterdir()] == ["data.mdb"]


def test_one_other_image_among_copies_gives_a_finite_prior(tmp_path, script, images):
    other, y = tmp_path / "other", np.ones((6, 1, DIM))
    y[3, 0, :2] = -1
    with LMDBWriter(other, "y", {}, 6) as writer:
        writer.append(y)
    script(f"data.feat_path={other}")
    prior, _ = read_prior(other / "prior.safetensors")
    assert prior.sample(torch.randn(3, DIM), torch.randn(3, DIM), freedom=0.8).isfinite().all()


def test_a_training_that_diverges_ends_with_one_line_and_writes_nothing(images, script, capsys):
    with pytest.raises(SystemExit) as end:
        script("prior.lr=1e38", "prior.max_num_steps=40")
    assert end.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds NaN or infinite numbers" in error and "lower prior.lr" in error
    assert not (images / "prior.safetensors").exists()


OPTIONS = Prior(width=8, depth=1, batchsize=8, bank=16, max_num_steps=40)


def trained(y: torch.Tensor, steps: int) -> Training:
    """Return a training on y after so many steps."""
    training = Training(y, OPTIONS)
    for _ in range(steps):
        training.take_step()
    return training


def went_on(y: torch.Tensor, state: dict, path: Path, steps: int) -> Training:
    """Return a new training that went on from a state for so many steps."""
    torch.save(state, path)
    training = Training(y, OPTIONS)
    training.restore(path)
    for _ in range(steps):
        training.take_step()
    return training


def same(a: Training, b: Training) -> bool:
    """Return True if two trainings have equal weights."""
    pairs = zip(a.prior.parameters(), b.prior.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_permutation_of_many_embeddings_serves_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.prior.FEW", 50)
    y = torch.nn.functional.normalize(torch.randn(100, DIM), dim=1)
    training = Training(y, OPTIONS)
    taken = torch.cat([training._rows() for _ in range(4)])
    assert len(taken.unique()) == len(taken) == 96  # four times 24 of 100, none twice
    continued = went_on(y, trained(y, 3).state(), tmp_path / "partial", 3)
    assert same(continued, trained(y, 6))


def test_few_embeddings_are_permuted_in_each_step_as_before(tmp_path):
    y = torch.nn.functional.normalize(torch.randn(100, DIM), dim=1)
    training = Training(y, OPTIONS)
    expected = torch.Generator().manual_seed(OPTIONS.seed)
    for _ in range(3):
        assert torch.equal(training._rows(), torch.randperm(100, generator=expected)[:24])
    state = trained(y, 3).state()
    del state["order"]  # earlier versions did not save it
    assert same(went_on(y, state, tmp_path / "partial", 3), trained(y, 6))


def test_a_finished_prior_is_kept_and_another_option_or_image_trains_it_anew(
    images, script, tmp_path, capsys
):
    script()
    file = images / "prior.safetensors"
    written = file.read_bytes()
    capsys.readouterr()
    script()
    assert "it is kept" in capsys.readouterr().out and file.read_bytes() == written
    script("prior.seed=1")
    assert "it is kept" not in capsys.readouterr().out and file.read_bytes() != written
    other = tmp_path / "other"
    with LMDBWriter(other, "y", {"encoder": "clip-a"}, 40) as writer:
        writer.append(np.random.default_rng(1).normal(1, 1, (40, 1, DIM)).astype(np.float32))
    script("prior.seed=1", f"data.feat_path={other}", "--out", str(file))
    assert "it is kept" not in capsys.readouterr().out


DEFAULTS = ("prior.max_num_steps=4000", "prior.batchsize=256", "prior.bank=2048")  # but the size


def test_a_finished_prior_of_an_earlier_version_is_kept_and_evaluated(images, script, capsys):
    file, options = images / "prior.safetensors", Prior(width=8, depth=1)
    training = Training(read_directions(LMDBReader(images), 40), options)
    save_prior(training.prior, file, "clip-a")
    (weights, about), old = contents(file), file.read_bytes()
    script(*DEFAULTS)
    assert "it is kept" in capsys.readouterr().out and file.read_bytes() != old
    evaluated, more = contents(file)
    assert about.items() <= more.items() and prior_report(file)["images"] == 20  # half of them
    assert all(torch.equal(evaluated[name], weights[name]) for name in weights)
    assert training.is_finished(file)
    others = Training(training.y.roll(1, dims=1), options)
    assert not others.is_finished(file)
    assert not Training(training.y, Prior(width=8, depth=1, lr=1e-3)).is_finished(file)


def test_without_a_clip_of_these_embeddings_no_freedom_is_proposed_and_the_reason_is_said(
    images, script, capsys
):
    script()  # the embeddings are of clip-a, which is none of encoders.clip
    assert prior_report(images / "prior.safetensors")["freedom"] is None
    said = capsys.readouterr().out
    assert "proposes no freedom: encoders.clip: " in said and "sampling.freedom=0.7" in said


def test_usual_sentences_propose_a_freedom_and_captions_take_their_place(
    images, script, tmp_path, capsys
):
    clip = load_clip(tmp_path / "clip")
    y, rng = read_directions(LMDBReader(images), 40), np.random.default_rng(2)
    other, captions = tmp_path / "other", tmp_path / "captions"
    for folder, values in ((other, y), (captions, torch.tensor(rng.normal(size=(30, DIM))))):
        with LMDBWriter(folder, "y", {"encoder": clip.identity}, len(values)) as writer:
            writer.append(values.unsqueeze(1).float().numpy())
    script(f"data.feat_path={other}")
    report = prior_report(other / "prior.safetensors")
    assert report["texts_are"] == "usual sentences" and report["texts"] == 25
    assert report["freedom"] in [row["freedom"] for row in report["rows"]]
    assert f"proposes a freedom of {report['freedom']:g}" in capsys.readouterr().out
    script(f"data.feat_path={other}", f"eval.feat_path={captions}")
    said = capsys.readouterr().out
    assert "it is kept" in said and "30 test captions" in said
    assert prior_report(other / "prior.safetensors")["texts_are"] == "test captions"


def test_held_out_images_are_not_trained_on(images, script, tmp_path):
    script("prior.held_out=0.5")
    report = prior_report(images / "prior.safetensors")
    assert (report["held_out_are"], report["held_out"], report["images"]) == (
        "held-out images", 20, 20,
    )  # fmt: skip
    y = torch.arange(20.0)[:, None]
    kept, held_out = split(y, 0.25)
    assert len(held_out) == 5 and torch.equal(torch.cat([kept, held_out]).sort(0).values, y)
    assert torch.equal(split(y, 0)[0], y)


def test_a_training_of_an_earlier_version_goes_on(tmp_path):
    y = torch.nn.functional.normalize(torch.randn(100, DIM), dim=1)
    state = trained(y, 3).state()
    del state["options"]["held_out"]  # a key that earlier versions did not have
    assert same(went_on(y, state, tmp_path / "partial", 3), trained(y, 6))
