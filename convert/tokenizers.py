"""Tokenizers as published, with a tokenizer.json for ic_jax where the publisher ships none."""

import importlib.util
import os
from pathlib import Path

from ic_jax.untrusted_files import read_bytes
from ic_jax.weights.tensors import WeightsError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_FILES = (
    *(TOKENIZER_JSON, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "spiece.model"),
)
TYPES = {"tokenizer": "clip", "tokenizer_2": "t5"}  # transformers' names of the tokenizers


class MissingPackageError(ValueError):
    """A package that a command needs and that is not installed."""


def read_tokenizer(component: str, folder: Path) -> dict[str, bytes]:
    """Return the files of a tokenizer by name; make tokenizer.json if the publisher ships none.

    Raises:
        MissingPackageError: transformers, or sentencepiece for spiece.model, is not installed.
        WeightsError: no tokenizer, or a damaged one.
    """
    paths = [folder / name for name in TOKENIZER_FILES]
    files = {path.name: read_bytes(path) for path in paths if path.is_file()}
    if not files:
        raise WeightsError(f"{folder}: holds no tokenizer ({', '.join(TOKENIZER_FILES)})")
    if TOKENIZER_JSON in files:
        return files
    return {TOKENIZER_JSON: _make(component, folder), **files}


def _make(component: str, folder: Path) -> bytes:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not installed
    packages = ["transformers"]
    if not (folder / "vocab.json").is_file():
        packages.append("sentencepiece")
    if missing := [name for name in packages if not importlib.util.find_spec(name)]:
        raise MissingPackageError(
            f"{folder}: has no {TOKENIZER_JSON}, and making one needs {' and '.join(missing)}; "
            "run `pip install -e '.[convert]'`"
        )
    import transformers  # takes seconds

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, tokenizer_type=TYPES[component], local_files_only=True, trust_remote_code=False
        )
        return tokenizer.backend_tokenizer.to_str(pretty=True).encode()
    except Exception as error:  # a dozen kinds, from several packages
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{folder}: transformers cannot read this tokenizer ({reason}); download it again"
        ) from None
