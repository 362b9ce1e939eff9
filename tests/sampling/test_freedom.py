"""`sampling.freedom`: each seed fills in what a condition leaves open, by a prior."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import DIM, make_tiny_checkpoint, make_tiny_config, make_tiny_evaluation_data

import eval_latent_t2f
import t2f
from models.clip import load_clip
from models.embedding_prior import EmbeddingPrior
from utils.base.errors import UserError
from utils.evaluation.checkpoints import configs_to_evaluate
from utils.pretrained.denoisers import export_safetensors
from utils.pretrained.priors import (
    add_report,
    load_config_prior,
    read_prior,
    save_prior,
    with_proposed_freedom,
)
from utils.release.folder import export_folder
from utils.sampling.text_to_face import TextToFace
from utils.training.sample_grid import SampleGrid


def make_prior(path, clip: str, dim: int = DIM):
    """Write a prior with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = EmbeddingPrior(dim, width=16, depth=1)
        torch.nn.init.normal_(prior.output.weight)
        prior.measure(torch.nn.functional.normalize(1 + torch.randn(50, dim), dim=1))
    save_prior(prior, path, clip)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose config names a prior of its CLIP; freedom is 0."""
    folder = tmp_path_factory.mktemp("free")
    clip = load_clip(make_tiny_config(folder).encoders.clip)
    prior = make_prior(folder / "prior.safetensors", clip.identity)
    config = make_tiny_config(folder, encoders={"prior": prior})
    return make_tiny_checkpoint(folder / "0000010.pt", config)


@pytest.fixture(scope="module")
def faces(checkpoint):
    return TextToFace.load(checkpoint, device="cpu")


def differs(a, b) -> bool:
    return any(x.tobytes() != y.tobytes() for x, y in zip(a.images, b.images, strict=True))


def test_zero_is_literal_whether_or_not_a_prior_is_there(checkpoint, faces):
    without = TextToFace.load(checkpoint, overrides=["encoders.prior=null"], device="cpu")
    faces.generate("red hair", num=1, freedom=0.8)  # loads the prior
    assert not differs(faces.generate("red hair", num=3), without.generate("red hair", num=3))


def test_each_seed_samples_another_condition_after_its_latent(faces):
    literal, free = (faces.generate("red hair", num=3, freedom=f) for f in (0, 0.8))
    assert differs(literal, free)
    assert not differs(free, faces.generate("red hair", seeds=[0, 1, 2], freedom=0.8, batch_size=1))
    assert not differs(free, faces.generate("red hair", num=3, freedom=0.8))


def test_candidates_change_the_condition_alone(faces):
    one, four = (faces.generate("red hair", num=4, freedom=0.8, prior_candidates=n) for n in (1, 4))
    assert not differs(one, faces.generate("red hair", num=4, freedom=0.8))
    assert differs(one, four)
    literal = [faces.generate("red hair", num=4, prior_candidates=n) for n in (1, 4)]
    assert not differs(*literal)  # without freedom there is no prior


def test_the_prior_samples_its_noise_after_the_latent(faces, checkpoint):
    """The latent of a seed is equal at every freedom, so that the condition alone changes."""
    config = faces.config.sampling
    prior, _ = read_prior(checkpoint.parent / "prior.safetensors")
    generator = torch.Generator().manual_seed(7)
    torch.randn(4, 2, 2, generator=generator)  # the latent
    noise = torch.randn(DIM, generator=generator)
    condition = prior.sample(faces.embed("red hair"), noise[None], freedom=0.8)
    expected = faces.generate(condition[0], seeds=[7])
    assert config.freedom == 0
    assert not differs(expected, faces.generate("red hair", seeds=[7], freedom=0.8))


def test_the_command_line_generates_the_same_and_notes_the_freedom(
    checkpoint, faces, tmp_path, monkeypatch
):
    words = ["--ckpt", checkpoint, "--prompt", "red hair", "--num", 1, "--freedom", 0.8]
    monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, words), "--out", str(tmp_path)])
    t2f.main()
    with Image.open(tmp_path / "00_000.png") as image:
        assert image.text["freedom"] == "0.8"
        assert image.tobytes() == faces.generate("red hair", freedom=0.8).images[0].tobytes()


def test_a_network_is_evaluated_with_freedom(checkpoint, tmp_path, monkeypatch):
    config = make_tiny_config(checkpoint.parent)
    if not config.eval.ref_path.exists():
        make_tiny_evaluation_data(config)
    records = []
    for freedom in ("0", "0.8"):
        words = ["--ckpt", str(checkpoint), "--out", str(tmp_path / freedom)]
        words += ["eval.fid_sample_size=8", f"sampling.freedom={freedom}"]
        monkeypatch.setattr(sys, "argv", ["eval_latent_t2f.py", *words])
        eval_latent_t2f.main()
        records.append(json.loads((tmp_path / freedom / "results.jsonl").read_text()))
    assert records[0]["frechet_distance_clip"] != records[1]["frechet_distance_clip"]
    assert records[1]["freedom"] == 0.8 and "freedom" not in records[0]


@pytest.fixture
def proposing(checkpoint, tmp_path):
    """A copy of the checkpoint's prior that proposes a freedom of 0.8, as an override."""
    file = tmp_path / "proposing.safetensors"
    file.write_bytes((checkpoint.parent / "prior.safetensors").read_bytes())
    add_report(file, {"freedom": 0.8})
    return f"encoders.prior={file}"


