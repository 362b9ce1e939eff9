"""The published command lines: each flag keeps its meaning, or a note says that it has none."""

import re
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DIM, make_tiny_checkpoint, make_tiny_config, make_tiny_evaluation_data

import eval_latent_t2f
import train_latent_t2f
from models.batch_random import BatchRandom, RankSlice
from utils.base.errors import UserError
from utils.config.command_line import DEFAULT_CONFIG
from utils.config.load import load_config
from utils.config.published import flag_settings, note_void_flags
from utils.config.schema import Config
from utils.data.latent_dataset import LatentDataset, open_data
from utils.data.lmdb_writer import LMDBWriter
from utils.evaluation.generated import seeds_to_evaluate
from utils.evaluation.results import Results
from utils.training.batches import DataOrder, training_batches
from utils.training.run_log import RunLog, require_wandb

SCRIPTS = {"train": train_latent_t2f, "eval": eval_latent_t2f}
SHARED = """--config configs/demo/demo.yaml --num_proc_node 1 --num_process_per_node 1 --node_rank 0
    --local_rank 0 --master_address localhost --master_port 6020 --results_dir results
    --global_seed 3 --num_workers 4 --seeds 0-63,100 --subdirs --class_idx None --max_batch_size 50
    --cfg_scale None --num_steps 40 --S_churn 0 --solver heun --discretization edm
    --schedule linear --scaling none --pretrained_path autoencoder_kl.pth --ref_path x.npz
    --num_expected 64 --fid_batch_size 64"""
PUBLISHED = {
    "train": SHARED
    + """ --ckpt_path None --no_amp --use_wandb --use_ckpt_path False
    --use_strict_load False --tag x --num_features_per_sample 10 --enable_eval""",
    "eval": SHARED
    + """ --ckpt_id_start 5 --ckpt_id_end None --experiment_dir None
    --train_global_batch 1024""",
}


@pytest.fixture
def parse(monkeypatch):
    """`parse("train", "--tag x")` -> the parsed command line of the script."""

    def parse_line(script: str, line: str):
        monkeypatch.setattr(sys, "argv", [f"{script}_latent_t2f.py", *line.split()])
        return SCRIPTS[script].parse_args()

    return parse_line


@pytest.fixture
def configured(parse):
    """`configured("--tag x")` -> the demo's config as the training sees it."""

    def of(line: str, script: str = "train") -> Config:
        args = parse(script, line)
        path = args.config or DEFAULT_CONFIG
        return load_config(path, args.overrides, flags=flag_settings(args))

    return of


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_whole_published_command_line_is_accepted(script, configured):
    config = configured(PUBLISHED[script], script)
    assert config.eval.seeds == "0-63,100" and config.eval.fid_sample_size == 64
    assert config.encoders.vae == "autoencoder_kl.pth" and config.sampling.scaling == "none"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("--global_seed 3", "train.seed", 3),
        ("--num_workers 4", "train.num_workers", 4),
        ("--no_amp", "train.amp", "no"),
        ("--tag 007", "log.tag", "007"),
        ("--num_features_per_sample 10", "data.num_features_per_sample", 10),
        ("--num_features_per_sample None", "data.num_features_per_sample", None),
        ("--cfg_scale None", "sampling.cfg_scale", None),
        ("--cfg_scale None", "eval.cfg_scales", [None]),
        ("--cfg_scale 4", "sampling.cfg_scale", 4.0),
        ("--cfg_scale 2.5,None", "eval.cfg_scales", [2.5, None]),
        ("--num_steps 7", "sampling.num_steps", 7),
        ("--S_churn 3", "sampling.S_churn", 3.0),
        ("--solver euler", "sampling.solver", "euler"),
        ("--solver None", "sampling.solver", "heun"),
        ("--discretization vp", "sampling.discretization", "vp"),
        ("--schedule None", "sampling.schedule", None),
        ("--pretrained_path a/b.pth", "encoders.vae", "a/b.pth"),
        ("--ref_path a.npz", "eval.ref_path", Path("a.npz")),
        ("--num_expected 30", "eval.fid_sample_size", 30),
        ("--seeds 0-9,20", "eval.fid_sample_size", 11),
        ("--num_steps 7,9", "eval.num_steps", [7, 9]),
        ("--num_steps 7", "eval.num_steps", []),
        ("--solver heun,euler", "eval.solvers", ["heun", "euler"]),
        ("--subdirs", "eval.subdirs", True),
        ("--class_idx 3", "eval.class_idx", 3),
        ("--class_idx None", "eval.class_idx", None),
        ("--max_batch_size 50", "eval.batchsize", 50),
        ("--max_batch_size 50 --fid_batch_size 9", "eval.batchsize", 9),
    ],
)
def test_a_flag_is_the_config_key_and_wins_over_the_file(line, key, value, configured):
    section, name = key.split(".")
    found = getattr(getattr(configured(line), section), name)
    assert found == value and type(found) is type(value)


