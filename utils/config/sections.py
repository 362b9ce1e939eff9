"""The sections of the configuration: every key, its type, its default and its unit."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from models.choices import (
    Discretization,
    FeatureNetworkKind,
    MaskSchedule,
    NoiseSchedule,
    PerturbationKind,
    SignalScaling,
    Solver,
)


def _from_home(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # Path's own method fails where there is no such user


LocalPath = Annotated[Path, AfterValidator(_from_home)]  # relative to the current directory
Fraction = Annotated[float, Field(ge=0, le=1)]


def _amp_name(value: Any) -> Any:
    """Published configs say true or false, and YAML reads a bare `no` as false."""
    return {True: "bf16", False: "no"}.get(value, value) if isinstance(value, bool) else value


def _schedule_name(value: Any) -> Any:
    """Published configs say cos4 as well as cosine4."""
    short = isinstance(value, str) and value.startswith("cos") and value[3:].isdigit()
    return f"cosine{value[3:]}" if short else value


def _perturbation_name(value: Any) -> Any:
    """Published configs say how their truncated normal was drawn."""
    return "truncated" if isinstance(value, str) and value.endswith("trunc_gaussian") else value


def _rate_or_switch(value: Any) -> Any:
    """0 and 1 are no learning rates."""
    try:
        rate = value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        rate = -1
    if rate < 0:
        raise ValueError(f"should be a learning rate, true or false, got {value!r:.40}")
    return bool(rate) if rate in (0, 1) else rate


class Section(BaseModel):
    """A part of the config; unknown keys are faults, and defaults are validated like the rest."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, coerce_numbers_to_str=True, protected_namespaces=()
    )


class Data(Section):
    """What is trained on: folders of images and captions, and the databases made from them."""

    dataset: str = "faces"
    category: Literal["lmdb"] = "lmdb"
    resolution: PositiveInt = 256  # side of the square images, pixels
    num_channels: PositiveInt = 4  # of the latents
    root: LocalPath | None = None  # latents (LMDB folder)
    feat_path: LocalPath | None = None  # training condition, image embeddings (LMDB folder)
    feat_dim: NonNegativeInt = 512
    norm_feature: bool = False  # scale conditions to unit length
    num_features_per_sample: PositiveInt | None = None  # drawn among the first so many; null = all
    image_dir: LocalPath | None = None  # folder, .zip, .tar, or folder of .tar shards
    caption_dir: LocalPath | None = None  # likewise; <stem>.txt for each image
    split_file: LocalPath | None = None  # list of the images of image_dir that count; null = all
    text_feat_path: LocalPath | None = None  # embeddings of the training captions (LMDB folder)


class Model(Section):
    """The denoiser and how its tokens are masked in training."""

    precond: Literal["edm"] = "edm"
    model_type: str = "DiT-XL/2"
    in_size: PositiveInt = 32  # side of the latents
    in_channels: PositiveInt = 4
    num_classes: NonNegativeInt = 512  # width of the condition, or classes; 0 = unconditional
    use_decoder: bool = True
    ext_feature_dim: NonNegativeInt = 0  # of data.feat_path, as features beside class labels
    pad_cls_token: bool = False
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mask_ratio_fn: Annotated[MaskSchedule, BeforeValidator(_schedule_name)] = "constant"
    mask_ratio_min: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mae_loss_coef: NonNegativeFloat = 0.1
    self_cond: bool = False  # on a summary of the noised image, by the encoder
    class_dropout_prob: Fraction = 0.1
    perturbation: bool = False  # a learned one, after what train.perturbation does
    hidden_size: PositiveInt | None = None  # this and the next two override model_type's
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    decoder_hidden_size: PositiveInt = 512
    decoder_depth: PositiveInt = 8
    decoder_num_heads: PositiveInt = 16
    cond_init_std: PositiveFloat = 0.02  # initial weights that read the condition
    unmasked_tail: Fraction = 0.0  # last part of the training, run without mask

    @field_validator("mask_ratio_min")
    @classmethod
    def _below_mask_ratio(cls, value: float, info: ValidationInfo) -> float:
        if value > info.data.get("mask_ratio", value):
            raise ValueError(f"{value} is above mask_ratio ({info.data['mask_ratio']})")
        return value


