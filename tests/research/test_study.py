"""The study: its list of runs, its captions, faces and priors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from demo.captions import GLASSES, SKIN
from demo.make_faces import ATTRIBUTES, hide, make_face
from research.recipes.compare import read_run_list, recipe_file
from research.recipes.recipe import read_recipe
from research.recipes.worlds import WORLDS
from research.study.material import (
    CAPTIONS,
    NARROW,
    mix,
    more_captions,
    narrow_face,
    prepare,
    short_captions,
    wrong_captions,
)
from research.study.pairs_prior import PairsTraining
from utils.base.errors import UserError
from utils.config.sections import Prior
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter

# The list


RUNS = ROOT / "research" / "study" / "study.yaml"
NAMES = [
    name for file in (RUNS, RUNS.with_name("study_wide.yaml")) for name in read_run_list(file).seeds
]


def test_the_lists_name_every_recipe_of_the_study():
    files = WORLDS["avatars"].recipes[1].glob("*.yaml")
    assert sorted(file.stem for file in files) == sorted(set(NAMES))


def test_no_recipe_of_images_alone_reads_a_caption():
    named = [n for n in NAMES if not n.removeprefix("wide_").startswith(("pairs", "mixed"))]
    assert len(named) > 10
    for name in named:
        config = read_recipe(recipe_file(name, RUNS)).config
        assert config.data.feat_path is not None and config.data.feat_path.name == "clip_img"
        assert "pairs" not in str(config.encoders.prior)


@pytest.mark.parametrize(
    ("text", "line"),
    [("seconds: [", "not readable"), ("seconds: 1\nimages: 2\nsedes: {}\n", "not readable")],
)
def test_a_damaged_list_is_one_line(text, line, tmp_path):
    (tmp_path / "runs.yaml").write_text(text)
    with pytest.raises(UserError, match=line):
        read_run_list(tmp_path / "runs.yaml")


# Captions and faces


def says_pale(text: str) -> bool:
    """Return True if a caption states pale skin; no wording of another value contains these."""
    return any(words in text for words in SKIN["pale"])


def test_short_captions_are_true_and_state_at_most_two_attributes():
    for index in range(100):
        shown = hide(make_face("train", index, 1)[0])
        texts = short_captions(index)
        assert len(texts) == CAPTIONS and all(texts)
        for text in texts:
            # Two attributes have at most two phrases, and one phrase a comma at most.
            assert text.count(",") <= 2 and text.count(" and ") <= 1
            assert shown["skin"] == "pale" or not says_pale(text)


def test_a_part_of_the_wrong_captions_contradicts_the_face():
    false = stated = 0
    for index in range(300):
        shown = hide(make_face("train", index, 1)[0])
        for text in wrong_captions(index):
            stated += says_pale(text)
            false += says_pale(text) and shown["skin"] != "pale"
    assert stated > 100
    assert 0.1 < false / stated < 0.4  # 0.3 are replaced, a quarter by the old one


def test_more_captions_begin_with_those_of_the_demo():
    captions = [caption["text"] for caption in make_face("train", 7, 6)[1]["captions"]]
    assert more_captions(7)[:6] == captions and len(more_captions(7)) == 10


def test_narrow_faces_have_the_values_of_the_narrow_set_alone():
    faces = [narrow_face(index) for index in range(50)]
    for name, values in NARROW.items():
        assert {face[name] for face in faces} == set(values)
    assert len({face["clothes"] for face in faces}) == len(ATTRIBUTES["clothes"])
    assert GLASSES.keys() > set(NARROW["glasses"])  # the demo has more kinds


# Databases


def write(path, values, **meta):
    """Write embeddings (N, n, D) with the facts that the project's scripts record."""
    names = [f"{i:06d}" for i in range(len(values))]
    facts = {"encoder": "clip-a", "source": "x", "names": names, "names_hash": names_hash(names)}
    with LMDBWriter(path, "y", facts | meta, len(values)) as writer:
        writer.append(values)
    return path


def test_a_mixed_database_holds_the_image_as_often_as_captions(tmp_path):
    texts = np.random.default_rng(0).normal(size=(9, 3, 4)).astype(np.float32)
    images = np.random.default_rng(1).normal(size=(9, 1, 4)).astype(np.float32)
    paths = write(tmp_path / "texts", texts), write(tmp_path / "images", images)
    mix(*paths, tmp_path / "mixed")
    reader = LMDBReader(tmp_path / "mixed")
    assert reader.info.n_features == 6 and reader.info.length == 9
    every = np.arange(9)
    for k in range(3):
        np.testing.assert_array_equal(reader.read(every, k), texts[:, k])
        np.testing.assert_array_equal(reader.read(every, 3 + k), images[:, 0])
    mix(*paths, tmp_path / "mixed")  # it is complete, and stays


@pytest.mark.parametrize("part", ["nothing/z", "first_1000/pixels", "first_1000/z/prior", "clip"])
def test_unknown_material_is_one_line(part, tmp_path):
    with pytest.raises(UserError, match="the study has no"):
        prepare([tmp_path / "study" / part], tmp_path)
    prepare([tmp_path / "lmdb" / "z"], tmp_path)  # not the study's: left to the project's scripts


def test_a_prior_of_pairs_learns_which_images_belong_to_a_caption(tmp_path):
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(2, 16), dim=1)
    kinds = torch.arange(200) % 2
    y = F.normalize(centres[kinds] + 0.1 * torch.randn(200, 16), dim=1)
    captions = centres[1 - kinds][:, None].numpy()  # a caption points at the *other* centre
    reader = LMDBReader(write(tmp_path / "texts", captions))
    training = PairsTraining(y, reader, Prior(width=32, depth=1, batchsize=64, max_num_steps=300))
    while training.step < 300:
        training.take_step()
    generated = training.prior.sample(centres.repeat_interleave(50, 0), torch.randn(100, 16), 1.0)
    nearest = (generated @ centres.T).argmax(dim=1)
    wanted = torch.tensor([1, 0]).repeat_interleave(50)
    assert (nearest == wanted).float().mean() > 0.95


# The command


def test_an_unknown_recipe_is_one_line():
    command = [sys.executable, "research/recipes/compare.py", str(RUNS), "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: nothing: not in")
