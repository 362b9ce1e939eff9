"""The section of a distillation: the student, its teacher, and how it learns."""

from pydantic import PositiveFloat, PositiveInt, ValidationInfo, field_validator

from utils.config.fields import Guidance, LocalPath, NoiseLevels, Section, SigmaRange


class Distill(Section):
    """A student that draws in a few steps what its teacher draws in many (models/distillation.py).

    Sampling keys of a student follow from `sampling.preset: instant`.
    """

    teacher: LocalPath | None = None  # .pt or .safetensors; its averaged weights count
    # Noise levels of the student, the highest first; null = a plain training. A step to 0 comes
    # after the last one.
    sigmas: NoiseLevels | None = None
    cfg_scale: Guidance | None = None  # the teacher's guidance scale, which the student learns
    guidance_interval: SigmaRange | None = None  # of the teacher
    teacher_steps: PositiveInt = 6  # of DPM-Solver++(2M), from each of these levels to the next
    sigma_min: PositiveFloat = 0.02  # the teacher's last noise level before 0
    huber: PositiveFloat = 0.03  # root mean square error at which the loss turns linear

    @field_validator("sigma_min")
    @classmethod
    def _below_sigmas(cls, value: float, info: ValidationInfo) -> float:
        if (sigmas := info.data.get("sigmas")) and value >= sigmas[-1]:
            raise ValueError(f"{value} is not below the last of distill.sigmas ({sigmas[-1]})")
        return value
