"""Tokenizers of CLIP and T5: prompts to token ids, by a MODEL folder's tokenizer.json files."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from ic_jax.from_dict import ConfigError, first_few, shown
from ic_jax.untrusted_files import read_json

CLIP_LENGTH = 77
# Neither encoder has seen control characters in training, except white space such as tabs.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


class PromptError(ValueError):
    """A prompt that cannot be tokenized."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, and the end of the prompt that did not fit."""

    ids: list[int]
    dropped: str


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of one text encoder; it ends every prompt with its end token."""

    tokenizer: Tokenizer
    pad_id: int

    def encode(self, prompt: str, length: int) -> Encoded:
        """Return `length` ids: the prompt's, truncated before the end token or padded after it."""
        encoding = self.tokenizer.encode(prompt)
        ids = encoding.ids
        if len(ids) <= length:
            return Encoded(ids + [self.pad_id] * (length - len(ids)), "")
        start, _ = encoding.offsets[length - 1]
        return Encoded([*ids[: length - 1], ids[-1]], prompt[start:])

    def unknown(self, prompt: str) -> list[str]:
        """Return the parts of a prompt that have no token, in order: words, or characters."""
        unknown = getattr(self.tokenizer.model, "unk_token", None) or "<unk>"
        unknown_id, encoding = self.tokenizer.token_to_id(unknown), self.tokenizer.encode(prompt)
        tokens = zip(encoding.ids, encoding.special_tokens_mask, encoding.offsets, strict=True)
        parts = (
            prompt[start:end]
            for i, special, (start, end) in tokens
            if i == unknown_id and not special
        )
        return [part for part in parts if part.strip()]

    @property
    def words(self) -> list[str] | None:
        """All words that have a token, in order; None if words are made of smaller tokens."""
        if type(self.tokenizer.model).__name__ != "WordLevel":
            return None
        words = self.tokenizer.get_vocab(with_added_tokens=False)
        return sorted(word for word in words if not word.startswith("<"))


@dataclass(frozen=True)
class PromptTokenizer:
    """The tokenizers of FLUX's two text encoders."""

    clip: TextTokenizer
    t5: TextTokenizer

    @classmethod
    def from_folders(cls, clip: Path, t5: Path) -> Self:
        """Load both from the `tokenizer` and `tokenizer_2` of a MODEL folder.

        Raises:
            ConfigError: a file is missing or damaged.
        """
        return cls(load_tokenizer(clip, "<|endoftext|>"), load_tokenizer(t5, "<pad>"))

    def __call__(
        self,
        prompts: str | list[str],
        prompts_2: str | list[str] | None = None,
        *,
        max_sequence_length: int = 512,
    ) -> tuple[Int[np.ndarray, "b n"], Int[np.ndarray, "b m"]]:
        """Return CLIP's ids, 77 per prompt, and T5's, `max_sequence_length` per prompt, as int32.

        A prompt that is too long is truncated, with one warning that quotes what each encoder does
        not see. Control characters are removed.

        Args:
            prompts_2: prompts for T5, one for each of `prompts`; None gives T5 the same prompts.

        Raises:
            PromptError: a prompt is no text.
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


def warn_of_unknown(tokenizer: PromptTokenizer, prompts: list[str], prompts_2: list[str]) -> None:
    """Warn of what the prompts say that neither encoder has a token for, by encoder."""
    pairs = (("CLIP", tokenizer.clip, prompts), ("T5", tokenizer.t5, prompts_2))
    unknown = {
        name: list(dict.fromkeys(x for text in texts for x in encoder.unknown(check_prompt(text))))
        for name, encoder, texts in pairs
    }
    if unknown["CLIP"] == unknown["T5"]:
        unknown = {"no text encoder": unknown["T5"]}
    parts = [
        f"{name} {'knows' if name.startswith('no') else 'does not know'} "
        f"{first_few(map(repr, words))}"
        for name, words in unknown.items()
        if words
    ]
    if parts:
        hint = "; `python -m infer words` lists what can be said" if tokenizer.t5.words else ""
        warnings.warn("; ".join(parts) + hint, stacklevel=3)


def check_prompt(prompt: Any) -> str:
    """Return the prompt without control characters; raise PromptError if it is no text."""
    if not isinstance(prompt, str):
        raise PromptError(f"prompt: expected text, got {type(prompt).__name__}")
    surrogate = re.search("[\ud800-\udfff]", prompt)
    if surrogate:
        raise PromptError(
            f"prompt: character {surrogate.start() + 1} is half of a surrogate pair "
            f"(U+{ord(surrogate[0]):04X}), so the text was decoded wrongly; give it as UTF-8"
        )
    # The line ending U+0085 is white space, as transformers 5 splits T5's prompts at it.
    return CONTROL.sub("", prompt).replace("\x85", " ")


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


def load_tokenizer(folder: Path, pad: str) -> TextTokenizer:
    """Load a tokenizer from its tokenizer.json.

    Args:
        pad: the padding token, if neither tokenizer_config.json nor special_tokens_map.json
            names one.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder}: has no tokenizer.json; convert the model again with "
            "`python -m convert from-torch`, from a checkout of ic_jax"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no narrower class
        raise ConfigError(f"{path}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()  # the file may hold either; lengths are the caller's
    tokenizer.no_padding()
    pad = _padding_token(folder) or pad
    pad_id = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise ConfigError(f"{folder}: the padding token {pad!r} is not in the vocabulary")
    return TextTokenizer(tokenizer, pad_id)


def _padding_token(folder: Path) -> str | None:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            token: Any = dict(read_json(path)).get("pad_token")
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: not a JSON object: {error}") from None
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"{path}: pad_token is {shown(token)}; it must be a text")
        if text is not None:
            return text
    return None
