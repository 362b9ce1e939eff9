"""Speed switches of the training: results equal those without, or one line says why it is off."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import ROOT
from golden_models import small_denoiser
from losses import loss_of
from torch._dynamo.utils import counters
from torch._inductor.exc import InductorError
from trainings import FEW_BLOCKS, metrics, run

from benchmarks.train_step import Case, largest_loss_difference
from models.choices import MlpKind
from models.token_mask import random_mask
from utils.base.script import one_line_errors
from utils.config.load import config_from_dict
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.sampling.compile import compile_blocks
from utils.training.speed import best_amp, speed_up


def loss_and_gradients(denoiser, mask_ratio: float, amp: torch.dtype | None = None) -> tuple:
    """Return the loss of a fixed batch with fixed draws, and its gradients as one vector."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 4, 8, 8, generator=generator)
    cond = torch.randn(4, 6, generator=generator)
    options = {"mask_ratio": mask_ratio, "generator": generator}
    options["mae_loss_coef"] = 0.1 if denoiser.model.architecture.use_decoder else 0.0
    denoiser.zero_grad()
    with torch.autocast("cpu", amp, enabled=amp is not None):
        loss = loss_of(denoiser, clean, cond, **options).mean()
    loss.backward()
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    return loss.detach(), torch.cat([p.grad.flatten() for p in trained])


@pytest.fixture
def fresh_compiler():
    """Forget the code compiled for other tests, so that this test compiles its own shapes first."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# Of two widths, and of one: each takes its time to compile.
@pytest.mark.parametrize(
    "options", [{"mlp": "gelu_tanh"}, {"mlp": "gelu", "use_decoder": False}], ids=get_args(MlpKind)
)
def test_compiled_blocks_give_the_same_loss_and_gradients_at_every_mask_ratio(
    options, fresh_compiler
):
    plain, compiled = small_denoiser(**options).train(), small_denoiser(**options).train()
    compile_blocks(compiled.model, varying_tokens=True)
    for ratio in (0.25, 0.5, 0.75, 0.0):
        for ours, theirs in zip(
            loss_and_gradients(compiled, ratio), loss_and_gradients(plain, ratio), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert 0 < counters["stats"]["unique_graphs"] <= 4  # fewer than one for each ratio and width


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_compiled_blocks_stay_as_close_to_float32_as_plain_ones_under_autocast(amp, fresh_compiler):
    plain, compiled = (small_denoiser(use_decoder=False).train() for _ in range(2))
    compile_blocks(compiled.model)
    exact_loss, exact = loss_and_gradients(plain, 0.5)
    for denoiser in (plain, compiled):
        loss, gradients = loss_and_gradients(denoiser, 0.5, amp)
        assert abs(loss - exact_loss) / exact_loss < 0.01
        assert torch.cosine_similarity(gradients, exact, dim=0) > 0.999


def test_compiling_changes_no_name_of_a_weight(fresh_compiler):
    denoiser = small_denoiser()
    before = list(denoiser.state_dict())
    compile_blocks(denoiser.model)
    assert list(denoiser.state_dict()) == before


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_activation_checkpointing_gives_the_same_gradients(mask_ratio):
    plain, saving = small_denoiser().train(), small_denoiser().train()
    config = config_from_dict({"train": {"activation_checkpointing": True}}, "test")
    speed_up(saving.model, config, torch.device("cpu"))
    results, kept = [], []
    for denoiser in (saving, plain):
        numbers = []
        remember = torch.autograd.graph.saved_tensors_hooks(
            lambda t, numbers=numbers: numbers.append(t.numel()) or t, lambda t: t
        )
        with remember:
            results.append(loss_and_gradients(denoiser, mask_ratio))
        kept.append(sum(numbers))
    assert kept[0] < kept[1] / 2
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1])


def test_embedding_only_kept_patches_equals_embedding_all():
    embed = small_denoiser().model.x_embedder
    x, mask = torch.randn(2, 4, 8, 8), random_mask(2, 16, 0.5)
    every = embed.proj(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), every)
    kept = every.gather(1, mask.ids_keep[:, :, None].expand(-1, -1, every.shape[2]))
    torch.testing.assert_close(embed(x, mask.ids_keep), kept)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_the_baseline_of_the_benchmark_has_our_loss(mask_ratio):
    assert largest_loss_difference(Case("S", mask_ratio, batch=2, side=8)) < 1e-4


WITHOUT_COMPILER = """
import sys, torch
from models.edm import build_denoiser
from utils.config.load import config_from_dict
from utils.base.errors import UserError
from utils.training.speed import speed_up
model = build_denoiser("DiT-T/2", 8, 4, 6, depth=1, decoder_depth=1).model
for wish in ("auto", True):
    config = config_from_dict({"train": {"compile": wish}}, "test")
    try:
        print(speed_up(model, config, torch.device("cpu")))
    except UserError as error:
        print("refused:", error)
