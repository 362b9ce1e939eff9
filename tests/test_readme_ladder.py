"""The pages' commands for one's own images, one by one, on images of a foreign style.

The commands are read from the pages. A shell reads each, in a folder of their own, and says which
script with which arguments it starts. A config that starts from the named one changes only the
encoders, to small real ones, and sizes and counts.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from faults.harness import Run
from other_style import write_robots
from PIL import Image

pytestmark = pytest.mark.e2e
CODE = ["configs", "models", "preprocess_scripts", "utils", *(p.name for p in ROOT.glob("*.py"))]
# Takes the place of Python in the shell: prints its arguments, each on a line.
PYTHON = "python() { printf '%s\\n' \"$@\"; }"
STEP = "Train on your own images"
LAST_STEP = 6
FEW = f"""
model: {{model_type: DiT-T/2, decoder_hidden_size: 64, decoder_depth: 1, decoder_num_heads: 2}}
train: {{batchsize: 8, max_num_steps: {LAST_STEP}}}
eval: {{fid_sample_size: 8, batchsize: 8}}
sampling: {{num_steps: 4}}
log: {{log_every: 2, ckpt_every: {LAST_STEP}, num_samples: 4}}
prior: {{width: 16, depth: 1, max_num_steps: 20}}
"""
SMALL = f"""
encoders: {{vae: assets/demo/vae, clip: assets/demo/clip}}
data: {{resolution: 64}}{FEW}"""


def commands(page: str, heading: str) -> list[str]:
    """Return the commands of the shell code below a heading of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {heading}\n.+?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```sh\n(.+?)^```", section, re.MULTILINE | re.DOTALL)
    return code.splitlines()


def records_in(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Workplace:
    """A folder with the project's code; commands run in it.

    small: config sections that make the commands' config small.
    """

    def __init__(self, folder: Path, small: str):
        self.folder, self.small = folder, small
        folder.mkdir(exist_ok=True)
        for name in CODE:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)
        for name in ("clip", "vae"):
            shutil.copytree(ROOT / "assets" / "demo" / name, folder / "assets" / "demo" / name)

    def run(self, *commands: str, by_users: bool = False) -> None:
        """Run README commands, as one shell reads them; the test fails with the first that fails.

        A command `C=…` gets a small config that starts from the one it names.
        by_users: a new Python runs the folder's code for the last command, like a user's.
        """
        before = ["set -e", PYTHON]
        for command in map(self._made_small, commands):
            if command.startswith("C="):
                before.append(command)
                continue
            assert command.startswith("python "), command
            words = ["bash", "-c", "\n".join([*before, command])]
            read = subprocess.run(
                words, cwd=self.folder, capture_output=True, text=True, check=True
            )
            script, *arguments = read.stdout.splitlines()
            cold = by_users and command == self._made_small(commands[-1])
            with Run(
                str(self.folder / script) if cold else script,
                arguments,
                self.folder / "output.txt",
                environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                folder=self.folder,
                cold=cold,
            ) as process:
                assert process.wait(600) == 0, f"{command}\n{process.said()[-3000:]}"

    def _made_small(self, command: str) -> str:
        if config := re.match(r"C=(\S+\.yaml)", command):
            small = self.folder / f"small_{Path(config[1]).name}"
            small.write_text(f"base: {config[1]}\n{self.small}")
            return f"C={small.name}"
        return command.replace("0100000.pt", f"{LAST_STEP:07d}.pt")

    def check_results(self, name: str) -> None:
        """Check the metrics, grids and report that the commands leave for the experiment `name`."""
        results = self.folder / "results" / name
        losses = [record["loss"] for record in records_in(results / "metrics.jsonl")]
        assert len(losses) == LAST_STEP // 2 and np.isfinite(losses).all()
        evaluated = records_in(results / "evaluation" / "results.jsonl")
        assert {record["cfg_scale"] for record in evaluated} >= {None, 1.5, 2.0}
        assert (results / "evaluation" / "report.html").exists()
        for grid in (
            results / "samples" / f"{LAST_STEP:07d}.png",
            self.folder / "samples" / "an-old-man-with-a-beard" / "grid.png",
        ):
            assert min(Image.open(grid).size) >= 2 * 64


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    """A workplace with a newcomer's images, whose path has a space and a letter beyond ASCII."""
    place = Workplace(tmp_path_factory.mktemp("my für-"), SMALL)
    write_robots(place.folder / "data" / "own" / "train", 48)
    write_robots(place.folder / "data" / "own" / "test", 12, first=1000)
    return place


def test_the_commands_for_own_images_end_with_a_report_a_grid_and_a_file_to_publish(workplace):
    sharing = commands("docs/training.md", "Publishing")
    workplace.run(*commands("README.md", STEP), by_users=True)
    workplace.check_results("own")
    report = workplace.folder / "results" / "own" / "evaluation" / "report.html"
    captions = report.read_text(encoding="utf-8")
    assert "a robot with a" in captions and "ein Roboter mit" in captions
    with Image.open(workplace.folder / "samples/an-old-man-with-a-beard/00_000.png") as image:
        assert 0.4 <= float(image.text["freedom"]) <= 1.6  # what the prior proposes
    workplace.run(*sharing)
    assert (workplace.folder / "results" / "dit" / "evaluation" / "report.html").exists()


def test_pairs_take_the_commands_that_the_page_names_instead_of_the_first(workplace):
    ladder, pairs = commands("README.md", STEP), commands("docs/training.md", "Text–image pairs")
    kept = ladder[len(pairs) + 1 :]  # without those that the pairs replace, and the prior
    others = [re.sub(r"\bown\b", "own_pairs", command) for command in kept]
    workplace.run(*pairs, *others)
    workplace.check_results("own_pairs")


@pytest.fixture
def photographs() -> Path:
    """Return the folder of photographs, captions and encoders that PHOTOS names."""
    folder = Path(os.environ.get("PHOTOS", "no folder"))
    if not (folder / "train" / "images").is_dir():
        pytest.skip("PHOTOS names no folder of photographs (docs/photographs.md)")
    return folder


def test_the_commands_for_own_images_work_on_photographs_with_encoders_of_others(
    photographs, tmp_path
):
    """A tiny autoencoder with 32 channels; a CLIP whose text tower is of Hugging Face."""
    for split, count in (("train", 24), ("test", 12)):
        images = sorted((photographs / split / "images").iterdir())[:count]
        (tmp_path / f"{split}.txt").write_text("\n".join(path.stem for path in images))
    few = FEW.replace("eval: {", f"eval: {{split_file: {tmp_path / 'test.txt'}, ")
    few += f"data: {{split_file: {tmp_path / 'train.txt'}}}"
    place = Workplace(tmp_path / "place", few)
    (place.folder / "data" / "photos").mkdir(parents=True)
    (place.folder / "data" / "photos" / "source").symlink_to(photographs)
    config, latents, *others = commands("README.md", STEP)
    place.run(
        config.replace("own_images.yaml", "photos.yaml"),
        f"{latents} --xflip",
        *(re.sub(r"\bown\b", "photos", command) for command in others),
    )
    place.check_results("photos")
    written = {path.name for path in (place.folder / "data" / "photos").iterdir()}
    assert "source" in written and len(written) > 1  # nothing is written into the source
