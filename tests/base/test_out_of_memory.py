"""Batches that do not fit into memory are done in smaller ones, with equal results."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from tiny import DIM, make_tiny_config, make_tiny_denoiser, make_tiny_evaluation_data
from torch.nn.modules.module import register_module_forward_pre_hook

from models.maskdit import MaskDiT
from utils.base.errors import UserError
from utils.base.out_of_memory import OomBatchSplitter, is_out_of_memory
from utils.data.fill_databases import Target, fill
from utils.data.lmdb_reader import LMDBReader
from utils.data.preprocess_jobs import Job
from utils.evaluation.checkpoints import evaluate_checkpoint
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.folder import evaluate_folder
from utils.pretrained.encoders import load_config_autoencoder
from utils.sampling.generate import generate


def allocate(items: int) -> torch.Tensor:
    """Really ask for half a terabyte per item if there are more than three items."""
    return (
        torch.ones(items, dtype=torch.float64).expand(items)
        if items <= 3
        else torch.empty(items * 2**36, dtype=torch.float64)
    )


def test_a_batch_that_does_not_fit_is_done_in_smaller_ones_and_noted_once(capsys):
    splitter, seen = OomBatchSplitter("encoding"), []

    def work(part: range) -> list[int]:
        seen.append((part.start, part.stop))
        allocate(len(part))
        return list(part)

    assert sum(splitter(work, range(10)), []) == list(range(10))
    assert seen == [(0, 10), (0, 5), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        "note: encoding: 10 at once do not fit into memory; now 5",
        "note: encoding: 5 at once do not fit into memory; now 2",
    ]
    assert len(splitter(work, range(4))) == 2 and capsys.readouterr().err == ""


@contextmanager
def scarce_memory() -> Iterator[None]:
    """Let denoisers and CLIP's image towers run out of memory for more than three images."""

    def take(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(network, MaskDiT | VisionTransformer):
            allocate(len(inputs[0]))

    hook = register_module_forward_pre_hook(take)
    try:
        yield
    finally:
        hook.remove()


def test_images_sampled_in_scarce_memory_are_the_same(tmp_path, capsys):
    config = make_tiny_config(tmp_path)
    denoiser, vae = make_tiny_denoiser(), load_config_autoencoder(config)
    conds = torch.randn(20, DIM, generator=torch.Generator().manual_seed(0))

    def images(batch_size: int) -> torch.Tensor:
        sampling = config.sampling.model_copy(update={"cfg_scale": None})
        parts = generate(denoiser, vae, conds, range(20), sampling, batch_size=batch_size)
        return torch.cat([part for _, part in parts]).int()

    expected = images(16)
    with scarce_memory():
        difference = (images(16) - expected).abs()
    assert difference.max() <= 1  # another batch size rounds differently
    assert difference.bool().float().mean() < 1e-3
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in printed if "memory" in line] == [
        f"note: sampling: {n} at once do not fit into memory; now {n // 2}" for n in (16, 8, 4)
    ]


def test_a_checkpoint_evaluated_in_scarce_memory_has_the_same_metrics(tmp_path, capsys):
    config = make_tiny_config(tmp_path)
    make_tiny_evaluation_data(config)
    denoiser, evaluator = make_tiny_denoiser(), Evaluator(config)
    expected = evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "ample")
    with scarce_memory():
        metrics = evaluate_checkpoint(denoiser, config, evaluator, tmp_path / "scarce")
    assert_same(metrics, expected)
    printed = capsys.readouterr().err
    assert printed.count("note: sampling: 8 at once do not fit into memory; now 4") == 1
    assert printed.count(f"features of {evaluator.network.name}: 16 at once do not fit") == 1


def test_a_folder_evaluated_in_scarce_memory_has_the_same_metrics(tmp_path, tiny_faces, capsys):
    config, (images, captions) = make_tiny_config(tmp_path), tiny_faces(20)
    make_tiny_evaluation_data(config)

    def evaluate() -> dict[str, object]:
        return evaluate_folder(config, images, [config.eval.ref_path], captions=captions)

    expected = evaluate()
    with scarce_memory():
        assert_same(evaluate(), expected)
    assert capsys.readouterr().err.count("16 at once do not fit into memory; now 8") == 1


def assert_same(metrics: dict[str, object], expected: dict[str, object]) -> None:
    """Compare metrics; networks round differently with other batch sizes, nothing else differs."""
    for key in expected.keys() - {"seconds"}:
        is_float = isinstance(expected[key], float)
        within = {"rel": 1e-2} if key.endswith("_std") else {"rel": 1e-3, "abs": 1e-6}
        same = pytest.approx(expected[key], **within) if is_float else expected[key]
        assert metrics[key] == same, key


def test_databases_filled_in_scarce_memory_are_the_same(tmp_path, capsys):
    def encode(inputs: list[int], first: int) -> np.ndarray:
        assert inputs == list(range(first, first + len(inputs)))
        allocate(len(inputs))
        return np.repeat(np.float32(inputs), 16).reshape(-1, 4, 2, 2)

    def read(first: int, stop: int) -> list[list[int]]:
        return [list(range(i, min(i + 8, stop))) for i in range(first, stop, 8)]

    job = Job("train", tmp_path, None, None, tmp_path / "z", tmp_path / "skipped.txt", True)
    assert fill(job, [str(i) for i in range(20)], [Target(job.out, "z", {}, encode)], read)
    assert "encoding: 8 at once do not fit into memory; now 4" in capsys.readouterr().err
    assert LMDBReader(job.out).read(range(20))[:, 0, 0, 0].tolist() == list(range(20))


def test_what_does_not_fit_alone_ends_with_one_line():
    with pytest.raises(UserError, match="^sampling: not enough memory even for a batch of 1"):
        OomBatchSplitter("sampling")(lambda part: torch.empty(2**45), [1, 2, 3])


def test_other_faults_are_not_taken_for_a_shortage():
    with pytest.raises(RuntimeError, match="size mismatch|must match"):
        OomBatchSplitter("x")(lambda part: part + torch.ones(3), torch.ones(2))


def test_the_message_of_every_library_is_known():
    for allocate_too_much in (
        lambda: torch.empty(2**45),
        lambda: np.ones(2**45),
        lambda: bytearray(2**50),
        lambda: torch.nn.functional.conv2d(
            torch.empty(1, 1, 1, 1).expand(2**20, 64, 512, 512), torch.ones(1, 64, 3, 3)
        ),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as fault:
            allocate_too_much()
        assert is_out_of_memory(fault.value), fault.value
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
