"""Parts of a training: order of the data, schedules, average of the weights, experiment folder."""

from itertools import islice
from typing import get_args

import pytest
import torch
from golden_models import small_denoiser
from tiny import make_tiny_denoiser

from models.choices import MaskSchedule
from models.edm import edm_loss, random_for_loss
from utils.base.errors import UserError
from utils.base.read_ahead import read_ahead
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.pretrained.checkpoint_files import load_checkpoint
from utils.training.batches import DataOrder, derived_seed
from utils.training.distributed import images_per_forward
from utils.training.ema import EMA, describe_average, ema_decay_at, initial_fraction
from utils.training.experiment import check_continuation, differences, experiment_name
from utils.training.schedules import (
    base_rates,
    check_mask_ratio,
    jumps_of_longer,
    lr_after,
    mask_ratio_after,
    number_of_steps,
)

pytestmark = pytest.mark.bits  # of `make test-machines`


def config_with(**sections) -> Config:
    """Return a config with these sections, otherwise with defaults."""
    return config_from_dict(sections, "test")


# --- The order of the data


def test_each_epoch_shows_every_image_once_in_a_new_order():
    order = DataOrder(10, seed=0)
    epochs = [order.indices(10 * e, 10).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_does_not_depend_on_how_it_is_read():
    whole = DataOrder(10, seed=0).indices(0, 60)
    by_threes = [DataOrder(10, seed=0).indices(p, 3) for p in range(0, 60, 3)]
    assert torch.equal(torch.cat(by_threes), whole)
    assert not torch.equal(DataOrder(10, seed=1).indices(0, 60), whole)


def test_seeds_differ_in_every_part():
    parts = [(0, "order", 1), (0, "order", 2), (0, "noise", 1), (1, "order", 1), (0, "order", 11)]
    assert len({derived_seed(*p) for p in parts}) == len(parts)
    assert derived_seed(0, "order", 1) == derived_seed(0, "order", 1)


def test_reading_ahead_keeps_order_and_passes_errors_on():
    def read(position: int) -> int:
        if position == 4:
            raise UserError("sample 4 is damaged")
        return position

    results = read_ahead(read, range(10))
    assert list(islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="sample 4"):
        next(results)


# --- Schedules


def test_learning_rate_rises_over_the_given_images_then_stays():
    config = config_with(train={"lr": 1e-3, "lr_rampup_kimg": 1, "batchsize": 100})
    rates = [lr_after(step, 100, config) for step in (0, 5, 10, 99)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 1e-3])


def test_learning_rate_rises_over_the_given_steps_unless_switched_off():
    train = {"lr": 1e-3, "lr_warmup_steps": 10}
    assert lr_after(5, 100, config_with(train=train)) == pytest.approx(5e-4)
    assert lr_after(5, 100, config_with(train={**train, "lr_warmup": False})) == 1e-3


def test_the_rates_follow_the_width_of_the_network():
    train = {"lr": 1e-3, "muon_lr": 4e-3, "lr_base_width": 192}
    for model, width in (({"model_type": "DiT-T/2"}, 192), ({"hidden_size": 768}, 768)):
        config = config_with(train=train, model=model)
        assert base_rates(config) == pytest.approx((0.192 / width, 4e-3 * (192 / width) ** 0.5))
        assert lr_after(50, 100, config) == pytest.approx(0.192 / width)
    assert base_rates(config_with(train={"lr": 1e-3}))[0] == 1e-3  # of any width, as published


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.55), ("linear", 0.55)])
def test_learning_rate_falls_to_its_minimum_at_the_last_step(schedule, half):
    config = config_with(train={"lr": 1.0, "lr_schedule": schedule, "lr_min_ratio": 0.1})
    rates = [lr_after(step, 100, config) for step in (0, 50, 100)]
    assert rates == pytest.approx([1.0, half, 0.1])


def test_the_tail_of_the_training_is_unmasked():
    config = config_with(model={"mask_ratio": 0.5, "unmasked_tail": 0.25})
    assert [mask_ratio_after(s, 8, config) for s in range(8)] == [0.5] * 6 + [0, 0]


def test_the_mask_ratio_follows_its_schedule():
    config = config_with(model={"mask_ratio": 0.5, "mask_ratio_fn": "cosine2"})
    ratios = [mask_ratio_after(s, 2, config) for s in range(2)]
    assert ratios == pytest.approx([0.5, 0.25])


