"""Tasks of the stages: initial parameters, loss, and the data that each reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from examples.open_peeps.base_model.autoencoder import crop, to_unit, vae_loss
from examples.open_peeps.base_model.fit import Loss
from examples.open_peeps.base_model.flux import CAPTIONS, TextToImage, base_loss, fresh_flux
from examples.open_peeps.base_model.text_encoders import read_neighbours, text_encoders
from examples.open_peeps.base_model.vision import (
    CaptionMatcher,
    MaskedPatchModel,
    dinov2_loss,
    siglip_loss,
)
from examples.open_peeps.train_all.config import ADAPTER_STAGES, SmallModelConfig
from examples.open_peeps.train_all.rows import CROPS_BESIDE
from ic_jax import flow
from ic_jax.config import SchedulerConfig
from ic_jax.models.adapter import Adapter
from ic_jax.models.rope import rope_table
from ic_jax.models.vae import Vae
from train import objective
from train.data.encoded_store import LatentPosterior
from train.encode import Frozen, Ids, Reference, StepBatch, StepScalars, encode, row_keys

Modules = dict[str, Any]  # trained, by component
BOTH = 0.5  # share of scenes of two people with a reference of each; the prompt tells one otherwise


@dataclass(frozen=True)
class Task:
    """Training of one stage."""

    components: tuple[str, ...]  # that it trains
    fields: tuple[str, ...]  # of the data
    start: Callable[[], Any]  # initial parameters
    loss: Loss
    finish: Callable[[Any], Modules]  # components of the trained parameters
    frozen: Callable[[Modules, float], Any] = lambda modules, dropout: None


class Tasks:
    """The stages' tasks; stages that compute the same share one task, and its program."""

    def __init__(
        self, config: SmallModelConfig, vocabularies: tuple[int, int], empty: dict[str, Any]
    ):
        """Take the vocabulary sizes of T5 and CLIP, and the ids of the empty prompt of each."""
        self.config, self.vocabularies, self._empty = config, vocabularies, empty
        adapter = self._adapter()
        self.by_stage: Mapping[str, Task] = {
            "vae": self._vae(),
            "dinov2": self._dinov2(),
            "siglip": self._siglip(),
            "base": self._base(),
            **dict.fromkeys(ADAPTER_STAGES, adapter),
        }

    def _vae(self) -> Task:
        c = self.config

        def start() -> Vae:
            return Vae(c.vae, rngs=nnx.Rngs(c.seed))

        def loss(vae: Vae, _: None, batch: dict[str, Array], key: Array) -> Array:
            position, noise = jax.random.split(key)
            cell = c.vae.downscale
            weight = _emphasis(batch["focus"], c.head_share)
            weight = jnp.repeat(jnp.repeat(weight, cell, 1), cell, 2)
            x, weight = (crop(a, c.vae_crop, position) for a in (batch["pixels"], weight))
            return vae_loss(vae, to_unit(x), noise, c.kl_weight, weight)

        return Task(("vae",), ("pixels", "focus"), start, loss, lambda vae: {"vae": vae})

    def _dinov2(self) -> Task:
        c = self.config

        def start() -> MaskedPatchModel:
            return MaskedPatchModel(c.dinov2, rngs=nnx.Rngs(c.seed + 3))

        def loss(model: MaskedPatchModel, _: None, batch: dict[str, Array], key: Array) -> Array:
            return dinov2_loss(c.dinov2, model, batch["crops"], key)

        return Task(("dinov2",), ("crops",), start, loss, lambda model: {"dinov2": model.encoder})

    def _siglip(self) -> Task:
        c = self.config

        def start() -> CaptionMatcher:
            clip = c.clip(self.vocabularies[1])
            return CaptionMatcher(c.siglip, clip, rngs=nnx.Rngs(c.seed + 2))

        def loss(model: CaptionMatcher, _: None, batch: dict[str, Array], key: Array) -> Array:
            ids = batch["person"].astype(jnp.int32)
            return siglip_loss(model, batch["crops"], ids, c.siglip_crop_odds, key)

        return Task(
            ("siglip",), ("crops", "person"), start, loss, lambda model: {"siglip": model.vision}
        )

    def _base(self) -> Task:
        c = self.config
        rope, shift = self._rope(), self._shift()

        def start() -> TextToImage:
            t5, clip = text_encoders(
                c.t5(self.vocabularies[0]), c.clip(self.vocabularies[1]), c.seed
            )
            read_neighbours(t5)
            return TextToImage(fresh_flux(c.flux, c.seed), t5, clip)

        def loss(base: TextToImage, _: None, batch: dict[str, Array], key: Array) -> Array:
            empty = {
                f"{encoder}/{CAPTIONS[2]}": jnp.broadcast_to(ids, batch[f"{encoder}/full"].shape)
                for encoder, ids in self._empty.items()
            }
            batch = {k: x.astype(jnp.int32) if "/" in k else x for k, x in batch.items()} | empty
            weight = _emphasis(batch["focus"], c.head_share)
            return base_loss(base, batch, key, rope, shift, weight)

        texts = tuple(f"{encoder}/{kind}" for encoder in ("clip", "t5") for kind in CAPTIONS[:2])
        return Task(
            ("transformer", "t5", "clip"),
            ("mean", "std", "focus", *texts),
            start,
            loss,
            lambda base: {"transformer": base.flux, "t5": base.t5, "clip": base.clip},
        )

    def _adapter(self) -> Task:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        rope, shift = self._rope(), self._shift()
        empty = Ids(self._empty["clip"], self._empty["t5"])
        kinds = ("scene", "untold")
        texts = tuple(f"{encoder}/{kind}" for encoder in ("clip", "t5") for kind in kinds)

        def start() -> Adapter:
            return Adapter(c.adapter, c.flux, rngs=nnx.Rngs(c.seed + 5))

        def loss(
            adapter: Adapter, frozen: tuple[Frozen, Array], batch: dict[str, Array], key: Array
        ) -> Array:
            models, text_dropout = frozen
            posterior = (batch[name].astype(jnp.float32) for name in ("mean", "std"))
            is_group = jax.random.bernoulli(
                jax.random.fold_in(key, 1), BOTH, (len(batch["focus"]),)
            )
            is_group &= batch["regions"][:, 1].any(axis=1)
            crops = jnp.stack([batch["crops"], batch[CROPS_BESIDE]], axis=1)
            step_batch = StepBatch(
                target=LatentPosterior(*posterior),
                prompt=Ids(*(_told(batch, encoder, is_group) for encoder in ("clip", "t5"))),
                reference=Reference(crops[:, :, 0], crops[:, :, 1:]),
                focus=batch["focus"].astype(jnp.float32),
                regions=_subject_regions(batch["regions"], is_group),
            )
            zero, one = jnp.zeros(()), jnp.ones(())
            scalars = StepScalars(
                zero, shift * one, one, text_dropout, 0.05 * one, zero, c.head_share * one
            )
            seed = jax.random.bits(key, (), jnp.uint32).astype(jnp.int32)
            keys = row_keys(seed, jnp.int32(0), step_batch)
            examples = encode(
                models, step_batch, keys, empty, scalars, c.adapter, "logit-normal", dtype
            )
            return objective.loss(adapter, models.transformer, examples, rope)[0]

        def frozen(modules: Modules, text_dropout: float) -> tuple[Frozen, Array]:
            names = ("transformer", "siglip", "dinov2", "t5", "clip")
            cast = {n: jax.tree.map(lambda x: x.astype(dtype), modules[n]) for n in names}
            return Frozen(vae=None, **cast), jnp.float32(text_dropout)

        return Task(
            ("adapter",),
            ("mean", "std", "focus", "regions", "crops", CROPS_BESIDE, *texts),
            start,
            loss,
            lambda adapter: {"adapter": adapter},
            frozen,
        )

    def _tokens(self) -> tuple[int, int]:
        side = self.config.side // self.config.vae.downscale // flow.PATCH
        return side, side

    def _rope(self) -> Any:
        ids = flow.position_ids(self.config.text_length, *self._tokens())
        return rope_table(ids, self.config.flux)

    def _shift(self) -> float:
        y, x = self._tokens()
        return flow.shift(y * x, SchedulerConfig())


