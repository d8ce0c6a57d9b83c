"""Settings beside a LoRA's matrices: patterns of alpha are names, and no file's program."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ic_jax.weights.lora.settings import Settings
from ic_jax.weights.tensors import WeightsError

KEYS = {"base_model.model.a.lora_A.weight": np.zeros((2, 2), np.float32)}


def settings(folder, patterns):
    file = folder / "lora.safetensors"
    save_file(KEYS, file)
    values = {"lora_alpha": 8, "alpha_pattern": patterns}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return Settings(file, KEYS)


@pytest.mark.parametrize(
    "pattern",
    [
        "attn.to_q",
        r"attn\.to_q",
        "^.*to_q$",
        r"transformer_blocks\.\d+.attn.to_q",
        "3.*to_q",
    ],
)
def test_a_pattern_names_the_end_of_a_layer(tmp_path, pattern):
    read = settings(tmp_path, {pattern: 3})
    assert read.alpha("transformer", "transformer_blocks.3.attn.to_q") == 3
    assert read.alpha("transformer", "transformer_blocks.3.attn.to_k") == 8


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*a){25}", ".*a.*a.*a", "a|b", "[a-z]+", "(?P<x>a)", "a{1000000}"]
)
def test_a_regular_expression_that_could_take_any_time_is_refused(tmp_path, pattern):
    with pytest.raises(WeightsError, match="of alpha_pattern is no name of a layer; save the LoRA"):
        settings(tmp_path, {pattern: 3})


@pytest.mark.parametrize("patterns", [["a"], "a", 3])
def test_patterns_of_another_type_are_one_line(tmp_path, patterns):
    with pytest.raises(WeightsError, match="alpha_pattern is no JSON object"):
        settings(tmp_path, patterns)