class Train(Section):
    """Optimisation and the perturbation of the condition."""

    tf32: bool = True
    # auto = bf16, or fp16 with a loss scaler where the device has no bf16
    amp: Annotated[Literal["auto", "bf16", "fp16", "no"], BeforeValidator(_amp_name)] = "auto"
    batchsize: PositiveInt = 128  # images per optimiser step, all processes together
    grad_accum: PositiveInt = 1
    epochs: PositiveInt | None = None
    lr: PositiveFloat = 1e-4
    lr_rampup_kimg: NonNegativeFloat = 0  # linear warm-up, thousands of images
    # Warm-up: a rate that is held; true = linear rise from zero; false = none.
    lr_warmup: Annotated[bool | float, BeforeValidator(_rate_or_switch)] = True
    lr_warmup_steps: NonNegativeInt = 0  # optimiser steps
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up
    lr_min_ratio: Fraction = 0.0  # where the schedule ends, relative to lr
    xflip: bool = False
    max_num_steps: PositiveInt | None = None  # optimiser steps
    perturbation: NonNegativeFloat = 0.0  # scale; 0 = condition as stored
    perturbation_type: Annotated[PerturbationKind, BeforeValidator(_perturbation_name)] = "gaussian"
    mean: float = 0.0  # this and the next two are those of the truncated perturbation
    trunc_a: float = -1.0
    trunc_b: float = 1.0
    P_mean: float = -1.2  # noise levels of training: mean and standard deviation of ln(sigma)
    P_std: PositiveFloat = 1.2
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat | None = None  # largest gradient norm
    max_bad_steps: PositiveInt = 30  # in a row without finite loss and gradient; then it stops
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    ema_rampup: PositiveFloat | None = None  # half-life at most this fraction of the images seen
    seed: NonNegativeInt = 0
    num_workers: NonNegativeInt = 0  # threads that read batches ahead; 0 = one
    # Compile the blocks: auto = if that is possible here. Same results, minutes of start-up.
    compile: bool | Literal["auto"] = False
    activation_checkpointing: bool = False  # blocks are computed twice: slower, far less memory
    step_timeout: PositiveFloat = 50.0  # seconds; then another process counts as lost
    shard: bool = False  # weights, averages and moments spread over the processes (FSDP)

    @field_validator("grad_accum")
    @classmethod
    def _divides_batch(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("batchsize", 0) % value:
            raise ValueError(f"{value} does not divide batchsize ({info.data['batchsize']})")
        return value

    @field_validator("trunc_b")
    @classmethod
    def _above_trunc_a(cls, value: float, info: ValidationInfo) -> float:
        is_used = info.data.get("perturbation_type") == "truncated"
        if is_used and value <= info.data.get("trunc_a", float("-inf")):
            raise ValueError(f"{value} is not above trunc_a ({info.data['trunc_a']})")
        return value


class Eval(Section):
    """What checkpoints are judged by: the test split and the reference statistics."""

    batchsize: PositiveInt = 64
    ref_path: LocalPath | None = None  # npz written by preprocess_scripts/fid_ref.py
    fid_sample_size: PositiveInt = 5000  # images
    feat_path: LocalPath | None = None  # embeddings of the test captions (LMDB folder)
    seeds: str | None = None  # of the images, e.g. 0-63,100; null = from sampling.seed on
    class_idx: NonNegativeInt | None = None  # class to draw; null = one at random for each seed
    cfg_scales: list[float | None] = []  # guidance scales; empty = sampling.cfg_scale
    num_steps: list[PositiveInt] = []  # likewise, noise levels of the sampler
    solvers: list[Solver] = []  # likewise
    save_images: Literal["png", "npz"] | None = None  # all that are judged; null = the first few
    subdirs: bool = False  # a folder for every 1000 seeds of PNGs
    image_dir: LocalPath | None = None  # this and the next two as in data
    caption_dir: LocalPath | None = None
    split_file: LocalPath | None = None
    root: LocalPath | None = None  # latents of the test images (LMDB folder)
    image_feat_path: LocalPath | None = None  # embeddings of the test images (LMDB folder)
    feature_network: FeatureNetworkKind = "inception"
    more_ref_paths: list[LocalPath] = []  # references of other networks, judged by as well


class Log(Section):
    """What is written into the experiment folder, and how often (optimiser steps)."""

    log_every: PositiveInt = 100
    ckpt_every: PositiveInt = 5000
    ckpt_after: NonNegativeInt = 0  # no checkpoint before this step
    tag: str = ""
    use_tensorboard: bool = True
    sample_every: NonNegativeInt | None = None  # 0 = never; null = with every checkpoint
    num_samples: PositiveInt = 16
    keep_last: PositiveInt | None = None  # checkpoints kept; null = all
    keep_every: PositiveInt | None = None  # steps; multiples of it are kept beside the last

    @field_validator("sample_every")
    @classmethod
    def _as_checkpoints(cls, value: int | None, info: ValidationInfo) -> int | None:
        return info.data.get("ckpt_every") if value is None else value


class Encoders(Section):
    """Where the frozen networks come from: a local file or folder, or a public name."""

    vae: str = "stabilityai/sd-vae-ft-ema"
    clip: str = "ViT-B-32:openai"
    scale_factor: PositiveFloat | None = None  # of the latents; null = as the VAE states
    precision: Literal["float32", "bf16", "fp16"] = "float32"  # in which both are run
    # The VAE on all images at once, one by one, or one by one in overlapping tiles if they are
    # larger than those it was trained on: less memory, and with tiles slightly other pixels.
    vae_memory: Literal["full", "sliced", "tiled"] = "full"
    image_mean: LocalPath | None = None  # npy that clip_encode_img.py writes; moves captions there
    inception: LocalPath | None = None  # weights of pytorch-fid or torch-fidelity, they are alike
    dinov2: LocalPath | None = None  # weights of any size of DINOv2


# What `sampling.preset` stands for; figures in docs/sampling.md.
SAMPLING_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "solver": "heun",
        "num_steps": 40,
        "guidance_interval": None,
        "sigma_min": None,
        "amp": "no",
    },
    "fast": {
        "solver": "dpmpp_2m",
        "num_steps": 10,
        "guidance_interval": (0.3, 1000.0),  # below it guidance changes nothing that can be seen
        "sigma_min": 0.02,
        "amp": "bf16",
    },
}


