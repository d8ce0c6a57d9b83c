"""Conversion engine: match published tensors to parameters strictly, then stream them to disk."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from convert import bfl
from convert.casting import cast
from convert.names import IGNORED, PREFIX, UNUSED, WRAPPED, Slot, published_shapes, slots
from convert.progress import Advance, progress
from convert.sources import Source
from ic_jax.config import FluxConfig
from ic_jax.weights.model_folder import ModelWriter
from ic_jax.weights.safetensors_io import Spec
from ic_jax.weights.tensors import Mismatch, Tensor, WeightsError


def tidy(source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """Return the component's tensors by published name, and notes on those that are left out."""
    component, tensors, notes = source.component, dict(source.tensors), [*source.notes]
    if wrapper := WRAPPED.get(component):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    prefix = PREFIX.get(component, "")
    if not any(name.startswith(prefix) for name in tensors):
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    for start, part in IGNORED.get(component, {}).items():
        ignored = [name for name in tensors if name.startswith(start)]
        for name in ignored:
            del tensors[name]
        if ignored:
            notes.append(f"{source.path}: leaves out {part} ({start}*, {len(ignored)} tensors)")
    if component == "t5" and (copy := tensors.pop("encoder.embed_tokens.weight", None)):
        shared = tensors.setdefault("shared.weight", copy)
        if not _same_bytes(shared, copy):
            raise WeightsError(
                f"{source.path}: encoder.embed_tokens.weight differs from shared.weight, whose "
                "copy it should be; get the file from its publisher"
            )
    return tensors, notes


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(
        np.array_equal(x.view(np.uint8), y.view(np.uint8))
        for (x, _), (y, _) in zip(
            *(cast(t, t.dtype, transposed=False) for t in (a, b)), strict=True
        )
    )


@dataclass
class Matched:
    """A component whose published tensors are assigned to parameters."""

    source: Source
    slots: dict[str, Slot]
    tensors: dict[str, Tensor]  # parts of parameters, by published name
    unused: dict[str, Tensor]  # parts of none, kept for the way back
    wrong: Mismatch
    notes: list[str]
    origin: dict[str, str] = field(default_factory=dict)  # published name -> name in the BFL file

    def specs(self) -> dict[str, Spec]:
        """Return the dtype and shape of each parameter."""
        dtype, any_name = self.source.dtype, next(iter(self.tensors))
        return {  # a model without blocks of a kind has none of their tensors
            path: Spec(dtype or self.tensors[[*slot.names, any_name][0]].dtype, slot.shape)
            for path, slot in self.slots.items()
        }

    def unused_specs(self) -> dict[str, Spec]:
        """Return the dtype and shape of each unused tensor."""
        dtype = self.source.dtype
        return {name: Spec(dtype or t.dtype, t.shape) for name, t in self.unused.items()}


def match(source: Source, flux: FluxConfig | None) -> Matched:
    """Assign a component's tensors to the parameters that its config implies."""
    parts = slots(source.component, source.config, flux)
    tensors, notes = tidy(source)
    starts = UNUSED.get(source.component, ())
    unused = {name: tensors.pop(name) for name in [*tensors] if name.startswith(starts)}
    shapes = published_shapes(parts)
    origin: dict[str, str] = {}
    if source.bfl:
        fused = bfl.layout(source.component, shapes)
        wrong = Mismatch.between({name: f.shape for name, f in fused.items()}, tensors)
        matching = [
            name for name, f in fused.items() if name in tensors and tensors[name].shape == f.shape
        ]
        origin = {part: name for name in matching for part in fused[name].parts}
        tensors = {k: v for name in matching for k, v in fused[name].split(tensors[name]).items()}
    else:
        wrong = Mismatch.between(shapes, tensors)
        tensors = {k: v for k, v in tensors.items() if shapes.get(k) == v.shape}
    return Matched(source, parts, tensors, unused, wrong, notes, origin)


def check_types(matched: Matched) -> None:
    """Record parameters whose blocks have different dtypes; where none is asked for."""
    for path, slot in matched.slots.items():
        types = {str(matched.tensors[name].dtype) for name in slot.names if name in matched.tensors}
        if len(types) > 1:
            matched.wrong.misshapen.append(
                f"{path} {' and '.join(sorted(types))} in different blocks, give --dtype"
            )


def write_components(components: Iterable[Matched], writer: ModelWriter) -> None:
    """Write the parameters of all components, each in its source's dtype.

    Raises:
        WeightsError: lists every tensor that is missing, unexpected, misshapen or not finite,
            in all components.
    """
    components = list(components)
    for matched in components:
        if matched.source.dtype is None:
            check_types(matched)
    writing = not any(matched.wrong for matched in components)
    with progress(sum(_bytes(matched) for matched in components)) as advance:
        for matched in components:
            if writing:
                _write(matched, writer, advance)
            else:  # read on, so that the one error lists every fault
                for path in matched.slots:
                    for _ in _values(matched, path, advance):
                        pass
    if faults := [f"{m.source.path}: {m.wrong}" for m in components if m.wrong]:
        raise WeightsError(
            "; ".join(faults) + "; the weights are damaged, or their config describes another model"
        )


def _bytes(matched: Matched) -> int:
    dtype = matched.source.dtype
    tensors = [*matched.tensors.values(), *matched.unused.values()]
    return sum(t.nbytes // t.dtype.itemsize * (dtype or t.dtype).itemsize for t in tensors)


def _write(matched: Matched, writer: ModelWriter, advance: Advance) -> None:
    source = matched.source
    writer.add_config(source.component, source.config.to_dict())
    writer.add_tensors(
        source.component,
        matched.specs(),
        lambda path: _values(matched, path, advance),
    )
    if matched.unused:
        writer.add_tensors(
            source.component,
            matched.unused_specs(),
            lambda name: _checked(matched, name, matched.unused[name], advance),
            unused=True,
        )
    for name, content in source.files.items():
        writer.add_file(source.component, name, content)


def _values(matched: Matched, path: str, advance: Advance) -> Iterator[np.ndarray]:
    """Yield the published tensors of a parameter in order, in its layout."""
    slot = matched.slots[path]
    for name in slot.names:
        if name in matched.tensors:
            tensor = matched.tensors[name]
            for x in _checked(matched, name, tensor, advance, transposed=slot.kernel):
                yield slot.from_published(x)


def _checked(
    matched: Matched, name: str, tensor: Tensor, advance: Advance, *, transposed: bool = False
) -> Iterator[np.ndarray]:
    """Yield a tensor in pieces, cast; record its name if a value is not finite."""
    good = True
    dtype = matched.source.dtype or tensor.dtype
    for x, finite in cast(tensor, dtype, transposed=transposed):
        good = good and finite
        yield x
        advance(name, x.nbytes)
    if not good:
        name = matched.origin.get(name, name)
        if name not in matched.wrong.not_finite:
            matched.wrong.not_finite.append(name)


def export(
    tensors: Mapping[str, Tensor], parts: Mapping[str, Slot], unused: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return parameters as published tensors (views), and the unused ones."""
    published = dict(unused)
    for path, slot in parts.items():
        for block, name in enumerate(slot.names):
            published[name] = tensors[path].view(slot.published_shape, _block(slot, block))
    return published


def _block(slot: Slot, block: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: slot.to_published(x, block)
