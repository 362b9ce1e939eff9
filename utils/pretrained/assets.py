"""Assets: published weights, statistics and data that can be downloaded, and their places here.

Each address is documented by the project that publishes the file, the newest first. Checksums are
those that the projects state: OpenAI in the address of its CLIP (SHA-256), pytorch-fid in the name
of its Inception weights (the first eight digits).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from models.weights import looks_like_path
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.pretrained.archives import extract_file, is_archive
from utils.pretrained.downloads import Patience, download, download_fault
from utils.pretrained.encoder_paths import here_or_in_project
from utils.pretrained.hub import (
    VAE_CONFIG,
    VAE_WEIGHTS,
    answers,
    cache_folder,
    hub_url,
    vae_file,
)

MASKDIT = "https://slurm-ord.s3.amazonaws.com"
MASKDIT_OLD = "https://maskdit-bucket.s3.us-west-2.amazonaws.com"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
TEXT_TOWER = ["*.json", "*.txt", "*.model"]  # config and tokenizer of Hugging Face, no weights
OF_HUB = ("encoders.vae", "encoders.clip", "sampling.preview")  # keys that may name the hub
INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
CLIP_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"


@dataclass(frozen=True)
class Asset:
    """A file that can be downloaded."""

    name: str
    about: str
    file: Path  # its place, relative to the current directory
    urls: tuple[str, ...]  # of the file, or of an archive that holds it
    sha256: str = ""  # or its first digits
    aliases: tuple[str, ...] = ()  # names in MaskDiT's and other download scripts
    same_as: tuple[str, ...] = ()  # names of these very weights in a config
    instead_of: tuple[str, ...] = ()  # names of similar weights that it can replace


# Name, side of the images, how it was trained, file, names in MaskDiT's own script.
MASKDIT_NETWORKS = (
    ("maskdit-trained", 256, "2 M steps with mask", "2000000.pt", ("maskdit256-trained",)),
    ("maskdit-unmask-finetune", 256, "finetuned without mask, best with guidance",
     "imagenet256-ckpt-best_with_guidance.pt", ("maskdit256-guidance",)),
    ("maskdit-cos-finetune", 256, "finetuned with a cosine mask schedule, best without guidance",
     "imagenet256-ckpt-best_without_guidance.pt", ("maskdit256-conditional",)),
    ("maskdit512-guidance", 512, "best with guidance", "1080000.pt", ()),
    ("maskdit512-conditional", 512, "best without guidance", "1050000.pt", ()),
)  # fmt: skip
ASSETS = (
    Asset(
        "vae",
        "Stable Diffusion's VAE under the LDM names, scale factor 0.18215",
        Path("assets/stable_diffusion/autoencoder_kl.pth"),
        (f"{MASKDIT}/ckpts/autoencoder_kl.pth", f"{MASKDIT_OLD}/autoencoder_kl.pth"),
        instead_of=("stabilityai/sd-vae-ft-ema",),
    ),
    Asset(
        "clip",
        "OpenAI's CLIP ViT-B/32",
        Path("assets/ViT-B-32.pt"),
        (f"https://openaipublic.azureedge.net/clip/models/{CLIP_SHA256}/ViT-B-32.pt",),
        sha256=CLIP_SHA256,
        same_as=("ViT-B-32:openai", "ViT-B-32-quickgelu:openai"),
    ),
    Asset(
        "inception",
        "the FID Inception network",
        Path("assets") / INCEPTION,
        (f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION}",),
        sha256="6726825d",
    ),
    *(
        Asset(
            f"imagenet{side}",
            f"ADM's reference batch and statistics of ImageNet at {side}×{side}",
            Path(f"assets/fid_stats/VIRTUAL_imagenet{side}{kind}.npz"),
            (f"{ADM}/{side}/VIRTUAL_imagenet{side}{kind}.npz",),
        )
        for side, kind in ((512, ""), (256, "_labeled"), (128, "_labeled"), (64, "_labeled"))
    ),
    *(
        Asset(
            name,
            f"MaskDiT, ImageNet {side}×{side}, {about}",
            Path("assets/maskdit" if side == 256 else "assets/maskdit512") / file,
            (f"{MASKDIT}/ckpts/{side}/{file}", f"{MASKDIT_OLD}/{file}")[: 1 + (side == 256)],
            aliases=aliases,
        )
        for name, side, about, file, aliases in MASKDIT_NETWORKS
    ),
    Asset(
        "imagenet-latent-data",
        "ImageNet 256×256 as latents (LMDB)",
        Path("data/imagenet_256_latent_lmdb/train/data.mdb"),
        (
            f"{MASKDIT}/datasets/imagenet_256_latent_lmdb/train/data.mdb",
            f"{MASKDIT_OLD}/imagenet_256_latent_lmdb.zip",
        ),
        aliases=("imagenet256-latent-lmdb",),
    ),
)
BY_NAME = {name: asset for asset in ASSETS for name in (asset.name, *asset.aliases)}


def fetch(
    asset: Asset, target: Path, *, url: str | None = None, patience: Patience | None = None
) -> None:
    """Download an asset to `target`, unless it is there already.

    url: address to use instead of the asset's own: of the file, of an archive with it, or (with /
        at the end) of a folder with it.

    Raises UserError if no address gives the file; the message names the place to copy it to.
    """
    if target.is_file():
        if fault := download_fault(target, asset.sha256):
            raise UserError(f"{target}: {fault}; delete it to fetch it again")
        return
    if target.exists():
        raise UserError(f"{target}: is in the way, the file {asset.file.name} belongs there")
    urls = [url + asset.file.name if url.endswith("/") else url] if url else asset.urls
    direct = [u for u in urls if not is_archive(urlsplit(u).path)]
    archives = [u for u in urls if is_archive(urlsplit(u).path)]
    patience = patience or Patience()
    faults = []
    try:
        if direct:
            download(direct, target, sha256=asset.sha256, patience=patience)
            return
    except UserError as error:
        faults.append(str(error))
    for address in archives:
        try:
            _fetch_from_archive(address, target, asset.sha256, patience)
            return
        except UserError as error:
            faults.append(str(error))
    checksum = f" (SHA-256 {asset.sha256}{'' if len(asset.sha256) == 64 else '…'})"
    raise UserError(
        f"{asset.name}: not fetched: {'; '.join(faults)}. Try again (what arrived is kept), "
        f"give a mirror with --url, or copy {target.name}{checksum if asset.sha256 else ''} from "
        f"another machine to {target}"
    )


def _fetch_from_archive(address: str, target: Path, sha256: str, patience: Patience) -> None:
    """Download an archive, unless it is there already; extract `target` and remove the archive."""
    packed = target.with_name(posixpath.basename(urlsplit(address).path))
    if not packed.exists():
        download([address], packed, patience=patience)
    extract_file(packed, target)
    if fault := download_fault(target, sha256):
        target.unlink()
        raise UserError(f"{packed}: its {target.name} {fault}")
    packed.unlink()


def local_file(source: str) -> Path | None:
    """Return the downloaded file of the weights that a config calls `source`, if it is there."""
    files = [asset.file for asset in ASSETS if source in asset.same_as]
    return next((f for file in files if (f := here_or_in_project(file)).is_file()), None)


def advice(source: str | os.PathLike[str]) -> str:
    """Return the end of a message, `; fetch it with …`, for an asset that a config calls `source`.

    Returns an empty text if `source` is no asset.
    """
    for asset in ASSETS:
        fetched = f"python download_assets.py --name {asset.name}"
        if source in asset.same_as or Path(source) == asset.file:
            return f"; fetch it with {fetched}"
        if Path(source).name == asset.file.name:
            return f"; fetch it with {fetched} --dest {Path(source).parent}"
        if source in asset.instead_of:
            return f"; without the hub, use {fetched} and set {asset.file} instead"
    return ""


def offline_advice(missing: Mapping[str, tuple[str, str]]) -> str:
    """Return what to do without network: where to fetch files, and where to copy them here.

    missing: key of the config -> the encoder that it names, and its repository on the hub.
    """
    names, steps = [], []
    for key, (source, repository) in missing.items():
        asset = next((a for a in ASSETS if source in (*a.same_as, *a.instead_of)), None)
        if asset is None:
            steps.append(f"copy its folder {cache_folder(repository)} here")
            continue
        names.append(f"--name {asset.name}")
        setting = f" and set {key}={asset.file}" if source in asset.instead_of else ""
        steps.append(f"copy {asset.file.name} here to {asset.file}{setting}")
    command = " ".join(names) if len(names) == len(missing) else "--all-needed --config …"
    run = f"python download_assets.py {command}"
    return f"on a machine with network, run {run}; then {'; '.join(steps)}"


@dataclass(frozen=True)
class Needs:
    """Files that a config needs and that are missing."""

    files: list[tuple[Asset, Path]]  # assets, each with its place
    hub: list[tuple[str, str]]  # keys and public names: a library fetches them into its own cache
    unknown: list[tuple[str, str]]  # keys and paths that belong to no asset


def needed_by(config: Config) -> Needs:
    """Find the missing files that have to be downloaded before a config can be used.

    Databases and reference statistics can also be made by the preprocessing scripts. They count
    only if the config gives them the name of an asset's file.
    """
    encoders, root = config.encoders, config.data.root
    sources = {"encoders.vae": encoders.vae, "encoders.clip": encoders.clip}
    if config.sampling.preview:
        sources["sampling.preview"] = config.sampling.preview
    if config.eval.feature_network == "inception" and encoders.inception:
        sources["encoders.inception"] = str(encoders.inception)
    if config.eval.ref_path:
        sources["eval.ref_path"] = str(config.eval.ref_path)
    if root:
        sources["data.root"] = str(root / "data.mdb")
    needs = Needs([], [], [])
    for key, source in sources.items():
        path = Path(os.path.expanduser(source))
        name, _, weights = source.partition(":")
        asset = next((a for a in ASSETS if source in a.same_as or _is_named(path, a)), None)
        target = asset.file if asset and source in asset.same_as else path
        if target.exists() or (weights and Path(weights).exists()):
            continue
        if asset:
            needs.files.append((asset, target))
        elif key in OF_HUB and not looks_like_path(weights or name):
            needs.hub.append((key, source))
        elif key.startswith(("encoders.", "sampling.")):
            needs.unknown.append((key, source))
    return needs


def _is_named(path: Path, asset: Asset) -> bool:
    """Return True if a missing file has an asset's name; a database needs the asset's path."""
    # Every database is called data.mdb.
    return path == asset.file if path.suffix == ".mdb" else path.name == asset.file.name


def fetch_from_hub(key: str, source: str) -> None:
    """Let the library that loads `source` fetch it into its cache, unless it is there already.

    `key` is the config's key. Raises UserError if the library cannot fetch it.
    """
    if not answers(hub_url()):
        raise UserError(f"{key}: {source}: {hub_url()} does not answer{advice(source)}")
    try:
        import huggingface_hub  # imported here: slow, and most runs do not need it

        if key != "encoders.clip":
            files = [vae_file(source, name) for name in (VAE_CONFIG, VAE_WEIGHTS[0])]
            huggingface_hub.snapshot_download(
                files[0][0], allow_patterns=[file for _, file in files]
            )
        else:
            import open_clip  # imported here: slow, and most runs do not need it

            name, _, tag = source.partition(":")
            known = open_clip.get_pretrained_cfg(name, tag)
            if not known:
                raise ValueError("not a name and tag of open_clip")
            open_clip.download_pretrained(known)
            text = open_clip.get_model_config(name).get("text_cfg", {})
            for part in {"hf_model_name", "hf_tokenizer_name"} & text.keys():
                huggingface_hub.snapshot_download(text[part], allow_patterns=TEXT_TOWER)
    except (OSError, ValueError, RuntimeError) as fault:
        reason = (str(fault).strip().splitlines() or [repr(fault)])[0]
        raise UserError(f"{key}: {source}: {reason}{advice(source)}") from fault
