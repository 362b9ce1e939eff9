"""AdamW and Muon: which weights each updates, by which formula, and whole trainings with Muon."""

import copy
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import NETWORK
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import final_state, flat, metrics, run

from models.edm import EDMPrecond, build_denoiser
from utils.base.errors import UserError
from utils.config.load import load_config
from utils.config.sections import Train
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import denoiser_from_config
from utils.training.checkpoint import save_checkpoint
from utils.training.ema import EMA
from utils.training.finetune import start_from
from utils.training.optimizers import (
    build_optimizer,
    optimizer_name,
    set_rate,
    token_matrices,
)
from utils.training.sharding import wants_shards
from utils.training.step_guard import skip_unless

MUON = "train.optimizer=muon"
DECAYING = Train(optimizer="muon", lr=1e-3, muon_lr=4e-3, weight_decay=0.1)


@pytest.fixture
def denoiser() -> EDMPrecond:
    """Build a small network, none of whose trained weights is zero."""
    torch.manual_seed(0)
    network = build_denoiser("DiT-S/2", 8, 4, 16, **NETWORK)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def trained(network: EDMPrecond) -> dict[str, torch.nn.Parameter]:
    """Return name -> weight of all trained weights."""
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def give_gradients(network: EDMPrecond, scale: float = 1.0) -> None:
    """Give every trained weight a random gradient."""
    for parameter in trained(network).values():
        parameter.grad = scale * torch.randn_like(parameter)


def copies(network: EDMPrecond) -> dict[str, torch.Tensor]:
    """Return name -> copy of all trained weights."""
    return {name: p.detach().clone() for name, p in trained(network).items()}


def tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return copies of all moments and momentum."""
    states = optimizer.state_dict()["state"].values()
    return [value.clone() for state in states for value in state.values()]


# --- AdamW, the default


def test_the_default_is_adamw_alone_with_its_own_settings_and_nothing_else(denoiser):
    options = Train(betas=(0.9, 0.99), weight_decay=0.1)
    ours = build_optimizer(denoiser, options)
    plain = torch.optim.AdamW(
        trained(denoiser).values(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )
    assert type(ours) is torch.optim.AdamW
    set_rate(ours, 1e-4)
    assert ours.state_dict() == plain.state_dict()
    assert ours.param_groups[0]["params"] == plain.param_groups[0]["params"]


# --- Muon


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_else(denoiser):
    names = {p: name.removeprefix("model.") for name, p in denoiser.named_parameters()}
    adamw, muon = (group["params"] for group in build_optimizer(denoiser, DECAYING).param_groups)
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = ("blocks.0", "blocks.1", "decoder_blocks.0")
    expected = {f"{block}.{layer}.weight" for block in blocks for layer in layers}
    assert {names[p] for p in muon} == expected
    assert {*adamw, *muon} == set(trained(denoiser).values())
    assert not {*adamw} & {*muon}


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """Return the nearest orthogonal matrix in float64 as Jordan et al. 2024 approximate it."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


def test_muon_updates_matrices_by_their_orthogonal_momentum_and_others_like_adamw(denoiser):
    twin = {name: weight.clone().requires_grad_() for name, weight in copies(denoiser).items()}
    adamw = torch.optim.AdamW(twin.values(), lr=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(denoiser, DECAYING)
    matrices, momentum = set(token_matrices(denoiser)), {}
    for _ in range(3):
        give_gradients(denoiser)
        before = copies(denoiser)
        for name, weight in trained(denoiser).items():
            twin[name].grad = weight.grad.clone()
        optimizer.step()
        adamw.step()
        for name, weight in trained(denoiser).items():
            if weight not in matrices:
                torch.testing.assert_close(weight, twin[name], rtol=0, atol=1e-6)
                continue
            gradient = twin[name].grad
            momentum[name] = 0.95 * momentum.get(name, 0) + 0.05 * gradient
            update = newton_schulz(0.95 * momentum[name] + 0.05 * gradient)
            step = 4e-3 * 0.2 * math.sqrt(max(weight.shape)) * update
            expected = (1 - 4e-3 * 0.1) * before[name] - step.float()
            scale = float(step.square().mean().sqrt())
            assert float((weight - expected).square().mean().sqrt()) < 0.05 * scale  # bfloat16


def test_one_schedule_changes_both_rates_by_one_factor(denoiser):
    optimizer = build_optimizer(denoiser, DECAYING)
    set_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 2e-3])
    set_rate(optimizer, 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]


