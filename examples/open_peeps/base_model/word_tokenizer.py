"""Word-level tokenizers, written as tokenizer.json files that ic_jax reads."""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel

from ic_jax.preprocessing.tokenizers import PromptTokenizer, TextTokenizer

T5_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1 and 2, as in T5
T5_ROLES = ("pad_token", "eos_token", "unk_token")
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")  # the largest ids, as in CLIP
# Punctuation, and words without information here: a third of the tokens of a caption.
IGNORED = r"[^\w\s'-]|\b(?:a|an|and|at|by|in|is|of|on|that|the|to|with)\b(?!-)"
# "in yellow" and "on yellow" are different things where captions are fragments.
IGNORED_IN_SCENES = r"[^\w\s'-]|\b(?:a|an|and|at|by|is|of|that|the|to|with)\b(?!-)"

Files = dict[str, str]  # text by file name


def tokenizers(words: Sequence[str], *, scenes: bool = False) -> tuple[dict[str, Files], int, int]:
    """Return {component: its files}, and the vocabulary sizes of T5 and CLIP.

    Args:
        words: the vocabulary.
        scenes: for captions in fragments with unknown words: fewer words are skipped, and CLIP
            has an unknown token.
    """
    ignored = IGNORED_IN_SCENES if scenes else IGNORED
    t5 = _tokenizer([*T5_SPECIAL, *words], "<unk>", "$A </s>", ignored)
    # CLIP has no unknown token; without one its end token takes that place.
    start, end = CLIP_SPECIAL
    unknown = "<unk>" if scenes else end
    ids = ["<unk>"] * scenes + [*words, *CLIP_SPECIAL]
    clip = _tokenizer(ids, unknown, " $A ".join(CLIP_SPECIAL), ignored)
    roles = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": unknown}
    files = {
        "tokenizer": _files(clip, 77, **roles),
        "tokenizer_2": _files(t5, 512, **dict(zip(T5_ROLES, T5_SPECIAL, strict=True))),
    }
    return files, t5.get_vocab_size(), clip.get_vocab_size()


def _tokenizer(ids: list[str], unknown: str, template: str, ignored: str) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(ids)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(ignored), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [word for word in (*T5_SPECIAL, *CLIP_SPECIAL) if word in ids]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(s, tokenizer.token_to_id(s)) for s in special if s in template.split()],
    )
    return tokenizer


def _files(tokenizer: Tokenizer, length: int, **tokens: str) -> Files:
    """Return files that transformers reads; its CLIP and T5 classes have no word-level model."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **tokens}
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
    }


def prompt_ids(
    files: dict[str, Files], texts: list[str], length: int
) -> tuple[Int[np.ndarray, "b n"], Int[np.ndarray, "b m"]]:
    """Return the CLIP and T5 ids of texts (`PromptTokenizer`)."""
    return prompt_tokenizer(files)(texts, max_sequence_length=length)


def prompt_tokenizer(files: dict[str, Files]) -> PromptTokenizer:
    """Return the tokenizers of CLIP and T5, made of their files."""
    clip, t5 = (
        _with_padding(Tokenizer.from_str(files[kind]["tokenizer.json"]), pad)
        for kind, pad in (("tokenizer", CLIP_SPECIAL[1]), ("tokenizer_2", T5_SPECIAL[0]))
    )
    return PromptTokenizer(clip, t5)


def _with_padding(tokenizer: Tokenizer, pad: str) -> TextTokenizer:
    return TextTokenizer(tokenizer, tokenizer.get_vocab()[pad])
