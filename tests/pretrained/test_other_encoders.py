"""Other encoders than the usual ones, in their published formats: SigLIP, EVA, newer VAEs.

The networks are those of the libraries with fewer layers, and with random weights.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import crude_face
from diffusers import AutoencoderDC, AutoencoderKL
from PIL import Image
from plain_clip import as_tensor
from safetensors.torch import save_file
from tiny import RESOLUTION, make_tiny_vae
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from models.autoencoder import load_autoencoder
from models.clip import load_clip
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.data.derived_sizes import with_derived_sizes
from utils.data.lmdb_reader import LMDBReader
from utils.pretrained.encoders import load_config_autoencoder, load_config_clip
from utils.release.components import copy_clip

WIDTH = 96  # of an embedding, and of the vision tower of SigLIP
WORDS = ["a", "face", "with", "red", "hair", "hat", "and", "the", "man", "smiling"]
TEXTS = ["A face", "the man, smiling!", "a face with red hair " * 20]


def open_clip_config(name: str, **text: object) -> dict:
    """The JSON of a published architecture with small towers."""
    config = open_clip.get_model_config(name)
    config["embed_dim"] = WIDTH
    config["text_cfg"] |= {"width": 48, "heads": 2, "layers": 2, **text}
    return config


def save_clip(folder: Path, config: dict, preprocess: dict, weights: str) -> Path:
    """Write a CLIP as open_clip does for its hub."""
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero in fresh networks, which would hide faults
            torch.nn.init.normal_(parameter, std=0.1)
    if weights.endswith(".bin"):
        torch.save(model.state_dict(), folder / weights)
    else:
        save_file(model.state_dict(), folder / weights)
    about = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    return folder


def save_unigram_tokenizer(folder: Path) -> None:
    """Write a small tokenizer of SigLIP's kind: unigram pieces, padded with its end token."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(c, -9.0) for c in "▁abcdefghijklmnopqrs"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    """A SigLIP: a vision tower of timm with attention pooling, a text tower without causal mask."""
    config = open_clip_config("ViT-B-16-SigLIP", vocab_size=64, context_length=16)
    config["vision_cfg"] |= {"timm_model_name": "test_vit3", "image_size": 160}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    folder = tmp_path_factory.mktemp("siglip") / "clip"
    save_clip(folder, config, preprocess, "open_clip_model.safetensors")
    save_unigram_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def eva(tmp_path_factory) -> Path:
    """An EVA-02 CLIP: rotary positions and SwiGLU in the vision tower, CLIP's own tokenizer."""
    config = open_clip_config("EVA02-B-16", layers=1)
    config["vision_cfg"]["timm_model_name"] = "eva02_tiny_patch14_224"
    folder = tmp_path_factory.mktemp("eva") / "clip"
    return save_clip(folder, config, {}, "open_clip_pytorch_model.bin")


def save_vae(folder: Path, **options: object) -> Path:
    """Write a VAE of 16 channels without quantisation layers, as Stable Diffusion 3 and FLUX."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )
    vae.save_pretrained(folder)
    return folder


def embedded_by_open_clip(folder: Path, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of an image and of TEXTS, made by open_clip alone."""
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        return model.encode_image(transform(image)[None]), model.encode_text(tokenizer(TEXTS))


@pytest.mark.parametrize("kind", ["siglip", "eva"])
def test_an_image_and_a_text_are_embedded_as_open_clip_does(kind, request):
    folder, image = request.getfixturevalue(kind), crude_face(0, 300).crop((0, 0, 300, 200))
    clip = load_clip(folder)
    expected_image, expected_texts = embedded_by_open_clip(folder, image)
    torch.testing.assert_close(clip.encode_images(as_tensor(image)), expected_image)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected_texts, rtol=1e-4, atol=1e-5)
    assert expected_texts.std(dim=0).mean() > 0.01  # the texts differ
    assert clip.dim == WIDTH and clip.count_truncated(TEXTS) == 1


def test_weights_of_a_named_architecture_bring_its_own_pixels_and_tokenizer(siglip, tmp_path):
    config = json.loads((siglip / "open_clip_config.json").read_text())["model_cfg"]
    registered = tmp_path / "ViT-tiny-SigLIP-test.json"
    registered.write_text(json.dumps(config))
    open_clip.add_model_config(registered)
    name = registered.stem
    open_clip.pretrained._PRETRAINED[name] = open_clip.pretrained._PRETRAINED["ViT-B-16-SigLIP"]
    weights = siglip / "open_clip_model.safetensors"
    by_name = load_clip(f"{name}:{weights}")
    by_folder, image = load_clip(siglip), as_tensor(crude_face(1, 224))
    assert torch.equal(by_name.encode_images(image), by_folder.encode_images(image))
    assert torch.equal(by_name.encode_texts(TEXTS), by_folder.encode_texts(TEXTS))
    for clip, source in ((by_name, f"{name}:{weights}"), (by_folder, str(siglip))):
        copy_clip(clip, source, tmp_path / "copy")
        assert torch.equal(
            load_clip(tmp_path / "copy").encode_texts(TEXTS), clip.encode_texts(TEXTS)
        )
        shutil.rmtree(tmp_path / "copy")