def test_a_flag_and_another_value_for_its_key_contradict_each_other(configured):
    with pytest.raises(UserError, match=r"--num_steps sets sampling\.num_steps to 5, but override"):
        configured("--num_steps 5 sampling.num_steps=6")
    assert configured("--num_steps 5 sampling.num_steps=5").sampling.num_steps == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num_steps few", r"^--num_steps sampling\.num_steps: .*valid integer.* got 'few'$"),
        ("--solver rk4", r"^--solver sampling\.solver: .*'heun'"),
        ("--seeds 5-3", "seeds '5-3': should look like 0-63,100"),
        ("--cfg_scale high", "guidance scale 'high'"),
        ("--use_strict_load maybe", "'maybe': should be True or False"),
    ],
)
def test_a_flag_with_a_wrong_value_is_named_in_one_line(line, message, configured):
    with pytest.raises(UserError, match=message) as fault:
        configured(line)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [("", True), ("--use_strict_load False", False), ("--use_strict_load 1", True)],
)
def test_boolean_flags_follow_the_published_style(line, value, parse):
    assert parse("train", line).use_strict_load is value


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("train", "--local_rank 1"),
        ("train", "--use_ckpt_path True"),
        ("eval", "--global_seed 1"),
        ("eval", "--num_workers 2"),
    ],
)
def test_a_flag_without_effect_says_so_in_one_line(script, line, parse, capsys):
    note_void_flags(parse(script, line))
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"note: {line.split()[0]} has no effect: ")


