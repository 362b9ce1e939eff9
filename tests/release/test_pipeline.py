"""The pipeline of diffusers: its images, its schedulers, and saving."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import crude_face
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    HeunDiscreteScheduler,
)
from equal_images import assert_equal_images, pixels
from PIL import Image
from tiny import DIM, RESOLUTION, make_tiny_checkpoint, make_tiny_config, make_tiny_denoiser

from models.samplers import SamplerSettings, guided, sample
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.release.pipeline import TextToFacePipeline
from utils.release.schedulers import solve_with
from utils.sampling.text_to_face import TextToFace

BOUND = 1  # largest difference of a pixel, of 255, between a scheduler of diffusers and ours


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> TextToFace:
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = make_tiny_checkpoint(folder / "0000010.pt", make_tiny_config(folder))
    return TextToFace.load(checkpoint, device="cpu")


@pytest.fixture
def pipe(faces) -> TextToFacePipeline:
    made = TextToFacePipeline.holding(faces)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def face(tmp_path) -> Path:
    crude_face(3, 48).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def test_it_generates_the_images_of_text_to_face(pipe, faces, face):
    wanted = faces.generate(["red hair", "a hat", face], num=2, batch_size=4).images
    found = pipe(["red hair", "a hat"], face, num_images_per_prompt=2, batch_size=4).images
    assert_equal_images(found, wanted)
    assert_equal_images(pipe(image=str(face)).images, wanted[4:5])
    assert_equal_images(pipe(image=Image.open(face)).images, wanted[4:5])


def test_it_takes_the_names_of_diffusers_and_ours(pipe, faces):
    wanted = faces.generate("red hair", cfg_scale=3, num_steps=4).images
    assert_equal_images(pipe("red hair", guidance_scale=3, num_inference_steps=4).images, wanted)
    assert_equal_images(pipe("red hair", cfg_scale=3, num_steps=4).images, wanted)
    mixed = faces.generate(["red hair", "a hat"], mix=(1, 3), seeds=[5]).images
    assert_equal_images(pipe(["red hair", "a hat"], mix=(1, 3), seeds=[5]).images, mixed)
    y = faces.embed(["red hair", "a hat"])
    assert_equal_images(pipe(prompt_embeds=y).images, pipe(["red hair", "a hat"]).images)


def test_seeds_come_from_generators(pipe, faces):
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    wanted = faces.generate("red hair", seeds=[7, 8]).images
    assert_equal_images(
        pipe("red hair", num_images_per_prompt=2, generator=generator(7)).images, wanted
    )
    several = [generator(7), generator(8)]
    assert_equal_images(pipe("red hair", generator=several).images, wanted)


def test_output_types_and_tuples_are_those_of_diffusers(pipe):
    wanted = pixels(pipe("red hair").images)
    array = pipe("red hair", output_type="np").images
    np.testing.assert_array_equal((array * 255).round().astype(np.uint8), wanted)
    (tensor,) = pipe("red hair", output_type="pt", return_dict=False)
    assert tensor.shape == (1, 3, RESOLUTION, RESOLUTION)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({}, "say what to generate"),
        ({"image": "none.png"}, "there is no image of this name"),
        ({"prompt": "x", "steps": 3}, "steps sampling.steps: unknown key"),
        ({"prompt": "x", "num_images_per_prompt": 0}, "num is 0"),
        ({"prompt_embeds": torch.ones(1, 3)}, f"should be {DIM} finite numbers"),
    ],
)
def test_mistakes_raise_one_clear_line(pipe, options, message):
    with pytest.raises(UserError) as fault:
        pipe(**options)
    assert message in str(fault.value) and "\n" not in str(fault.value)


SCHEDULERS = [
    ("euler", EDMEulerScheduler, {"sigma_min": 0.02, "sigma_max": 60.0, "rho": 6.0}),
    ("dpmpp_2m", EDMDPMSolverMultistepScheduler, {"sigma_min": 0.02, "sigma_max": 60.0}),
    ("heun", HeunDiscreteScheduler, {}),
]  # fmt: skip


@pytest.mark.parametrize(("solver", "kind", "sigmas"), SCHEDULERS)
@pytest.mark.parametrize("num_steps", [2, 5, 18])
def test_a_scheduler_gives_our_images(pipe, faces, solver, kind, sigmas, num_steps):
    ours = faces.generate("red hair", num=4, solver=solver, num_steps=num_steps, **sigmas).images
    pipe.scheduler = kind(**sigmas)
    theirs = pipe("red hair", num_images_per_prompt=4, num_steps=num_steps).images
    assert np.abs(pixels(ours).astype(int) - pixels(theirs)).max() <= BOUND


@pytest.mark.parametrize(("solver", "kind", "sigmas"), SCHEDULERS)
def test_the_latents_of_a_scheduler_differ_by_its_rounding_only(solver, kind, sigmas):
    """Its state is float32, and ours is float64."""
    denoiser, cond = make_tiny_denoiser(), torch.randn(8, DIM)
    denoise = guided(denoiser, cond, 2.0)
    latents = torch.randn(8, 4, 2, 2)
    settings = SamplerSettings(solver=solver, num_steps=18, **sigmas)
    with torch.inference_mode():
        ours = sample(denoise, latents, settings)
        theirs = solve_with(kind(**sigmas))(denoise, latents, settings)
    torch.testing.assert_close(theirs.double(), ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(), "scheduler DDIMScheduler: should be one of EDMEulerScheduler"),
        (EDMEulerScheduler(prediction_type="v_prediction"), "prediction_type is v_prediction"),
        (EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "algorithm_type is sde"),
        (EDMDPMSolverMultistepScheduler(solver_order=3), "solver_order is 3; should be 2"),
        (HeunDiscreteScheduler(clip_sample=True), "clip_sample is True; should be False"),
    ],
)
def test_a_scheduler_that_means_something_else_is_refused(pipe, scheduler, message):
    pipe.scheduler = scheduler
    with pytest.raises(UserError, match=message):
        pipe("red hair")


def test_churn_does_not_go_with_a_scheduler(pipe):
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(UserError, match="S_churn is for our own samplers"):
        pipe("red hair", S_churn=10)


def test_sigmas_of_ones_own_do_not_go_with_a_scheduler(pipe):
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(UserError, match="sampling.sigmas names others"):
        pipe("red hair", sigmas=[80, 5, 0.5])


def test_a_student_stays_one_in_a_saved_pipeline(tmp_path):
    config = make_tiny_config(tmp_path / "trained")
    config = config_from_dict(
        config.to_dict(), overrides=["distill.sigmas=[20,2]", "sampling.preset=instant"]
    )
    checkpoint = make_tiny_checkpoint(tmp_path / "trained" / "0000010.pt", config)
    student = TextToFace.load(checkpoint, device="cpu", overrides=["sampling.cfg_scale=null"])
    TextToFacePipeline.holding(student).save_pretrained(tmp_path / "released")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "released", trust_remote_code=True)
    assert_equal_images(loaded("red hair").images, student.generate("red hair", num=1).images)
    # The folder's own copy of the code raises its own UserError.
    with pytest.raises(Exception, match="distilled for Euler steps"):
        loaded("red hair", cfg_scale=2)


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_lower_precision_is_taken_from_the_weights(pipe, faces, tmp_path, amp, dtype):
    wanted = faces.generate("red hair", amp=amp).images
    pipe.save_pretrained(tmp_path)
    half = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=dtype, trust_remote_code=True)
    assert half.denoiser.dtype == half.vae.dtype == dtype
    found = half("red hair").images
    assert np.abs(pixels(found).astype(int) - pixels(wanted)).mean() < 8


def test_a_saved_pipeline_is_loaded_with_its_scheduler_and_saved_again(pipe, tmp_path):
    pipe.scheduler = EDMEulerScheduler(sigma_min=0.05)
    wanted = pipe("red hair").images
    pipe.save_pretrained(tmp_path / "one")
    one = DiffusionPipeline.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert one.scheduler.config.sigma_min == 0.05
    assert_equal_images(one("red hair").images, wanted)
    (tmp_path / "one" / "README.md").write_text("mine")
    one.save_pretrained(tmp_path / "two")
    names = [
        sorted(p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*"))
        for f in ("one", "two")
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if (tmp_path / "one" / name).is_file():
            assert (tmp_path / "one" / name).read_bytes() == (
                tmp_path / "two" / name
            ).read_bytes(), name
    two = TextToFace.load(tmp_path / "two", device="cpu")
    assert_equal_images(
        two.generate("red hair").images,
        TextToFace.load(tmp_path / "one", device="cpu").generate("red hair").images,
    )


def test_parts_can_be_replaced_while_loading(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "one")
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path / "one", scheduler=EDMEulerScheduler(), trust_remote_code=True
    )
    assert isinstance(loaded.scheduler, EDMEulerScheduler)
    assert len(loaded("red hair").images) == 1


def test_code_of_a_folder_is_not_run_without_consent(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "one")


def test_two_releases_are_used_in_one_program_each_with_its_own_code(pipe, tmp_path):
    for name in ("one", "two"):
        pipe.save_pretrained(tmp_path / name)
    changed = tmp_path / "two" / "code" / "utils" / "sampling" / "prompts.py"
    text = changed.read_text()
    changed.write_text(text.replace("is empty; say what", "has no words; say what"))
    one, two, again = (
        DiffusionPipeline.from_pretrained(tmp_path / name, trust_remote_code=True)
        for name in ("one", "two", "one")
    )
    assert_equal_images(one("red hair").images, two("red hair").images)
    for loaded, message in ((one, "is empty"), (two, "has no words"), (again, "is empty")):
        with pytest.raises(Exception, match=message):
            loaded(" ")
