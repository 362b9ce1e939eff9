"""The sections of the configuration that say how images are generated and evaluated."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from models.choices import Discretization, FeatureNetworkKind, NoiseSchedule, SignalScaling, Solver
from utils.config.fields import (
    SAMPLING_PRESETS,
    Amp,
    Guidance,
    LocalPath,
    PositiveBound,
    SamplerSteps,
    SamplingPreset,
    Section,
    Seed,
    SigmaRange,
    Sigmas,
    amp_name,
    freedom_or_auto,
)


class Sampling(Section):
    """Sampler settings; discretization, schedule or scaling choose the ablation sampler."""

    preset: SamplingPreset = "paper"  # sets the keys that SAMPLING_PRESETS lists
    solver: Solver = "heun"
    num_steps: SamplerSteps = 40
    cfg_scale: Guidance | None = None  # guidance scale; null = conditional only
    # How far the prior may leave the condition: 0 = literal, all seeds have one condition; 1 = as
    # open as the condition is. 1 / freedom scales the prior's condition. Above 0 it needs
    # encoders.prior; auto = the freedom that this prior's file proposes.
    freedom: Annotated[float | Literal["auto"], BeforeValidator(freedom_or_auto)] = 0.0
    # Embeddings that the prior samples for an image; the one that fits its condition best counts.
    # With more of them take a higher freedom (docs/freedom.md).
    prior_candidates: Annotated[PositiveInt, Field(le=64)] = 1
    # Lowest and highest sigma at which guidance is applied; null = at all.
    guidance_interval: SigmaRange | None = None
    amp: Annotated[Amp, BeforeValidator(amp_name)] = "no"
    compile: bool | Literal["auto"] = False  # compiles the network; auto = if there is a compiler
    # Tiny autoencoder (folder, file or hub name) that decodes a training's sample grids in place of
    # encoders.vae, whose latents it shares; null = none. Nothing that is measured uses it.
    preview: str | None = None
    seed: Seed = 0
    # Range of the sigmas; null = the discretization's own, which is 0.002 to 80 for edm.
    sigma_min: PositiveFloat | None = None
    sigma_max: PositiveFloat | None = None
    # The sigmas themselves, the highest first, instead of num_steps, sigma_min, sigma_max and rho;
    # num_steps follows. A step to 0 comes after the last one. null = a discretization's.
    sigmas: Sigmas | None = None
    rho: PositiveFloat = 7.0
    S_churn: NonNegativeFloat = 0.0
    S_min: NonNegativeFloat = 0.0
    S_max: PositiveBound = float("inf")
    S_noise: PositiveFloat = 1.0
    discretization: Discretization | None = None
    schedule: NoiseSchedule | None = None
    scaling: SignalScaling | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "paper") if isinstance(values, dict) else None
        if not preset:
            return values
        known: Mapping[Any, dict[str, Any]] = SAMPLING_PRESETS
        filled = {**known.get(str(preset), {}), **values}
        if isinstance(filled.get("sigmas"), list | tuple) and "num_steps" not in values:
            filled["num_steps"] = len(filled["sigmas"])
        return filled

    @field_validator("sigma_max")
    @classmethod
    def _above_sigma_min(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and value <= (info.data.get("sigma_min") or 0):
            raise ValueError(f"{value} is not above sigma_min ({info.data['sigma_min']})")
        return value


class Eval(Section):
    """Evaluation: the test split, the reference statistics and the sweep of sampler settings."""

    batchsize: PositiveInt = 64
    ref_path: LocalPath | None = None  # npz written by preprocess_scripts/fid_ref.py
    fid_sample_size: PositiveInt = 5000  # images
    feat_path: LocalPath | None = None  # embeddings of the test captions (LMDB folder)
    seeds: str | None = None  # of the images, e.g. 0-63,100; null = from sampling.seed on
    class_idx: NonNegativeInt | None = None  # class to sample; null = a random one for each seed
    variety_captions: NonNegativeInt = 0  # captions sampled with several seeds each; 0 = none
    variety_seeds: int = Field(16, ge=2)  # images of each of these captions
    cfg_scales: list[Guidance | None] = []  # guidance scales; empty = sampling.cfg_scale
    num_steps: list[SamplerSteps] = []  # of the sampler; empty = sampling.num_steps
    solvers: list[Solver] = []  # empty = sampling.solver
    save_images: Literal["png", "npz"] | None = None  # keeps all images; null = the first few
    subdirs: bool = False  # puts PNGs into a folder for every 1000 seeds
    image_dir: LocalPath | None = None  # test images; this and the next two work as in data
    caption_dir: LocalPath | None = None
    split_file: LocalPath | None = None
    root: LocalPath | None = None  # latents of the test images (LMDB folder)
    image_feat_path: LocalPath | None = None  # embeddings of the test images (LMDB folder)
    feature_network: FeatureNetworkKind = "inception"
    more_ref_paths: list[LocalPath] = []  # further references, of other feature networks
