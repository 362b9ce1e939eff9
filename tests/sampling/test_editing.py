"""Edits of an image: what is kept is kept exactly, from the command line as from Python."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import crude_face
from equal_images import assert_equal_images
from PIL import Image, ImageDraw
from tiny import DIM, RESOLUTION, make_tiny_checkpoint, make_tiny_config

import t2f
from models.clip import load_clip
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError
from utils.data.images import center_crop
from utils.pretrained.priors import save_prior
from utils.release.pipeline import TextToFacePipeline
from utils.sampling.text_to_face import TextToFace


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint whose config names a prior of its CLIP."""
    folder = tmp_path_factory.mktemp("edited")
    clip = load_clip(make_tiny_config(folder).encoders.clip)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = EmbeddingPrior(DIM, width=16, depth=1)
        for layer in (prior.output, prior.blocks[0].output):  # samples follow their condition
            torch.nn.init.normal_(layer.weight)
        prior.measure(torch.nn.functional.normalize(1 + torch.randn(50, DIM), dim=1))
    save_prior(prior, folder / "prior.safetensors", clip.identity)
    config = make_tiny_config(folder, encoders={"prior": folder / "prior.safetensors"})
    return make_tiny_checkpoint(folder / "0000010.pt", config)


@pytest.fixture(scope="module")
def faces(checkpoint) -> TextToFace:
    return TextToFace.load(checkpoint, device="cpu")


@pytest.fixture
def face(tmp_path) -> Path:
    crude_face(3, 2 * RESOLUTION).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def pixels(generation) -> np.ndarray:
    return np.stack([np.asarray(image) for image in generation.images]).astype(int)


def test_strength_one_with_a_prompt_is_a_plain_generation(faces, face):
    edited = faces.edit(face, prompts=["red hair"], num=2)
    np.testing.assert_array_equal(pixels(edited), pixels(faces.generate("red hair", num=2)))


def test_strength_zero_is_what_the_vae_makes_of_the_image_and_more_leaves_it(faces, face):
    made = [pixels(faces.edit(face, prompts=["red hair"], strength=s)) for s in (0, 0.05, 0.6)]
    other_seed = faces.edit(face, prompts=["a hat"], strength=0, seeds=[7])
    np.testing.assert_array_equal(made[0], pixels(other_seed))
    near, far = (np.abs(image - made[0]).mean() for image in made[1:])
    assert 0 < near < far


def test_inversion_returns_the_image_that_the_vae_makes(faces, face):
    options = {"cfg_scale": None, "num_steps": 60}
    reconstructed = pixels(faces.edit(face, strength=0))
    inverted = pixels(faces.edit(face, fresh=0, **options))
    fresh = pixels(faces.edit(face, fresh=1, **options))
    error = np.abs(inverted - reconstructed).mean()
    assert error < 0.1 * np.abs(fresh - reconstructed).mean()


def test_words_change_the_image_and_no_amount_of_them_does_not(faces, face):
    none = pixels(faces.edit(face, add=["round glasses"], amount=0))
    np.testing.assert_array_equal(none, pixels(faces.edit(face, fresh=0)))
    pairs = [("a man", "a hat"), ("a hat", "a man")]  # a random prior may see one there already
    some = [pixels(faces.edit(face, change=[pair], amount=4)) for pair in pairs]
    assert any((image != none).any() for image in some)
    strip = faces.edit(face, vary=["a sad man", "a woman"], remove=["a hat"])
    labels = [row.label for row in strip.rows]
    assert labels == ["face.png − a hat, → a sad man", "face.png − a hat, → a woman"]


