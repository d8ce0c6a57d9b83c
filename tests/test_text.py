"""T5 and CLIP against transformers on random weights, and against the golden prompts."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from ic_jax.config import ClipConfig, T5Config
from ic_jax.models.t5 import relative_buckets
from ic_jax.preprocessing.tokenizers import PromptTokenizer
from ic_jax.weights.loading import load_component
from tests.conftest import TINY
from tests.oracle import cast, converted, randomize, relative

# More ids than the furthest bucket's distance; one head and many; few buckets.
T5_CASES = [
    (T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=2), 150),
    (
        T5Config(
            vocab_size=30,
            d_model=16,
            d_kv=4,
            d_ff=24,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
        ),
        33,
    ),
]
CLIP_CASES = [
    (ClipConfig(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
                num_attention_heads=2), 77),
    (ClipConfig(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=20, hidden_act="gelu",
                eos_token_id=7), 20),
    (ClipConfig(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                num_attention_heads=1, hidden_act="gelu_new"), 20),
]  # fmt: skip


@cache
def t5_pair(config):
    theirs = randomize(
        transformers.T5EncoderModel(
            transformers.T5Config(**config.to_dict(), feed_forward_proj="gated-gelu")
        )
    )
    return converted(theirs), theirs


@cache
def clip_pair(config):
    theirs = randomize(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**config.to_dict(), bos_token_id=0, pad_token_id=1)
        )
    )
    return converted(theirs), theirs


def ids_with_ends(config, n, end):
    """Two rows of random ids that end at different places, padded with the end token."""
    ids = np.random.default_rng(0).integers(8, config.vocab_size - 1, (2, n))
    ids[0, n // 2 :] = end
    ids[1, n - 1] = end
    return ids


@jax.jit
def run(model, ids):
    return model(ids)


def torch_t5(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).last_hidden_state.float().numpy()


def torch_clip(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).pooler_output.float().numpy()


@pytest.mark.parametrize(("config", "n"), T5_CASES)
def test_t5(config, n):
    ours, theirs = t5_pair(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, n))
    assert relative(run(ours, jnp.asarray(ids)), torch_t5(theirs, ids)) < 1e-5


@pytest.mark.parametrize(("config", "n"), CLIP_CASES)
def test_clip(config, n):
    ours, theirs = clip_pair(config)
    end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    ids = ids_with_ends(config, n, end)
    assert relative(run(ours, jnp.asarray(ids)), torch_clip(theirs, ids)) < 1e-5


def test_bfloat16_is_no_worse_than_torch():
    for (config, n), pair, oracle in (
        (T5_CASES[0], t5_pair, torch_t5),
        (CLIP_CASES[0], clip_pair, torch_clip),
    ):
        ours, theirs = pair(config)
        ids = ids_with_ends(config, n, config.vocab_size - 1)
        exact = oracle(theirs, ids)
        error = relative(run(cast(ours, jnp.bfloat16), jnp.asarray(ids)), exact)
        torch_error = relative(oracle(theirs.bfloat16(), ids), exact)
        theirs.float()
        assert error < 1.5 * torch_error


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (16, 300)])
def test_relative_buckets(buckets, max_distance):
    distance = np.arange(-2000, 2001)
    attention = transformers.models.t5.modeling_t5.T5Attention
    theirs = attention._relative_position_bucket(
        torch.tensor(distance), num_buckets=buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(relative_buckets(distance, buckets, max_distance), theirs)


def test_golden_prompts(tiny_model):
    clip, t5 = (load_component(tiny_model, kind) for kind in ("clip", "t5"))
    tokenizer = PromptTokenizer.from_folders(tiny_model / "tokenizer", tiny_model / "tokenizer_2")
    with safe_open(TINY / "expected.safetensors", "np") as f:
        for i, case in enumerate(json.loads(f.metadata()["cases"])):
            trigger = f"{case['trigger']}, " if "trigger" in case else ""
            ids = tokenizer(
                trigger + case["prompt"], max_sequence_length=case["max_sequence_length"]
            )
            clip_ids, t5_ids = map(jnp.asarray, ids)
            pooled = f.get_tensor(f"case/{i}/pooled_prompt_embeds")
            embeds = f.get_tensor(f"case/{i}/prompt_embeds")
            assert relative(run(clip, clip_ids), pooled) < 1e-5
            assert relative(run(t5, t5_ids), embeds) < 1e-5
