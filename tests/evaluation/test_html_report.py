"""report.html: loads no other file, shows all results, and shows in a browser."""

import base64
import io
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from html_page import Page, record
from PIL import Image
from tiny import RESOLUTION, make_tiny_config

from utils.config.schema import Config
from utils.data.images import list_images, to_uint8_array
from utils.data.lmdb_reader import LMDBReader
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.html_report import write_report
from utils.evaluation.kept_images import variety_folder
from utils.evaluation.neighbours import nearest, usual_cosine
from utils.evaluation.results import Results
from utils.pretrained.encoders import load_config_clip
from utils.sampling.image_files import save_png

CAPTION = 'a "rendered" face <b>& more</b>'


@pytest.fixture
def made(tmp_path: Path, tiny_faces) -> SimpleNamespace:
    """Results of two checkpoints and three scales, training images with embeddings, a report."""
    images, _ = tiny_faces(12, RESOLUTION)
    config = make_tiny_config(tmp_path, data={"image_dir": images})
    clip = load_config_clip(config.encoders)
    samples = list_images(images)
    pixels = np.stack([to_uint8_array(path, RESOLUTION) for _, path in samples])
    embeddings = clip.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    meta = {"encoder": clip.identity, "names": [name for name, _ in samples]}
    with LMDBWriter(config.data.feat_path, "y", meta, 12) as writer:
        writer.append(embeddings[:, None].numpy())

    results = Results(tmp_path / "exp" / "evaluation")
    kept = results.folder / "images" / "best"
    for seed in range(6):
        save_png(pixels[seed], kept / f"{seed:06d}.png", {"seed": str(seed), "prompt": CAPTION})
    for step, distances in ((300, (500, 450, 470)), (600, (300, 240, 260))):
        for scale, distance in zip((None, 1.5, 2.0), distances, strict=True):
            results.add(record(step, scale, float(distance), images="images/best"))
    path = write_report(results, config, clip)
    return SimpleNamespace(path=path, config=config, clip=clip, results=results)


def test_the_page_loads_nothing_and_everything_in_it_can_be_decoded(made):
    text = made.path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and "@import" not in text and "<script" not in text
    assert "url(" not in text
    kinds = [uri.partition(";base64,")[0] for uri in page.loads]
    assert kinds.count("data:image/png") == 6 + 2 * 6  # the grid; each with its nearest
    assert kinds.count("data:image/svg+xml") == len(kinds) - 18 == 3
    for uri in page.loads:
        content = base64.b64decode(uri.partition(",")[2])
        if uri.startswith("data:image/png"):
            assert Image.open(io.BytesIO(content)).size == (RESOLUTION, RESOLUTION)
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")


def test_the_table_holds_every_result_and_tints_the_best(made):
    rows = [row for row in Page(made.path.read_text()).rows if row[1]]
    assert len(rows) == 6
    assert [cells[:2] for kind, cells in rows if kind == "best"] == [["600", "1.5"]]
    assert rows[4][1] == ["600", "1.5", "10 dpmpp_2m", "240", "19.10", "61 s"]


def test_every_metric_has_a_column_and_a_curve_and_its_spread_stands_below(made):
    more = {
        "frechet_distance_low_clip": 226.0,
        "frechet_distance_high_clip": 255.4,
        "recall_dinov2": 0.25,
    }
    made.results.add(record(900, 1.5, 200.0, kid=0.0123, kid_std=0.0041, cmmd=None, **more))
    text = write_report(made.results, made.config, made.clip).read_text()
    page = Page(text)
    (cells,) = [cells for kind, cells in page.rows if kind == "best"]
    assert cells[3:5] == ["200", "226 – 255.4"]
    assert cells[5:9] == ["0.0123", "± 0.0041", "19.50", "0.250"]
    assert "Recall (DINOv2)" in page.text and "<th>CMMD</th>" not in text
    assert sum(uri.startswith("data:image/svg+xml") for uri in page.loads) == 4 + 1
    assert " images are few: " in page.text


