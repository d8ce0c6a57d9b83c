"""Prompts to ids against transformers' tokenizers, and what becomes of bad prompts and files."""

import json
import random
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import transformers

from convert.tokenizers import MissingPackageError, read_tokenizer
from ic_jax.config import ConfigError
from ic_jax.preprocessing.tokenizers import (
    PromptError,
    PromptTokenizer,
    load_tokenizer,
    warn_of_unknown,
)
from ic_jax.weights.model_folder import SMALL_MODEL
from ic_jax.weights.tensors import WeightsError
from infer import demo
from tests.conftest import GOLDENS, TINY

CLIP, T5 = TINY / "flux" / "tokenizer", TINY / "flux" / "tokenizer_2"  # as published

PROMPTS = [
    "",
    "A girl is playing a guitar in street",
    "  two  spaces\tand a tab,\nlines\r\n ",
    "don't we'll I'VE they'd it's 's ''s",
    'a_b-c/d\\e 1234 3.14 1,000 100%!!! ?? "quoted" “curly” — dash…',
    "naïve café Zürich ß İstanbul e\u0301 n\u0303 \u212b ﬁ ½ ²",
    "😀😃 👩\u200d👩\u200d👧 👍🏽 🇩🇪",
    "日本語のテキスト 中文 한국어 العربية हिन्दी ไทย",
    "one\u0085two \u0085 three\u0085",
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


def converted(component: str, folder: Path, out: Path) -> Path:
    """Write a published tokenizer as a MODEL folder holds it; return `out`."""
    out.mkdir()
    for name, content in read_tokenizer(component, folder).items():
        (out / name).write_bytes(content)
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    clip = converted("tokenizer", CLIP, folder / "tokenizer")
    return clip, converted("tokenizer_2", T5, folder / "tokenizer_2")


@pytest.fixture(scope="module")
def tokenizer(folders):
    return PromptTokenizer.from_folders(*folders)


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


@pytest.mark.parametrize(
    ("component", "names"),
    [
        ("tokenizer", ("vocab.json", "merges.txt")),
        ("tokenizer_2", ("spiece.model",)),
        ("tokenizer_2", ("spiece.model", "tokenizer_config.json")),
    ],
)
def test_what_the_publisher_left_out_is_made(tmp_path, component, names):
    published = tmp_path / "published"
    published.mkdir()
    for name in names:
        shutil.copy(TINY / "flux" / component / name, published)
    model_folder = converted(component, published, tmp_path / "MODEL")
    assert {file.name for file in model_folder.iterdir()} == {"tokenizer.json", *names}
    clip = component == "tokenizer"
    ours = load_tokenizer(model_folder, "<|endoftext|>" if clip else "<pad>")
    theirs = (transformers.CLIPTokenizer if clip else transformers.T5TokenizerFast).from_pretrained(
        published, model_max_length=64
    )
    for prompt in [*PROMPTS, *more_prompts(100), "<extra_id_99> x <extra_id_0>"]:
        ids = theirs(prompt, padding="max_length", truncation=True).input_ids
        assert ours.encode(prompt, 64).ids == ids


def test_a_shipped_tokenizer_json_stays_as_it_is(folders):
    assert (folders[1] / "tokenizer.json").read_bytes() == (T5 / "tokenizer.json").read_bytes()


def test_conversion_says_which_package_is_missing(tmp_path, monkeypatch):
    shutil.copy(T5 / "spiece.model", tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"needs transformers; run .pip install"):
        read_tokenizer("tokenizer", CLIP)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingPackageError, match="needs transformers and sentencepiece"):
        read_tokenizer("tokenizer_2", tmp_path)
    assert read_tokenizer("tokenizer_2", T5)  # which ships tokenizer.json


def test_drawing_never_imports_transformers(tmp_path):
    options = [f"--model={GOLDENS / 'toy_model'}", f"--subject={TINY / 'reference.png'}"]
    options += ["--prompt=a cat", "--steps=1", "--height=64", "--width=64", "--dtype=float32"]
    options += ["--max-sequence-length=32", f"--out={tmp_path / 'out.png'}"]
    script = (
        "import sys\n"
        "from infer.commands import main\n"
        f"assert main({options!r}) == 0\n"
        "assert not {'transformers', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=GOLDENS.parent.parent)


def test_words_without_a_token_are_named_once():
    """Of the small model; one warning for all prompts, and none for captions that it knows."""
    small = PromptTokenizer.from_folders(SMALL_MODEL / "tokenizer", SMALL_MODEL / "tokenizer_2")
    prompts = ["A girl is playing a guitar in the street", "A smiling girl, riding a bicycle."]
    with pytest.warns(UserWarning, match="no text encoder knows") as seen:
        warn_of_unknown(small, prompts, prompts)
    assert str(seen[0].message) == (
        "no text encoder knows 'girl', 'guitar', 'street', 'smiling'; "
        "`python -m infer words` lists what can be said"
    )
    with pytest.warns(UserWarning, match="T5 does not know 'girl'; `python"):
        warn_of_unknown(small, [""], ["girl"])
    with warnings.catch_warnings(action="error"):
        warn_of_unknown(small, [*demo.EXAMPLES, ""], [*demo.EXAMPLES, ""])
    assert {"bicycle", "button-up"} <= set(small.t5.words)
    assert not {"<pad>", "girl"} & set(small.t5.words)


def test_characters_without_a_token(tokenizer):
    """Of a vocabulary of parts of words; CLIP's has every byte."""
    with pytest.warns(UserWarning, match="^T5 does not know '犬'$"):
        warn_of_unknown(tokenizer, ["a 犬 red cat"], ["a 犬 red cat"])
    assert tokenizer.t5.words is tokenizer.clip.words is None


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
    start = time.process_time()
    with warnings.catch_warnings(action="ignore"):
        tokenizer(prompt)
    assert time.process_time() - start < 20


def test_a_model_without_tokenizer_json_is_to_be_converted_again():
    """Older conversions copied vocab.json and merges.txt alone."""
    with pytest.raises(
        ConfigError, match=r"has no tokenizer.json; convert the model again"
    ) as told:
        load_tokenizer(CLIP, "<|endoftext|>")
    assert "\n" not in str(told.value)


def test_bad_folders(folders, tmp_path):
    folder = Path(shutil.copytree(folders[0], tmp_path / "clip"))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<none>"}))
    with pytest.raises(ConfigError, match="padding token '<none>' is not in the vocabulary"):
        load_tokenizer(folder, "<|endoftext|>")
    (folder / "special_tokens_map.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        load_tokenizer(folder, "<|endoftext|>")
    (folder / "tokenizer.json").write_text("<html>")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        load_tokenizer(folder, "<|endoftext|>")


def test_published_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        read_tokenizer("tokenizer", tmp_path)
    folder = Path(shutil.copytree(CLIP, tmp_path / "clip"))
    (folder / "merges.txt").write_text("nonsense")
    with pytest.raises(WeightsError, match=r"transformers cannot read this tokenizer") as told:
        read_tokenizer("tokenizer", folder)
    assert "\n" not in str(told.value)
