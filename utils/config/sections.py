"""The sections of the configuration: every key of a training, its type, default and unit.

`utils/config/sampling_sections.py` holds those of sampling and evaluation.

Some sizes follow if they are not set: from the databases if they are there, else from the encoders
(`utils/data/derived_sizes.py`). The default stands in where neither is known.
"""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from models.choices import Adaptation, MaskSchedule, MlpKind, Optimizer, PerturbationKind
from utils.config.fields import (
    Amp,
    BelowOne,
    Bound,
    Fraction,
    Guidance,
    LocalPath,
    PositiveRange,
    Precision,
    Section,
    Seed,
    SigmaRange,
    Sigmas,
    Widths,
    amp_name,
    perturbation_name,
    rate_or_switch,
    schedule_name,
)


class Data(Section):
    """Training data: folders of images and captions, and the databases made from them."""

    dataset: str = "faces"
    category: Literal["lmdb"] = "lmdb"
    resolution: PositiveInt = 256  # side of the square images, pixels
    num_channels: PositiveInt = 4  # channels of the latents; follows if not set
    root: LocalPath | None = None  # latents (LMDB folder)
    feat_path: LocalPath | None = None  # training condition, image embeddings (LMDB folder)
    feat_dim: NonNegativeInt = 512  # of the embeddings in feat_path; follows if not set
    norm_feature: bool = False  # scales conditions to unit length
    # Each step takes one of an image's first so many embeddings at random; null = of all.
    num_features_per_sample: PositiveInt | None = None
    image_dir: LocalPath | None = None  # folder, .zip, .tar, or folder of .tar shards
    caption_dir: LocalPath | None = None  # folder or archive with <stem>.txt for each image
    split_file: LocalPath | None = None  # names of the images to use from image_dir; null = all
    text_feat_path: LocalPath | None = None  # embeddings of the training captions (LMDB folder)
    # Patch features of the training images (LMDB folder), which train.align_coef needs.
    patch_feat_path: LocalPath | None = None
    # Latents of the mirrored images (LMDB folder), which train.xflip takes.
    mirrored_root: LocalPath | None = None


class Model(Section):
    """The denoiser and how its tokens are masked in training."""

    precond: Literal["edm"] = "edm"
    model_type: str = "DiT-XL/2"
    in_size: PositiveInt = 32  # side of the latents; follows if not set
    in_channels: PositiveInt = 4  # follows if not set
    # Dimension of the condition, or number of classes; 0 = unconditional. Follows if not set and
    # data.feat_path is.
    num_classes: NonNegativeInt = 512
    use_decoder: bool = True
    # Dimension of the features in data.feat_path that go beside class labels; 0 = none.
    ext_feature_dim: NonNegativeInt = 0
    pad_cls_token: bool = False  # adds a token whose output, a summary, conditions the decoder
    mask_ratio: BelowOne = 0.5
    mask_ratio_fn: Annotated[MaskSchedule, BeforeValidator(schedule_name)] = "constant"
    mask_ratio_min: BelowOne = 0.0
    mae_loss_coef: NonNegativeFloat = 0.1  # weight of the loss on hidden patches
    self_cond: bool = False  # adds the encoder's summary of the noised image to the condition
    class_dropout_prob: Fraction = 0.1  # fraction of training conditions that are dropped
    perturbation: bool = False  # adds a learned perturbation after train.perturbation
    hidden_size: PositiveInt | None = None  # overrides model_type's, as the next two keys do
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    decoder_hidden_size: PositiveInt = 512
    decoder_depth: PositiveInt = 8
    decoder_num_heads: PositiveInt = 16
    # Standard deviation of the latents that the network is scaled for; 0.5 as published. The
    # scaled latents of Stable Diffusion's VAE and of the demo's VAE have about 1.
    sigma_data: PositiveFloat = 0.5
    cond_init_std: PositiveFloat = 0.02  # of the initial weights that read the condition
    # Between the two linear layers of each block's MLP: gelu_tanh as published, or gelu, which is
    # within 5e-4 of it and faster on CPUs. Weights trained with one also work with the other.
    mlp: MlpKind = "gelu_tanh"
    # U-ViT alone: tokens that the condition becomes, each from as many of its numbers; 0 = a token
    # from a table of class labels.
    cond_tokens: NonNegativeInt = 1
    unmasked_tail: Fraction = 0.0  # last part of the training, which runs without mask

    @field_validator("mask_ratio_min")
    @classmethod
    def _below_mask_ratio(cls, value: float, info: ValidationInfo) -> float:
        if value > info.data.get("mask_ratio", value):
            raise ValueError(f"{value} is above mask_ratio ({info.data['mask_ratio']})")
        return value


