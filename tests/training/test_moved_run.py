"""A run that goes on in another folder, with its databases elsewhere."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tiny import DIM, make_tiny_config
from trainings import final_state, metrics, run

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.data.lmdb_layout import names_hash
from utils.data.lmdb_writer import LMDBWriter
from utils.data.source_files import RECORD

IMAGES = 24


def make_project(folder: Path, first_name: str = "a", content: int = 1, vae: str = "vae-1") -> Path:
    """A config file with paths in `folder`, and databases with names and contents of the images."""
    config = make_tiny_config(
        folder,
        data={"resolution": 64},
        model={"in_size": 8},
        train={"max_num_steps": 4},
        log={"log_every": 1, "ckpt_every": 2, "sample_every": 0, "use_tensorboard": False},
    )
    rng = np.random.default_rng(0)
    names = [first_name, *map(str, range(1, IMAGES))]
    meta = {"names": names, "names_hash": names_hash(names), "source": str(folder)}
    records = np.full(IMAGES, content, RECORD)
    with LMDBWriter(config.data.root, "z", meta | {"encoder": vae}, IMAGES) as writer:
        writer.append(rng.normal(size=(IMAGES, 4, 8, 8)), records)
    with LMDBWriter(config.data.feat_path, "y", meta | {"encoder": "clip-1"}, IMAGES) as writer:
        writer.append(rng.normal(size=(IMAGES, 1, DIM)), records)
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """A config and the folder of its run of four steps, without interruption."""
    config = make_project(tmp_path_factory.mktemp("first"))
    return config, run(config, config.parent / "run")


@pytest.fixture
def stopped(whole, tmp_path) -> Path:
    """The folder of the run after two of its four steps."""
    folder = Path(shutil.copytree(whole[1], tmp_path / "run"))
    (folder / "checkpoints" / "0000004.pt").unlink()
    return folder


def test_a_run_goes_on_with_its_databases_and_encoders_in_another_folder(whole, stopped, tmp_path):
    folder = tmp_path / "moved"
    config = make_project(folder)
    run(config, stopped)
    assert metrics(stopped) == metrics(whole[1])
    before, after = (final_state(f) for f in (whole[1], stopped))
    differing = {key for key in before if before[key] != after.get(key)}
    assert differing and all(key.startswith(("/config/", "config")) for key in differing)
    assert str(folder) in (stopped / "config.yaml").read_text()


def test_other_images_in_the_other_folder_are_another_run(stopped, tmp_path):
    config = make_project(tmp_path / "moved", first_name="b")
    with pytest.raises(UserError, match=r"holds another run: data\.root is "):
        run(config, stopped)


@pytest.mark.parametrize(
    ("remade", "said"),
    [
        ({"content": 2}, "made anew from images of another content"),
        ({"first_name": "b"}, "made with other images, encoders or settings"),
        ({"vae": "vae-2"}, "made with other images, encoders or settings"),
    ],
)
def test_databases_made_anew_under_a_run_are_refused(tmp_path, remade, said):
    config = make_project(tmp_path)
    run(config, tmp_path / "run", "train.max_num_steps=2")
    for name in ("z", "y"):
        shutil.rmtree(getattr(load_config(config).data, {"z": "root", "y": "feat_path"}[name]))
    make_project(tmp_path, **remade)
    with pytest.raises(UserError, match=said):
        run(config, tmp_path / "run")


def test_another_encoder_is_another_run_though_the_data_are_the_same(whole, stopped):
    with pytest.raises(UserError, match=r"another run: encoders\.clip is .* ViT-L-14:openai here"):
        run(whole[0], stopped, "encoders.clip=ViT-L-14:openai")


def test_the_documented_commands_name_every_moved_file_of_ones_own_images():
    page = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    section = page[page.index("## Moving a run") :]
    for script, sections in (
        ("train_latent_t2f.py", "data|encoders|eval.feat_path"),
        ("eval_latent_t2f.py", "encoders|eval.(feat|ref)_path"),
        ("t2f.py", "encoders"),
    ):
        (command,) = re.findall(rf"^python {script} ((?:.*\\\n)*.*)", section, re.MULTILINE)
        settings = re.findall(r"\w+\.\w+=\S+", command)
        config = load_config(ROOT / "configs" / "others" / "own_images.yaml", settings).to_dict()
        places = {f"{s}.{key}": str(v) for s, keys in config.items() for key, v in keys.items()}
        left = [key for key, v in places.items() if re.match(r"data/own/(lmdb|fid)", v)]
        assert [key for key in left if re.match(sections, key)] == []
