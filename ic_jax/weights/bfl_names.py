"""Names of Black Forest Labs' FLUX modules, and diffusers' modules that their rows hold.

"*" stands for the number of a block. A BFL tensor is one diffusers tensor, or several concatenated
along their first axis, as for `qkv`. Sources: black-forest-labs/flux, model.py; diffusers,
scripts/convert_flux_to_diffusers.py.
"""

_MLPS = {"in_layer": "linear_1", "out_layer": "linear_2"}
FLUX: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    **{
        f"{ours}.{bfl}": (f"time_text_embed.{theirs}_embedder.{diffusers}",)
        for ours, theirs in {
            "time_in": "timestep",
            "vector_in": "text",
            "guidance_in": "guidance",
        }.items()
        for bfl, diffusers in _MLPS.items()
    },
    "double_blocks.*.img_mod.lin": ("transformer_blocks.*.norm1.linear",),
    "double_blocks.*.txt_mod.lin": ("transformer_blocks.*.norm1_context.linear",),
    "double_blocks.*.img_attn.qkv": tuple(f"transformer_blocks.*.attn.to_{x}" for x in "qkv"),
    "double_blocks.*.txt_attn.qkv": tuple(f"transformer_blocks.*.attn.add_{x}_proj" for x in "qkv"),
    "double_blocks.*.img_attn.norm.query_norm": ("transformer_blocks.*.attn.norm_q",),
    "double_blocks.*.img_attn.norm.key_norm": ("transformer_blocks.*.attn.norm_k",),
    "double_blocks.*.txt_attn.norm.query_norm": ("transformer_blocks.*.attn.norm_added_q",),
    "double_blocks.*.txt_attn.norm.key_norm": ("transformer_blocks.*.attn.norm_added_k",),
    "double_blocks.*.img_attn.proj": ("transformer_blocks.*.attn.to_out.0",),
    "double_blocks.*.txt_attn.proj": ("transformer_blocks.*.attn.to_add_out",),
    "double_blocks.*.img_mlp.0": ("transformer_blocks.*.ff.net.0.proj",),
    "double_blocks.*.img_mlp.2": ("transformer_blocks.*.ff.net.2",),
    "double_blocks.*.txt_mlp.0": ("transformer_blocks.*.ff_context.net.0.proj",),
    "double_blocks.*.txt_mlp.2": ("transformer_blocks.*.ff_context.net.2",),
    "single_blocks.*.modulation.lin": ("single_transformer_blocks.*.norm.linear",),
    "single_blocks.*.linear1": (
        *(f"single_transformer_blocks.*.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.*.proj_mlp",
    ),
    "single_blocks.*.linear2": ("single_transformer_blocks.*.proj_out",),
    "single_blocks.*.norm.query_norm": ("single_transformer_blocks.*.attn.norm_q",),
    "single_blocks.*.norm.key_norm": ("single_transformer_blocks.*.attn.norm_k",),
}
# BFL's rows are shift, then scale; those of diffusers are scale, then shift.
HALVES_SWAPPED = "final_layer.adaLN_modulation.1"
