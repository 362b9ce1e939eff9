"""A new run from an existing checkpoint: the state taken over, the steps counted, bad matches."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.harness import Run
from losses import loss_of
from PIL import Image
from safetensors.torch import save_file
from tiny import DIM, make_tiny_config, make_tiny_evaluation_data, make_tiny_training_data
from trainings import final_state, metrics, run

from models.edm import EDMPrecond
from train_latent_t2f import train
from utils.base.errors import UserError
from utils.config.load import load_config
from utils.config.schema import Config
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.results import Results
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import denoiser_from_config, export_safetensors, load_denoiser
from utils.training.checkpoint import list_checkpoints
from utils.training.ema import EMA
from utils.training.finetune import start_from


def published_order(denoiser: EDMPrecond) -> dict[str, torch.Tensor]:
    """Return the weights in the order of the published code, whose optimizer numbers them so."""
    names = list(denoiser.state_dict(keep_vars=True))
    token, table = "model.mask_token", "model.decoder_pos_embed"
    if token in names:
        names.remove(table)
        names.insert(names.index(token), table)
    weights = denoiser.state_dict(keep_vars=True)
    return {name: weights[name] for name in names}


def published_checkpoint(path: Path, config: Config, shared_step: bool = False) -> Path:
    """Write a checkpoint like the published training code; return `path`.

    It has that code's names, an optimizer over all weights, and an argparse namespace `args`.
    `shared_step`: one count of steps for all parameters, like Apex' FusedAdam.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        denoiser = denoiser_from_config(config)
        ema = EMA(denoiser).module
        weights = published_order(denoiser)
        optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, weight_decay=0)
        for _ in range(2):
            latents = torch.randn(4, 4, config.model.in_size, config.model.in_size)
            loss_of(denoiser, latents, torch.randn(4, DIM)).mean().backward()
            optimizer.step()
    opt = optimizer.state_dict()
    if shared_step:
        steps = {int(state.pop("step")) for state in opt["state"].values()}
        (opt["param_groups"][0]["step"],) = steps
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "model": {name: weight.detach() for name, weight in weights.items()},
            "ema": ema.state_dict(),
            "opt": opt,
            "args": argparse.Namespace(config="configs/x.yaml", global_seed=0, cfg_scale=None),
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Write databases of 24 random images; return the config file of a short training on them."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    config = make_tiny_config(
        folder,
        data={"resolution": 64},
        model={"in_size": 8},
        train={"max_num_steps": 4},
        eval={"caption_dir": None},
        log={"log_every": 1, "ckpt_every": 2, "sample_every": 0, "use_tensorboard": False},
    )
    with LMDBWriter(config.data.root, "z", {}, 24) as writer:
        writer.append(rng.normal(size=(24, 4, 8, 8)))
    with LMDBWriter(config.data.feat_path, "y", {}, 24) as writer:
        writer.append(rng.normal(size=(24, 2, DIM)))
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture(scope="module")
def published(faces) -> Path:
    """Return a checkpoint in the published format after step 100."""
    return published_checkpoint(faces.parent / "published" / "0000100.pt", load_config(faces))


def fresh(config: Config) -> tuple[EDMPrecond, EDMPrecond, torch.optim.Optimizer]:
    """Return the network, its EMA and its optimizer at the start of a training."""
    denoiser = denoiser_from_config(config)
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    return denoiser, EMA(denoiser).module, torch.optim.AdamW(trained, lr=5e-5, fused=True)


