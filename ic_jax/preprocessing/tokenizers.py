"""Prompts to token ids, for CLIP and T5, from the tokenizer files that come with FLUX.1-dev."""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from ic_jax.config import ConfigError

CLIP_LENGTH = 77
# CLIP's words (openai/CLIP, simple_tokenizer.py): contractions, runs of letters, single digits,
# runs of anything else.
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# Neither encoder has seen them in training; tab, line feed and their like are white space.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


class PromptError(ValueError):
    """A prompt that cannot be read."""


@dataclass(frozen=True)
class Encoded:
    ids: list[int]
    dropped: str  # the end of the prompt for which there was no room


@dataclass(frozen=True)
class TextTokenizer:
    """One encoder's tokenizer; it ends every prompt with its end token."""

    tokenizer: Tokenizer
    pad_id: int

    def encode(self, prompt: str, length: int) -> Encoded:
        """`length` ids: the prompt's, cut before the end token or padded after it."""
        encoding = self.tokenizer.encode(prompt)
        ids = encoding.ids
        if len(ids) <= length:
            return Encoded(ids + [self.pad_id] * (length - len(ids)), "")
        start, _ = encoding.offsets[length - 1]
        return Encoded([*ids[: length - 1], ids[-1]], prompt[start:])


@dataclass(frozen=True)
class PromptTokenizer:
    """Prompts -> the ids that FLUX's two text encoders read."""

    clip: TextTokenizer
    t5: TextTokenizer

    @classmethod
    def from_folders(cls, clip: Path, t5: Path) -> Self:
        """From FLUX's `tokenizer` and `tokenizer_2`; ConfigError if missing or damaged."""
        return cls(load_clip(clip), load_t5(t5))

    def __call__(
        self,
        prompts: str | list[str],
        prompts_2: str | list[str] | None = None,
        *,
        max_sequence_length: int = 512,
    ) -> tuple[Int[np.ndarray, "b n"], Int[np.ndarray, "b m"]]:
        """CLIP's ids, 77 per prompt, and T5's, `max_sequence_length` per prompt, as int32.

        T5 reads `prompts_2`, as many, where they are given. A prompt that is too long is cut,
        with one warning that quotes what each encoder does not see. Control characters are left
        out. PromptError for what is not text.
        """
        prompts = prompts if isinstance(prompts, list) else [prompts]
        prompts_2 = prompts if prompts_2 is None else prompts_2
        prompts_2 = prompts_2 if isinstance(prompts_2, list) else [prompts_2]
        clip_ids, t5_ids = [], []
        for prompt, prompt_2 in zip(prompts, prompts_2, strict=True):
            clip = self.clip.encode(check_prompt(prompt), CLIP_LENGTH)
            t5 = self.t5.encode(check_prompt(prompt_2), max_sequence_length)
            _warn_of_cuts(("CLIP", CLIP_LENGTH, clip), ("T5", max_sequence_length, t5))
            clip_ids.append(clip.ids)
            t5_ids.append(t5.ids)
        return np.array(clip_ids, np.int32), np.array(t5_ids, np.int32)


def check_prompt(prompt: Any) -> str:
    """The prompt without control characters; PromptError if it is not text."""
    if not isinstance(prompt, str):
        raise PromptError(f"prompt: expected text, got {type(prompt).__name__}")
    surrogate = re.search("[\ud800-\udfff]", prompt)
    if surrogate:
        raise PromptError(
            f"prompt: character {surrogate.start() + 1} is half of a surrogate pair "
            f"(U+{ord(surrogate[0]):04X}), so the text was decoded wrongly; give it as UTF-8"
        )
    return CONTROL.sub("", prompt)


def _warn_of_cuts(*cuts: tuple[str, int, Encoded]) -> None:
    parts = [
        f"{name} reads {length} tokens and does not see {_quote(encoded.dropped)}"
        for name, length, encoded in cuts
        if encoded.dropped
    ]
    if parts:
        warnings.warn("prompt too long: " + "; ".join(parts), stacklevel=3)


def _quote(text: str) -> str:
    text = " ".join(text[:1000].split())  # on one line
    return repr(text if len(text) <= 80 else text[:77] + "...")


def load_clip(folder: Path) -> TextTokenizer:
    """From tokenizer.json, or vocab.json and merges.txt (FLUX.1-dev's `tokenizer` folder)."""
    specials = _special_tokens(folder)
    if (folder / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer(folder)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _build_clip(folder, specials)
    else:
        raise ConfigError(
            f"{folder}: expected CLIP's tokenizer.json, or vocab.json and merges.txt; give the "
            "folder 'tokenizer' of FLUX.1-dev"
        )
    return _with_padding(tokenizer, specials.get("pad_token", "<|endoftext|>"), folder)


def load_t5(folder: Path) -> TextTokenizer:
    """From tokenizer.json (FLUX.1-dev's `tokenizer_2` folder)."""
    if not (folder / "tokenizer.json").is_file():
        found = "only spiece.model" if (folder / "spiece.model").is_file() else "no tokenizer"
        raise ConfigError(
            f"{folder}: expected T5's tokenizer.json, found {found}; take tokenizer.json from the "
            "folder 'tokenizer_2' of FLUX.1-dev"
        )
    pad = _special_tokens(folder).get("pad_token", "<pad>")
    return _with_padding(_read_tokenizer(folder), pad, folder)


def _build_clip(folder: Path, specials: dict[str, Any]) -> Tokenizer:
    """What a tokenizer.json of CLIP would hold: lower-cased, byte-level, words ending in </w>."""
    start, end = (
        _added_token(specials.get(name, default))
        for name, default in (("bos_token", "<|startoftext|>"), ("eos_token", "<|endoftext|>"))
    )
    try:
        model = BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token=end.content,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    except Exception as error:  # the package raises no narrower class
        raise ConfigError(f"{folder}: vocab.json or merges.txt is damaged: {error}") from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([start, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start.content} $A {end.content}",
        special_tokens=[(t.content, tokenizer.token_to_id(t.content)) for t in (start, end)],
    )
    return tokenizer


def _read_tokenizer(folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the package raises no narrower class
        raise ConfigError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()  # the file may hold either; lengths are the caller's
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(folder: Path) -> dict[str, Any]:
    """Special tokens by role; special_tokens_map.json is the fuller source where both exist."""
    tokens: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            try:
                values = dict(json.loads(path.read_text(encoding="utf-8")))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{path}: not a JSON object: {error}") from None
            tokens |= {role: value for role, value in values.items() if value is not None}
    return tokens


def _added_token(value: str | dict[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True)
    flags = {k: v for k, v in value.items() if k in ("lstrip", "rstrip", "normalized")}
    return AddedToken(value["content"], special=True, **flags)


def _with_padding(tokenizer: Tokenizer, pad: str | dict[str, Any], folder: Path) -> TextTokenizer:
    content = _added_token(pad).content
    pad_id = tokenizer.token_to_id(content)
    if pad_id is None:
        raise ConfigError(f"{folder}: the padding token {content!r} is not in the vocabulary")
    return TextTokenizer(tokenizer, pad_id)