def test_a_tokenizer_whose_package_is_missing_is_one_line(siglip, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    config = config_from_dict({"encoders": {"clip": str(siglip)}})
    with pytest.raises(UserError, match=r"its tokenizer needs a package: pip install transformers"):
        load_config_clip(config.encoders)


STATISTICS = {"latents_mean": [0.1 * i for i in range(16)], "latents_std": [2.0] * 8 + [0.5] * 8}


@pytest.mark.parametrize(
    "options",
    [{"scaling_factor": 1.5305, "shift_factor": 0.0609}, {"scaling_factor": 0.5, **STATISTICS}],
    ids=["one shift", "statistics of each channel"],
)
def test_latents_are_shifted_and_scaled_as_their_vae_states(tmp_path, options):
    vae = load_autoencoder(save_vae(tmp_path / "vae", **options))
    moments = vae.encode_moments(as_tensor(crude_face(0, 32)) / 127.5 - 1)
    mean, log_variance = moments.chunk(2, dim=1)
    shift, deviation = options.get("shift_factor", 0), 1
    if "latents_std" in options:
        shift, deviation = (torch.tensor(x).view(-1, 1, 1) for x in STATISTICS.values())
    expected = (mean - shift) * options["scaling_factor"] / deviation
    torch.testing.assert_close(vae.mean_latents(moments), expected)
    torch.testing.assert_close(vae.unscaled(expected), mean)
    scaled, log_scaled = vae.scaled_moments(moments).chunk(2, dim=1)
    torch.testing.assert_close(scaled, expected)
    # The deviation is scaled with the latents, and not shifted.
    ratio = ((log_scaled - log_variance) / 2).exp() * torch.ones(1)
    torch.testing.assert_close(ratio * deviation, torch.full_like(ratio, options["scaling_factor"]))
    reconstruction = vae.vae.decode(mean).clamp(-1, 1)
    torch.testing.assert_close(vae.decode(expected), reconstruction, rtol=1e-4, atol=1e-5)


def test_the_folder_of_a_pipeline_gives_its_vae(tmp_path):
    save_vae(tmp_path / "pipeline" / "vae", shift_factor=0.1)
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    inside = load_autoencoder(tmp_path / "pipeline")
    assert inside.identity == load_autoencoder(tmp_path / "pipeline" / "vae").identity
    config = config_from_dict({"encoders": {"vae": str(tmp_path / "pipeline")}})
    made = with_derived_sizes(config, "makes", "none")
    assert (made.model.in_channels, made.model.in_size) == (16, 32)


def test_a_vae_of_another_class_or_without_all_weights_is_one_line(tmp_path):
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    types = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    scales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    AutoencoderDC(latent_channels=8, **blocks, **types, **layers, **scales).save_pretrained(
        tmp_path / "dc"
    )
    make_tiny_vae(tmp_path / "cut")
    file = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    vae = AutoencoderKL.from_pretrained(tmp_path / "cut")
    weights = {k: v for k, v in vae.state_dict().items() if not k.startswith("quant_conv")}
    save_file(weights, file, metadata={"format": "pt"})
    for name, said in (("dc", "holds AutoencoderDC, and"), ("cut", "no weights quant_conv.bias")):
        config = config_from_dict({"encoders": {"vae": str(tmp_path / name)}})
        with pytest.raises(UserError, match=said):
            load_config_autoencoder(config)


def test_a_width_that_is_stated_and_wrong_is_one_line_with_the_encoders_own(siglip, tmp_path):
    encoders = {"clip": str(siglip), "vae": str(save_vae(tmp_path / "vae"))}
    data, model = {"feat_path": "nowhere", "feat_dim": 512}, {"in_channels": 4}
    config = config_from_dict({"encoders": encoders, "data": data, "model": model})
    with pytest.raises(UserError) as caught:
        with_derived_sizes(config, "makes", "makes")
    channels, width = str(caught.value).splitlines()
    assert channels.endswith("gives 16; set model.in_channels to 16, or leave out the key")
    assert width.endswith("gives 96; set data.feat_dim to 96, or leave out the key")


@pytest.mark.parametrize("kind", ["siglip", "eva"])
def test_encoders_in_two_keys_go_from_image_to_training_to_image(kind, project, request):
    vae = save_vae(project.folder / "pipeline" / "vae", scaling_factor=1.5, shift_factor=0.1)
    project.without_sizes(clip=request.getfixturevalue(kind), vae=vae.parent)
    config, out = project.train_and_generate("a face", "the man with red hair")
    data, model = config.data, config.model
    assert (data.feat_dim, model.num_classes) == (WIDTH, WIDTH)
    assert (data.num_channels, model.in_channels) == (16, 16)
    latents = LMDBReader(config.data.root).read(range(9))
    assert latents.shape == (9, 16, RESOLUTION // 8, RESOLUTION // 8)
    images = [np.asarray(Image.open(out / f"{i:02d}_000.png")) for i in range(2)]
    assert images[0].shape == (RESOLUTION, RESOLUTION, 3)
    assert images[0].std() > 1