@pytest.mark.parametrize("place", ["file", "memory"])
def test_outside_of_the_mask_every_pixel_and_latent_is_kept(faces, face, place, tmp_path):
    mask = Image.new("L", (2 * RESOLUTION, 2 * RESOLUTION))
    ImageDraw.Draw(mask).rectangle((0, 0, 2 * RESOLUTION, RESOLUTION // 2), fill=255)
    if place == "file":
        mask.save(tmp_path / "mask.png")
    given = tmp_path / "mask.png" if place == "file" else mask
    edited = pixels(faces.edit(face, prompts=["red hair"], mask=given, num=2))
    old = pixels(faces.edit(face, strength=0, mask=given))  # the seam alone is the VAE's
    assert (edited[:, RESOLUTION // 2 :] == old[:, RESOLUTION // 2 :]).all()
    assert (edited[0, : RESOLUTION // 8] != edited[1, : RESOLUTION // 8]).any()


def test_inside_of_a_mask_a_prompt_moves_the_image_s_own_embedding(faces, face):
    mask = Image.new("L", (2 * RESOLUTION, 2 * RESOLUTION))
    ImageDraw.Draw(mask).rectangle((0, 0, 2 * RESOLUTION, RESOLUTION // 2), fill=255)
    prompted = faces.edit(face, prompts=["red hair"], mask=mask, freedom=0.7)
    varied = faces.edit(face, vary=["red hair"], fresh=1, mask=mask, freedom=0.7)
    np.testing.assert_array_equal(pixels(prompted), pixels(varied))
    literal = faces.edit(face, prompts=["red hair"], mask=mask, freedom=0)
    assert (pixels(literal) != pixels(varied)).any()


def exif_rotated(face: Image.Image) -> tuple[Image.Image, dict]:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    return face.transpose(Image.Transpose.ROTATE_90), {"exif": exif}


def transparent(face: Image.Image) -> tuple[Image.Image, dict]:
    white = (np.asarray(face) == 255).all(axis=2)
    face = face.copy()
    face.putalpha(Image.fromarray(np.where(white, 0, 255).astype(np.uint8)))
    return face, {}


def deep_grey(face: Image.Image) -> tuple[Image.Image, dict]:
    return Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257), {}


KINDS = {
    "rotated by EXIF": (exif_rotated, "RGB"),
    "transparent": (transparent, "RGB"),
    "grey": (lambda face: (face.convert("L"), {}), "L"),
    "16 bits": (deep_grey, "L"),
    "palette": (lambda face: (face.quantize(200), {}), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_as_people_have_them_are_edited_as_they_look(faces, kind, tmp_path):
    face = crude_face(3, 2 * RESOLUTION)
    face.paste("white", (0, 0, 2 * RESOLUTION, 4))
    make, look = KINDS[kind]
    given, options = make(face)
    given.save(tmp_path / "given.png", **options)
    expected = (given if look is None else face.convert(look)).convert("RGB")
    options = {"change": [("a man", "a hat")], "amount": 4}
    wanted = pixels(faces.edit(expected, **options))
    np.testing.assert_array_equal(pixels(faces.edit(tmp_path / "given.png", **options)), wanted)
    with Image.open(tmp_path / "given.png") as opened:
        np.testing.assert_array_equal(pixels(faces.edit(opened, **options)), wanted)


def test_50_megapixels_and_an_image_of_noise_are_edited(faces, tmp_path):
    Image.new("L", (10_000, 5_000), 90).save(tmp_path / "large.png")
    large = pixels(faces.edit(tmp_path / "large.png", add=["a hat"]))
    small = Image.new("L", (RESOLUTION, RESOLUTION), 90)
    np.testing.assert_array_equal(large, pixels(faces.edit(small, add=["a hat"])))
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    assert pixels(faces.edit(Image.fromarray(noise), add=["a hat"])).std() > 0


def top_half(size: int, value: int = 255) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(value, (0, 0, size, size // 2))
    return mask


def test_a_mask_of_another_size_turned_or_transparent_is_the_same_mask(faces, face, tmp_path):
    def edited(mask) -> np.ndarray:
        return pixels(faces.edit(face, prompts=["red hair"], mask=mask))

    wanted = edited(top_half(2 * RESOLUTION))
    np.testing.assert_array_equal(edited(top_half(RESOLUTION)), wanted)
    turned, options = exif_rotated(top_half(2 * RESOLUTION))
    turned.save(tmp_path / "turned.png", **options)
    np.testing.assert_array_equal(edited(tmp_path / "turned.png"), wanted)
    strokes = Image.new("RGBA", (RESOLUTION, RESOLUTION))  # as paint programs export a layer
    strokes.paste("white", (0, 0, RESOLUTION, RESOLUTION // 2))
    strokes.save(tmp_path / "strokes.png")
    np.testing.assert_array_equal(edited(tmp_path / "strokes.png"), wanted)


def test_a_soft_mask_changes_less_than_a_hard_one(faces, face):
    old = np.asarray(center_crop(Image.open(face), RESOLUTION)).astype(int)
    hard, soft = (
        pixels(faces.edit(face, prompts=["red hair"], mask=top_half(RESOLUTION, value)))
        for value in (255, 60)
    )
    changes = [np.abs(image[0] - old)[: RESOLUTION // 3].mean() for image in (soft, hard)]
    assert 0 < changes[0] < changes[1]


def test_words_change_the_image_that_a_sentence_makes_of_a_seed(faces):
    generated = faces.generate("a man", seeds=[5])
    options = {"vary": ["hair colour", "a hat"], "seeds": [5]}
    strip = faces.edit("a man", **options)
    np.testing.assert_array_equal(pixels(strip), pixels(faces.edit(generated.images[0], **options)))
    labels = [row.label for row in strip.rows]
    assert labels[0] == "a man, seed 5 → a person with black hair"
    assert (len(labels), labels[-1]) == (6, "a man, seed 5 → a hat")
    with pytest.raises(UserError, match="has one seed, not 2"):
        faces.edit("a man", vary=["a hat"], num=2)


def test_an_edit_by_words_reads_no_caption(checkpoint, faces, face, tmp_path):
    gone = [f"{key}={tmp_path / 'gone'}" for key in ("data.text_feat_path", "eval.caption_dir")]
    without = TextToFace.load(checkpoint, overrides=gone, device="cpu")
    options = {"add": ["a hat"], "negative": "a beard", "cfg_scale": 2}
    np.testing.assert_array_equal(
        pixels(without.edit(face, **options)), pixels(faces.edit(face, **options))
    )


def test_an_interpolation_goes_from_the_image_to_its_change(faces, face):
    change = [("a man", "a hat"), ("a hat", "a man")]
    steps = pixels(faces.edit(face, change=change, interpolate=3))
    for step, amount in zip(steps, (0, 0.5, 1), strict=True):
        alone = pixels(faces.edit(face, change=change, amount=amount))
        np.testing.assert_allclose(step, alone[0], atol=1)  # a batch of another size
    assert (steps[0] != steps[2]).any()


@pytest.mark.parametrize(
    ("options", "freedom"),
    [({}, "0.7"), ({"freedom": 1.2}, "1.2"), ({"strength": 0, "add": ()}, None)],
)
def test_a_png_states_the_freedom_of_the_images_that_words_stand_for(faces, face, options, freedom):
    (image,) = faces.edit(face, **({"add": ["a hat"]} | options)).results
    assert image.text.get("freedom") == freedom


def test_without_the_prior_guidance_leads_away_from_a_negative(faces):
    plain, away = (
        pixels(faces.generate("a man", num=2, cfg_scale=2, freedom=0, negative=negative))
        for negative in (None, "a beard")
    )
    assert (plain != away).any()
    with pytest.raises(UserError, match="negative: without the prior"):
        faces.generate("a man", cfg_scale=None, freedom=0, negative="a beard")


def test_images_of_the_prior_that_look_like_the_negative_are_others(faces):
    options = {"num": 12, "cfg_scale": None, "freedom": 1}
    plain = pixels(faces.generate("a man", **options))
    away = pixels(faces.generate("a man", negative="a beard", **options))
    changed = (plain != away).any(axis=(1, 2, 3))
    assert changed.any() and not changed.all()  # those that do not look like it stay, bit for bit
    one = pixels(faces.generate("a man", negative="a beard", seeds=[5], **(options | {"num": 1})))
    np.testing.assert_array_equal(one[0], away[5])


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--add", "glasses"], {"add": ["glasses"]}),
        (["--to", "a sad man", "--num", 2], {"change": [("a person", "a sad man")], "num": 2}),
        (["--from", "a man", "--to", "a sad man"], {"change": [("a man", "a sad man")]}),
        (["--prompt", "a hat", "--strength", 0.5], {"prompts": ["a hat"], "strength": 0.5}),
        (["--vary", "glasses", "--interpolate", 2], {"vary": ["glasses"], "interpolate": 2}),
        (["--vary", "a hat", "--fresh", 0.5, "--amount", 2],
         {"vary": ["a hat"], "fresh": 0.5, "amount": 2}),
    ],
)  # fmt: skip
def test_the_command_line_makes_the_same_images(
    flags, options, checkpoint, faces, face, tmp_path, monkeypatch
):
    argv = ["t2f.py", "--ckpt", checkpoint, "--image", face, "--out", tmp_path / "out", *flags]
    monkeypatch.setattr(sys, "argv", [*map(str, argv), "--device", "cpu"])
    t2f.main()
    faces.edit(face, **options).save(tmp_path / "mine")
    for mine in sorted((tmp_path / "mine").iterdir()):
        theirs = Image.open(tmp_path / "out" / mine.name)
        np.testing.assert_array_equal(np.asarray(theirs), np.asarray(Image.open(mine)))
        assert theirs.text == Image.open(mine).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength is 1.5; should be from 0 to 1"),
        ({"prompts": ["a hat"], "add": ["a hat"]}, "give one or the other"),
        ({"add": [" "]}, "add is empty"), ({"vary": [""]}, "vary is empty"),
        ({"add": ["a hat"], "interpolate": 10**9}, "at least 2 rows and at most 1000000"),
        ({"prompts": ["a hat"], "interpolate": 3}, "to its change by add"),
        *(({"mask": Image.new(mode, (30, 30))}, "black or transparent") for mode in ("L", "RGBA")),
        ({"mask": Image.new("L", (30, 20), 255)}, "30 x 20 pixels, and the image square"),
        ({"mask": Path("gone.png")}, "gone.png: there is no image of this name"),
        ({"S_churn": 20, "fresh": 0}, "takes no S_churn"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(faces, face, options, message):
    with pytest.raises(UserError, match=message):
        faces.edit(face, **options)


def test_words_need_a_prior(checkpoint, face):
    without = TextToFace.load(checkpoint, overrides=["encoders.prior=null"], device="cpu")
    with pytest.raises(UserError, match="needs a prior"):
        without.edit(face, add=["glasses"])


@pytest.mark.parametrize(
    ("options", "is_equal"),
    [
        ({"add": ["a hat"]}, True),
        ({"add": ["a hat"], "fresh": 0.5}, False),
        ({"prompts": ["a hat"]}, False),
        ({"prompts": ["a hat"], "strength": 0}, True),
        ({"prompts": ["a hat"], "fresh": 0}, True),
        ({"prompts": ["a hat"], "fresh": 0, "freedom": 1}, False),
    ],
)
def test_a_note_says_that_all_seeds_give_one_image(faces, face, options, is_equal, capsys):
    one, other = pixels(faces.edit(face, **options, num=2))
    assert (one == other).all() == is_equal
    assert ("each row has 2 equal images" in capsys.readouterr().err) == is_equal


def test_a_png_states_the_content_of_image_and_mask(faces, face, tmp_path):
    def text(mask, prompts) -> dict:
        (image,) = faces.edit(face, prompts=prompts, mask=mask, strength=0.1).results
        return image.text

    top_half(8).save(tmp_path / "mask.png")
    first = text(tmp_path / "mask.png", ["red hair"])
    assert (first["image"], first["mask"]) == (str(face), str(tmp_path / "mask.png"))
    assert len(first["image_hash"]) == len(first["mask_hash"]) == 8
    assert text(str(tmp_path / "mask.png"), ["red hair"]) == first
    top_half(8, 200).save(tmp_path / "mask.png")
    other = text(tmp_path / "mask.png", ["red hair"])
    assert {key for key in first if first[key] != other[key]} == {"mask_hash"}
    assert text(top_half(8), [])["mask"].startswith("image ")


def test_the_pipeline_edits_under_the_names_of_diffusers(faces, face):
    pipe = TextToFacePipeline.holding(faces)
    pipe.set_progress_bar_config(disable=True)
    white = Image.new("L", (8, 8), 255)
    given = {"prompts": ["a hat"], "strength": 0.5, "mask": white, "num": 2}
    found = pipe("a hat", face, strength=0.5, mask_image=white, num_images_per_prompt=2).images
    assert_equal_images(found, faces.edit(face, **given).images)
    added = pipe(image=Image.open(face), add=["a hat"], seeds=[3]).images
    assert_equal_images(added, faces.edit(face, add=["a hat"], seeds=[3]).images)
    y = faces.embed("a hat")
    near = {"strength": 0.5, "seeds": [3]}
    found = pipe(image=face, prompt_embeds=y, **near).images
    assert_equal_images(found, faces.edit(face, prompts=["a hat"], **near).images)
    varied = pipe("a man", vary=["a hat"], seeds=[3]).images
    assert_equal_images(varied, faces.edit("a man", vary=["a hat"], seeds=[3]).images)
    with pytest.raises(UserError, match="takes one image"):
        pipe("a hat", strength=0.5)