SCHEDULES = [name for name in get_args(MaskSchedule) if name != "constant"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("lowest", [0.0, 1e-12])
def test_every_mask_schedule_has_finite_losses_to_its_last_step(schedule, lowest):
    model = {"mask_ratio": 0.5, "mask_ratio_fn": schedule, "mask_ratio_min": lowest}
    config, clean, cond = config_with(model=model), torch.randn(2, 4, 8, 8), torch.randn(2, 6)
    denoiser = small_denoiser()
    for step in (0, 150_000, 299_000, 299_900, 299_999):
        ratio = mask_ratio_after(step, 300_000, config)
        random = random_for_loss(denoiser, clean, cond, ratio)
        assert edm_loss(denoiser, clean, cond, random, mae_loss_coef=0.1).isfinite().all()


@pytest.mark.parametrize(("tokens", "ratio"), [(16, 0.95), (256, 0.999), (1, 0.5), (4, 0.76)])
def test_a_mask_that_would_hide_every_token_is_refused_before_the_training(tokens, ratio):
    config = config_with(model={"mask_ratio": ratio})
    with pytest.raises(UserError, match=rf"model\.mask_ratio: {ratio:g} hides all {tokens} token"):
        check_mask_ratio(config, tokens)
    check_mask_ratio(config_with(model={"mask_ratio": 0.99 - 0.99 / tokens}), tokens)


def test_the_shorter_of_epochs_and_steps_ends_the_training():
    assert number_of_steps(config_with(train={"epochs": 3, "batchsize": 10}), 25) == 8
    both = {"epochs": 3, "batchsize": 10, "max_num_steps": 5}
    assert number_of_steps(config_with(train=both), 25) == 5
    with pytest.raises(UserError, match=r"train\.max_num_steps"):
        number_of_steps(config_with(), 25)


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    assert images_per_forward(128, processes=4, grad_accum=2) == 16
    with pytest.raises(UserError, match=r"train\.batchsize: 100 .* multiple of 8"):
        images_per_forward(100, processes=4, grad_accum=2)


# --- The average of the weights


def test_the_average_follows_the_weights_by_the_decay_and_leaves_fixed_tables():
    denoiser = make_tiny_denoiser()
    ema = EMA(denoiser)
    before = {n: t.clone() for n, t in ema.module.state_dict().items()}
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(1.0)
    ema.update(0.9)
    for name, parameter in ema.module.named_parameters():
        moved = 0.0 if name.endswith("pos_embed") else 0.1
        torch.testing.assert_close(parameter.detach(), before[name] + moved)
        assert not parameter.requires_grad


def test_a_ramped_average_forgets_half_within_its_share_of_the_images():
    assert ema_decay_at(1000, 100) == 0.9999
    assert ema_decay_at(1000, 100, rampup=0.1) == 0.5
    assert ema_decay_at(10**9, 100, rampup=0.1) == 0.9999


@pytest.mark.parametrize("rampup", [None, 5.0])
@pytest.mark.parametrize("before", [0, 300])
def test_the_initial_fraction_is_what_the_average_still_holds_of_the_first_weights(rampup, before):
    ema = EMA(make_tiny_denoiser())
    with torch.no_grad():
        for first, source in zip(ema._average, ema._source, strict=True):
            first.fill_(1.0)
            source.zero_()
    for step in range(1, 8):
        seen = before + 10 * step
        ema.update(ema_decay_at(seen, 10, 0.9, rampup))
        fraction = initial_fraction(step, seen, 10, 0.9, rampup)
        torch.testing.assert_close(ema._average[0], torch.full_like(ema._average[0], fraction))


@pytest.mark.parametrize(("steps", "fraction"), [(90, 99), (10_000, 37)])
def test_a_constant_average_says_how_much_noise_it_holds_and_a_ramped_one_has_none(steps, fraction):
    constant = initial_fraction(steps, steps * 128, 128)
    assert describe_average(constant, is_new=True) == (
        f"average of the weights; it still holds {fraction} % of the initial weights, which are "
        "noise"
    )
    ramped = initial_fraction(steps, steps * 128, 128, rampup=0.1)
    assert describe_average(ramped, is_new=True) == "average of the weights"


# --- The experiment folder


def test_an_experiment_is_named_after_what_makes_it_different():
    config = config_with(
        data={"dataset": "ffhq"}, train={"perturbation": 1.5}, log={"tag": "second try"}
    )
    name = experiment_name(config)
    assert name == "ffhq_DiT-XL-2_mask0.5-constant_gaussian1.5_bs128_second try"


def test_only_what_changes_the_run_counts_as_a_difference():
    before = config_with(train={"max_num_steps": 10, "lr": 1e-4})
    longer = config_with(train={"max_num_steps": 20, "lr": 1e-4}, log={"log_every": 1})
    assert differences(before, longer) == []
    assert differences(longer, before) == ["train.max_num_steps is 20 there and 10 here"]
    other = config_with(train={"max_num_steps": 10, "lr": 2e-4})
    assert differences(before, other) == ["train.lr is 0.0001 there and 0.0002 here"]
    assert differences(config_with(train={"amp": "bf16"}), config_with()) == []


def test_a_folder_with_published_checkpoints_is_not_continued(tmp_path, golden):
    state = load_checkpoint(golden / "0000100.pt")
    with pytest.raises(UserError, match="--ckpt_path"):
        check_continuation(tmp_path, config_with(), state, 10)


# --- Steps from which a run counts that starts from a checkpoint


def test_warm_up_and_schedules_count_from_the_loaded_step():
    train = {"lr": 1e-3, "lr_warmup_steps": 10, "max_num_steps": 100}
    model = {"mask_ratio": 0.5, "mask_ratio_fn": "cosine2"}
    config = config_from_dict({"train": train, "model": model}, "test")
    assert number_of_steps(config, images=50, first_step=300) == 400
    for done in (0, 5, 10, 99):
        here = (300 + done, 400, config, 300)
        assert lr_after(*here) == pytest.approx(1e-3 * min(1, done / 10))
        assert mask_ratio_after(*here) == mask_ratio_after(done, 100, config)


def test_the_ramp_over_images_is_over_where_the_loaded_run_had_passed_it():
    train = {"lr": 1e-3, "lr_rampup_kimg": 1, "batchsize": 10, "max_num_steps": 100}
    config = config_from_dict({"train": train}, "test")
    assert lr_after(50, 150, config, 50) == pytest.approx(5e-4)
    assert lr_after(300, 400, config, 300) == 1e-3


def test_epochs_that_are_over_at_the_loaded_step_are_an_error():
    config = config_from_dict({"train": {"epochs": 2, "batchsize": 10}}, "test")
    assert number_of_steps(config, images=50, first_step=9) == 10
    with pytest.raises(UserError, match=r"2 epochs end at step 10, but .* has done 300"):
        number_of_steps(config, images=50, first_step=300)


def lengthened(step: int, train: dict, model: dict | None = None, **longer: int) -> list[str]:
    """Return the notes of a run of 10 steps that goes on at `step` with other lengths."""
    before, now = ({"max_num_steps": 10, **train} | more for more in ({}, longer))
    old, new = (config_with(train=t, model=model or {}) for t in (before, now))
    return jumps_of_longer(old, new, 100, step)


SCHEDULES = {
    "train.lr_schedule": ({"lr_schedule": "cosine"}, {}),
    "train.lr_schedule)": ({"lr_schedule": "linear", "lr_min_ratio": 0.1}, {}),
    "model.mask_ratio_fn": ({}, {"mask_ratio": 0.5, "mask_ratio_fn": "cosine4"}),
    "model.unmasked_tail": ({}, {"mask_ratio": 0.5, "unmasked_tail": 0.3}),
}


@pytest.mark.parametrize("key", SCHEDULES)
def test_a_finished_schedule_that_is_made_longer_says_what_jumps(key):
    (note,) = lengthened(10, *SCHEDULES[key], max_num_steps=20)
    assert "the run now ends at step 20, not 10 (train.max_num_steps, train.epochs)" in note
    assert key in note and "\n" not in note


def test_the_note_names_both_values():
    (note,) = lengthened(10, {"lr": 1e-3, "lr_schedule": "linear"}, max_num_steps=20)
    assert "the learning rate goes from 1.00e-04 to 5.00e-04 (train.lr_schedule)" in note


def test_a_schedule_that_is_made_longer_half_way_or_by_epochs_says_so_too():
    assert lengthened(5, {"lr_schedule": "cosine"}, max_num_steps=20)
    epochs = {"lr_schedule": "cosine", "max_num_steps": None, "batchsize": 10, "epochs": 1}
    assert lengthened(10, epochs, epochs=3)


@pytest.mark.parametrize(
    "train",
    [{}, {"lr_rampup_kimg": 50}, {"lr_warmup": True, "lr_warmup_steps": 20}],
    ids=["constant", "ramp", "warm-up"],
)
def test_a_constant_schedule_may_be_made_longer_without_a_word(train):
    assert lengthened(10, train, max_num_steps=20) == []
    assert lengthened(10, {**train, "lr_schedule": "cosine"}) == []  # not longer
