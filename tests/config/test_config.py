"""The configuration: published files stay valid, and all faults are named at once."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from utils.base.errors import UserError, note
from utils.config.fields import SAMPLING_PRESETS, SamplingPreset
from utils.config.load import config_from_dict, load_config
from utils.config.sampling_sections import Sampling
from utils.config.schema import Config

PUBLISHED = """
data:
  dataset: imagenet256-latent
  category: lmdb
  resolution: 32
  num_channels: 4
  random_flip: True
  total_num: 24000
  root: ../data/train_latents
  feat_path: None
model:
  precond: edm
  model_type: DiT-XL/2
  in_size: 32
  in_channels: 4
  num_classes: 1000
  use_decoder: True
  ext_feature_dim: 0
  pad_cls_token: False
  mask_ratio: 0.5
  mask_ratio_fn: cos4
  mask_ratio_min: 0
  mae_loss_coef: 0.1
  class_dropout_prob: 0.1
train:
  tf32: True
  amp: True
  batchsize: 64
  lr: 0.00005
  max_num_steps: 100_000
  truncation: 1
eval:
  cfg_scales: [1.5]
  batchsize: 50
  ref_path: assets/fid_stats/reference.npz
log:
  log_every: 500
  ckpt_every: 12_500
  tag: finetune
wandb:
  entity: someone
  project: something
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def faults(path: Path, *overrides: str, require: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides, require)
    return str(caught.value).splitlines()


def test_published_config_keeps_its_meaning(write):
    config = load_config(write(PUBLISHED))
    assert config.data.root == Path("../data/train_latents")
    assert config.data.feat_path is None
    assert config.train.amp == "bf16"
    assert config.train.max_num_steps == 100_000
    assert config.model.mask_ratio_fn == "cosine4"
    assert config.eval.cfg_scales == [1.5]
    assert config.train.ema_rampup is None  # its average has one decay from the first step


def test_keys_without_effect_are_named_in_one_line(write, capsys):
    load_config(write(PUBLISHED))
    lines = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert len(lines) == 1
    for key in ("wandb", "data.total_num", "data.random_flip", "train.truncation"):
        assert key in lines[0]


def test_latent_side_given_as_resolution_is_read_as_pixels(write, capsys):
    assert load_config(write(PUBLISHED)).data.resolution == 256
    assert "256 pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("data: {resolution: 32}", []),  # of 32 pixels; no published config leaves in_size out
        ("model: {in_size: 32}", ["data.resolution=32"]),
        ("data: {resolution: 32}", ["model.in_size=32"]),
        ("data: {resolution: 64}\nmodel: {in_size: 8}", []),
    ],
)
def test_a_resolution_of_pixels_stays(write, text, overrides, capsys):
    resolution = load_config(write(text), overrides).data.resolution
    assert resolution in (32, 64) and "pixels" not in capsys.readouterr().err


def test_defaults_are_the_published_behaviour_but_for_the_ramp_of_the_average(write):
    config = load_config(write("data: {}"))
    assert (config.model.model_type, config.model.decoder_depth) == ("DiT-XL/2", 8)
    assert (config.train.lr, config.train.betas, config.train.weight_decay) == (
        1e-4,
        (0.9, 0.999),
        0.0,
    )
    assert (config.train.P_mean, config.train.P_std) == (-1.2, 1.2)
    assert (config.train.ema_decay, config.train.lr_schedule) == (0.9999, "constant")
    assert config.train.ema_rampup == 0.1
    assert (config.sampling.solver, config.sampling.num_steps) == ("heun", 40)


def test_every_sampling_preset_has_values_and_no_other():
    assert set(SAMPLING_PRESETS) == set(get_args(SamplingPreset))


def test_a_sampling_preset_fills_in_what_is_not_set(write):
    fast = load_config(write("sampling: {preset: fast, num_steps: 7}")).sampling
    assert (fast.solver, fast.num_steps, fast.amp) == ("dpmpp_2m", 7, "bf16")
    assert fast.guidance_interval == (0.3, 1000)
    paper = load_config(write("sampling: {preset: paper}")).sampling
    assert paper == Sampling()
    assert config_from_dict({"sampling": fast.model_dump(mode="json")}).sampling == fast


