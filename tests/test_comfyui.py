"""The node for ComfyUI: a stand-in for ComfyUI's interface, and the real server."""

import ast
import asyncio
import importlib.util
import inspect
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from ic_jax import InstantCharacterPipeline
from tests import comfy_stub
from tests.serving import served
from tests.slow_pipeline import SlowPipeline, eventually

FILE = Path(__file__).parent.parent / "infer" / "comfyui" / "ic_jax_node.py"


class Interrupted(Exception):
    """What ComfyUI raises when its user interrupts."""


@pytest.fixture
def button():
    """Interrupts the workflow when it is set."""
    return {"pressed": lambda: False}


@pytest.fixture
def module(monkeypatch, button):
    def interrupt():
        if button["pressed"]():
            raise Interrupted

    for name, stub in comfy_stub.modules(interrupt).items():
        monkeypatch.setitem(sys.modules, name, stub)
    spec = importlib.util.spec_from_file_location("ic_jax_node", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TICK", 0.01)
    return module


@pytest.fixture
def node(module):
    extension = asyncio.run(module.comfy_entrypoint())
    (node,) = asyncio.run(extension.get_node_list())
    return node


@pytest.fixture(scope="module")
def pipe():
    pipe = SlowPipeline(InstantCharacterPipeline.from_pretrained(dtype="float32"))
    pipe.step.set()
    return pipe


@pytest.fixture(scope="module")
def server(pipe):
    with served(pipe) as server:
        yield server


def defaults(node):
    """Return what ComfyUI passes for widgets that nobody has touched."""
    inputs = node.define_schema().inputs
    return {x.id: x.options["default"] for x in inputs if "default" in x.options}


def test_imports_only_what_comfyui_has():
    tree = ast.walk(ast.parse(FILE.read_text()))
    names = [a.name for n in tree if isinstance(n, ast.Import) for a in n.names]
    tree = ast.walk(ast.parse(FILE.read_text()))
    names += [node.module for node in tree if isinstance(node, ast.ImportFrom)]
    foreign = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert foreign == {"PIL", "comfy", "comfy_api", "numpy", "torch"}


def test_inputs_are_arguments_of_execute(node):
    schema = node.define_schema()
    ids = [x.id for x in schema.inputs]
    assert len(set(ids)) == len(ids)
    named = set(inspect.signature(node.execute).parameters) - {"scales"}
    assert named <= set(ids)
    assert set(ids) - named == {"strength", "subject_scale", "guidance_scale", "true_cfg_scale"}
    needed = {x.id for x in schema.inputs if not x.options.get("optional")}
    assert needed == {"prompt", "seed", "pictures"}
    assert [x.kind for x in schema.outputs] == ["Image"]
    assert not any("key" in name for name in ids)  # a workflow is stored in every picture


def test_draws_pictures_of_a_character(node, server):
    asked = defaults(node) | {"prompt": "a scene", "server": server.url, "seed": 40, "pictures": 2}
    character = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    options = {"steps": 2, "subject_scale": 0.7}
    (drawn,) = node.execute(**asked | options, character=character).args
    assert (drawn.shape, drawn.dtype) == ((2, 4, 4, 3), torch.float32)
    np.testing.assert_allclose(drawn[:, 0, 0, 0] * 255, [40, 41])
    (alone,) = node.execute(**asked | {"steps": 1, "width": 64, "height": 96}).args
    assert alone.shape == (2, 4, 4, 3)


def test_draws_over_a_picture_where_its_mask_is_one(node, pipe, server):
    asked = defaults(node) | {"prompt": "a", "server": server.url, "steps": 2}
    original, mask = torch.zeros(1, 32, 64, 3), torch.zeros(1, 32, 64)
    original[:, :, :32], mask[:, :, 32:] = 1, 1
    node.execute(**asked | {"strength": 0.5}, original=original, mask=mask)
    (image,), (where,) = pipe.arguments["image"], pipe.arguments["mask_image"]
    assert image.shape == (*where.shape, 3)
    side = where.shape[1] // 2
    assert (image[:, : side - 4].min(), image[:, side + 4 :].max()) == (255, 0)
    assert (where[:, : side - 4].max(), where[:, side + 4 :].min()) == (0, 255)
    assert pipe.arguments["strength"] == 0.5
    with pytest.raises(RuntimeError, match="mask does nothing without original"):
        node.execute(**asked, mask=mask[0])
    with pytest.raises(ValueError, match="mask is 0 everywhere"):
        node.execute(**asked, original=original, mask=torch.zeros(1, 64, 64))


def test_widgets_keep_their_order_since_workflows_store_them_by_it(node):
    widgets = [x.id for x in node.define_schema().inputs if "default" in x.options]
    assert " ".join(["prompt", *widgets]) == (
        "prompt seed pictures subject_scale width height steps guidance_scale true_cfg_scale "
        "negative_prompt loras server strength"
    )


def test_loras_are_weights_by_name(module):
    loras = module._loras(" ink=0.5, line ,")
    assert loras == {"ink": 0.5, "line": 1.0}
    body, _ = module._form({"prompt": "a", "loras": loras}, [])
    assert b'name="loras[ink]"\r\n\r\n0.5\r\n' in body
    assert b'name="loras[line]"\r\n\r\n1.0\r\n' in body


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server": "file:///etc"}, "server is 'file:///etc'; it must begin with http://"),
        ({"server": "http://127.0.0.1:1"}, "does not answer.*start one with `python -m infer"),
        ({"loras": "ink=much"}, "loras is 'ink=much'; write NAME=WEIGHT"),
        ({"loras": "oil"}, "there is no LoRA 'oil'; known are ink"),
        ({"subject_scale": 0.5}, "subject_scale .*without a subject"),
    ],
)
def test_what_is_wrong_is_one_line(node, server, options, message):
    with pytest.raises((ValueError, RuntimeError), match=message) as raised:
        node.execute(**defaults(node) | {"prompt": "a", "server": server.url} | options)
    assert "\n" not in str(raised.value)


def test_an_interrupt_takes_the_request_back(node, button, pipe):
    with served(SlowPipeline(pipe)) as server:
        asked = defaults(node) | {"prompt": "a", "server": server.url, "steps": 2, "pictures": 1}
        button["pressed"] = lambda: httpx.get(f"{server.url}/health").json()["drawing"] > 0
        with pytest.raises(Interrupted):
            node.execute(**asked)
        eventually(lambda: 'status="499"' in httpx.get(f"{server.url}/metrics").text)


def test_the_key_goes_to_its_own_server_alone(module, node, monkeypatch, pipe):
    monkeypatch.setattr(module, "API_KEY", "secret")
    asked = defaults(node) | {"prompt": "a", "steps": 1, "pictures": 1}
    with served(pipe, api_key="secret") as server:
        with pytest.raises(RuntimeError, match="the token is missing or wrong"):
            node.execute(**asked | {"server": server.url})
        monkeypatch.setattr(module, "SERVER", f"{server.url}/")
        (drawn,) = node.execute(**asked | {"server": server.url}).args
    assert len(drawn) == 1