def test_an_optimizer_goes_on_from_its_saved_state_bit_for_bit(denoiser):
    torch.manual_seed(1)
    whole = build_optimizer(denoiser, DECAYING)
    give_gradients(denoiser)
    whole.step()
    start, saved = copies(denoiser), copy.deepcopy(whole.state_dict())
    give_gradients(denoiser)
    whole.step()
    expected = copies(denoiser)
    with torch.no_grad():
        for name, weight in trained(denoiser).items():
            weight.copy_(start[name])
    second = build_optimizer(denoiser, Train(optimizer="muon"))
    second.load_state_dict(saved)
    second.step()
    assert all(torch.equal(w, expected[name]) for name, w in trained(denoiser).items())
    assert [g["lr"] for g in second.param_groups] == [1e-3, 4e-3]


# --- Steps that are not finite


class Waits(TorchDispatchMode):
    """Count of the times that a program reads a number from a device, which waits for it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("good", [True, False])
def test_a_bad_step_changes_neither_weights_nor_momentum_and_nothing_waits(
    denoiser, good, steps_before
):
    optimizer = build_optimizer(denoiser, DECAYING)
    for _ in range(steps_before):
        give_gradients(denoiser)
        optimizer.step()
    weights, state = copies(denoiser), tensors(optimizer)
    give_gradients(denoiser, 1.0 if good else math.nan)
    with Waits() as waits:
        skip_unless(torch.tensor(good), optimizer)
        optimizer.step()
    assert waits.count == 0
    unchanged = [torch.equal(w, weights[name]) for name, w in trained(denoiser).items()]
    assert all(unchanged) if not good else not any(unchanged)
    after = tensors(optimizer)
    assert all(value.isfinite().all() for value in after)
    if steps_before:
        same = [torch.equal(a, b) for a, b in zip(after, state, strict=True)]
        assert all(same) if not good else not any(same)
    elif not good:
        assert not any(value.any() for value in after)


def test_a_good_step_is_the_one_without_a_guard_bit_for_bit(denoiser):
    start, results = copies(denoiser), []
    for guarded in (False, True):
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in trained(denoiser).items():
                weight.copy_(start[name])
        optimizer = build_optimizer(denoiser, DECAYING)
        for _ in range(3):
            give_gradients(denoiser)
            if guarded:
                skip_unless(torch.tensor(True), optimizer)
            optimizer.step()
        results.append([*copies(denoiser).values(), *tensors(optimizer)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("overflow", [False, True])
def test_a_loss_scaler_skips_its_overflows(denoiser, overflow):
    optimizer = build_optimizer(denoiser, DECAYING)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(1))
    give_gradients(denoiser, 1024.0)
    gradient = next(p for p in token_matrices(denoiser)).grad
    expected = gradient / 1024
    if overflow:
        gradient[0, 0] = math.inf
    before = copies(denoiser)
    scaler.unscale_(optimizer)
    assert overflow or torch.equal(gradient, expected)
    scaler.step(optimizer)
    scaler.update()
    unchanged = [torch.equal(w, before[name]) for name, w in trained(denoiser).items()]
    assert all(unchanged) if overflow else not any(unchanged)
    assert scaler.get_scale() == (512 if overflow else 1024)


# --- Whole trainings


@pytest.fixture(scope="module")
def with_muon(faces) -> Path:
    """Return the folder of a finished run of twelve steps with Muon, in two parts of each batch."""
    return run(faces, faces.parent / "with_muon", MUON, "train.lr_rampup_kimg=0.02")


def test_a_training_with_muon_learns_and_continues_bit_for_bit(faces, with_muon, tmp_path):
    cut = Path(shutil.copytree(with_muon, tmp_path / "cut"))
    (cut / "checkpoints" / "0000012.pt").unlink()
    run(faces, cut, MUON, "train.lr_rampup_kimg=0.02")
    assert final_state(cut) == final_state(with_muon) and metrics(cut) == metrics(with_muon)
    opt = load_checkpoint(cut / "checkpoints" / "0000012.pt")["opt"]
    assert optimizer_name(opt["param_groups"]) == "muon"
    assert {frozenset(state) for state in opt["state"].values()} == {
        frozenset({"step", "exp_avg", "exp_avg_sq"}),
        frozenset({"momentum_buffer"}),
    }
    saved = load_checkpoint(cut / "checkpoints" / "0000012.pt")
    assert all(
        not torch.equal(weight, saved["ema"][name])
        for name, weight in saved["model"].items()
        if "pos_embed" not in name
    )


def test_a_run_with_another_optimizer_in_the_same_folder_is_refused(faces, with_muon):
    with pytest.raises(UserError, match=r"train\.optimizer is muon there and adamw here"):
        run(faces, with_muon, "train.lr_rampup_kimg=0.02")
    with pytest.raises(UserError, match=r"train\.muon_lr is 0\.005 there and 0\.01 here"):
        run(faces, with_muon, MUON, "train.lr_rampup_kimg=0.02", "train.muon_lr=0.01")


def test_a_new_run_takes_moments_of_its_own_optimizer_only(faces, with_muon, tmp_path):
    source = with_muon / "checkpoints" / "0000012.pt"
    limit = "train.max_num_steps=2"
    same = run(faces, tmp_path / "same", MUON, limit, start_from=source)
    assert "with its optimizer state" in (same / "log.txt").read_text()
    other = run(faces, tmp_path / "other", limit, start_from=source)
    log = (other / "log.txt").read_text()
    assert "step 12, without its optimizer state" in log
    assert "it is of muon, and train.optimizer is adamw" in log
    back = run(faces, tmp_path / "back", MUON, limit, start_from=other / "checkpoints/0000014.pt")
    assert "it is of adamw, and train.optimizer is muon" in (back / "log.txt").read_text()


def test_the_momentum_of_another_run_is_taken_and_its_settings_are_not(faces, with_muon):
    source = with_muon / "checkpoints" / "0000012.pt"
    config = load_config(faces, [MUON, "train.muon_lr=1e-9", "train.lr=1e-8"])
    network = denoiser_from_config(config)
    optimizer = build_optimizer(network, config.train)
    start_from(source, network, EMA(network).module, optimizer, 8)
    taken, saved = optimizer.state_dict(), load_checkpoint(source)["opt"]
    assert flat(taken["state"]) == flat(saved["state"])
    set_rate(optimizer, 1e-8)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-8, 1e-9])


def test_a_checkpoint_from_before_there_was_a_choice_goes_on(faces, tmp_path):
    whole = run(faces, tmp_path / "whole")
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "checkpoints" / "0000012.pt").unlink()
    path = cut / "checkpoints" / "0000006.pt"
    state = load_checkpoint(path)
    for key in ("optimizer", "muon_lr", "muon_momentum"):
        del state["config"]["train"][key]
    save_checkpoint(path, state)
    run(faces, cut)
    assert final_state(cut) == final_state(whole)


# --- Several processes


@pytest.fixture
def process_group() -> Iterator[None]:
    """Let this process be all processes of a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_step_of_several_processes_is_that_of_one_bit_for_bit(denoiser, request):
    start, results = copies(denoiser), []
    for alone in (True, False):
        if not alone:
            request.getfixturevalue("process_group")
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weight in trained(denoiser).items():
                weight.copy_(start[name])
        optimizer = build_optimizer(denoiser, DECAYING)
        for good in (True, False, True):
            give_gradients(denoiser)
            skip_unless(torch.tensor(good), optimizer)
            optimizer.step()
        results.append([*copies(denoiser).values(), *tensors(optimizer)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_shards_go_with_muon_and_not_with_fp16(monkeypatch):
    assert wants_shards(Train(optimizer="muon", shard=True), "no")
    assert not wants_shards(Train(optimizer="muon"), "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"train\.amp=fp16; use bf16"):
        wants_shards(Train(optimizer="muon"), "fp16")
