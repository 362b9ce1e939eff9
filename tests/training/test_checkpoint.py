"""Checkpoints: reading returns what was saved; one line refuses every other file."""

import os
from pathlib import Path

import pytest
import torch
from payload import Payload
from safetensors.torch import load_file, save_file
from tiny import make_tiny_config

from utils.base.errors import UserError
from utils.base.files import write_whole
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import denoiser_from_config, export_safetensors, load_denoiser
from utils.training.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    remove_old,
    save_checkpoint,
)


@pytest.fixture
def config(tmp_path) -> Config:
    """Return a config with tiny encoders."""
    return make_tiny_config(tmp_path)


@pytest.fixture
def saved(tmp_path, config) -> Path:
    """Write a checkpoint whose `model` and `ema` weights differ."""
    torch.manual_seed(0)
    model, ema = denoiser_from_config(config), denoiser_from_config(config)
    path = tmp_path / "checkpoints" / "0000010.pt"
    save_checkpoint(
        path,
        {
            "model": model.state_dict(),
            "ema": ema.state_dict(),
            "step": 10,
            "rng": [torch.Generator().get_state()],
            "config": config.to_dict(),
        },
    )
    return path


def fault(path: Path, **options) -> str:
    """Return the error of loading a denoiser: one line that names the file."""
    with pytest.raises(UserError) as error:
        load_denoiser(path, **options)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def test_a_checkpoint_comes_back_as_it_was_saved(saved, config):
    state = load_checkpoint(saved)
    assert state["step"] == 10
    assert config_from_dict(state["config"]).to_dict() == config.to_dict()
    torch.Generator().set_state(state["rng"][0])


def test_the_denoiser_has_the_ema_weights_unless_told_otherwise(saved):
    state = load_checkpoint(saved)
    for which, options in (("ema", {}), ("model", {"which": "model"})):
        denoiser, _ = load_denoiser(saved, **options)
        assert not denoiser.training
        for name, tensor in denoiser.state_dict().items():
            assert torch.equal(tensor, state[which][name])


def test_an_exported_model_gives_the_checkpoints_images_in_half_precision(saved, tmp_path):
    out = tmp_path / "release" / "dit.safetensors"
    export_safetensors(saved, out)
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
    (released, config), (trained, _) = load_denoiser(out), load_denoiser(saved)
    assert config.model.hidden_size == 32
    x, cond = torch.randn(2, 4, 2, 2), torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(released(x, 1.0, cond), trained(x, 1.0, cond), atol=1e-2, rtol=0)


def test_the_denoiser_is_scaled_for_the_configured_latents(config):
    values = config.to_dict()
    other = config_from_dict({**values, "model": {**values["model"], "sigma_data": 1.25}})
    assert denoiser_from_config(config).sigma_data == 0.5
    assert denoiser_from_config(other).sigma_data == 1.25


def test_an_export_carries_the_settings_that_it_was_given(saved, tmp_path):
    out = tmp_path / "dit.safetensors"
    export_safetensors(saved, out, ["sampling.cfg_scale=1.75"])
    assert load_denoiser(out)[1].sampling.cfg_scale == 1.75
    with pytest.raises(UserError, match=r"sampling\.cfg_scal: unknown key"):
        export_safetensors(saved, tmp_path / "other.safetensors", ["sampling.cfg_scal=2"])
    assert not (tmp_path / "other.safetensors").exists()


def test_a_published_checkpoint_loads_safely_with_the_configuration_given(golden, config):
    sizes = {"in_size": 8, "num_classes": 16, "depth": 3, "hidden_size": 64, "num_heads": 4}
    decoder = {"decoder_hidden_size": 48, "decoder_depth": 2, "decoder_num_heads": 4}
    values = config.to_dict()
    published = config_from_dict({**values, "model": {**values["model"], **sizes, **decoder}})
    state = load_checkpoint(golden / "0000100.pt")
    assert state["args"].config == "configs/x.yaml"
    denoiser, _ = load_denoiser(golden / "0000100.pt", config=published)
    for name, tensor in denoiser.state_dict().items():
        assert torch.equal(tensor, state["ema"][name])


def test_a_published_checkpoint_alone_asks_for_its_configuration(golden):
    assert "holds no configuration" in fault(golden / "0000100.pt")