class Sampling(Section):
    """Sampler settings; any of the last three chooses the ablation sampler."""

    # Values of solver, num_steps, guidance_interval, sigma_min, amp where these are not set.
    preset: Literal["fast", "paper"] = "paper"
    solver: Solver = "heun"
    num_steps: PositiveInt = 40
    cfg_scale: float | None = None  # guidance; null = conditional only
    guidance_interval: tuple[NonNegativeFloat, PositiveFloat] | None = None  # sigma, low to high
    amp: Annotated[Literal["bf16", "fp16", "no"], BeforeValidator(_amp_name)] = "no"
    compile: bool | Literal["auto"] = False  # the network; auto = where there is a compiler
    seed: NonNegativeInt = 0
    sigma_min: PositiveFloat | None = None  # noise levels; null = the discretization's own range,
    sigma_max: PositiveFloat | None = None  # 0.002 to 80 for edm
    rho: PositiveFloat = 7.0
    S_churn: NonNegativeFloat = 0.0
    S_min: NonNegativeFloat = 0.0
    S_max: PositiveFloat = float("inf")
    S_noise: PositiveFloat = 1.0
    discretization: Discretization | None = None
    schedule: NoiseSchedule | None = None
    scaling: SignalScaling | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "paper") if isinstance(values, dict) else None
        return {**SAMPLING_PRESETS.get(str(preset), {}), **values} if preset else values

    @field_validator("guidance_interval")
    @classmethod
    def _low_to_high(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value and value[0] >= value[1]:
            raise ValueError(f"runs from {value[0]} to {value[1]}; the lower sigma comes first")
        return value

    @field_validator("sigma_max")
    @classmethod
    def _above_sigma_min(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and value <= (info.data.get("sigma_min") or 0):
            raise ValueError(f"{value} is not above sigma_min ({info.data['sigma_min']})")
        return value
