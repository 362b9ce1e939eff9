"""The YAMLs under configs/, and keys of older published configs that have another form today."""

import math
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from models.backbones import MODEL_SIZES
from utils.base.errors import UserError
from utils.config.load import config_from_dict, load_config
from utils.data.derived_sizes import with_derived_sizes
from utils.pretrained.denoisers import denoiser_from_config
from utils.sampling.generate import sampler_settings
from utils.training.experiment import experiment_name
from utils.training.optimizers import token_matrices
from utils.training.schedules import base_rates, lr_after

CONFIGS = ROOT / "configs"
OF_THE_LAUNCHER = "accelerate/"  # not experiments
FILES = {
    name: path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if not (name := str(path.relative_to(CONFIGS))).startswith(OF_THE_LAUNCHER)
}
FACES = {name: path for name, path in FILES.items() if "t2f" in name}
TRAININGS = {name: path for name, path in FILES.items() if "test" not in Path(name).parts}


@pytest.mark.parametrize("name", FILES)
def test_every_config_loads_without_a_note(name, capsys):
    load_config(FILES[name])
    assert capsys.readouterr().err == ""


def test_trainings_go_into_folders_of_their_own():
    own = [
        path for path in TRAININGS.values() if path.parent.name != "study"
    ]  # named by --exp_name
    names = [experiment_name(load_config(path)) for path in own]
    assert len(set(names)) == len(names)


def differing(name: str, base: str = "others/own_images") -> dict[str, set[str]]:
    """Return the keys in which a config differs from another one, section by section."""
    plain, other = (load_config(CONFIGS / f"{n}.yaml").to_dict() for n in (base, name))
    keys = {s: {k for k in plain[s] if plain[s][k] != other[s][k]} for s in plain}
    return {section: names for section, names in keys.items() if names}


def test_pairs_of_ones_own_differ_from_images_alone_in_the_condition_only():
    assert differing("others/own_images_pairs") == {
        "data": {"dataset", "caption_dir", "feat_path", "text_feat_path"},
        "encoders": {"image_mean", "prior"},
        "sampling": {"freedom"},
    }


def test_a_first_try_reads_the_images_of_the_long_training_but_no_database_of_it():
    keys = differing("others/own_images_small")
    assert {"root", "feat_path", "resolution"} <= keys["data"]
    assert {"feat_path", "ref_path"} <= keys["eval"]
    assert not {"image_dir", "caption_dir"} & (keys["data"] | keys["eval"])


def test_a_larger_size_shifts_the_noise_by_its_ratio_and_reads_no_database_of_the_smaller():
    keys = differing("others/own_images_512")
    assert {"root", "feat_path", "resolution"} <= keys["data"]
    assert {"feat_path", "ref_path"} <= keys["eval"]
    assert not {"image_dir", "caption_dir"} & (keys["data"] | keys["eval"])
    small, large = (load_config(CONFIGS / f"others/own_images{s}.yaml") for s in ("", "_512"))
    ratio = large.data.resolution / small.data.resolution
    assert large.train.P_mean - small.train.P_mean == pytest.approx(math.log(ratio), abs=0.01)
    first = [sampler_settings(c.sampling).formulation().t_steps[0] for c in (small, large)]
    assert first[1] == pytest.approx(ratio * first[0])


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("own_images", 32),
        ("own_images_512", 64),
        ("own_images_pairs", 32),
        ("own_images_small", 16),
    ],
)
def test_the_sizes_of_ones_own_configs_follow_from_the_encoders(name, side):
    """The demo's encoders embed into 256 numbers and scale down 8 times."""
    encoders = [f"encoders.{n}={ROOT / 'assets' / 'demo' / n}" for n in ("vae", "clip")]
    path = CONFIGS / "others" / f"{name}.yaml"
    config = with_derived_sizes(load_config(path, encoders), databases=False)
    assert (config.data.feat_dim, config.model.num_classes) == (256, 256)
    assert (config.model.in_channels, config.model.in_size) == (4, side)


def test_the_readme_lists_every_config_once_and_no_other():
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(.+?)\]\((.+?)\) \| .+ \|$", text, re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(FILES)
    assert all(name == link.replace("%2B", "+") for name, link in listed)


