"""Trainings of a few weights beside those of a base, their files, and what starts from another."""

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import (
    DIM,
    make_tiny_config,
    make_tiny_denoiser,
    make_tiny_release,
    make_tiny_training_data,
)
from trainings import final_state, run, run_script

from models.adapters import adapt, fingerprint, plain_weights
from models.blocks import sincos_2d
from models.choices import Adaptation
from models.edm import EDMPrecond, build_denoiser
from train_latent_t2f import train
from utils.base.errors import UserError
from utils.config.load import load_config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.pretrained.denoisers import export_safetensors, load_denoiser
from utils.release.adapter import export_adapter
from utils.release.folder import export_folder
from utils.release.pipeline import TextToFacePipeline
from utils.sampling.text_to_face import TextToFace
from utils.training.teacher import Teacher

KINDS = [kind for kind in get_args(Adaptation) if kind != "all"]
LAST = "checkpoints/0000004.pt"


def output(denoiser: EDMPrecond) -> torch.Tensor:
    """Denoise fixed latents with fixed conditions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 2, 2, generator=generator)
    return denoiser(x, 0.7, torch.randn(3, DIM, generator=generator)).detach()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Write a released network with its encoders, and databases beside it; return its file."""
    folder = tmp_path_factory.mktemp("base")
    released = make_tiny_release(folder)
    make_tiny_training_data(load_config_of(released))
    return released


def load_config_of(released: Path):
    return make_tiny_config(released.parent)


@pytest.fixture(scope="module")
def config(base) -> Path:
    """Write the config of short trainings on these databases."""
    settings = make_tiny_config(
        base.parent,
        model={"mask_ratio": 0},
        train={"max_num_steps": 4, "lr": 0.05, "ema_decay": 0.5},
        log={"log_every": 1, "ckpt_every": 2, "sample_every": 0, "use_tensorboard": False},
    )
    path = base.parent / "config.yaml"
    path.write_text(settings.to_yaml())
    return path


