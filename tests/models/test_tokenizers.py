"""Names of special tokens in a user's text are text."""

import open_clip
import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer as Pieces
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from models.clip import load_clip
from models.tokenizers import text_only
from utils.base.errors import UserError
from utils.config.schema import Config
from utils.sampling.conditions import embed_rows
from utils.sampling.prompts import Row, text_prompt

NAMES = [
    "<end_of_text>", "<start_of_text>", "<END_OF_TEXT>", "&lt;end_of_text&gt;", "!!<end_of_text>",
    "<|endoftext|>", "<|startoftext|>", "[SEP]", "</s>", "<pad>",
]  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    return load_clip(ROOT / "assets" / "demo" / "clip")


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_the_name_of_a_special_token_is_read(clip, name):
    tokens = clip.tokenizer([f"a man {name} with a hat"])[0].tolist()
    end = clip.tokenizer.eot_token_id
    assert tokens.count(end) == tokens.count(clip.tokenizer.sot_token_id) == 1
    assert tokens.index(end) > clip.tokenizer(["a man with a hat"])[0].tolist().index(end)


@pytest.mark.parametrize(
    "text", ["a man", "a < b > c", "<b>red</b> hair!", "2 x 3 <end", "é 😀 it's"]
)
def test_other_texts_keep_their_tokens(clip, text):
    merges = ROOT / "assets" / "demo" / "clip" / "merges.txt.gz"
    plain = open_clip.SimpleTokenizer(bpe_path=str(merges))
    assert torch.equal(clip.tokenizer([text]), plain([text]))


class HubTokenizer:
    """Tokenizer of transformers, as open_clip wraps it."""

    def __init__(self) -> None:
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "man", "[", "]", "SEP", "PAD"]
        pieces = Pieces(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "[UNK]"))
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=pieces, pad_token="[PAD]", sep_token="[SEP]", cls_token="[CLS]"
        )

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]


def test_a_tokenizer_of_transformers_reads_them_as_text_too():
    tokenizer = HubTokenizer()
    ordinary = tokenizer("a man")
    assert tokenizer("a [SEP]") == [2, 4, 3, 3]
    assert text_only(tokenizer)("a [SEP]") == [2, 4, 6, 8, 7, 3]
    assert tokenizer("a [PAD] man") == [2, 4, 6, 9, 7, 5, 3]
    assert tokenizer("a man") == ordinary == [2, 4, 5, 3]


@pytest.mark.parametrize("text", ["&nbsp;", "&#32; &#9;", "&amp;nbsp;"])
def test_a_prompt_in_which_clip_reads_nothing_is_one_line(clip, text):
    assert clip.is_empty([text, "a man"]) == [True, False]
    with pytest.raises(UserError, match="holds nothing that this CLIP reads"):
        embed_rows([Row(((text_prompt(text), 1.0),))], clip, Config())
