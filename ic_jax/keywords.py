"""Names that users of other libraries try, answered with the names of this one."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from ic_jax.from_dict import nearest

P = ParamSpec("P")
T = TypeVar("T")

CALL = {
    "generator": "seed, a number or a list of them",
    "ip_adapter_image": "subject_image",
    "ip_adapter_image_embeds": "subject_image, which also takes what pipe.encode_subject returned",
    "ip_adapter_scale": "subject_scale",
    "control_image": "reference_image, with FLUX.1 Kontext; there is no ControlNet",
    "return_dict": "result.images; a call returns a PipelineResult always",
    "joint_attention_kwargs": "subject_scale, and pipe.set_adapters for the weights of LoRAs",
    "cross_attention_kwargs": "subject_scale, and pipe.set_adapters for the weights of LoRAs",
    "callback": "callback_on_step_end",
    "callback_on_step_end_tensor_inputs": "callback_on_step_end, which gets the latents",
    "num_steps": "num_inference_steps",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale, or true_cfg_scale with a negative prompt",
    "num_samples": "num_images_per_prompt",
    "batch_size": "num_images_per_prompt",
    "seeds": "seed, a number or a list of them",
    "timesteps": "sigmas, noise levels in (0, 1]",
    "clip_skip": "nothing: FLUX reads CLIP's pooled output",
}
FROM_PRETRAINED = {
    "torch_dtype": "dtype",
    "device_map": 'mesh, such as "tensor=4", or "auto"',
    "device": "mesh; a model goes to JAX's default device",
    "max_memory": "mesh, and offload_encoders to take less",
    "low_cpu_mem_usage": "nothing: weights are read one by one always",
    "use_safetensors": "nothing: models are folders of safetensors",
    "variant": "dtype",
    "cache_dir": "the environment variable HF_HUB_CACHE",
    "token": "`hf auth login`, or the environment variable HF_TOKEN",
    "local_files_only": "the environment variable HF_HUB_OFFLINE=1",
    "quantization_config": "`python -m convert`, which reads fp8 and GGUF into bfloat16",
}
OFFLOAD = "offload_encoders=True of from_pretrained"
METHODS = {
    "to": "dtype and mesh of from_pretrained; JAX takes the accelerator by itself",
    "cuda": "mesh of from_pretrained; JAX takes the accelerator by itself",
    "half": 'dtype="bfloat16" of from_pretrained',
    **dict.fromkeys(
        ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"),
        OFFLOAD,
    ),
    "enable_attention_slicing": "nothing: attention never holds all of its scores",
    "enable_xformers_memory_efficient_attention": "nothing: attention has fast kernels always",
    "enable_vae_tiling": "a smaller height and width; the VAE has no tiles",
    "enable_vae_slicing": "fewer pictures a call; the VAE has no slices",
    "load_ip_adapter": "from_pretrained: the adapter is part of a converted model",
    "init_adapter": "from_pretrained: the adapter is part of a converted model",
    "init_ccp_and_embeds": "from_pretrained: the adapter is part of a converted model",
    "set_ip_adapter_scale": "subject_scale of a call",
    "from_single_file": "`python -m convert from-torch`, then from_pretrained",
    "unload_loras": "unload_lora_weights",
    "with_style_lora": "load_lora_weights, then a call",
    "infer_with_style_lora": "load_lora_weights, then a call",
    "compile": "nothing: a call compiles by itself, once for each shape",
}


def teaches(names: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that an unknown keyword is answered with what to write instead."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: P.args, **named: P.kwargs) -> T:
            for name in named:
                if name not in known:
                    raise TypeError(f"{name} is unknown{_instead(name, known, names)}")
            return function(*args, **named)

        return checked

    return decorate


def no_attribute(owner: object, name: str) -> AttributeError:
    """Return the error for an attribute that `owner` lacks."""
    known = [n for n in dir(type(owner)) if not n.startswith("_")]
    text = f"{type(owner).__name__} has no {name}"
    return AttributeError(text + _instead(name, known, METHODS), name=name, obj=owner)


def _instead(name: str, known: list[str], names: Mapping[str, str]) -> str:
    return f"; use {names[name]}" if name in names else nearest(name, known, listed=False)
