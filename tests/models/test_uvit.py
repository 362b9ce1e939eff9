"""The network U-ViT: names, shapes and formulas of the published code, masks, and what it lacks."""

from pathlib import Path

import pytest
import torch
from tiny import DIM, make_tiny_config, make_tiny_training_data
from trainings import final_state, metrics, run

from models.backbones import BACKBONES, MODEL_SIZES, backbone_of
from models.edm import EDMPrecond, build_denoiser
from models.token_mask import TokenMask, random_mask
from utils.base.errors import UserError
from utils.config.load import config_from_dict
from utils.config.schema import Config
from utils.pretrained.denoisers import denoiser_from_config, export_safetensors, load_denoiser

pytestmark = pytest.mark.bits  # of `make test-machines`
SMALL = {"hidden_size": 16, "depth": 4, "num_heads": 2, "use_decoder": False, "mlp": "gelu"}
PARTS = ("weight", "bias")
FORMS = {  # condition -> width, tokens
    "embedding": (6, 1),
    "tokens": (12, 3),
    "labels": (5, 0),
    "none": (0, 1),
}


def small(form: str = "embedding", size: str = "UViT-S/2") -> EDMPrecond:
    """Build a network for x (N, 4, 8, 8), all of whose weights are random."""
    torch.manual_seed(0)
    width, tokens = FORMS[form]
    denoiser = build_denoiser(size, 8, 4, width, cond_tokens=tokens, **SMALL).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return denoiser