def test_a_missing_file_is_named(tmp_path):
    assert "does not exist" in fault(tmp_path / "nowhere.pt")
    assert "does not exist" in fault(tmp_path / "nowhere.safetensors")


def test_a_truncated_file_is_named(saved):
    saved.write_bytes(saved.read_bytes()[:-1000])
    assert "is truncated" in fault(saved)


def test_other_files_are_not_checkpoints(tmp_path):
    for name, content in (("empty.pt", b""), ("text.pt", b"hello"), ("x.safetensors", b"hello")):
        (tmp_path / name).write_bytes(content)
    assert "is empty" in fault(tmp_path / "empty.pt")
    assert "is not a checkpoint" in fault(tmp_path / "text.pt")
    assert "not a safetensors file" in fault(tmp_path / "x.safetensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    assert "neither 'model' nor 'ema'" in fault(tmp_path / "other.pt")


def test_a_checkpoint_without_ema_says_what_it_has(tmp_path, saved):
    state = load_checkpoint(saved)
    path = tmp_path / "weights.pt"
    torch.save({"model": state["model"], "config": state["config"]}, path)
    assert "has no 'ema' weights, only config, model" in fault(path)


def test_weights_that_do_not_fit_are_listed(saved, config):
    state = load_checkpoint(saved)
    ema = {n.replace("y_embedder", "z_embedder"): w for n, w in state["ema"].items()}
    ema["model.x_embedder.proj.bias"] = torch.zeros(7)
    save_checkpoint(saved, {**state, "ema": ema})
    message = fault(saved)
    assert "lacks model.y_embedder.embedding_table.weight" in message
    assert "unknown model.z_embedder.embedding_table.weight" in message
    assert "another shape for model.x_embedder.proj.bias" in message


def test_only_the_first_few_missing_names_are_listed(saved):
    state = load_checkpoint(saved)
    save_checkpoint(saved, {**state, "ema": {}})
    message = fault(saved)
    assert message.count("model.") == 3 and "more" in message


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path):
    path, target = tmp_path / "hostile.pt", tmp_path / "created"
    torch.save({"model": {}, "ema": {}, "config": Payload(target)}, path)
    assert "is refused" in fault(path)
    assert not target.exists()


def test_a_checkpoint_of_a_newer_version_is_refused(saved):
    torch.save({**load_checkpoint(saved), "version": 99}, saved.with_name("new.pt"))
    assert "newer version" in fault(saved.with_name("new.pt"))


def test_the_latest_checkpoint_is_the_newest_that_is_whole(saved, tmp_path):
    folder = saved.parent
    save_checkpoint(folder / "0000020.pt", {**load_checkpoint(saved), "step": 20})
    content = (folder / "0000020.pt").read_bytes()
    middle = len(content) // 2
    # 128 bytes, since up to 64 between two tensors are padding, which no checksum covers.
    flipped = bytes(byte ^ 255 for byte in content[middle : middle + 128])
    flipped = content[:middle] + flipped + content[middle + 128 :]
    (folder / "0000020.pt").write_bytes(flipped)
    (folder / "0000030.pt").write_bytes(content[:middle])
    (folder / ".0000040.pt.77.tmp").write_bytes(content)
    passed_over = []
    assert latest_checkpoint(folder, passed_over.append) == saved
    truncated, damaged = passed_over
    assert "0000030.pt is truncated" in truncated and "0000020.pt is damaged" in damaged


def test_a_folder_without_checkpoints_has_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_an_error_while_writing_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError("no space left")

    with pytest.raises(OSError):
        write_whole(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("keep", "left"), [((2,), [30, 100]), ((1, 10), [10, 30, 100]), ((None,), [2, 10, 30, 100])]
)
def test_only_the_last_checkpoints_and_every_so_many_steps_are_kept(saved, keep, left):
    for step in (2, 100, 30):
        path = saved.parent / f"{step:07d}.pt"
        save_checkpoint(path, {**load_checkpoint(saved), "step": step})
    remove_old(saved.parent, *keep)
    assert list(list_checkpoints(saved.parent)) == left


def test_a_model_of_another_kind_is_refused(tmp_path, saved):
    _, config = load_denoiser(saved)
    path = tmp_path / "vae.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"config": config.to_yaml()})
    assert "unknown a" in fault(path)