def test_a_preset_on_the_command_line_comes_before_the_file_but_not_before_other_overrides(write):
    path = write("sampling: {preset: fast, solver: euler, rho: 5}")
    paper = load_config(path, ["sampling.preset=paper"]).sampling
    assert (paper.solver, paper.num_steps, paper.amp, paper.rho) == ("heun", 40, "no", 5)
    assert load_config(path, ["sampling.num_steps=9", "sampling.preset=paper"]).sampling == (
        paper.model_copy(update={"num_steps": 9})
    )


def test_all_faults_are_listed_at_once_with_file_and_key(write):
    path = write("train:\n  lr: fast\n  batchsize: 0\nmodel:\n  mask_ration: 0.3\n")
    lines = faults(path, require=("data.root",))
    assert len(lines) == 4
    assert all(line.startswith(f"{path}: ") for line in lines)
    keys = ("data.root", "train.lr", "train.batchsize", "model.mask_ration")
    assert all(any(f": {key}: " in line for line in lines) for key in keys)


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("model: {mask_ration: 0.3}", "unknown key; did you mean model.mask_ratio?"),
        ("model: {lr: 0.1}", "unknown key; did you mean train.lr?"),
        ("modle: {}", "unknown key; did you mean model?"),
        (
            "sampling: {preset: quick}",
            "should be 'fast', 'fast8', 'instant' or 'paper', got 'quick'",
        ),
        ("sampling: {preset: instant}", "names its sigmas in distill.sigmas"),
        ("sampling: {sigmas: [5, 80]}", "sampling.sigmas: [5, 80] should be one or more"),
        ("distill: {sigmas: [80, 0.01]}", "0.02 is not below the last of distill.sigmas (0.01)"),
        ("sampling: {num_steps: 1000000000}", "should be less than or equal to 10000, got"),
        ("sampling: {solver: huen}", "should be 'heun', 'euler' or 'dpmpp_2m', got 'huen'"),
        ("model: {mask_ratio_fn: cosin4}", "did you mean cosine4?"),
        ("train: 5", "should be a section of keys, got 5"),
        ("train: {lr: 1, lr: 2}", "key 'lr' is given twice"),
        ("train: [", "not valid YAML"),
        ("just words", "should hold sections"),
        ("train: {batchsize: 10, grad_accum: 3}", "3 does not divide batchsize (10)"),
        ("train: {perturbation_type: truncated, trunc_a: 1, trunc_b: 0}", "is not above trunc_a"),
        ("sampling: {guidance_interval: [3, 1]}", "the lower end comes first"),
        ("model: {perturbation: 1}\ntrain: {perturbation: 2}", "contradicts train.perturbation"),
    ],
)
def test_a_fault_is_one_line_that_says_what_and_where(write, yaml_text, message):
    path = write(yaml_text)
    lines = faults(path)
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].startswith(str(path))


def test_missing_file_is_named(tmp_path):
    assert faults(tmp_path / "none.yaml") == [
        f"{tmp_path / 'none.yaml'}: cannot be read (No such file or directory); "
        "give --config a YAML file"
    ]


def test_overrides_are_yaml_values_and_win(write):
    path = write("train: {lr: 0.1}\n")
    config = load_config(
        path,
        ["train.lr=5e-5", "train.betas=[0.9, 0.95]", "data.root=x/y z", "train.grad_clip=null"],
    )
    assert config.train.lr == 5e-5
    assert config.train.betas == (0.9, 0.95)
    assert config.data.root == Path("x/y z")
    assert config.train.grad_clip is None


def test_an_overrides_fault_blames_the_override(write):
    lines = faults(write("train: {}"), "train.lrr=3", "train.batchsize=x")
    assert sorted(lines) == [
        "override train.batchsize: should be a valid integer, got 'x'",
        "override train.lrr: unknown key; did you mean train.lr?",
    ]