def moments(denoiser: EDMPrecond, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return name -> first moment of the weights that have an optimizer state."""
    named = {n: p for n, p in denoiser.named_parameters() if p in optimizer.state}
    return {name: optimizer.state[p]["exp_avg"] for name, p in named.items()}


def notes_of(path: Path, config: Config, strict: bool = True) -> str:
    """Return the lines that are logged when a run starts from a checkpoint."""
    return "\n".join(start_from(path, *fresh(config), 8, strict).notes)


# --- State that a run takes over


def test_weights_step_and_moments_of_a_published_checkpoint_are_taken(faces, published):
    denoiser, ema, optimizer = fresh(load_config(faces))
    start = start_from(published, denoiser, ema, optimizer, batchsize=8)
    state = load_checkpoint(published)
    assert (start.step, start.images_seen) == (100, 800)
    for network, which in ((denoiser, "model"), (ema, "ema")):
        for name, weight in network.state_dict().items():
            assert torch.equal(weight, state[which][name])
    expected = {
        name: state["opt"]["state"][i]["exp_avg"]
        for i, name in enumerate(state["model"])
        if i in state["opt"]["state"]
    }
    taken = moments(denoiser, optimizer)
    assert taken.keys() == expected.keys() and len(taken) > 40
    assert all(torch.equal(taken[name], expected[name]) for name in taken)
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}
    assert optimizer.param_groups[0]["lr"] == 5e-5


def test_steps_that_apex_counted_for_all_parameters_are_taken(faces, tmp_path):
    config = load_config(faces)
    path = published_checkpoint(tmp_path / "0000007.pt", config, shared_step=True)
    denoiser, ema, optimizer = fresh(config)
    start_from(path, denoiser, ema, optimizer, 8)
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}


def test_the_optimizer_of_our_own_run_is_taken(faces, tmp_path):
    source = run(faces, tmp_path / "first") / "checkpoints" / "0000004.pt"
    config = load_config(faces)
    denoiser, ema, optimizer = fresh(config)
    start = start_from(source, denoiser, ema, optimizer, 8)
    opt = load_checkpoint(source)["opt"]["state"]
    assert (start.step, start.images_seen) == (4, 32)
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], opt[i]["exp_avg_sq"])


def test_weights_of_another_scale_are_refused_with_the_key(faces, tmp_path):
    source = run(faces, tmp_path / "first") / "checkpoints" / "0000004.pt"
    released = tmp_path / "dit.safetensors"
    export_safetensors(source, released)
    config = load_config(faces, ["model.sigma_data=1"])
    message = r"was trained with model\.sigma_data=0\.5, and the settings say 1; set model\.sigma"
    for file in (source, released):
        with pytest.raises(UserError, match=message):
            start_from(file, *fresh(config), 8, strict=False)
        with pytest.raises(UserError, match=message):
            load_denoiser(file, config=config)
        load_denoiser(file, config=load_config(faces))


def test_without_strict_loading_the_optimizer_starts_anew(faces, published):
    denoiser, ema, optimizer = fresh(load_config(faces))
    start = start_from(published, denoiser, ema, optimizer, 8, strict=False)
    assert start.step == 100 and not optimizer.state
    assert "without its optimizer state" in start.notes[0]


def with_changed_weights(path: Path, out: Path, change: Callable[[dict], dict]) -> Path:
    """Write a copy of a checkpoint into the folder `out`, its weights changed by `change`."""
    state = load_checkpoint(path)
    for which in ("model", "ema"):
        state[which] = change(dict(state[which]))
    torch.save(state, out / path.name)
    return out / path.name


def renamed(weights: dict) -> dict:
    """Give one weight a name that no network has."""
    weights["model.old_table"] = weights.pop("model.y_embedder.embedding_table.weight")
    return weights


def test_missing_and_unknown_weights_are_listed_or_refused(faces, published, tmp_path):
    path, config = with_changed_weights(published, tmp_path, renamed), load_config(faces)
    notes = notes_of(path, config, strict=False)
    assert f"not in {path}, left as initialised: model.y_embedder.embedding_table.weight" in notes
    assert f"in {path} but not in the model: model.old_table" in notes
    with pytest.raises(UserError, match=r"lacks model\.y_embedder.*; it has unknown model\.old"):
        start_from(path, *fresh(config), 8)


def test_weights_of_another_shape_are_refused_even_without_strict_loading(faces, published):
    config = load_config(faces, ["model.decoder_hidden_size=32"])
    with pytest.raises(UserError, match=r"another shape for model\.decoder"):
        start_from(published, *fresh(config), 8, strict=False)


def test_weights_of_something_else_are_refused_even_without_strict_loading(
    faces, published, tmp_path
):
    path = with_changed_weights(
        published, tmp_path, lambda weights: {f"net.{n}": w for n, w in weights.items()}
    )
    with pytest.raises(UserError, match=r"lacks .* has unknown net\."):
        start_from(path, *fresh(load_config(faces)), 8, strict=False)


def test_moments_of_other_weights_are_refused_with_the_way_out(faces, published, tmp_path):
    def reversed_order(weights: dict) -> dict:
        """Return the weights in reverse order, so that the optimizer's numbers mean others."""
        return dict(reversed(weights.items()))

    path = with_changed_weights(published, tmp_path, reversed_order)
    with pytest.raises(UserError, match=r"optimizer state does not fit.*--use_strict_load False"):
        start_from(path, *fresh(load_config(faces)), 8)


def test_a_released_model_starts_both_networks_at_step_zero(faces, published, tmp_path):
    ema_weights = load_checkpoint(published)["ema"]
    save_file({n: w.clone() for n, w in ema_weights.items()}, tmp_path / "dit.safetensors")
    denoiser, ema, optimizer = fresh(load_config(faces))
    start = start_from(tmp_path / "dit.safetensors", denoiser, ema, optimizer, 8)
    assert start.step == 0 and "EMA weights only" in start.notes[1]
    for network in (denoiser, ema):
        for name, weight in network.state_dict().items():
            assert torch.equal(weight, ema_weights[name])


# --- Whole runs


def test_a_run_from_a_published_checkpoint_goes_on_counting_and_continues_bit_for_bit(
    faces, published, tmp_path
):
    settings = ("train.lr_warmup_steps=2", "model.mask_ratio_fn=cosine2")
    whole = run(faces, tmp_path / "whole", *settings, start_from=published)
    assert [line["step"] for line in metrics(whole)] == [101, 102, 103, 104]
    assert [line["lr"] for line in metrics(whole)] == pytest.approx([0, 5e-4, 1e-3, 1e-3])
    assert list(list_checkpoints(whole / "checkpoints")) == [102, 104]

    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "checkpoints" / "0000104.pt").unlink()
    run(faces, cut, *settings, start_from=published)
    assert final_state(cut) == final_state(whole) and metrics(cut) == metrics(whole)
    assert f"from step 102; {published} is not read" in (cut / "log.txt").read_text()