@pytest.mark.parametrize("name", FACES)
def test_a_number_in_a_configs_name_is_its_setting(name):
    config = load_config(FACES[name])
    kinds = {"gaus": "gaussian", "gaussian": "gaussian", "perturb": "fixed", "fixed": "fixed"}
    kinds |= {"uniform": "uniform"}
    parts = re.findall(r"(trunc|gaussian|gaus|perturb|fixed|uniform)([0-9.]+)", Path(name).stem)
    assert ("ffhq" if "/ffhq" in name else "mmceleb") == config.data.dataset
    for kind, number in parts[-2:] if "from_ffhq" not in name else parts[-1:]:
        number = float(number.rstrip("."))
        if kind == "trunc":
            assert (config.train.trunc_a, config.train.trunc_b) == (-number, number)
        else:
            assert config.train.perturbation == number
            if "trunc" not in name:
                assert config.train.perturbation_type == kinds[kind]
    assert config.model.perturbation == ("learnable" in name)


@pytest.mark.parametrize(
    ("name", "steps", "batch", "lr", "mask", "scale"),
    [
        ("train/celeb_t2f_gaus1.2", 300_000, 128, 1e-4, 0.5, 1.2),
        ("train/ffhq_t2f_gaus1.5", 300_000, 128, 1e-4, 0.5, 1.5),
        ("finetune/celeb_t2f_gaus1.2", 300_000, 64, 1e-5, 0.0, 1.2),
    ],
)
def test_main_settings_are_the_published_ones(name, steps, batch, lr, mask, scale):
    config = load_config(CONFIGS / "main_config" / f"{name}.yaml")
    model, train = config.model, config.train
    assert (train.max_num_steps, train.batchsize, train.lr) == (steps, batch, lr)
    assert (model.mask_ratio, train.perturbation, train.perturbation_type) == (
        mask,
        scale,
        "gaussian",
    )
    assert (model.model_type, model.in_size, model.in_channels) == ("DiT-XL/2", 32, 4)
    assert (model.num_classes, model.use_decoder) == (512, True)
    assert (model.mae_loss_coef, model.class_dropout_prob) == (0.1, 0.1)
    assert config.data.norm_feature
    assert config.eval.fid_sample_size == 1024


FAST = {"celeb": "celeb_t2f_gaus1.2", "ffhq": "ffhq_t2f_gaus1.5"}
TRAIN = "main_config/train"


@pytest.mark.parametrize("name", FAST)
def test_a_fast_config_differs_from_the_published_one_in_the_named_keys_only(name):
    assert differing(f"{TRAIN}/{name}_fast", f"{TRAIN}/{FAST[name]}") == {
        "model": {"use_decoder", "mae_loss_coef", "sigma_data", "unmasked_tail"},
        "train": {
            *(
                "max_num_steps",
                "optimizer",
                "lr",
                "lr_base_width",
                "lr_warmup_steps",
                "lr_schedule",
            ),
            *("lr_min_ratio", "grad_clip", "ema_rampup", "P_mean"),
        },
        "log": {"tag"},
    }


def test_fast_configs_of_both_datasets_differ_as_the_published_ones_do():
    published = differing(f"{TRAIN}/{FAST['ffhq']}", f"{TRAIN}/{FAST['celeb']}")
    assert differing(f"{TRAIN}/ffhq_fast", f"{TRAIN}/celeb_fast") == published


@pytest.mark.parametrize("name", FAST)
def test_a_fast_config_builds_the_published_encoder_for_latents_of_deviation_1(name):
    with torch.device("meta"):
        fast, published = (
            denoiser_from_config(load_config(CONFIGS / TRAIN / f"{n}.yaml"))
            for n in (f"{name}_fast", FAST[name])
        )
    assert (fast.sigma_data, published.sigma_data) == (1.0, 0.5)
    blocks = [
        {k: w.shape for k, w in n.state_dict().items() if k.startswith("model.blocks.")}
        for n in (fast, published)
    ]
    assert blocks[0] and blocks[0] == blocks[1]
    assert len(token_matrices(fast)) == 4 * 28  # blocks of the encoder


@pytest.mark.parametrize("name", FAST)
def test_rates_and_noise_of_a_fast_config_are_carried_over_by_the_rules_it_names(name):
    fast, demo = (load_config(CONFIGS / f"{n}.yaml") for n in (f"{TRAIN}/{name}_fast", "demo/demo"))
    width, demo_width = (MODEL_SIZES[f"DiT-{size}/2"][1] for size in ("XL", "T"))
    (lr, muon_lr), (demo_lr, demo_muon_lr) = base_rates(fast), base_rates(demo)
    assert lr == pytest.approx(demo_lr * demo_width / width)
    assert muon_lr == pytest.approx(demo_muon_lr * (demo_width / width) ** 0.5)
    assert fast.train.P_mean == pytest.approx(-1.2 + math.log(2), abs=0.01)