def inputs(form: str, n: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return x, t_cond and the condition of a network of `form`."""
    torch.manual_seed(1)
    cond = torch.randn(n, FORMS[form][0])
    if form == "labels":
        cond = torch.eye(5)[[4, 0, 2]]
    return torch.randn(n, 4, 8, 8), torch.tensor([-0.7, 0.1, 0.6]), cond if FORMS[form][0] else None


# --- The published form


def published_shapes(width, blocks, patch, channels, positions, condition, conv) -> dict:
    """Return name -> shape of a published checkpoint with `blocks` blocks on each side."""
    shapes = {"pos_embed": (1, positions, width), **condition}
    shapes |= {"patch_embed.proj.weight": (width, channels, patch, patch)}
    shapes |= {"patch_embed.proj.bias": (width,)}
    names = [f"{side}_blocks.{i}" for side in ("in", "out") for i in range(blocks)]
    for name in [*names, "mid_block"]:
        layers = {"attn.qkv": (3 * width, width, False), "attn.proj": (width, width, True)}
        layers |= {"mlp.fc1": (4 * width, width, True), "mlp.fc2": (width, 4 * width, True)}
        if name.startswith("out"):
            layers["skip_linear"] = (width, 2 * width, True)
        for layer, (rows, columns, bias) in layers.items():
            shapes[f"{name}.{layer}.weight"] = (rows, columns)
            shapes |= {f"{name}.{layer}.bias": (rows,)} if bias else {}
        shapes |= {
            f"{name}.norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")
        }
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    outputs = patch * patch * channels
    shapes |= {"decoder_pred.weight": (outputs, width), "decoder_pred.bias": (outputs,)}
    if conv:
        shapes |= {"final_layer.weight": (channels, channels, 3, 3)}
        shapes |= {"final_layer.bias": (channels,)}
    return shapes


def label_table(width: int) -> dict:
    """Return the weights of 1,000 classes and "no class"."""
    return {"label_emb.weight": (1001, width)}


COCO = {"context_embed.weight": (512, 768), "context_embed.bias": (512,)}
PUBLISHED = {  # size, side of latents, width and tokens of the condition; millions of weights
    "imagenet256_uvit_large": (("UViT-L/2", 32, 1000, 0), 287, label_table(1024)),
    "imagenet256_uvit_huge": (("UViT-H/2", 32, 1000, 0), 501, label_table(1152)),
    "imagenet512_uvit_large": (("UViT-L/4", 64, 1000, 0), 287, label_table(1024)),
    "imagenet512_uvit_huge": (("UViT-H/4", 64, 1000, 0), 501, label_table(1152)),
    "mscoco_uvit_small": (("UViT-S/2", 32, 77 * 768, 77), 45, COCO),
    "mscoco_uvit_small_deep": (("UViT-S-Deep/2", 32, 77 * 768, 77), 58, COCO),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_have_the_published_names_and_shapes(name):
    (size, side, width, tokens), millions, condition = PUBLISHED[name]
    with torch.device("meta"):
        denoiser = build_denoiser(size, side, 4, width, cond_tokens=tokens, use_decoder=False)
    depth, hidden, patch, _, conv = MODEL_SIZES[size]
    positions = (side // patch) ** 2 + 1 + max(tokens, 1)
    expected = published_shapes(hidden, depth // 2, patch, 4, positions, condition, conv)
    weights = denoiser.model.state_dict()
    assert {key: tuple(weight.shape) for key, weight in weights.items()} == expected
    assert sum(w.numel() for w in weights.values()) == pytest.approx(millions * 1e6, rel=0.02)


def test_a_file_in_the_published_form_loads(tmp_path):
    widths = {"in_size": 8, "num_classes": 10, "cond_tokens": 0, "hidden_size": 16, "depth": 4}
    model = {"model_type": "UViT-L/2", **widths, "num_heads": 2, "use_decoder": False}
    condition = {"label_emb.weight": (11, 16)}
    shapes = published_shapes(16, 2, 2, 4, 16 + 2, condition, conv=True)
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save(weights, tmp_path / "imagenet256_uvit_large.pth")
    config = config_from_dict({"model": model}, "a config")
    denoiser, _ = load_denoiser(tmp_path / "imagenet256_uvit_large.pth", config=config)
    assert all(torch.equal(w, weights[n]) for n, w in denoiser.model.state_dict().items())
    with pytest.raises(UserError, match="has another shape for model.pos_embed"):
        wider = config_from_dict({"model": model | {"in_size": 16}}, "a config")
        load_denoiser(tmp_path / "imagenet256_uvit_large.pth", config=wider)


# --- The formulas


def plain_norm(x, weight, bias):
    """Normalise rows to mean 0 and variance 1; scale and shift them."""
    x = x - x.mean(dim=-1, keepdim=True)
    return x / ((x**2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def plain_block(w, name, x, heads):
    """Attend, then transform each token, both beside the identity."""
    part = {key.removeprefix(f"{name}."): v for key, v in w.items() if key.startswith(f"{name}.")}
    rows = plain_norm(x, part["norm1.weight"], part["norm1.bias"])
    q, k, v = (rows @ p.T for p in part["attn.qkv.weight"].chunk(3))
    mixed = []
    for head in range(heads):
        size = x.shape[-1] // heads
        at = slice(head * size, (head + 1) * size)
        weights = (q[..., at] @ k[..., at].mT / size**0.5).exp()
        mixed.append(weights / weights.sum(dim=-1, keepdim=True) @ v[..., at])
    x = x + torch.cat(mixed, dim=-1) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
    rows = plain_norm(x, part["norm2.weight"], part["norm2.bias"])
    rows = rows @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"]
    rows = rows * (1 + torch.erf(rows / 2**0.5)) / 2
    return x + rows @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]


def plain_uvit(w, x, t, cond, form, heads=2):
    """Compute the network of one image x (4, 8, 8) with plain formulas; t is its time step."""
    width = w["pos_embed"].shape[2]
    patches = torch.stack(
        [x[:, i : i + 2, j : j + 2].flatten() for i in range(0, 8, 2) for j in range(0, 8, 2)]
    )
    image = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    angles = t * 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    tokens = [torch.cat([angles.cos(), angles.sin()])[None]]
    if form == "labels":
        row = int(cond.argmax()) if cond.any() else -1
        tokens.insert(0, w["label_emb.weight"][row][None])
    elif form != "none":
        parts = cond.reshape(FORMS[form][1], -1)
        tokens.append(parts @ w["context_embed.weight"].T + w["context_embed.bias"])
    x = torch.cat([*tokens, image]) + w["pos_embed"][0]
    skips = []
    for name in ("in_blocks.0", "in_blocks.1"):
        x = plain_block(w, name, x, heads)
        skips.append(x)
    x = plain_block(w, "mid_block", x, heads)
    for name in ("out_blocks.0", "out_blocks.1"):
        both = torch.cat([x, skips.pop()], dim=1)
        x = both @ w[f"{name}.skip_linear.weight"].T + w[f"{name}.skip_linear.bias"]
        x = plain_block(w, name, x, heads)
    x = plain_norm(x, w["norm.weight"], w["norm.bias"]) @ w["decoder_pred.weight"].T
    x = (x + w["decoder_pred.bias"])[-16:].reshape(4, 4, 2, 2, 4)  # row, column, in patch, channel
    x = x.permute(4, 0, 2, 1, 3).reshape(4, 8, 8)
    if "final_layer.weight" not in w:
        return x
    framed = torch.zeros(4, 10, 10, dtype=x.dtype)
    framed[:, 1:9, 1:9] = x
    shifted = [framed[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    kernel = w["final_layer.weight"].flatten(2)
    y = sum(torch.einsum("oc,chw->ohw", kernel[..., i], part) for i, part in enumerate(shifted))
    return y + w["final_layer.bias"][:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ["UViT-S/2", "UViT-H/2"])
def test_the_network_equals_its_plain_formulas(form, size):
    denoiser = small(form, size)
    x, t, cond = inputs(form)
    weights = {name: w.double() for name, w in denoiser.model.state_dict().items()}
    for given in (cond, None if cond is None else torch.zeros_like(cond)):
        actual = denoiser.model(x, t, given)
        for i in range(len(x)):
            one = None if given is None else given[i].double()
            expected = plain_uvit(weights, x[i].double(), 1000 * t[i].double(), one, form)
            torch.testing.assert_close(actual[i].double(), expected, rtol=2e-3, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("form", ["embedding", "tokens", "labels"])
def test_no_condition_is_a_row_of_zeros(form):
    denoiser = small(form)
    x, _, cond = inputs(form)
    without = denoiser(x, 1.5, None)
    assert torch.equal(denoiser(x, 1.5, torch.zeros_like(cond)), without)
    assert (denoiser(x, 1.5, cond) - without).abs().amax(dim=(1, 2, 3)).min() > 1e-3


# --- Masks and tokens


@torch.no_grad()
@pytest.mark.parametrize("size", ["UViT-S/2", "UViT-H/2"])
def test_hidden_patches_are_not_seen_and_come_out_as_zeros(size):
    model = small(size=size).model
    x, t, cond = inputs("embedding")
    mask = random_mask(3, 16, 0.5)
    hidden = mask.mask.view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    first, other = (model(x + change * hidden, t, cond, mask) for change in (0, 5))
    assert torch.equal(first, other)
    assert not (first * hidden).any() and (first != 0).sum() == 4 * (1 - hidden).sum()
    assert not torch.allclose(first, model(x, t, cond) * (1 - hidden), atol=1e-2)


@torch.no_grad()
def test_a_mask_that_hides_nothing_changes_nothing():
    model = small().model
    x, t, cond = inputs("embedding")
    order = torch.rand(3, 16).argsort(dim=1)
    mask = TokenMask(torch.zeros(3, 16), order, order.argsort(dim=1))
    torch.testing.assert_close(model(x, t, cond, mask), model(x, t, cond), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tokens_after_a_block_are_those_that_it_returns():
    model = small().model
    seen = {}
    for number, block in enumerate(model.all_blocks(), start=1):
        block.register_forward_hook(lambda _, __, y, number=number: seen.__setitem__(number, y))
    for number in range(1, 6):
        _, tokens = model(*inputs("embedding"), tokens_after=number)
        assert torch.equal(tokens, seen[number][:, 2:])


# --- Names and refusals


def test_every_size_names_one_backbone_and_an_unknown_one_a_close_size():
    assert len(MODEL_SIZES) == sum(len(backbone.SIZES) for backbone in BACKBONES)
    assert {backbone_of(name).__name__ for name in MODEL_SIZES} == {"MaskDiT", "UViT"}
    with pytest.raises(ValueError, match="did you mean 'UViT-S/2'"):
        backbone_of("UVit-S/2")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_decoder": True}, "UViT has no use_decoder; set model.use_decoder=false"),
        ({"pad_cls_token": True}, "UViT has no pad_cls_token; set model.pad_cls_token=false"),
        ({"ext_feature_dim": 4}, "UViT has no ext_feature_dim; set model.ext_feature_dim=0"),
        ({"perturbation": True}, "UViT has no perturbation; set model.perturbation=false"),
        ({"depth": 5}, "depth 5 must be even"),
        ({"cond_tokens": 3}, "16 conditions cannot make cond_tokens=3"),
        ({"model_type": "DiT-S/2", "cond_tokens": 2}, "MaskDiT has no cond_tokens; set"),
    ],
)
def test_what_a_network_lacks_is_refused_in_one_line(tmp_path, settings, message):
    model = {"model_type": "UViT-S/2", "use_decoder": False} | settings
    with pytest.raises(UserError, match=message) as refusal:
        denoiser_from_config(make_tiny_config(tmp_path, model=model))
    assert str(refusal.value).startswith("model: ") and "\n" not in str(refusal.value)


# --- A training


@pytest.fixture(scope="module")
def uvit(tmp_path_factory) -> tuple[Config, Path]:
    """Return the config of a training, and its file."""
    folder = tmp_path_factory.mktemp("uvit")
    model = {"model_type": "UViT-S/2", "use_decoder": False, "in_size": 4, "unmasked_tail": 0.2}
    train = {"optimizer": "muon", "batchsize": 8, "max_num_steps": 8, "perturbation": 0.0}
    log = {"ckpt_every": 4, "log_every": 1, "observe_every": 4, "sample_every": 0}
    config = make_tiny_config(folder, model=model, train=train, log=log, data={"resolution": 32})
    make_tiny_training_data(config, side=4)
    (folder / "config.yaml").write_text(config.to_yaml())
    return config, folder / "config.yaml"


def test_a_training_with_masks_continues_bit_for_bit_and_its_release_samples(uvit, tmp_path):
    config, file = uvit
    whole = run(file, tmp_path / "whole")
    run(file, cut := tmp_path / "cut", "train.activation_checkpointing=true")
    (cut / "checkpoints" / "0000008.pt").unlink()
    run(file, cut)
    assert final_state(cut) == final_state(whole) and metrics(cut) == metrics(whole)
    assert "update_ratio" in metrics(whole)[-1] and "update_ratio_adaln" not in metrics(whole)[-1]
    export_safetensors(whole / "checkpoints" / "0000008.pt", tmp_path / "uvit.safetensors")
    denoiser, stored = load_denoiser(tmp_path / "uvit.safetensors")
    assert stored.model.model_type == "UViT-S/2"
    assert denoiser(torch.randn(2, 4, 4, 4), 1.0, torch.zeros(2, DIM)).isfinite().all()