def test_an_override_without_section_gets_the_full_key_suggested(write):
    assert faults(write("train: {}"), "max_num_steps=3") == [
        "override 'max_num_steps=3': should look like section.key=value; "
        "did you mean train.max_num_steps?"
    ]


def test_old_place_of_perturbation_is_understood(write):
    config = load_config(write("model: {perturbation: 1.2}"))
    assert config.train.perturbation == 1.2


@pytest.mark.parametrize(
    ("train", "kind", "scale"),
    [("{}", "gaussian", 0), ("{perturbation: 0.8}", "fixed", 0.8)],
)
def test_a_published_learnable_perturbation_is_alone_or_with_the_fixed_one(
    write, train, kind, scale
):
    config = load_config(write(f"model: {{perturbation: True}}\ntrain: {train}"))
    assert config.learns_perturbation
    assert (config.train.perturbation, config.train.perturbation_type) == (scale, kind)


def test_the_learnable_type_is_a_learnable_perturbation_alone(write):
    path = write("train: {perturbation_type: learnable, perturbation: 1}")
    assert load_config(path).learns_perturbation
    assert not load_config(path, ["train.perturbation=0"]).learns_perturbation
    assert not load_config(path, ["train.perturbation_type=gaussian"]).learns_perturbation


def test_resolved_config_survives_yaml_and_a_checkpoint(write):
    config = load_config(write(PUBLISHED))
    text = config.to_yaml()
    assert load_config(write(text)) == config
    assert config_from_dict(yaml.safe_load(text)) == config
    assert config_from_dict(config.to_dict()) == config
    assert Config().sampling.S_max == float("inf")


def test_bad_checkpoint_config_is_a_users_error():
    with pytest.raises(UserError, match=r"^x\.pt: model\.depht: unknown key; did you mean"):
        config_from_dict({"model": {"depht": 3}}, source="x.pt")


def test_notes_are_printed_by_the_main_process_only(monkeypatch, capsys):
    note("first")
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    note("second")
    assert capsys.readouterr().err == "note: first\n"


def test_explicit_sigmas_set_the_number_of_steps(write):
    path = write("sampling: {preset: fast, sigmas: [80, 5, 0.5]}")
    sampling = load_config(path).sampling
    assert (sampling.sigmas, sampling.num_steps) == ((80, 5, 0.5), 3)
    assert config_from_dict({"sampling": sampling.model_dump(mode="json")}).sampling == sampling


def test_sigmas_of_the_command_line_replace_the_number_of_steps_of_the_file(write):
    path = write("sampling: {preset: fast, num_steps: 7}")
    sampling = load_config(path, ["sampling.sigmas=[80,5,1.5,0.5]"]).sampling
    assert (sampling.sigmas, sampling.num_steps) == ((80, 5, 1.5, 0.5), 4)


def test_a_later_preset_forgets_the_sigmas(write):
    path = write("sampling: {sigmas: [80, 5]}")
    assert load_config(path, ["sampling.preset=fast"]).sampling == Sampling(preset="fast")


def test_the_preset_of_students_takes_the_sigmas_of_the_student(write):
    path = write("distill: {sigmas: [80, 1.5]}\nsampling: {preset: instant}")
    sampling = load_config(path).sampling
    assert (sampling.solver, sampling.sigmas, sampling.num_steps) == ("euler", (80, 1.5), 2)
    assert sampling.amp == "bf16"


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=.inf",
        "train.lr_warmup=.inf",
        "train.P_mean=.nan",
        "sampling.cfg_scale=.nan",
        "sampling.sigma_max=.inf",
        "sampling.sigmas=[.inf,1]",
        "eval.cfg_scales=[2,.inf]",
        "train.trunc_a=.nan",
    ],
)
def test_settings_are_finite_but_for_the_ends_of_ranges(write, override):
    with pytest.raises(UserError) as refused:
        load_config(write("data: {}"), (override,))
    (line,) = str(refused.value).splitlines()
    assert override.partition("=")[0] in line
    bounds = ("sampling.S_max=.inf", "train.trunc_b=.inf", "sampling.guidance_interval=[0.3,.inf]")
    assert load_config(write("data: {}"), bounds).sampling.S_max == float("inf")