def test_evaluation_flags_of_a_training_without_evaluation_are_noted(parse, capsys):
    note_void_flags(parse("train", "--seeds 0-9 --num_expected 10"))
    assert "--seeds, --num_expected: only for evaluations" in capsys.readouterr().err
    note_void_flags(parse("train", "--seeds 0-9 --enable_eval"))
    note_void_flags(parse("eval", "--seeds 0-9"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["", "--local_rank 0 --use_ckpt_path False"])
def test_values_that_never_changed_anything_are_not_noted(line, parse, capsys):
    note_void_flags(parse("train", line))
    assert capsys.readouterr().err == ""


def test_the_rank_that_an_old_launcher_gives_is_not_noted(parse, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    note_void_flags(parse("train", "--local_rank 1"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_published_flag_and_each_with_its_default(script, parse, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, "--help")
    assert stop.value.code == 0
    _, *entries = re.split(r"\n  (?=--)", capsys.readouterr().out.partition("\noptions:")[2])
    helps = {entry.split()[0]: " ".join(entry.split()) for entry in entries}
    assert helps.keys() >= set(re.findall(r"--\w+", PUBLISHED[script]))
    assert [name for name, text in helps.items() if not re.search("default|None = ", text)] == []


# --- The effect of the keys that the flags set


@pytest.fixture
def captioned(tmp_path) -> Config:
    """Databases of 12 images with 4 embeddings each; embedding j of an image is full of j."""
    config = make_tiny_config(tmp_path)
    with LMDBWriter(config.data.root, "z", {}, 12) as writer:
        writer.append(np.ones((12, 4, 2, 2)))
    with LMDBWriter(config.data.feat_path, "y", {}, 12) as writer:
        writer.append([np.repeat(np.arange(4)[:, None], DIM, axis=1)] * 12)
    return config


@pytest.mark.parametrize(("limit", "found"), [(None, {0, 1, 2, 3}), (2, {0, 1}), (1, {0})])
def test_embeddings_are_chosen_among_the_first_so_many(captioned, limit, found):
    paths = captioned.data
    data = LatentDataset(paths.root, paths.feat_path, num_features=limit)
    generator = torch.Generator().manual_seed(0)
    _, y = data.batch(torch.arange(12).repeat(10), BatchRandom(generator))
    assert {int(row[0]) for row in y} == found


def test_more_embeddings_than_there_are_are_refused(captioned):
    data = captioned.data.model_copy(update={"num_features_per_sample": 5})
    with pytest.raises(UserError, match=r"num_features_per_sample: 5, but .* holds 4 embedding"):
        open_data(captioned.model_copy(update={"data": data}))


def test_the_number_of_reading_threads_changes_no_batch(captioned):
    data, order = open_data(captioned), DataOrder(12, seed=0)
    one, four = (
        list(islice(training_batches(data, order, 0, RankSlice.whole(5), threads=threads), 30))
        for threads in (1, 4)
    )
    for batch, expected in zip(four, one, strict=True):
        assert torch.equal(batch.y, expected.y)


def test_fewer_seeds_than_images_are_refused(configured):
    with pytest.raises(UserError, match=r"fid_sample_size: 65 .* eval\.seeds lists 64"):
        seeds_to_evaluate(configured("--seeds 0-63 --num_expected 65"))
    assert list(seeds_to_evaluate(configured("--seeds 7,3-5 --num_expected 3"))) == [7, 3, 4]


def test_evaluation_measures_the_images_of_the_given_seeds(tmp_path, monkeypatch):
    config = make_tiny_config(tmp_path)
    make_tiny_evaluation_data(config)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    folder = tmp_path / "exp"
    make_tiny_checkpoint(folder / "checkpoints" / "0000010.pt", config)
    where = ["--config", tmp_path / "config.yaml", "--experiment_dir", folder]
    for flags in (
        ["--seeds", "3-22"],
        ["--num_expected", 20, "sampling.seed=3"],
        ["--seeds", "20-39"],
    ):
        monkeypatch.setattr(sys, "argv", ["eval", *map(str, [*where, *flags])])
        eval_latent_t2f.main()
    listed, counted, others = Results(folder / "evaluation").records
    assert listed["n"] == 20 and listed["frechet_distance_clip"] == counted["frechet_distance_clip"]
    assert others["frechet_distance_clip"] != listed["frechet_distance_clip"]


def test_without_a_folder_evaluation_looks_where_the_training_would_have_written(
    tmp_path, monkeypatch, capsys
):
    config = make_tiny_config(tmp_path)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    line = f"--config {tmp_path}/config.yaml --results_dir {tmp_path}/r --train_global_batch 96"
    monkeypatch.setattr(sys, "argv", ["eval", *line.split()])
    with pytest.raises(SystemExit):
        eval_latent_t2f.main()
    assert re.search(r"r/faces_DiT-S-2_mask0\.5-\S+_bs96/checkpoints", capsys.readouterr().err)


# --- Weights & Biases, which is not installed here: a stand-in that keeps what it receives

WANDB = """
class Error(Exception):
    pass

class Run:
    received, ids = [], []
    def log(self, metrics, step):
        self.received.append((step, metrics))
    def finish(self):
        self.received.append("finished")

def init(project, name, dir, config, id, resume, allow_val_change):
    if "refuse" in config:
        raise Error("no login")
    assert resume == "allow" and allow_val_change
    Run.received.append((project, name, config))
    Run.ids.append(id)
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "stand_in")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    import wandb

    yield wandb
    del sys.modules["wandb"]


def test_weights_and_biases_get_name_config_and_metrics(wandb, tmp_path):
    require_wandb()
    log = RunLog(tmp_path / "run", tensorboard=False, wandb_config={"train.lr": 1})
    log.metrics(4, {"loss": 0.5})
    log.close()
    started, *rest = wandb.Run.received
    assert started == ("mine", "run", {"train.lr": 1})
    assert rest == [(4, {"train/loss": 0.5}), "finished"]


def test_every_start_of_a_training_continues_one_run_of_weights_and_biases(
    wandb, tmp_path, monkeypatch
):
    def start(step: int) -> str:
        RunLog(tmp_path / "run", step, tensorboard=False, wandb_config={}).close()
        return wandb.Run.ids[-1]

    first = start(0)
    assert start(20) == start(40) == first
    assert start(0) != first  # the training begins anew, and steps would go back
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert start(20) == "mine"


def test_weights_and_biases_that_refuse_end_with_one_line(wandb, tmp_path):
    with pytest.raises(UserError, match="--use_wandb: no login"):
        RunLog(tmp_path / "run", tensorboard=False, wandb_config={"refuse": True})


def test_weights_and_biases_that_are_not_installed_are_asked_for_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match="pip install wandb"):
        require_wandb()
