"""A message about a missing or unfinished database gives the command that makes it."""

import shlex

import numpy as np
import pytest
from preprocessing import IMG, N_TEST, TXT, Z

from utils.base.errors import UserError
from utils.data.latent_dataset import open_data
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.data.preprocess_jobs import command_for
from utils.pretrained.effective_config import read_config
from utils.training.sample_grid import SampleGrid


def command_in(error: pytest.ExceptionInfo) -> list[str]:
    """Return the words after `python` of the command that a message gives."""
    return shlex.split(str(error.value).partition("make it: ")[2])[1:]


def run_command(project, words: list[str]) -> None:
    """Run the script that the words name, as a shell would."""
    script, *options = words
    assert options[:2] == ["--config", str(project.yaml)]
    project.run(script.removeprefix("preprocess_scripts/").removesuffix(".py"), *options[2:])


def test_each_missing_database_names_a_command_that_makes_it(project):
    settings = [f"data.root={project.folder / 'my latents'}", "data.norm_feature=true"]
    config = read_config(project.yaml, [*settings, "train.lr=1"])
    for script in (Z, IMG):
        with pytest.raises(UserError, match="no database there; make it: python ") as error:
            open_data(config)
        assert f"preprocess_scripts/{script}.py" in str(error.value)
        assert "--split train" in str(error.value) and "train.lr" not in str(error.value)
        run_command(project, command_in(error))
    open_data(config)
    with pytest.raises(UserError, match="clip_txt: no database there; make it: python ") as error:
        SampleGrid.from_config(config, "cpu")
    run_command(project, command_in(error))
    assert LMDBReader(config.eval.feat_path).info.length == N_TEST


def test_an_unfinished_database_names_the_command_too(project):
    unfinished(project.config.data.root)
    with pytest.raises(UserError, match=r"incomplete database \(1 of 2 samples\); make it: python"):
        open_data(read_config(project.yaml))


def unfinished(folder) -> None:
    """Write the first of two samples, as a run that was killed leaves it."""
    with pytest.raises(KeyboardInterrupt), LMDBWriter(folder, "z", {}, 2) as writer:
        writer.append(np.ones((1, 4, 2, 2)))
        raise KeyboardInterrupt


def test_pairs_are_made_from_captions(project):
    """Their condition is the embedding of a caption, under the name of training's own key."""
    path = project.train / "clip_txt"
    config = read_config(project.yaml, (own := [f"data.feat_path={path}"]))
    words = shlex.join(["--config", str(project.yaml), *own])
    assert command_for(path, config) == (
        f"python preprocess_scripts/clip_encode_text.py {words} --split train"
    )
    config = read_config(project.yaml, [*own, "data.text_feat_path=null"])
    assert command_for(path, config).endswith(f"--split train data.text_feat_path={path}")
    assert command_for(path.with_name("other"), config) is None


def test_a_config_for_pairs_gets_no_embeddings_of_images(project, capsys):
    pairs = (f"data.feat_path={project.train / 'clip_txt'}",)
    for options in ((Z, "--with_clip"), (IMG, "--split", "train")):
        message = project.fails(capsys, *options, *pairs)
        assert "is data.text_feat_path too" in message and "clip_encode_text.py" in message
    assert not (project.train / "clip_txt").exists()


def test_a_split_that_is_left_out_says_whether_that_matters(project, capsys):
    project.run(Z, "eval.root=null")
    assert "eval.root is not set; this is fine" in capsys.readouterr().err
    project.run(TXT, "data.text_feat_path=null")
    assert "only training on text–image pairs needs it" in capsys.readouterr().err