def test_captions_are_shown_as_they_are_written(made):
    text = made.path.read_text()
    assert CAPTION not in text
    assert Page(text).text.count(CAPTION) == 6


def test_images_of_one_caption_stand_in_a_row_beside_their_variety(made):
    before = Page(made.path.read_text())
    assert "One caption, several seeds" not in before.text
    folder = variety_folder(made.results.folder / "images" / "best")
    for caption in ("000", "001"):
        for seed in range(3):
            pixels = np.full((RESOLUTION, RESOLUTION, 3), 40 * seed, np.uint8)
            about = {"seed": str(seed), "prompt": f"caption <{caption}>"}
            save_png(pixels, folder / caption / f"{seed:06d}.png", about)
    more = {"variety": 0.4321, "vendi_score": 2.345, "vendi_alike": 5.43, "variety_seeds": 3}
    made.results.add(record(900, 1.5, 200.0, images="images/best", **more))
    page = Page(write_report(made.results, made.config, made.clip).read_text())
    assert "One caption, several seeds" in page.text
    assert page.text.count("caption <000>") == page.text.count("caption <001>") == 1
    counts = [sum("image/png" in uri for uri in shown.loads) for shown in (before, page)]
    assert counts[1] - counts[0] == 6
    text = " ".join(page.text.split())
    assert "0.43 of that of as many" in text and "2.3 of 3 (Vendi score)" in text
    assert {"0.432", "Variety", "Vendi score"} <= set(page.words)


def test_an_image_that_was_memorised_is_found(made):
    reader = LMDBReader(made.config.data.feat_path)
    y = torch.from_numpy(reader.read(range(12)))
    indices, cosines = nearest(3 * y[[7, 2]], reader)
    assert indices.tolist() == [[7], [2]]
    torch.testing.assert_close(cosines, torch.ones(2, 1))
    others, below = nearest(y, reader, leave_out=torch.arange(12), count=3)
    unit = torch.nn.functional.normalize(y, dim=1)
    expected = (unit @ unit.T - 9 * torch.eye(12)).topk(3, dim=1)
    assert others.tolist() == expected.indices.tolist()
    torch.testing.assert_close(below, expected.values)
    assert usual_cosine(reader) == pytest.approx(float(below[:, 0].median()))
    assert Page(made.path.read_text()).text.count("1.000") >= 6


def test_what_cannot_be_compared_with_the_latest_is_left_out_and_counted(made):
    made.results.records.insert(0, record(100, None, 1.0, network="inception"))
    page = Page(write_report(made.results, made.config, made.clip).read_text())
    assert len([row for row in page.rows if row[1]]) == 6
    assert "1 other evaluations" in page.text


def without(config: Config, **changes) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def test_the_page_does_without_training_images_captions_and_several_scales(made, tmp_path):
    results = Results(tmp_path / "other" / "evaluation")
    results.add(record(300, None, 5.0, clip_score=None))
    page = Page(write_report(results, made.config, made.clip).read_text())
    assert "No images were kept" in page.text and "Evaluate several guidance scales" in page.text
    gone = without(made.config, image_dir=tmp_path / "gone")
    page = Page(write_report(made.results, gone, made.clip).read_text())
    assert page.text.count("image not there") == 6
    gone = without(made.config, feat_path=tmp_path / "gone")
    assert "Not available" in Page(write_report(made.results, gone, made.clip).read_text()).text


def test_a_browser_shows_the_page(made, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser is installed (Debian: apt-get install chromium)")
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    flags += ["--window-size=1366,3000", "--hide-scrollbars", made.path.resolve().as_uri()]
    done = subprocess.run([browser, *flags], capture_output=True, text=True, timeout=120)
    assert shot.exists(), done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (3000, 1366, 3)
    is_tinted = (pixels == (0xEE, 0xF5, 0xFB)).all(axis=2)  # the best checkpoint's card and line
    assert is_tinted.any(axis=1).sum() > 60
    generated_faces = (np.abs(pixels.astype(int) - (0x65, 0xC9, 0xFF)) < 12).all(axis=2)
    assert generated_faces.sum() > 1000  # the sky behind some of them: embedded images are decoded
