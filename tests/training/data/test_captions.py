"""A tokenizer trained on captions is an ordinary CLIPTokenizer, and the text encoder fits it."""

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from guided_diffusers.training.data.captions import text_config_for, train_tokenizer

CAPTIONS = [
    f"{start} {name}" for start in ("a photo of", "a picture of") for name in ("an ankle boot", "a coat")
]
FEWEST = 515  # padding, beginning, end and 256 bytes within and at the end of a word


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 1024, context_length=12)


def ids(tokenizer, text):
    return tokenizer(text, padding="max_length", truncation=True, max_length=12).input_ids


def test_words_of_the_captions_are_one_token_each(tokenizer):
    tokens = tokenizer.tokenize("a photo of an ankle boot")
    assert tokens == ["a</w>", "photo</w>", "of</w>", "an</w>", "ankle</w>", "boot</w>"]


def test_an_empty_prompt_is_beginning_end_and_padding(tokenizer):
    end = len(tokenizer) - 1
    assert ids(tokenizer, "") == [1, end] + [0] * 10
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_special_ids(tokenizer):
    assert (
        tokenizer.eos_token_id
        == tokenizer.unk_token_id
        == len(tokenizer) - 1
        == max(tokenizer.get_vocab().values())
    )
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 1)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


@pytest.mark.parametrize(
    "text", ["a coat", "zebra crossing", "naïve café", "靴", "👢 boot", "a1b2", "don't!"]
)
def test_any_text_comes_back(tokenizer, text):
    numbers = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in numbers[1:-1]
    assert tokenizer.decode(numbers, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_case_and_spacing_do_not_matter(tokenizer):
    assert ids(tokenizer, "A  Photo of\nA COAT") == ids(tokenizer, "a photo of a coat")


def test_long_prompts_are_cut_before_the_end_token(tokenizer):
    numbers = ids(tokenizer, "a photo of " * 10)
    assert len(numbers) == 12 and numbers[0] == 1 and numbers[-1] == tokenizer.eos_token_id


def test_saving_and_loading_gives_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.model_max_length == 12
    for text in ("", "a photo of an ankle boot", "Zebra's 12 cafés"):
        assert ids(loaded, text) == ids(tokenizer, text)
        assert loaded.decode(ids(loaded, text)) == tokenizer.decode(ids(tokenizer, text))


def test_vocabulary_size_is_an_upper_limit():
    saturated = len(train_tokenizer(CAPTIONS, 10_000))
    assert FEWEST < saturated < FEWEST + 60
    assert len(train_tokenizer(CAPTIONS, FEWEST + 5)) == FEWEST + 5
    assert len(train_tokenizer(CAPTIONS, FEWEST)) == FEWEST


def test_frequent_pieces_come_first():
    few = train_tokenizer(["boot"] * 50 + ["coat"], FEWEST + 3)
    assert few.tokenize("boot") == ["boot</w>"] and len(few.tokenize("coat")) > 1


def test_merges_of_a_case_worked_by_hand():
    # ab c: "abc" 3 times, "bc" 2 times, "ab" once. bc</w> (5), then a+bc</w> (3), then ab</w> (1).
    tokenizer = train_tokenizer(["abc abc abc bc bc ab"], FEWEST + 2)
    assert tokenizer.tokenize("abc") == ["abc</w>"] and tokenizer.tokenize("bc") == ["bc</w>"]
    assert tokenizer.tokenize("ab") == ["a", "b</w>"] and tokenizer.tokenize("aabc") == ["a", "abc</w>"]


def test_a_pair_that_overlaps_itself_is_merged_from_the_left():
    tokenizer = train_tokenizer(["aaaab"] * 2, FEWEST + 1)
    assert tokenizer.tokenize("aaaab") == ["aa", "aa", "b</w>"]


def test_the_same_captions_in_any_order_give_the_same_tokenizer(tokenizer):
    for captions in (CAPTIONS, CAPTIONS[::-1]):
        assert train_tokenizer(captions, 1024, 12).get_vocab() == tokenizer.get_vocab()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="vocabulary_size is 514; allowed: an integer of at least 515"):
        train_tokenizer(CAPTIONS, FEWEST - 1)
    with pytest.raises(ValueError, match="context_length is 2"):
        train_tokenizer(CAPTIONS, 1024, 2)
    with pytest.raises(ValueError, match=r"captions is \[\]"):
        train_tokenizer([], 1024)


def test_the_text_encoder_fits_and_pools_at_the_end_token(tokenizer):
    torch.manual_seed(0)
    config = text_config_for(tokenizer, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    assert config.vocab_size == len(tokenizer) and config.max_position_embeddings == 12
    assert config.eos_token_id == tokenizer.eos_token_id and config.intermediate_size == 64
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        output = model(torch.tensor([ids(tokenizer, "a photo of a coat"), ids(tokenizer, "")]))
    assert output.last_hidden_state.shape == (2, 12, 16)
    for row, end in ((0, 6), (1, 1)):
        torch.testing.assert_close(output.pooler_output[row], output.last_hidden_state[row, end])


def test_padding_does_not_change_what_comes_before_it(tokenizer):
    config = text_config_for(tokenizer, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        padded = model(torch.tensor([ids(tokenizer, "a coat")]))[0]
        bare = model(torch.tensor([tokenizer("a coat").input_ids]))[0]
    torch.testing.assert_close(padded[:, : bare.shape[1]], bare, atol=1e-6, rtol=1e-5)


def test_other_arguments_go_to_the_configuration(tokenizer):
    config = text_config_for(
        tokenizer, hidden_size=16, num_attention_heads=2, intermediate_size=24, hidden_act="gelu"
    )
    assert config.intermediate_size == 24 and config.hidden_act == "gelu"


def test_an_end_token_of_id_two_is_refused(tmp_path):
    plain = CLIPTokenizer(vocab={"<|pad|>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[])
    with pytest.raises(ValueError, match="eos_token_id is 2"):
        text_config_for(plain)