print(model(torch.randn(2, 4, 8, 8), torch.randn(2), torch.randn(2, 6)).shape)
"""


def test_without_a_compiler_auto_says_so_and_true_is_refused(tmp_path):
    environment = {
        "CXX": "/nonexistent",
        "PATH": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    auto, true, shape = done.stdout.splitlines()
    assert "train.compile: not compiled, as there is no working compiler" in auto
    assert true.startswith("refused: train.compile: there is no working compiler")
    assert shape == "torch.Size([2, 4, 8, 8])"


def in_process(code: str, cache: Path) -> subprocess.CompletedProcess:
    """Run code in a process of its own, with a cache of the compiler."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


COMPILE_A_SUM = """
import torch
from utils.sampling.compile import compiler_fault
print(compiler_fault(torch.device("cpu")))
"""


def test_a_damaged_cache_of_the_compiler_is_named_and_another_one_used(tmp_path):
    cache = tmp_path / "cache"
    assert in_process(COMPILE_A_SUM, cache).stdout == "None\n"
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:50])  # as a full disk or a power cut leave it
    done = in_process(COMPILE_A_SUM, cache)
    assert done.stdout == "None\n", done.stderr
    assert (
        f"note: the cache of torch.compile is damaged: rm -r {cache}; this run uses" in done.stderr
    )


@pytest.mark.parametrize(
    "fault",
    [
        torch._dynamo.exc.InternalTorchDynamoError("cannot import name"),
        torch._dynamo.exc.TorchDynamoException("file too short"),
        InductorError(OSError("invalid ELF header"), None),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_fault_of_the_compiler_is_one_line_with_the_folder_to_remove(fault, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/some/cache")

    @one_line_errors
    def main() -> None:
        raise fault

    with pytest.raises(SystemExit) as end:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "its cache is damaged: rm -r /some/cache; or set" in line


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_compiled_run_is_continued_by_a_plain_one(faces, tmp_path, fresh_compiler, name):
    settings = (f"train.optimizer={name}", *FEW_BLOCKS)
    half = ("train.max_num_steps=6", *settings)
    folder = run(faces, tmp_path / "run", "train.compile=auto", *half)
    state = load_checkpoint(folder / "checkpoints" / "0000006.pt")
    assert not [name for which in ("model", "ema") for name in state[which] if "_orig" in name]
    run(faces, folder, *settings)
    plain = run(faces, tmp_path / "plain", *half)
    run(faces, plain, *settings)
    losses = [[line["loss"] for line in metrics(f)] for f in (folder, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_auto_precision_is_bf16_unless_a_gpu_only_emulates_it(monkeypatch):
    assert [best_amp(wish) for wish in ("auto", "no", "fp16")] == ["bf16", "no", "fp16"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert [best_amp(wish) for wish in ("auto", "bf16")] == ["fp16", "bf16"]
