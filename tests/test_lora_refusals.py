"""LoRA files that cannot be applied say why."""

import numpy as np
import pytest

from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.tensors import WeightsError
from tests.lora_files import GOOD, RANK, TARGETS, A, B, D, Q, write

CONTROL = {"double_blocks.0.img_attn.norm.query_norm.scale": np.ones(16, np.float32)}
EASY = "transformer_blocks.0.attn.processor.q_loras.0.down.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (CONTROL, r"is a control LoRA of Black Forest Labs \(depth or canny\)"),
        ({EASY: A}, "is an EasyControl adapter .* no style LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": A}, "is a LoKr .* plain LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a": A}, "is a LoHa .* plain LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.oft_blocks": A}, "is an OFT .* plain LoRA"),
        (GOOD | {f"{Q}.dora_scale": B[:, :1]}, "is a DoRA .* plain LoRA"),
        (GOOD | {f"{Q}.lora_magnitude_vector": B[:, 0]}, "is a DoRA .* plain LoRA"),
        ({"diffusion_model.img_in.diff": A}, "is a file of differences of whole weights"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.alpha": A}, "for Stable Diffusion"),
        ({"double_blocks.0.img_attn.qkv.weight": A}, "is no LoRA for FLUX: 1 of 1 keys"),
        ({}, "is no LoRA for FLUX"),
        (
            GOOD | {"transformer.x.lora_A.weight": A},
            "1 of 3 keys are unknown, such as transformer.x",
        ),
        (GOOD | {f"{Q}.lora_A.bias": A}, "unknown, such as .*lora_A.bias"),
        ({f"{Q}.lora_A.weight": A}, "to_q: B of it are missing"),
        ({f"{Q}.alpha": np.ones(1, np.float32)}, "to_q: A and B of it are missing"),
        (GOOD | {f"{Q}.lora_A.weight": A[:2]}, r"A \[2, 32\] and B \[32, 3\] do not share a rank"),
        (GOOD | {f"{Q}.lora_A.weight": A[None]}, "do not share a rank"),
        (GOOD | {f"{Q}.lora_A.weight": A.astype(np.int8)}, "A is int8, not floating point"),
        (GOOD | {f"{Q}.lora_A.weight": A[:, 1:]}, "map 31 -> 32; this model's is 32 -> 32"),
        (GOOD | {f"{Q}.lora_B.weight": np.nan * B}, "to_q: holds numbers that are not finite"),
        (GOOD | {f"{Q}.lora_A.weight": np.inf * A}, "to_q: holds numbers that are not finite"),
        (GOOD | {f"{Q}.lora_B.bias": A[0, 1:]}, "does not fit B"),
        (GOOD | {f"{Q}.alpha": np.float32([0])}, "alpha is 0; it must be above 0"),
        (GOOD | {f"{Q}.alpha": np.float32([-4])}, "alpha is -4; it must be above 0"),
        (GOOD | {f"{Q}.alpha": np.float32([np.nan])}, "alpha is nan; it must be above 0"),
        (GOOD | {f"{Q}.alpha": np.float32([1, 2])}, r"alpha has shape \[2\]"),
        (
            GOOD | {f"{Q}.lora_A.x.weight": A, f"{Q}.lora_B.y.weight": B},
            "holds 2 adapters, x, y; save each",
        ),
        (GOOD | {f"{Q}.lora_A.default.weight": A}, "are the same matrix"),
        (
            GOOD
            | {
                f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{x}.weight": m
                for x, m in (("A", A), ("B", np.ones((3 * D, RANK), np.float32)))
            },
            "two pairs of matrices change transformer_blocks.0.attn.to_q",
        ),
        (
            {f"double_blocks.0.img_attn.qkv.lora_{x}.weight": m for x, m in (("A", A), ("B", B))},
            "B has 32 rows for 3 maps of 32 inputs",
        ),
        ({k.replace("s.0.", "s.9."): v for k, v in GOOD.items()}, "has no transformer_blocks.9"),
        (
            {"img_in.lora_A.weight": np.ones((RANK, 16), np.float32), "img_in.lora_B.weight": B},
            "x_embedder is for a map 16 -> 32; .* input takes another picture too",
        ),
    ],
)
def test_files_that_cannot_be_applied_say_why(tmp_path, tensors, message):
    with pytest.raises(WeightsError, match=message) as told:
        read_lora(write(tmp_path, tensors), targets=TARGETS)
    assert "\n" not in str(told.value)
