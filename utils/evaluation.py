"""How good a denoiser is: images from test captions, judged in one pass batch by batch."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from models.edm import EDMPrecond
from models.samplers import SeededNoise
from utils.conditions import caption_conditions
from utils.config import Config
from utils.encoders import load_config_autoencoder, load_config_clip
from utils.errors import UserError
from utils.feature_blocks import FeatureBlocks, Rows
from utils.generate import draw_images, latent_shape, parse_seeds, sampler_settings
from utils.kept_images import KeptImages
from utils.latent_lmdb import LMDBReader
from utils.locks import FolderLock
from utils.metrics import ImageSet, load_judges
from utils.out_of_memory import Halving
from utils.read_ahead import read_ahead
from utils.results import Record, Results, way_names
from utils.tracking import progress

T = TypeVar("T")

# A CPU rounds matrix products differently if they are of another size, which moves a pixel here
# and there by one. Drawn in groups of one size, images are the same for every batch size, and on a
# CPU that costs no time.
CPU_GROUP = 8


class Judge:
    """What a config's images are judged with: test captions, reference, networks; loaded once."""

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        """Raises UserError if something is missing or was made with another encoder or network."""
        model = config.model
        has_captions = bool(model.num_classes or model.ext_feature_dim)
        has_captions &= not config.samples_classes
        for key in ("ref_path", "feat_path") if has_captions else ("ref_path",):
            if getattr(config.eval, key) is None:
                raise UserError(f"eval.{key}: required for evaluation, but not set in the config")
        classes, wanted = model.num_classes if config.samples_classes else 0, config.eval.class_idx
        if wanted is not None and wanted >= classes:
            raise UserError(
                f"eval.class_idx: {wanted}, but the model has {classes or 'no'} classes"
            )
        self.device = torch.device(device)
        self.ref_path = config.eval.ref_path
        self.captions = LMDBReader(config.eval.feat_path) if has_captions else None
        self.clip = load_config_clip(config, device)
        self.networks, self.references = load_judges(config, device, self.clip)
        self.network, self.reference = self.networks[0], self.references[0]
        if self.captions is not None:
            made_by = self.captions.info.meta.get("encoder", self.clip.identity)
            if made_by != self.clip.identity or self.captions.info.shape != (self.clip.dim,):
                raise UserError(
                    f"{config.eval.feat_path}: embeddings are not from {config.encoders.clip}; "
                    "make them again with python preprocess_scripts/clip_encode_text.py"
                )
        self.autoencoder = load_config_autoencoder(config, device)
        self.in_memory = Halving("sampling")

    def choose_captions(self, noise: SeededNoise) -> torch.Tensor:
        """(B, 2): each seed draws a test image, then which of its captions."""
        info = self.captions.info
        drawn = [noise.randint(count).cpu() for count in (info.length, info.n_features)]
        return torch.stack(drawn, dim=1)

    def rows(self, images: torch.Tensor, captions: torch.Tensor | None) -> Rows:
        """(B, H, W, 3) uint8, (B, D) -> what the networks say of them, a row for each image."""
        return ImageSet(self.networks, self.clip).features(images.permute(0, 3, 1, 2), captions)

    def figures(self, batches: Iterable[tuple[torch.Tensor, Rows]]) -> dict[str, Any]:
        """Figures of all images, from the positions (B,) and rows of their batches."""
        images = ImageSet(self.networks, self.clip)
        for positions, rows in batches:
            images.add(rows, positions)
        return images.figures(self.references)


class Drawn(NamedTuple):
    """A batch of images and what they were drawn of; None where the model takes no such."""

    images: torch.Tensor  # (B, H, W, 3) uint8
    captions: torch.Tensor | None  # (B, D) embeddings as stored
    chosen: torch.Tensor | None  # (B, 2) test image and number of its caption
    classes: torch.Tensor | None  # (B,)