def _told(batch: dict[str, Array], encoder: str, is_group: Bool[Array, "b"]) -> Array:
    """Return the ids of captions that tell a scene's other person unless there is a reference."""
    told, untold = (batch[f"{encoder}/{kind}"].astype(jnp.int32) for kind in ("scene", "untold"))
    return jnp.where(is_group[:, None], untold, told)


def _subject_regions(
    regions: Float[Array, "b 2 n"], is_group: Bool[Array, "b"]
) -> Float[Array, "b 2 n"]:
    """Return the regions of both people of a group; a single reference acts everywhere."""
    alone = jnp.zeros_like(regions).at[:, 0].set(1)
    return jnp.where(is_group[:, None, None], regions, alone).astype(jnp.float32)


def _emphasis(focus: Array, share: float) -> Array:
    """Return weights of mean 1, of which a share is on heads and faces."""
    return 1 - share + share * focus.astype(jnp.float32)


def latents(vae: Vae, pixels: Array, dtype: str) -> dict[str, Array]:
    """Return mean and standard deviation of the latents of people's scenes, float16."""
    flat = to_unit(pixels.reshape(-1, *pixels.shape[2:])).astype(dtype)
    cast = jax.tree.map(lambda x: x.astype(dtype), vae)
    mean, logvar = (x.astype(jnp.float32) for x in cast.encode(flat))
    values = {
        "mean": vae.to_latents(mean),
        "std": jnp.exp(logvar / 2) * vae.config.scaling_factor,
    }
    shape = pixels.shape[:2]
    return {k: x.reshape(*shape, *x.shape[1:]).astype(jnp.float16) for k, x in values.items()}


encode_latents = partial(jax.jit, static_argnames="dtype")(latents)