class Train(Section):
    """Optimisation and the perturbation of the condition."""

    tf32: bool = True
    # auto = bf16, or fp16 with a loss scaler if the device has no bf16.
    amp: Annotated[Literal["auto", Amp], BeforeValidator(amp_name)] = "auto"
    batchsize: PositiveInt = 128  # images per optimiser step, all processes together
    grad_accum: PositiveInt = 1
    epochs: PositiveInt | None = None
    # The weights that are trained: all, or a few beside those of a trained network (--ckpt_path):
    # lora, difffit, condition, or one of the first two with the last (docs/adapting.md).
    adapt: Adaptation = "all"
    lora_rank: PositiveInt = 4
    # muon = Muon for the matrices through which tokens pass, AdamW for all other weights, and for
    # all that train.adapt names.
    optimizer: Optimizer = "adamw"
    lr: PositiveFloat = 1e-4  # of AdamW
    muon_lr: PositiveFloat = 5e-3  # of Muon; warm-up and schedule change both by equal factors
    muon_momentum: BelowOne = 0.95
    # Width of the network for which lr and muon_lr are stated: for another width, lr falls as
    # 1/width and muon_lr as 1/sqrt(width). null = the stated rates for any width.
    lr_base_width: PositiveInt | None = None
    lr_rampup_kimg: NonNegativeFloat = 0  # linear warm-up, thousands of images
    # A number = this rate during the warm-up; true = linear rise from zero; false = no warm-up.
    lr_warmup: Annotated[bool | float, BeforeValidator(rate_or_switch)] = True
    lr_warmup_steps: NonNegativeInt = 0  # optimiser steps
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up
    lr_min_ratio: Fraction = 0.0  # last value of the schedule, relative to lr
    # With probability 1/2 the latent of the mirrored image, or without data.mirrored_root the
    # latent itself, mirrored: most VAEs decode that badly.
    xflip: bool = False
    max_num_steps: PositiveInt | None = None  # optimiser steps
    perturbation: NonNegativeFloat = 0.0  # scale of the noise; 0 = condition as stored
    perturbation_type: Annotated[PerturbationKind, BeforeValidator(perturbation_name)] = "gaussian"
    mean: float = 0.0  # for the truncated perturbation only, as the next two keys are
    trunc_a: Bound = -1.0
    trunc_b: Bound = 1.0
    P_mean: float = -1.2  # mean of ln(sigma) in training
    P_std: PositiveFloat = 1.2  # standard deviation of ln(sigma)
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # of AdamW
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat | None = None  # largest gradient norm; null = no limit
    # The training stops after so many steps in a row without a finite loss and gradient.
    max_bad_steps: PositiveInt = 30
    ema_decay: BelowOne = 0.9999
    # Limits the half-life of the average to this fraction of the images seen, so that a short run
    # does not average its random start; null = ema_decay from the first step, as published.
    ema_rampup: PositiveFloat | None = 0.1
    # Widths of two power-function averages that checkpoints keep beside it: tools/tune.py makes one
    # of any width from them. They cost memory and room as two more EMAs; null = none.
    power_ema: Widths | None = None
    seed: Seed = 0
    num_workers: NonNegativeInt = 0  # threads that read batches ahead; 0 = one
    # Compiles the blocks; auto = if there is a compiler. Equal results, minutes of start-up.
    compile: bool | Literal["auto"] = False
    activation_checkpointing: bool = False  # computes blocks twice: slower, far less memory
    step_timeout: PositiveFloat = 50.0  # seconds without answer until a process counts as lost
    # Weight of the alignment of the tokens to patch features (REPA); 0 = none.
    align_coef: NonNegativeFloat = 0.0
    # The encoder block whose tokens are aligned, from 1; null = the middle one, at most the 8th.
    align_depth: PositiveInt | None = None
    align_until: Fraction = 1.0  # fraction of the steps after which the alignment ends
    shard: bool = False  # spreads weights, averages and moments over the processes (FSDP)

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