def evaluate_checkpoint(
    denoiser: EDMPrecond,
    config: Config,
    judge: Judge,
    partial: Path,
    *,
    kept: KeptImages | None = None,
) -> dict[str, Any]:
    """Judge `eval.fid_sample_size` images of test captions, drawn as `sampling` says.

    With several processes all of them call this: each draws its share, and all get the result.
    `partial`: folder for what is done so far; a call that was killed goes on from there, whatever
    the number of processes. Figures are the same as without. `kept`: where images are written.

    Returns the figures of `utils.metrics.ImageSet`, `images_drawn` (more than the `n` images only
    after a kill), and `seconds`.
    """
    started = time.perf_counter()
    processes = PartialState()
    if judge.captions is not None and denoiser.model.cond_width != judge.clip.dim:
        raise UserError(
            f"the model takes conditions of {denoiser.model.cond_width} numbers, but "
            f"{config.eval.feat_path} holds embeddings of {judge.clip.dim}"
        )
    seeds, size = seeds_to_judge(config), config.eval.batchsize
    if judge.device.type == "cpu":
        size = -(-size // CPU_GROUP) * CPU_GROUP
    blocks = FeatureBlocks(partial, len(seeds))
    missing, before = of_main_process(blocks.check)
    batches = [missing[i : i + size] for i in range(0, len(missing), size)]
    done = len(seeds) - len(missing)
    own = batches[processes.process_index :: processes.num_processes]

    def draw(positions: list[int]) -> Drawn:
        blocks.begin(len(positions), processes.process_index)
        return draw_seeds(denoiser, config, judge, [seeds[p] for p in positions])

    with progress(desc="evaluate", total=len(seeds), unit="images", initial=done) as bar:
        last = time.perf_counter()
        draws = read_ahead(draw, own, ahead=1) if draws_ahead(judge.device) else map(draw, own)
        for positions, drawn in zip(own, draws, strict=True):
            rows = judge.rows(drawn.images, drawn.captions)
            if kept is not None:
                rows |= kept.save(positions, [seeds[p] for p in positions], drawn)
            now = time.perf_counter()
            blocks.add(positions, rows, (now - last) / processes.num_processes)
            bar.update(len(positions) * processes.num_processes)
            last = now
    processes.wait_for_everyone()

    def finish() -> dict[str, Any]:
        if lost := blocks.check()[0]:
            raise UserError(
                f"{partial}: {len(lost)} of {len(seeds)} images are not there; all nodes should "
                "share this folder, and only one evaluation should write to it at a time"
            )
        figures = judge.figures(blocks)
        if kept is not None:
            kept.finish(blocks)
        seconds = round(before + time.perf_counter() - started, 2)
        return {**figures, "images_drawn": blocks.images_drawn, "seconds": seconds}

    return of_main_process(finish)


def of_main_process(compute: Callable[[], T]) -> T:
    """What `compute` returns in the main process, for all processes."""
    result = [compute() if PartialState().is_main_process else None]
    return broadcast_object_list(result)[0]


def seeds_to_judge(config: Config) -> Sequence[int]:
    """The seeds of `eval.fid_sample_size` images; raises UserError if there are not as many."""
    first, count = config.sampling.seed, config.eval.fid_sample_size
    if count < 2:
        raise UserError(f"eval.fid_sample_size: {count} is too few, statistics need two images")
    if config.eval.seeds is None:
        return range(first, first + count)
    seeds = parse_seeds(config.eval.seeds)
    if len(seeds) < count:
        raise UserError(
            f"eval.fid_sample_size: {count} images are asked for, but eval.seeds lists {len(seeds)}"
        )
    return seeds[:count]


def draws_ahead(device: torch.device) -> bool:
    """Whether a thread draws the next batch while one is judged and saved.

    On a CPU both would want the same cores, and the whole takes a fifth longer.
    """
    return device.type != "cpu"


def draw_seeds(denoiser: EDMPrecond, config: Config, judge: Judge, seeds: Sequence[int]) -> Drawn:
    """The images of a batch of seeds; see CPU_GROUP.

    What does not fit into memory is drawn in halves.
    """
    group = CPU_GROUP if judge.device.type == "cpu" else len(seeds)
    padded = [*seeds, *[seeds[-1]] * (-len(seeds) % group)]

    def draw(first: int, stop: int) -> Drawn:
        noise = SeededNoise(padded[first:stop], judge.device)
        return draw_from_captions(denoiser, config, judge, noise)

    parts = []
    for start in range(0, len(padded), group):
        parts += judge.in_memory(lambda a, b, at=start: draw(at + a, at + b), group)

    def join(values: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        return None if values[0] is None else torch.cat(values)[: len(seeds)]

    return Drawn(*map(join, zip(*parts, strict=True)))


def draw_from_captions(
    denoiser: EDMPrecond, config: Config, judge: Judge, noise: SeededNoise
) -> Drawn:
    """Images of the captions that the seeds choose, one for each seed.

    Without captions each seed chooses a class, if the model has such (as published), unless
    `eval.class_idx` is the class of all.
    """
    latents = noise.randn(latent_shape(denoiser))
    captions = conds = chosen = classes = None
    if judge.captions is not None:
        chosen = judge.choose_captions(noise)
        captions = torch.from_numpy(judge.captions.read(*chosen.T.numpy()))
        conds = caption_conditions(captions, config)
    elif config.model.num_classes:
        classes = noise.randint(config.model.num_classes)
        if config.eval.class_idx is not None:
            classes = torch.full_like(classes, config.eval.class_idx)
        conds = F.one_hot(classes, config.model.num_classes).float()
    images = draw_images(
        denoiser,
        judge.autoencoder,
        noise,
        latents,
        None if conds is None else conds.to(judge.device),
        sampler_settings(config.sampling),
        cfg_scale=config.sampling.cfg_scale,
        interval=config.sampling.guidance_interval,
        amp=config.sampling.amp,
    )
    return Drawn(images, captions, chosen, classes)


def ways_of_sampling(config: Config) -> dict[str, Config]:
    """Name -> config of each way in which checkpoints are judged: guidance x steps x solvers.

    Those are the lists of the `eval` section; an empty one stands for the key of `sampling`.
    Raises UserError if a sampler does not exist.
    """
    sampling, lists = config.sampling, config.eval
    ways = [
        {"solver": solver, "num_steps": num_steps, "cfg_scale": cfg_scale}
        for solver in dict.fromkeys(lists.solvers or [sampling.solver])
        for num_steps in dict.fromkeys(lists.num_steps or [sampling.num_steps])
        for cfg_scale in dict.fromkeys(lists.cfg_scales or [sampling.cfg_scale])
    ]
    configs = [
        config.model_copy(update={"sampling": sampling.model_copy(update=way)}) for way in ways
    ]
    for one in configs:
        sampler_settings(one.sampling)  # complains now rather than after hours
    return dict(zip(way_names(ways), configs, strict=True))


def evaluate_into(
    results: Results,
    checkpoint: Path,
    denoiser: Callable[[], EDMPrecond],
    config: Config,
    judge: Judge,
    *,
    step: int | None = None,
) -> Record:
    """evaluate_checkpoint for the denoiser that `checkpoint` holds, and record it.

    `denoiser` gives it, and is called only if there is something to do. `step` of its training;
    None = the checkpoint is called <step>.pt.

    Called by all processes. What `results` holds already for this file and these settings is
    returned as it is, unless images are to be kept (`eval.save_images`) and are not there.
    """
    what = {
        "step": int(checkpoint.stem) if step is None else step,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": of_main_process(lambda: file_hash(checkpoint)),
        **evaluation_settings(config, judge),
    }
    name = folder_name(what)
    partial = results.folder / "partial" / name
    names = judge.captions.info.meta.get("names") if judge.captions else None
    kept = KeptImages(results.folder / "images" / name, config, names)
    seeds = seeds_to_judge(config)
    record = of_main_process(lambda: results.find(what) if kept.are_there(seeds) else None)
    is_main = PartialState().is_main_process
    if record is not None:
        if is_main:  # a kill may have come between the record and the end
            shutil.rmtree(partial, ignore_errors=True)
        return record
    with disk_errors(results.folder), ExitStack() as stack:
        partial.mkdir(parents=True, exist_ok=True)
        if is_main:
            stack.enter_context(FolderLock(partial, "evaluation"))
        figures = evaluate_checkpoint(denoiser(), config, judge, partial, kept=kept)
        record = {**what, **figures, "images": f"images/{name}", "config": config.to_dict()}
        if is_main:
            results.add(record)
            shutil.rmtree(partial)
    return record


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A disk that is full, or may not be written to, is one clear line."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise UserError(
            f"{folder}: cannot be written ({fault.strerror}); make room or set its rights, and "
            "start again: it goes on from there"
        ) from fault


def folder_name(what: Record) -> str:
    """Name of the folders of an evaluation: for people, and different for different settings."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    scale = "none" if what["cfg_scale"] is None else f"{what['cfg_scale']:g}"
    return f"{what['step']:07d}-cfg{scale}-{what['num_steps']}{what['solver']}-{digest}"


def evaluation_settings(config: Config, judge: Judge) -> dict[str, Any]:
    """All that figures depend on besides the weights, as plain values."""
    sampling = config.sampling
    captions = "none"
    if judge.captions is not None:
        captions = judge.captions.info.meta.get("captions_hash", str(config.eval.feat_path))
    return {
        "cfg_scale": sampling.cfg_scale,
        "num_steps": sampling.num_steps,
        "solver": sampling.solver,
        **sampling.model_dump(mode="json", exclude_defaults=True, exclude={"preset", "compile"}),
        **config.eval.model_dump(include={"seeds", "class_idx"}, exclude_none=True),
        "n": config.eval.fid_sample_size,
        "network": judge.network.name,
        "reference": judge.reference.source or str(judge.ref_path),
        **more_references(judge),
        "captions": captions,
        "norm_feature": config.data.norm_feature,
        **config.encoders.model_dump(mode="json", include={"image_mean"}, exclude_none=True),
        "clip": judge.clip.identity,
        "vae": judge.autoencoder.identity,
        "amp": sampling.amp,
    }


def more_references(judge: Judge) -> dict[str, Any]:
    """What else figures are told by: features of the reference, references of other networks."""
    told: dict[str, Any] = {}
    if judge.reference.features is not None:
        told["reference_features"] = len(judge.reference.features)
    if others := judge.references[1:]:
        told["more_references"] = [f"{r.network} {r.source or r.path}" for r in others]
    return told


def file_hash(path: Path) -> str:
    """SHA-256 of a file, its first 16 digits; computed once, unless the file changes."""
    state = path.stat()
    return _file_hash(path, state.st_size, state.st_mtime_ns)


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