def test_auto_is_the_freedom_that_the_prior_proposes(
    checkpoint, faces, proposing, tmp_path, monkeypatch
):
    words = ["--ckpt", checkpoint, "--prompt", "red hair", "--num", 1, "--freedom", "auto"]
    words += ["--out", tmp_path, proposing]
    monkeypatch.setattr(sys, "argv", ["t2f.py", *map(str, words)])
    t2f.main()
    expected = faces.generate("red hair", freedom=0.8)
    with Image.open(tmp_path / "00_000.png") as image:
        assert image.text["freedom"] == "0.8"
        assert image.tobytes() == expected.images[0].tobytes()
    auto = TextToFace.load(checkpoint, overrides=[proposing, "sampling.freedom=auto"], device="cpu")
    assert auto.config.sampling.freedom == 0.8  # what the page's slider shows
    assert not differs(expected, auto.generate("red hair"))
    other = TextToFace.load(checkpoint, overrides=[proposing], device="cpu")
    assert not differs(expected, other.generate("red hair", freedom="auto"))


def test_auto_in_a_release_folder_is_the_number_or_asks_its_prior(
    checkpoint, faces, proposing, tmp_path
):
    export_folder(checkpoint, tmp_path / "out", [proposing, "sampling.freedom=auto"], device="cpu")
    released = TextToFace.load(tmp_path / "out", device="cpu")
    assert released.config.sampling.freedom == 0.8
    assert "`freedom` says how far" in (tmp_path / "out" / "README.md").read_text()
    literal, auto = (released.generate("red hair", freedom=f) for f in (0, "auto"))
    assert differs(literal, auto) and not differs(auto, released.generate("red hair"))


def test_evaluation_and_sample_grids_take_the_proposed_freedom(checkpoint, proposing):
    config = make_tiny_config(
        checkpoint.parent,
        encoders={"prior": proposing.split("=")[1]},
        sampling={"freedom": "auto", "num_steps": 3},
        eval={"caption_dir": None, "cfg_scales": [1.0, 2.0]},
    )
    if not config.eval.ref_path.exists():
        make_tiny_evaluation_data(config)
    each = configs_to_evaluate(config).values()
    assert [one.sampling.freedom for one in each] == [0.8, 0.8]
    grid = SampleGrid.from_config(config, "cpu")
    assert grid is not None and grid.sampling.freedom == 0.8 and grid.prior is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "sampling.freedom=auto needs a prior: .*train_prior.py"),
        ("gone.safetensors", "gone.safetensors is not there"),
        (
            "old.safetensors",
            "freedom=auto: old.safetensors proposes none.*start python train_prior",
        ),
        ("mute.safetensors", "freedom=auto: mute.safetensors proposes none"),
        ("text.safetensors", "holds no prior"),
    ],
)
def test_auto_without_a_proposal_is_an_error_of_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    make_prior(tmp_path / "old.safetensors", "clip-a")
    add_report(make_prior(tmp_path / "mute.safetensors", "clip-a"), {"freedom": None})
    (tmp_path / "text.safetensors").write_text("no weights")
    config = make_tiny_config(tmp_path, encoders={"prior": name}, sampling={"freedom": "auto"})
    with pytest.raises(UserError, match=message) as error:
        with_proposed_freedom(config)
    assert "\n" not in str(error.value)


def test_other_words_than_auto_are_refused(faces):
    for word in ("automatic", "-1", "nan"):
        with pytest.raises(UserError, match="sampling.freedom"):
            faces.generate("red hair", freedom=word)


def test_settings_beside_a_released_file_count_over_those_in_it(checkpoint, tmp_path):
    released = tmp_path / "dit.safetensors"
    export_safetensors(checkpoint, released)
    assert TextToFace.load(released, device="cpu").config.sampling.freedom == 0
    (tmp_path / "dit.yaml").write_text("sampling: {freedom: 0.8}\n")
    beside = TextToFace.load(released, device="cpu").config.sampling
    assert (beside.freedom, beside.num_steps, beside.cfg_scale) == (0.8, 3, 2.0)
    (tmp_path / "dit.yaml").write_text("sampling: {fredom: 0.8}\n")
    with pytest.raises(UserError, match="fredom"):
        TextToFace.load(released, device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoders": {"prior": None}}, r"sampling.freedom=0.8 needs a prior: .*train_prior.py"),
        ({"encoders": {"prior": "gone.safetensors"}}, "gone.safetensors is not there"),
        ({"encoders": {"prior": "no_prior.safetensors"}}, "holds no prior"),
        ({"encoders": {"prior": "text.safetensors"}}, "holds no prior"),
        ({"encoders": {"prior": "other_clip.safetensors"}}, "for another CLIP"),
        ({"encoders": {"prior": "wider.safetensors"}}, r"samples embeddings of \d+ numbers"),
    ],
)
def test_a_prior_that_does_not_fit_is_named_in_one_line(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    make_prior(tmp_path / "other_clip.safetensors", "clip-b")
    make_prior(tmp_path / "wider.safetensors", "clip-a", dim=DIM + 1)
    save_file({"x": torch.ones(1)}, tmp_path / "no_prior.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    config = make_tiny_config(tmp_path, sampling={"freedom": 0.8}, **settings)
    with pytest.raises(UserError, match=message) as error:
        load_config_prior(config, "clip-a")
    assert "\n" not in str(error.value)


def test_a_prior_keeps_its_weights_as_float16(tmp_path):
    path = make_prior(tmp_path / "prior.safetensors", "clip-a")
    prior, clip = read_prior(path)
    assert clip == "clip-a" and not prior.training
    assert all(weight.dtype == torch.float16 for weight in load_file(path).values())
    assert all(weight.dtype == torch.float32 for weight in prior.state_dict().values())
