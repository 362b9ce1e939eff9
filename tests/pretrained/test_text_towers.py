"""CLIPs in a folder whose towers come from other libraries: BERT of transformers, ViT of timm.

The networks are small and random, but for the CLIP in the folder that PHOTOS names.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import crude_face
from diffusers import DiffusionPipeline
from hub_server import HubServer
from PIL import Image
from plain_clip import as_tensor
from safetensors.torch import save_file
from test_hub import run
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from models.clip import load_clip
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.pretrained.encoders import config_embedding_width, load_config_clip
from utils.release.components import OPEN_CLIP, copy_clip
from utils.release.folder import export_folder
from utils.sampling.text_to_face import TextToFace

PHOTOS = Path(os.environ.get("PHOTOS", "no folder"))
WIDTH, CONTEXT = 24, 12
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["a", "face", "with", "red", "hair", "hat", "the", "man", "[", "]", "se", "##p"]
TEXTS = ["A face", "the man with red hair", "a face with red hair " * 5, "a [SEP] hat"]


def save_tokenizer(folder: Path) -> None:
    """Write a small tokenizer of BERT's kind; padding and end have low numbers in it."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def bert_config(layers: int) -> BertConfig:
    """Return the description of a small BERT."""
    return BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )


@pytest.fixture
def bert(tmp_path, monkeypatch) -> Path:
    """A CLIP folder; the name of its text tower is that of another BERT in the working folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "bert" / "clip"
    folder.mkdir(parents=True)
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "timm_model_name": "test_vit3",
            "timm_model_pretrained": True,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 160,
        },
        "text_cfg": {
            "hf_model_name": "names/text",
            "hf_tokenizer_name": "names/text",
            "hf_model_pretrained": True,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": CONTEXT,
        },
    }
    bert_config(2).save_pretrained(folder)
    save_tokenizer(folder)
    text = {**config["text_cfg"], "hf_model_name": str(folder), "hf_model_pretrained": False}
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(WIDTH, vision, text)
    for name, parameter in model.text.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    bert_config(3).save_pretrained(tmp_path / "names" / "text")
    monkeypatch.chdir(tmp_path)
    return folder


def embedded_by_open_clip(folder: Path, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of an image and of TEXTS by open_clip, given the text tower's place.

    Its tokenizer alone would take a special name in a text for the token.
    """
    described = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    place = {"hf_model_name": str(folder), "hf_model_pretrained": False}
    model, _, transform = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", text_cfg=described | place
    )
    tokens = load_clip(folder).tokenizer(TEXTS)
    with torch.no_grad():
        return model.eval().encode_image(transform(image)[None]), model.encode_text(tokens)


def test_both_towers_are_those_of_the_folder_wherever_the_program_runs(bert, tmp_path, monkeypatch):
    image = crude_face(0, 300)
    expected = embedded_by_open_clip(bert, image)
    for place in (tmp_path, tmp_path / "bert"):
        monkeypatch.chdir(place)
        clip = load_clip(bert if place == tmp_path else "./clip")
        found = clip.encode_images(as_tensor(image)), clip.encode_texts(TEXTS)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found[1].std(dim=0).mean() > 0.01
    encoders = config_from_dict({"encoders": {"clip": str(bert)}}).encoders
    assert config_embedding_width(encoders) == clip.dim == WIDTH


def test_texts_are_counted_and_read_by_its_own_tokens(bert):
    clip = load_clip(bert)
    assert clip.context_length == CONTEXT
    assert [clip.count_truncated([text]) for text in TEXTS] == [0, 0, 1, 0]
    assert clip.is_empty(["", " \n", "a"]) == [True, True, False]
    tokens = clip.tokenizer(["a [SEP] hat"])[0]
    assert (tokens == SPECIAL.index("[SEP]")).sum() == 1  # the end; the name is read as letters
    one_by_one = torch.cat([clip.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(clip.encode_texts(TEXTS), one_by_one, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_the_directions(bert):
    whole, half = (load_clip(bert, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    cosine = torch.cosine_similarity(whole.encode_texts(TEXTS), half.encode_texts(TEXTS))
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "holds no config.json of its text tower names/text: copy it there"),
        (lambda file: file.write_text("{"), "config.json' is not a valid JSON file"),
        (lambda file: bert_config(3).save_pretrained(file.parent), "cannot load a CLIP from"),
    ],
)
def test_another_text_tower_is_one_line(bert, spoil, said):
    spoil(bert / "config.json")
    with pytest.raises(UserError, match=f"encoders.clip: .*{said}") as fault:
        load_config_clip(config_from_dict({"encoders": {"clip": str(bert)}}).encoders)
    assert "\n" not in str(fault.value)


def test_a_release_folder_carries_towers_and_tokenizer(bert, project, monkeypatch):
    project.without_sizes(clip=bert)
    expected = load_clip(bert).encode_texts(TEXTS)
    project.train_and_generate("a face")
    release = project.folder / "released"
    export_folder(project.folder / "own" / "checkpoints" / "0000002.pt", release, device="cpu")
    bert.rename(project.folder / "moved away")
    elsewhere = project.folder / "elsewhere"
    shutil.move(release, elsewhere / "faces")
    monkeypatch.chdir(elsewhere)
    faces = TextToFace.load("faces", device="cpu")
    torch.testing.assert_close(faces.clip.encode_texts(TEXTS), expected)
    generated = np.asarray(faces.generate("a hat").images[0])
    pipe = DiffusionPipeline.from_pretrained(
        elsewhere / "faces", custom_pipeline=str(elsewhere / "faces"), trust_remote_code=True
    )
    np.testing.assert_array_equal(np.asarray(pipe("a hat").images[0]), generated)
    for file in (elsewhere / "faces" / "clip").rglob("*"):
        assert file.is_dir() or str(project.folder).encode() not in file.read_bytes(), file


def test_a_copy_of_a_copy_gives_equal_embeddings(bert, tmp_path):
    clip = load_clip(bert)
    for name in ("first", "second"):
        copy_clip(clip, str(bert), tmp_path / name / OPEN_CLIP)
        bert = tmp_path / name / OPEN_CLIP
        copied = load_clip(bert)
        assert copied.identity == clip.identity
        assert torch.equal(copied.encode_texts(TEXTS), clip.encode_texts(TEXTS))
        clip = copied


def test_the_download_of_a_named_clip_brings_its_tokenizer(tmp_path):
    files = ("open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json", "a.bin")
    with HubServer() as hub:
        hub.repositories["timm/ViT-B-16-SigLIP2"] = {name: b"{}" for name in files}
        code = "fetch_from_hub('encoders.clip', 'ViT-B-16-SigLIP2:webli')\n"
        code = f"from utils.pretrained.assets import fetch_from_hub\n{code}"
        errors, _ = run(code, hub.url, tmp_path)
    fetched = {file.name for file in tmp_path.rglob("snapshots/*/*")}
    assert fetched == {*files} - {"a.bin"}, errors


def test_the_clip_of_the_photographs_embeds_as_open_clip_does(tmp_path, monkeypatch):
    if not (PHOTOS / "clip").is_dir():
        pytest.skip("PHOTOS names no folder with a CLIP whose text tower is a Hugging Face one")
    folder = (PHOTOS / "clip").absolute()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    image, clip = crude_face(0, 300), load_clip(folder)
    expected = embedded_by_open_clip(folder, image)
    found = clip.encode_images(as_tensor(image)), clip.encode_texts(TEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    copy_clip(clip, str(folder), tmp_path / "copy")
    assert torch.equal(load_clip(tmp_path / "copy").encode_texts(TEXTS), found[1])
