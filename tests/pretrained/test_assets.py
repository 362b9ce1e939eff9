"""Published files: their places, archives that hold them, and the script that fetches them."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from file_server import FileServer, drop_after, status
from tiny import make_tiny_config

from utils.base.errors import UserError
from utils.config.load import load_config
from utils.pretrained.archives import extract_file
from utils.pretrained.assets import ASSETS, BY_NAME, advice, fetch, local_file, needed_by
from utils.pretrained.downloads import Patience
from utils.pretrained.encoders import load_config_autoencoder

ROOT = Path(__file__).resolve().parents[2]
BODY = random.Random(1).randbytes(300_000)
QUICK = Patience(attempts=2, backoff=0.01, timeout=5)
NO_PROXY = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
VAE = BY_NAME["vae"]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        server.files["/autoencoder_kl.pth"] = BODY
        yield server


def make_zip(path: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            archive.writestr(info, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], kinds: dict[str, bytes] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type = (kinds or {}).get(name, tarfile.REGTYPE)
            info.linkname = "/etc/passwd"
            info.size = len(content) if info.type == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("make, name", [(make_zip, "data.zip"), (make_tar, "data.tar.gz")])
def test_the_wanted_file_is_taken_out_of_an_archive(tmp_path, make, name):
    archive = make(tmp_path / name, {"set/val/data.mdb": b"val", "set/train/data.mdb": BODY})
    extract_file(archive, tmp_path / "out" / "data.mdb")
    assert (tmp_path / "out" / "data.mdb").read_bytes() == BODY
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("make, name", [(make_zip, "bad.zip"), (make_tar, "bad.tgz")])
@pytest.mark.parametrize("evil", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path, make, name, evil):
    archive = make(tmp_path / name, {"data.mdb": BODY, evil: b"evil"})
    with pytest.raises(UserError, match=r"bad\.\w+: refused, .* outside of its folder"):
        extract_file(archive, tmp_path / "out" / "data.mdb")
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_a_link_or_device_is_refused(tmp_path, kind):
    archive = make_tar(tmp_path / "bad.tar.gz", {"data.mdb": b""}, {"data.mdb": kind})
    with pytest.raises(UserError, match="'data.mdb' is a link or a device"):
        extract_file(archive, tmp_path / "data.mdb")
    assert not (tmp_path / "data.mdb").exists()


def test_a_zip_with_a_link_is_refused(tmp_path):
    archive = make_zip(tmp_path / "bad.zip", {"data.mdb": b"/etc/passwd"}, {"data.mdb": 0o120777})
    with pytest.raises(UserError, match="'data.mdb' is a link or a device"):
        extract_file(archive, tmp_path / "data.mdb")
    assert not (tmp_path / "data.mdb").exists()


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, name, damage):
    make = make_zip if name.endswith("zip") else make_tar
    path = make(tmp_path / name, {"data.mdb": BODY})
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(b"nothing of the kind" if damage == "other" else content)
    with pytest.raises(UserError, match=f"{name}: is damaged or not an archive"):
        extract_file(path, tmp_path / "data.mdb")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_archive_without_the_file_says_so(tmp_path):
    with pytest.raises(UserError, match="does not hold data.mdb"):
        extract_file(make_zip(tmp_path / "a.zip", {"other": b"x"}), tmp_path / "data.mdb")


def test_an_asset_comes_from_the_first_address_that_works(server, tmp_path):
    asset = replace(VAE, urls=(f"{server.url}/moved.pth", f"{server.url}/autoencoder_kl.pth"))
    fetch(asset, tmp_path / "vae.pth", patience=QUICK)
    assert (tmp_path / "vae.pth").read_bytes() == BODY


def test_an_asset_comes_out_of_an_archive_where_that_is_all_there_is(server, tmp_path):
    server.files["/all.zip"] = make_zip(
        tmp_path / "x.zip", {"ckpt/autoencoder_kl.pth": BODY}
    ).read_bytes()
    asset = replace(VAE, urls=(f"{server.url}/moved.pth", f"{server.url}/all.zip"))
    fetch(asset, tmp_path / "out" / "autoencoder_kl.pth", patience=QUICK)
    assert (tmp_path / "out" / "autoencoder_kl.pth").read_bytes() == BODY
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_wrong_file_in_an_archive_does_not_get_the_name(server, tmp_path):
    packed = make_zip(tmp_path / "x.zip", {"autoencoder_kl.pth": BODY}).read_bytes()
    server.files["/all.zip"] = packed
    asset = replace(VAE, sha256="0" * 64)
    with pytest.raises(UserError, match="is not the published file"):
        fetch(asset, tmp_path / "autoencoder_kl.pth", url=f"{server.url}/all.zip", patience=QUICK)
    assert not (tmp_path / "autoencoder_kl.pth").exists()


def test_another_address_replaces_the_published_ones(server, tmp_path):
    fetch(VAE, tmp_path / "a.pth", url=f"{server.url}/autoencoder_kl.pth", patience=QUICK)
    fetch(VAE, tmp_path / "b.pth", url=f"{server.url}/", patience=QUICK)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes() == BODY


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    (tmp_path / "vae.pth").write_bytes(BODY)
    asset = replace(VAE, sha256=hashlib.sha256(BODY).hexdigest())
    fetch(asset, tmp_path / "vae.pth", url=f"{server.url}/", patience=QUICK)
    assert server.seen == []


def test_a_file_that_is_there_and_wrong_is_named_not_replaced(server, tmp_path):
    (tmp_path / "clip.pt").write_bytes(BODY)
    with pytest.raises(UserError, match="clip.pt: is not the published file.*; delete it"):
        fetch(BY_NAME["clip"], tmp_path / "clip.pt", url=f"{server.url}/", patience=QUICK)
    assert (tmp_path / "clip.pt").read_bytes() == BODY


def test_without_network_the_message_says_what_to_put_where(server, tmp_path):
    server.always = status(404)
    with pytest.raises(UserError) as error:
        fetch(BY_NAME["clip"], tmp_path / "ViT-B-32.pt", url=f"{server.url}/x", patience=QUICK)
    message = str(error.value)
    assert f"to {tmp_path / 'ViT-B-32.pt'}" in message and "--url" in message
    assert BY_NAME["clip"].sha256 in message and "\n" not in message


def test_every_name_of_the_published_scripts_is_known():
    names = {"vae", "clip", "inception", "imagenet512", "imagenet256", "imagenet128", "imagenet64"}
    names |= {"maskdit-trained", "maskdit-unmask-finetune", "maskdit-cos-finetune"}
    names |= {"maskdit512-guidance", "maskdit512-conditional", "imagenet-latent-data"}
    assert names == {asset.name for asset in ASSETS}
    assert len({asset.file for asset in ASSETS}) == len(ASSETS)


def test_the_needs_of_the_published_configs_are_assets(monkeypatch, tmp_path):
    config = load_config(ROOT / "configs/main_config/train/celeb_t2f_gaus1.2.yaml")
    monkeypatch.chdir(tmp_path)
    needs = needed_by(config)
    assert {asset.name for asset, _ in needs.files} == {"vae", "clip", "inception"}
    assert all(path == asset.file for asset, path in needs.files)
    assert needs.hub == needs.unknown == []
    for _, path in needs.files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert needed_by(config).files == []


def test_needs_go_where_the_config_names_them(tmp_path):
    config = make_tiny_config(
        tmp_path,
        encoders={
            "vae": "stabilityai/sd-vae-ft-ema",
            "clip": str(tmp_path / "mine" / "own.pt"),
            "inception": str(tmp_path / "w" / BY_NAME["inception"].file.name),
        },
        eval={"feature_network": "inception", "ref_path": "stats/VIRTUAL_imagenet512.npz"},
    )
    needs = needed_by(config)
    assert [(asset.name, path) for asset, path in needs.files] == [
        ("inception", config.encoders.inception),
        ("imagenet512", Path("stats/VIRTUAL_imagenet512.npz")),
    ]
    assert needs.hub == [("encoders.vae", "stabilityai/sd-vae-ft-ema")]
    assert needs.unknown == [("encoders.clip", str(tmp_path / "mine" / "own.pt"))]


def test_the_downloaded_file_stands_for_the_name_of_its_weights(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert local_file("ViT-B-32:openai") is None
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "ViT-B-32.pt").touch()
    assert local_file("ViT-B-32:openai") == Path("assets/ViT-B-32.pt")
    assert local_file("ViT-B-16:openai") is None


def test_missing_weights_are_named_with_the_command_that_fetches_them(monkeypatch, tmp_path):
    config = make_tiny_config(tmp_path, encoders={"vae": str(VAE.file)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no VAE at .*; fetch it with .* --name vae$"):
        load_config_autoencoder(config)
    assert "--name vae --dest other" in advice("other/autoencoder_kl.pth")
    assert advice("my/own.pth") == ""


def run_script(*args: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "download_assets.py"), *args]
    env = {**os.environ, **NO_PROXY}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, **options)


@pytest.mark.e2e
def test_the_script_fetches_and_says_where(server, tmp_path):
    server.misdeeds = [status(500), drop_after(100_000), drop_after(100_000)]
    done = run_script(
        *("--name", "vae", "--dest", "w", "--url", f"{server.url}/", "--backoff", "0.01"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "w/autoencoder_kl.pth: complete (0.3 MB)" in done.stdout
    assert (tmp_path / "w" / "autoencoder_kl.pth").read_bytes() == BODY


@pytest.mark.e2e
def test_the_script_ends_with_one_line_where_nothing_helps(server, tmp_path):
    server.always = status(404)
    done = run_script("--name", "vae", "--url", f"{server.url}/x.pth", cwd=tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        line for line in done.stderr.splitlines() if line
    ]
    assert "404" in done.stderr and not (tmp_path / VAE.file).exists()
    unknown = run_script("--name", "vaes", cwd=tmp_path)
    assert unknown.returncode == 2 and "--name vaes: unknown" in unknown.stderr


@pytest.mark.e2e
def test_an_interrupted_script_goes_on_in_the_next_run(server, tmp_path):
    def stall(handler, body):
        handler.serve(body, sent=200_000)
        time.sleep(30)

    server.misdeeds = [stall]
    args = ["--name", "vae", "--url", f"{server.url}/", "--dest", "."]
    command = [sys.executable, str(ROOT / "download_assets.py"), *args]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **NO_PROXY},
        stderr=subprocess.DEVNULL,
        # A process that a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = tmp_path / ".autoencoder_kl.pth.part"
    for _ in range(600):
        if server.seen and part.exists() and (tmp_path / f"{part.name}.json").exists():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert not (tmp_path / "autoencoder_kl.pth").exists()
    assert run_script(*args, cwd=tmp_path).returncode == 0
    assert (tmp_path / "autoencoder_kl.pth").read_bytes() == BODY
    assert server.seen[-1][1] == 200_000


@pytest.mark.e2e
def test_all_needed_fetches_what_the_config_lacks(server, tmp_path):
    config = make_tiny_config(
        tmp_path, encoders={"vae": str(tmp_path / "sd" / "autoencoder_kl.pth")}
    )
    (tmp_path / "x.yaml").write_text(config.to_yaml())
    args = ["--all-needed", "--config", "x.yaml", "--url", f"{server.url}/"]
    assert run_script(*args, cwd=tmp_path).returncode == 0
    assert (tmp_path / "sd" / "autoencoder_kl.pth").read_bytes() == BODY
    assert "nothing is missing" in run_script(*args, cwd=tmp_path).stdout