OURS = ("demo/", "photos/", "others/photos", "others/own_images", "others/sfhq")


def test_published_configs_keep_the_constant_average_by_name_and_ours_ramp():
    ours = {name for name in FILES if name.startswith(OURS)}
    ours |= {f"{TRAIN}/{name}_fast.yaml" for name in FAST}
    ours.remove("demo/recipes/published.yaml")
    for name, path in FILES.items():
        config = load_config(path)
        assert (config.train.ema_rampup is None) == (name not in ours), name
        assert "ema_rampup" in config.train.model_fields_set or name in ours, name


def load(tmp_path: Path, text: str):
    path = tmp_path / "old.yaml"
    path.write_text(text)
    return load_config(path)


def test_bounds_that_do_not_matter_are_no_fault(tmp_path):
    text = (
        "train: {trunc_a: 0, trunc_b: 0, mean: 0, perturbation: 1.2, perturbation_type: gaussian}"
    )
    assert load(tmp_path, text).train.perturbation == 1.2


def test_false_in_the_old_place_of_the_perturbation_is_no_noise_scale(tmp_path):
    text = "model: {perturbation: False}\ntrain: {perturbation: 1.2, perturbation_type: gaussian}"
    config = load(tmp_path, text)
    assert (config.model.perturbation, config.train.perturbation) == (False, 1.2)


def test_a_learned_perturbation_without_type_comes_after_a_fixed_one(tmp_path):
    config = load(tmp_path, "model: {perturbation: True}\ntrain: {perturbation: 0.8}")
    assert config.model.perturbation
    assert (config.train.perturbation_type, config.train.perturbation) == ("fixed", 0.8)


@pytest.mark.parametrize("kind", ["trunc_gaussian", "scipy_trunc_gaussian", "clip_trunc_gaussian"])
def test_older_names_of_the_truncated_perturbation(tmp_path, kind):
    text = f"train: {{perturbation_type: {kind}, trunc_a: 0.7, trunc_b: 0.9, perturbation: 0.001}}"
    assert load(tmp_path, text).train.perturbation_type == "truncated"


def test_one_truncation_bound_is_read_as_two_with_a_note(tmp_path, capsys):
    text = "train: {perturbation_type: trunc_gaussian, truncation: 0.8, perturbation: 1.2}"
    train = load(tmp_path, text).train
    assert (train.trunc_a, train.trunc_b) == (-0.8, 0.8)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1
    assert "train.truncation 0.8 is read as trunc_a -0.8, trunc_b 0.8" in notes[0]


@pytest.mark.parametrize("key", ["log: {fid_every: 10}", "data: {total_num: 5}", "wandb: {a: b}"])
def test_a_key_without_effect_is_one_line(tmp_path, capsys, key):
    load(tmp_path, key)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1
    assert "have no effect here" in notes[0]


def test_no_perturbation_may_be_called_none(tmp_path):
    text = "train: {perturbation: 0, truncation: 0, perturbation_type: none}"
    assert load(tmp_path, text).train.perturbation == 0
    with pytest.raises(UserError, match="perturbation_type: none contradicts train.perturbation"):
        load(tmp_path, "train: {perturbation: 0.5, perturbation_type: none}")


@pytest.mark.parametrize(
    ("value", "early", "later"), [("5.0e-4", 5e-4, 1e-4), ("True", 5e-5, 1e-4), ("0", 1e-4, 1e-4)]
)
def test_warm_up_holds_a_rate_rises_or_is_off(tmp_path, value, early, later):
    config = load(tmp_path, f"train: {{lr: 1.0e-4, lr_warmup: {value}, lr_warmup_steps: 20}}")
    assert lr_after(10, 100, config) == pytest.approx(early)
    assert lr_after(20, 100, config) == pytest.approx(later)
    assert lr_after(310, 400, config, first_step=300) == pytest.approx(early)
    assert lr_after(320, 400, config, first_step=300) == pytest.approx(later)


@pytest.mark.parametrize("value", ["fast", -0.1, None])
def test_a_bad_warm_up_is_one_line(value):
    with pytest.raises(UserError, match=r"^x: train\.lr_warmup: should be a learning rate, true"):
        config_from_dict({"train": {"lr_warmup": value}}, "x")