class Prior(Section):
    """Network and training of the prior of image embeddings (`train_prior.py`)."""

    width: PositiveInt = 384
    depth: PositiveInt = 4  # residual blocks
    # Range of the length of the noise that hides traits of an embedding, whose own length is 1.
    noise_range: PositiveRange = (1.0, 10.0)
    bank: PositiveInt = 2048  # embeddings among which those that fit are found, in each step
    batchsize: PositiveInt = 256
    max_num_steps: PositiveInt = 4000
    lr: PositiveFloat = 2e-3
    seed: Seed = 0
    # Fraction of the images that the training does not read; it is evaluated by them. Embeddings of
    # test images (eval.image_feat_path) are used instead where they are there.
    held_out: BelowOne = 0.0


class Log(Section):
    """Files of the experiment folder, and how often they are written (optimiser steps)."""

    log_every: PositiveInt = 100
    # Steps between observations (held-out loss, size of updates, …; docs/normal.md), a multiple of
    # log_every; 0 = none; null = as often as 1.5 % of the computation allows.
    observe_every: NonNegativeInt | None = None
    ckpt_every: PositiveInt = 5000
    ckpt_after: NonNegativeInt = 0  # no checkpoint before this step
    tag: str = ""  # ending of the experiment folder's name
    use_tensorboard: bool = True
    sample_every: NonNegativeInt | None = None  # 0 = never; null = with every checkpoint
    num_samples: PositiveInt = 16  # images of a sample grid
    keep_last: PositiveInt | None = None  # number of checkpoints to keep; null = all
    keep_every: PositiveInt | None = None  # checkpoints at multiples of it are kept as well

    @field_validator("sample_every")
    @classmethod
    def _as_checkpoints(cls, value: int | None, info: ValidationInfo) -> int | None:
        return info.data.get("ckpt_every") if value is None else value


class Encoders(Section):
    """Sources of the frozen networks: a local file or folder, or a public name."""

    vae: str = "stabilityai/sd-vae-ft-ema"
    clip: str = "ViT-B-32:openai"
    scale_factor: PositiveFloat | None = None  # factor on the latents; null = the VAE's own
    precision: Precision = "float32"  # of VAE and CLIP
    # How many images the VAE takes at once: all (full), one (sliced), or parts of one (tiled).
    # Later choices need less memory. Tiles overlap, are used for images larger than those that the
    # VAE was trained on, and change pixels slightly.
    vae_memory: Literal["full", "sliced", "tiled"] = "full"
    # json of preprocess_scripts/create_latentspace_lmdb.py: mean and deviation of each channel, by
    # which the network's latents are normalised; null = as the VAE scales them.
    latent_statistics: LocalPath | None = None
    # npy of preprocess_scripts/clip_encode_img.py; captions are moved by it towards images.
    image_mean: LocalPath | None = None
    prior: LocalPath | None = None  # file of train_prior.py, which sampling.freedom needs
    inception: LocalPath | None = None  # weights as published by pytorch-fid or torch-fidelity
    dinov2: LocalPath | None = None  # weights of any size of DINOv2


class Distill(Section):
    """A student that samples in a few steps as its teacher does in many (models/distillation.py).

    Sampling keys of a student follow from `sampling.preset: instant`.
    """

    teacher: LocalPath | None = None  # .pt or .safetensors; its averaged weights count
    adapters: tuple[str, ...] = ()  # of the teacher, PATH or PATH:WEIGHT each (docs/adapting.md)
    # Sigmas of the student, the highest first; null = a plain training. A step to 0 comes after
    # the last one.
    sigmas: Sigmas | None = None
    cfg_scale: Guidance | None = None  # the teacher's guidance scale, which the student learns
    guidance_interval: SigmaRange | None = None  # of the teacher
    teacher_steps: PositiveInt = 6  # of DPM-Solver++(2M), from each of these sigmas to the next
    sigma_min: PositiveFloat = 0.02  # the teacher's last sigma before 0
    huber: PositiveFloat = 0.03  # root mean square error above which the loss is linear

    @field_validator("sigma_min")
    @classmethod
    def _below_sigmas(cls, value: float, info: ValidationInfo) -> float:
        if (sigmas := info.data.get("sigmas")) and value >= sigmas[-1]:
            raise ValueError(f"{value} is not below the last of distill.sigmas ({sigmas[-1]})")
        return value
