from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers import CLIPTokenizer

from guided_diffusers import Condition
from guided_diffusers.core.condition import tokenize, words_beyond


@pytest.fixture(scope="module")
def tokenizer():
    """CLIP's tokenizer without merges: a token a letter."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8)


def test_the_null_carries_negative_and_is_one_object():
    condition = Condition({"states": torch.ones(2)}, {"states": torch.zeros(2)})
    assert condition.null.positive is condition.negative
    assert condition.null is condition.null  # so that a step asks for it once
    with pytest.raises(FrozenInstanceError):
        condition.positive = {}


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="no negative"):
        _ = Condition({"states": torch.ones(2)}).null
    with pytest.raises(ValueError, match="positive is a tensor .*; allowed: a mapping"):
        Condition(torch.ones(2))
    with pytest.raises(ValueError, match=r"negative is \[\]; allowed: None, or a mapping"):
        Condition({}, [])


def test_words_beyond_the_context(tokenizer, caplog):
    assert words_beyond(tokenizer, "ab cd ef") == ""  # six letters and two special tokens: just fits
    assert words_beyond(tokenizer, "ab cd ef gh ij") == "gh ij"
    assert words_beyond(tokenizer, "ab cd", max_length=4) == "cd"
    assert words_beyond(tokenizer, "") == ""
    assert not caplog.records


def test_tokenize_pads_and_cuts_to_the_context(tokenizer):
    ids, mask = tokenize(tokenizer, ("ab", "ab cd ef gh"))
    assert ids.shape == mask.shape == (2, 8) and ids.dtype == torch.int64
    assert mask.sum(1).tolist() == [4, 8]
    assert ids[:, 0].tolist() == [tokenizer.bos_token_id] * 2
    assert ids[1, -1] == tokenizer.eos_token_id  # the end mark stays where words fall off
    assert tokenize(tokenizer, ["ab"], max_length=5)[0].shape == (1, 5)
