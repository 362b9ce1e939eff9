"""How good a denoiser is: images from test captions, judged in one pass batch by batch."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from models.edm import EDMPrecond
from utils.base.errors import UserError
from utils.base.locks import FolderLock
from utils.base.progress import progress
from utils.base.read_ahead import read_ahead
from utils.config.schema import Config
from utils.evaluation.draw import CPU_GROUP, Drawn, draw_seeds, draws_ahead, seeds_to_judge
from utils.evaluation.feature_store import FeatureBlocks
from utils.evaluation.judge import Judge
from utils.evaluation.kept_images import KeptImages
from utils.evaluation.results import Record, Results, way_names
from utils.sampling.generate import sampler_settings

T = TypeVar("T")


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

    Returns the figures of `ImageSet`, `images_drawn` (more than the `n` images only
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