@pytest.fixture(scope="module")
def trained(base, config):
    """Return `trained(kind)`, the folder of a training from the base, made once."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            options = (f"train.adapt={kind}", "train.lora_rank=2")
            made[kind] = run(config, base.parent / kind, *options, start_from=base)
        return made[kind]

    return of


# --- The mathematics


def make_tiny_uvit() -> EDMPrecond:
    """Build a U-ViT with all weights random."""
    sizes = {"depth": 2, "hidden_size": 16, "num_heads": 2, "use_decoder": False}
    denoiser = build_denoiser("UViT-S/2", 2, 4, DIM, **sizes)
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return denoiser.eval()


@pytest.mark.parametrize("make", [make_tiny_denoiser, make_tiny_uvit])
@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_change_nothing_and_plain_ones_compute_the_same(kind, make):
    plain, adapted = make(), make()
    adapt(adapted, kind, rank=2)
    torch.testing.assert_close(output(adapted), output(plain))
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    assert not torch.allclose(output(adapted), output(plain), atol=0.001)
    plain.load_state_dict(plain_weights(adapted.state_dict()))
    torch.testing.assert_close(output(adapted), output(plain), rtol=1e-4, atol=1e-4)


def trained_names(kind: str) -> set[str]:
    denoiser = make_tiny_denoiser()
    adapt(denoiser, kind, rank=2)
    return {name for name, p in denoiser.named_parameters() if p.requires_grad}


def test_each_choice_trains_the_weights_it_names():
    condition = {"model.y_embedder.embedding_table.weight"}
    lora, difffit = trained_names("lora"), trained_names("difffit")
    assert trained_names("condition") == condition
    assert len(lora) == 3 * 4 * 2 and all(".lora_" in name for name in lora)
    biases = {n for n, _ in make_tiny_denoiser().named_parameters() if n.endswith(".bias")}
    assert {name for name in difffit if not name.endswith(".gamma")} == biases
    assert sum(name.endswith(".gamma") for name in difffit) == 3 * 2
    for kind, names in (("lora", lora), ("difffit", difffit)):
        assert trained_names(f"{kind}+condition") == names | condition


def test_a_fingerprint_survives_half_precision_and_tells_networks_apart():
    one, other = make_tiny_denoiser().state_dict(), make_tiny_denoiser(1).state_dict()
    assert fingerprint(one) == fingerprint({name: tensor.half() for name, tensor in one.items()})
    assert fingerprint(one) != fingerprint(other)


# --- Trainings


@pytest.mark.parametrize("kind", ["lora+condition", "difffit"])
def test_a_continued_training_equals_the_uninterrupted_one(kind, trained, config, tmp_path):
    cut = Path(shutil.copytree(trained(kind), tmp_path / "cut"))
    (cut / LAST).unlink()
    run(config, cut, f"train.adapt={kind}", "train.lora_rank=2")
    assert final_state(cut) == final_state(trained(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_weights_move_and_all_of_them_do(kind, trained, base):
    before, state = load_file(base), load_checkpoint(trained(kind) / LAST)
    names = trained_names(kind)
    for which in ("model", "ema"):
        moved = {n for n, w in state[which].items() if n in before and not w.equal(before[n])}
        assert moved - names == set() and names - moved == names - before.keys()
    assert len(state["opt"]["state"]) == len(names)


def test_accumulated_steps_and_averages_train_an_adapter_with_muon_in_the_config(
    trained, config, base, tmp_path
):
    more = ("train.optimizer=muon", "train.grad_accum=2")
    averages = ("train.power_ema=[0.05,0.1]", "train.activation_checkpointing=true")
    options = ("train.adapt=lora", "train.lora_rank=2", "train.max_num_steps=2")
    folder = run(config, tmp_path / "run", *options, *more, *averages, start_from=base)
    state = load_checkpoint(folder / "checkpoints/0000002.pt")
    assert state["power_ema"]["weights"][0].keys() == state["ema"].keys()


def test_an_adapter_needs_a_base(config, tmp_path):
    with pytest.raises(UserError, match="train.adapt=lora: trains a few weights.*--ckpt_path"):
        train(load_config(config, ["train.adapt=lora"]), tmp_path / "run", None, False)


# --- Files


@pytest.mark.parametrize("kind", KINDS)
def test_base_and_adapter_give_the_network_of_the_checkpoint(kind, trained, base, tmp_path):
    checkpoint = trained(kind) / LAST
    count = export_adapter(checkpoint, tmp_path / "adapter.safetensors")
    beside, _ = load_denoiser(base, adapters=[tmp_path / "adapter.safetensors"])
    whole, config = load_denoiser(checkpoint)
    assert not torch.allclose(output(load_denoiser(base)[0]), output(whole), atol=0.01)
    torch.testing.assert_close(output(beside), output(whole), rtol=0.01, atol=0.01)
    assert count == sum(w.numel() for w in load_file(tmp_path / "adapter.safetensors").values())


def test_adapters_add_up_by_their_amounts(trained, base, tmp_path):
    files = [tmp_path / "lora.safetensors", tmp_path / "difffit.safetensors"]
    for file in files:
        export_adapter(trained(file.stem) / LAST, file)
    plain, lora, difffit = (
        load_denoiser(base, adapters=given)[0].state_dict() for given in ([], *([f] for f in files))
    )
    given = [f"{files[0]}:0.25", f"{files[1]}:-0.5"]
    mixture = load_denoiser(base, adapters=given)[0].state_dict()
    for name, tensor in mixture.items():
        changes = 0.25 * (lora[name] - plain[name]) - 0.5 * (difffit[name] - plain[name])
        torch.testing.assert_close(tensor, plain[name] + changes)


@pytest.mark.parametrize("amount", ["1e30", "-10.5", "inf"])
def test_a_weight_beyond_use_is_refused_by_the_name_of_its_adapter(trained, base, tmp_path, amount):
    export_adapter(trained("lora") / LAST, tmp_path / "lora.safetensors")
    given = f"{tmp_path / 'lora.safetensors'}:{amount}"
    with pytest.raises(UserError, match=rf"--adapter .*{re.escape(given)}: .* from -10 to 10"):
        load_denoiser(base, adapters=[given])


def test_images_that_an_adapter_breaks_are_refused_by_its_name(trained, base, tmp_path):
    export_adapter(trained("lora") / LAST, tmp_path / "lora.safetensors")
    weights = load_file(tmp_path / "lora.safetensors")
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        about = file.metadata()
    broken = {name: torch.full_like(tensor, 6e4) for name, tensor in weights.items()}
    save_file(broken, tmp_path / "huge.safetensors", metadata=about)
    given = f"{tmp_path / 'huge.safetensors'}:10"
    faces = TextToFace.load(base, device="cpu", adapters=[given])
    for negative in (None, "a beard"):
        with pytest.raises(UserError, match=f"infinite latents; .*weight of {re.escape(given)}"):
            faces.generate("a face", num_steps=2, freedom=0, cfg_scale=2, negative=negative)
    with pytest.raises(UserError, match=f"float16: bring the weight of {re.escape(given)}"):
        export_safetensors(base, tmp_path / "x.safetensors", adapters=[given])


def test_an_adapter_beside_another_network_is_refused_with_both_names(trained, tmp_path):
    export_adapter(trained("lora") / LAST, tmp_path / "lora.safetensors")
    save_file(make_tiny_denoiser(7).half().state_dict(), tmp_path / "other.safetensors")
    config = load_config(trained("lora") / "config.yaml")
    with pytest.raises(UserError, match=r"beside dit\.safetensors .*other\.safetensors"):
        load_denoiser(
            tmp_path / "other.safetensors", config=config, adapters=[tmp_path / "lora.safetensors"]
        )
    with pytest.raises(UserError, match="is no adapter"):
        load_denoiser(tmp_path / "other.safetensors", config=config,
                      adapters=[tmp_path / "other.safetensors"])  # fmt: skip


def test_a_folder_holds_what_peft_reads(trained, base, tmp_path):
    export_adapter(trained("lora+condition") / LAST, tmp_path / "mine")
    described = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert (described["peft_type"], described["r"], described["lora_alpha"]) == ("LORA", 2, 2)
    names = load_file(tmp_path / "mine" / "adapter_model.safetensors").keys()
    assert "base_model.model.model.blocks.0.attn.qkv.lora_A.weight" in names
    assert "base_model.model.model.y_embedder.embedding_table.weight" in names
    load_denoiser(base, adapters=[tmp_path / "mine"])


def test_a_checkpoint_that_is_no_adapter_cannot_be_exported_as_one(base, tmp_path):
    with pytest.raises(UserError, match="holds a network of which all weights were trained"):
        export_adapter(base.parent / "0000010.pt", tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is not a checkpoint, the .pt file of a training"):
        export_adapter(base, tmp_path / "x.safetensors")


def test_release_pipeline_and_command_take_an_adapter(trained, base, tmp_path):
    adapter = tmp_path / "lora.safetensors"
    export_adapter(trained("lora") / LAST, adapter)
    faces = TextToFace.load(base, device="cpu", adapters=[adapter])
    generation = faces.generate("a face", num_steps=2, freedom=0)
    assert generation.text["adapters"] == str(adapter)
    pipe = TextToFacePipeline.holding(TextToFace.load(base, device="cpu"))
    pipe.set_progress_bar_config(disable=True)

    def image() -> bytes:
        return pipe("a face", num_steps=2, freedom=0).images[0].tobytes()

    plain = image()
    pipe.load_adapters(adapter)
    assert image() == generation.images[0].tobytes() != plain
    pipe.load_adapters()
    assert image() == plain
    export_folder(base, tmp_path / "release", ["sampling.num_steps=2"], "cpu", [adapter])
    released, _ = load_denoiser(
        tmp_path / "release/denoiser/diffusion_pytorch_model.safetensors", config=faces.config
    )
    torch.testing.assert_close(output(released), output(faces.denoiser), rtol=0.01, atol=0.01)
    assert Image.open(tmp_path / "release/samples.png").size[0] > 0


def test_a_student_begins_with_the_adapted_network_and_learns_from_it(
    trained, base, config, tmp_path
):
    adapter = tmp_path / "adapter.safetensors"
    export_adapter(trained("lora") / LAST, adapter)
    words = ["--config", config, "--results_dir", tmp_path, "--exp_name", "run"]
    words += ["--teacher", base, "--adapter", f"{adapter}:0.5"]
    words += ["distill.sigmas=[20,2]", "distill.teacher_steps=1", "sampling.preset=instant"]
    words += ["sampling.cfg_scale=null", "train.max_num_steps=1", "train.lr=1e-9"]
    assert run_script(*words) == 0
    plain, _ = load_denoiser(base)
    adapted, _ = load_denoiser(base, adapters=[f"{adapter}:0.5"])
    student, settings = load_denoiser(tmp_path / "run" / "checkpoints" / "0000001.pt")
    teacher = Teacher(settings, torch.device("cpu")).network
    assert not torch.allclose(output(teacher), output(plain), atol=0.01)
    torch.testing.assert_close(output(teacher), output(adapted))
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(weight, adapted.state_dict()[name], rtol=0, atol=1e-6)


# --- Starts from networks of another condition, kind or size


def test_class_labels_are_replaced_by_a_fresh_condition_layer(config, base, tmp_path):
    weights = make_tiny_denoiser(cond_dim=1000).state_dict()
    torch.save({"ema": weights, "model": weights}, tmp_path / "imagenet.pt")
    kind = ("train.adapt=lora+condition", "train.lora_rank=2")
    folder = run(config, tmp_path / "run", *kind, start_from=tmp_path / "imagenet.pt")
    log = (folder / "log.txt").read_text()
    assert "is replaced by a fresh layer for 16 numbers; all other weights are kept" in log
    state = load_checkpoint(folder / LAST)["model"]
    kept = "model.blocks.0.attn.qkv.weight"
    assert torch.equal(state[kept], weights[kept])
    with pytest.raises(UserError, match="some of its weights were fresh"):
        export_adapter(folder / LAST, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="train.adapt=lora: would leave weights untrained"):
        train(load_config(config, ["train.adapt=lora"]), tmp_path / "no",
              tmp_path / "imagenet.pt", False)  # fmt: skip


def test_a_network_of_dits_code_gives_its_blocks_and_the_sign_of_its_output(config, tmp_path):
    """DiT's code names weights without `model.`, and predicts noise and variance of 4 channels."""
    sizes = ("model.use_decoder=false", "model.mask_ratio=0")
    source = build_denoiser("DiT-S/2", 2, 8, 1000, use_decoder=False, depth=2, hidden_size=32,
                            num_heads=2).model.state_dict()  # fmt: skip
    source["x_embedder.proj.weight"] = source["x_embedder.proj.weight"][:, :4].clone()
    source["y_embedder.embedding_table.weight"] = torch.randn(1001, 32)
    source["final_layer.linear.weight"] = torch.randn(2 * 2 * 8, 32)
    torch.save(source, tmp_path / "DiT-S-2.pt")
    folder = run(config, tmp_path / "run", *sizes, "train.max_num_steps=2", "train.lr=1e-9",
                 start_from=tmp_path / "DiT-S-2.pt")  # fmt: skip
    state = load_checkpoint(folder / "checkpoints/0000002.pt")["model"]
    noise = source["final_layer.linear.weight"].view(4, 8, 32)[:, :4].reshape(16, 32)
    torch.testing.assert_close(state["model.final_layer.linear.weight"], -noise, atol=1e-6, rtol=0)
    assert "learns anew" in (folder / "log.txt").read_text()


def test_positions_of_a_larger_grid_lie_between_those_of_the_smaller_one():
    small, large = sincos_2d(32, 4), sincos_2d(32, 8, of_grid=4)
    assert torch.equal(small, sincos_2d(32, 4, of_grid=4))
    means = large.view(4, 2, 4, 2, 32).mean(dim=(1, 3)).view(16, 32)
    assert (means - small[0]).abs().max() < 0.05