def test_the_published_example_without_moments_starts_a_run(faces, golden, tmp_path):
    sizes = ("model.depth=3", "model.hidden_size=64", "model.num_heads=4")
    decoder = ("model.decoder_hidden_size=48", "model.decoder_depth=2", "model.decoder_num_heads=4")
    folder = run(faces, tmp_path / "run", *sizes, *decoder, start_from=golden / "0000100.pt")
    assert "step 100, without its optimizer state" in (folder / "log.txt").read_text()
    assert list(list_checkpoints(folder / "checkpoints")) == [102, 104]


def test_a_checkpoint_that_does_not_fit_leaves_no_folder(faces, published, tmp_path):
    config = load_config(faces, ["model.depth=3"])
    with pytest.raises(UserError, match="does not fit the configured model.*no configuration: set"):
        train(config, tmp_path / "run", published, False)
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_a_published_checkpoint_goes_through_training_evaluation_and_sampling(tmp_path):
    config = make_tiny_config(
        tmp_path,
        model={"mask_ratio": 0},
        train={"max_num_steps": 2},
        eval={"caption_dir": None},
        log={"ckpt_every": 1, "log_every": 1, "num_samples": 2},
    )
    make_tiny_evaluation_data(config)
    make_tiny_training_data(config)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    old = published_checkpoint(tmp_path / "old" / "checkpoints" / "0000100.pt", config)

    def script(name: str, line: str) -> str:
        """Run a script with the config and this command line; return its output."""
        words = ["--config", str(tmp_path / "config.yaml"), *line.split()]
        output = tmp_path / "output.txt"
        output.unlink(missing_ok=True)
        with Run(name, words, output) as process:
            assert process.wait() == 0, process.said()
        return process.said()

    sampling = "--seeds 0-7 --max_batch_size 4 --num_steps 2 --cfg_scale None"
    line = f"--results_dir {tmp_path} --exp_name new --ckpt_path {old} --enable_eval {sampling}"
    output = script("train_latent_t2f.py", line)
    assert "step 100, with its optimizer state" in output
    assert "from step 102" in script("train_latent_t2f.py", line)
    records = Results(tmp_path / "new" / "evaluation").records
    assert [(r["step"], r["n"], r["cfg_scale"]) for r in records] == [
        (100, 8, None), (101, 8, None), (102, 8, None)
    ]  # fmt: skip

    output = script("eval_latent_t2f.py", f"--experiment_dir {tmp_path}/old {sampling}")
    (record,) = Results(tmp_path / "old" / "evaluation").records
    assert record["frechet_distance_clip"] == records[0]["frechet_distance_clip"]
    assert "best: " in output

    out = tmp_path / "drawn"
    script("t2f.py", f"--ckpt {old} --prompt face --num 2 --num_steps 2 --device cpu --out {out}")
    assert Image.open(out / "00_001.png").size == (16, 16)
