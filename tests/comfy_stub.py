"""Stand-in for the part of ComfyUI's V3 interface that a node uses.

Parameters are those of comfy_api/latest/_io.py of ComfyUI at 004b1b5b (2025), so that one that
ComfyUI does not know fails here as well.
"""

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

COMMON = {"id", "display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link"}
WIDGET = {*COMMON, "default", "socketless", "force_input"}
NUMBER = {*WIDGET, "min", "max", "step", "display_mode"}
INPUTS = {
    "String": {*WIDGET, "multiline", "placeholder", "dynamic_prompts"},
    "Int": {*NUMBER, "control_after_generate"},
    "Float": {*NUMBER, "round"},
    "Image": COMMON,
    "Mask": COMMON,
}
OUTPUT = {"id", "display_name", "tooltip", "is_output_list"}


def _socket(kind, known):
    def make(id=None, **options):
        assert options.keys() <= known, f"{kind} has no {options.keys() - known}"
        return SimpleNamespace(kind=kind, id=id, options=options)

    return make


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    description: str = ""


class NodeOutput:
    def __init__(self, *args):
        self.args = args


def modules(interrupt):
    """Return ComfyUI's modules by name; `interrupt` is called as its check of the button is."""
    kinds = {
        kind: SimpleNamespace(Input=_socket(kind, known), Output=_socket(kind, OUTPUT))
        for kind, known in INPUTS.items()
    }
    api = ModuleType("comfy_api.latest")
    api.io = SimpleNamespace(ComfyNode=object, Schema=Schema, NodeOutput=NodeOutput, **kinds)
    api.ComfyExtension = object
    management = ModuleType("comfy.model_management")
    management.throw_exception_if_processing_interrupted = interrupt
    packages = {name: ModuleType(name) for name in ("comfy_api", "comfy")}
    return packages | {"comfy_api.latest": api, "comfy.model_management": management}
