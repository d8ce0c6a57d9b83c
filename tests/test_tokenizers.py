"""Prompts to ids against transformers' tokenizers, and what becomes of bad prompts and files."""

import json
import random
import shutil
import time
import warnings

import numpy as np
import pytest
import transformers

from ic_jax.config import ConfigError
from ic_jax.preprocessing.tokenizers import PromptError, PromptTokenizer, load_clip, load_t5
from tests.conftest import GOLDENS

CLIP = GOLDENS / "tiny_instantcharacter" / "flux" / "tokenizer"
T5 = GOLDENS / "tiny_instantcharacter" / "flux" / "tokenizer_2"

PROMPTS = [
    "",
    "A girl is playing a guitar in street",
    "  two  spaces\tand a tab,\nlines\r\n ",
    "don't we'll I'VE they'd it's 's ''s",
    'a_b-c/d\\e 1234 3.14 1,000 100%!!! ?? "quoted" “curly” — dash…',
    "naïve café Zürich ß İstanbul e\u0301 n\u0303 \u212b ﬁ ½ ²",
    "😀😃 👩\u200d👩\u200d👧 👍🏽 🇩🇪",
    "日本語のテキスト 中文 한국어 العربية हिन्दी ไทย",
    "a\u00a0b\u2003c\u200bd\u3000e\ufeff",
    "<|startoftext|> x <|endoftext|> y <|ENDOFTEXT|> </s> <pad> <extra_id_0> z",
    "word " * 200,
    "x" * 700,
]


def more_prompts(count):
    draw = random.Random(0)
    few = "abc DEF 123 .,!?'\"-_ éüñ 日本 😀👍🏽 \t\n "
    many = [chr(c) for c in range(32, 0x3000) if not 0x7F <= c < 0xA0]
    return [
        "".join(draw.choices(pool, k=draw.randrange(60)))
        for pool in (few, many)
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer.from_folders(CLIP, T5)


def test_as_transformers(tokenizer):
    prompts = PROMPTS + more_prompts(100)
    with warnings.catch_warnings(action="ignore"):
        clip_ids, t5_ids = tokenizer(prompts, max_sequence_length=64)
    lengths = {"padding": "max_length", "truncation": True}
    clip = transformers.CLIPTokenizer.from_pretrained(CLIP)
    t5 = transformers.T5TokenizerFast.from_pretrained(T5)
    np.testing.assert_array_equal(clip_ids, clip(prompts, max_length=77, **lengths).input_ids)
    np.testing.assert_array_equal(t5_ids, t5(prompts, max_length=64, **lengths).input_ids)
    assert clip_ids.dtype == t5_ids.dtype == np.int32


def test_clip_from_tokenizer_json(tokenizer, tmp_path):
    transformers.CLIPTokenizer.from_pretrained(CLIP).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    saved = load_clip(tmp_path)
    for prompt in PROMPTS:
        assert saved.encode(prompt, 77) == tokenizer.clip.encode(prompt, 77)


def test_too_long_is_cut_with_one_warning(tokenizer):
    prompt = "a red cat, " * 40 + "and at the end a dog"
    with pytest.warns(UserWarning, match="too long") as seen:
        clip_ids, t5_ids = tokenizer(prompt, max_sequence_length=16)
    assert len(seen) == 1
    message = str(seen[0].message)
    assert "CLIP reads 77 tokens and does not see '" in message
    assert "T5 reads 16 tokens and does not see '" in message
    assert "\n" not in message
    assert clip_ids.shape == (1, 77)
    assert t5_ids.shape == (1, 16)
    assert t5_ids[0, -1] == 1  # </s>
    assert clip_ids[0, [0, -1]].tolist() == [725, 726]


def test_warning_quotes_what_is_dropped(tokenizer):
    words = "one two three four five six seven"
    t5 = tokenizer.t5
    full = t5.encode(words, 100)
    used = full.ids.index(1) + 1
    assert t5.encode(words, used).dropped == ""
    assert words.endswith(t5.encode(words, used - 1).dropped)
    assert t5.encode(words, used - 1).dropped in ("n", "en", "ven", "even", "seven")


def test_bad_prompts(tokenizer):
    for prompt, message in (
        (None, "expected text, got NoneType"),
        (["fine", 3], "expected text, got int"),
        (b"bytes", "expected text, got bytes"),
        ("ab\ud800c", r"character 3 is half of a surrogate pair \(U\+D800\)"),
    ):
        with pytest.raises(PromptError, match=message) as error:
            tokenizer(prompt)
        assert "\n" not in str(error.value)


def test_control_characters_are_left_out(tokenizer):
    for a, b in zip(tokenizer("a\x00 c\x07at\x1b\x9f\x7f"), tokenizer("a cat"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("prompt", ["a red cat " * 100_000, "x" * 1_000_000, " " * 1_000_000])
def test_a_million_characters_take_seconds(tokenizer, prompt):
    start = time.monotonic()
    with warnings.catch_warnings(action="ignore"):
        tokenizer(prompt)
    assert time.monotonic() - start < 20


def test_bad_folders(tmp_path):
    with pytest.raises(ConfigError, match=r"expected CLIP's tokenizer.json, or vocab.json"):
        load_clip(tmp_path)
    with pytest.raises(ConfigError, match="found no tokenizer"):
        load_t5(tmp_path)
    shutil.copy(T5 / "spiece.model", tmp_path)
    with pytest.raises(ConfigError, match=r"found only spiece.model; take tokenizer.json from"):
        load_t5(tmp_path)
    (tmp_path / "tokenizer.json").write_text("<html>")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        load_t5(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        load_t5(tmp_path)


def test_damaged_clip_folder(tmp_path):
    folder = shutil.copytree(CLIP, tmp_path / "clip")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<none>"}))
    with pytest.raises(ConfigError, match="padding token '<none>' is not in the vocabulary"):
        load_clip(folder)
    (folder / "merges.txt").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"vocab.json or merges.txt is damaged"):
        load_clip(folder)
