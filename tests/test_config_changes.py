"""Single changes to every field of every published config: refused in one line, or converted.

Headers and configs alone are read, as conversion and loading do before the first weight.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from convert import sources
from convert.configs import read_adapter_config
from convert.engine import match
from ic_jax.weights import loading
from ic_jax.weights.model_folder import ModelFolder
from ic_jax.weights.tensors import WeightsError
from tests.conftest import TINY

MISSING = object()
CHANGES = {
    "missing": MISSING,
    "null": None,
    "negative": -1,
    "zero": 0,
    "one": 1,
    "huge": 10**12,
    "beyond any float": 10**400,
    "fraction": 0.5,
    "NaN": math.nan,
    "infinite": math.inf,
    "true": True,
    "text": "some",
    "long text": "x" * 10**5,
    "no items": [],
    "items": [1, 2],
    "nested items": [[{}], None],
    "nested": {"a": {"b": None}},
}
PUBLISHED = {
    "transformer": "flux/transformer/config.json",
    "vae": "flux/vae/config.json",
    "clip": "flux/text_encoder/config.json",
    "t5": "flux/text_encoder_2/config.json",
    "siglip": "siglip/config.json",
    "dinov2": "dinov2/config.json",
    "scheduler": "flux/scheduler/scheduler_config.json",
}
ADAPTER = "instantcharacter_ip-adapter"
TOWERS = {"clip": "text_config", "siglip": "vision_config"}


def changed(values):
    """Yield the name of each single change to a JSON object, and the object with it."""
    for field in values:
        for name, change in CHANGES.items():
            rest = {key: value for key, value in values.items() if key != field}
            yield f"{field} {name}", rest if change is MISSING else rest | {field: change}


def refused(path, read):
    """Return whether `read` refuses the file; any other error, or one of many lines, fails."""
    try:
        read()
    except WeightsError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 4000
        assert str(path) in line or str(path.parent) in line
        return True
    return False


def check_all(path, values, read, least):
    """Try every change of a config; at least so many of every hundred are refused."""
    outcomes = []
    for name, change in changed(values):
        path.write_text(json.dumps(change))
        try:
            outcomes.append(refused(path, read))
        except Exception as error:
            pytest.fail(f"{path.name}: {name}: {error!r}")
    assert least < 100 * sum(outcomes) / len(outcomes)


def comparison(path, compare):
    """Return a function that refuses a config unless `compare` finds the tensors that it implies.

    Most changes give a config that has been seen, and need no shapes anew.
    """
    wrong = {}

    def check(config):
        if config not in wrong:
            wrong[config] = str(compare(config))
        if wrong[config]:
            raise WeightsError(f"{path}: {wrong[config]}")

    return check


@pytest.mark.parametrize("component", PUBLISHED)
def test_conversion(component, tmp_path):
    path = tmp_path / "config.json"
    published = TINY / PUBLISHED[component]
    check = comparison(path, lambda config: "")
    if component != "scheduler":
        source = sources.open_component(component, published.parent)
        check = comparison(path, lambda config: match(replace(source, config=config), None).wrong)

    def read():
        check(sources.read_config(component, path)[0])

    values = json.loads(published.read_text())
    path.write_text(json.dumps(values))
    assert not refused(path, read)
    check_all(path, values, read, 40)
    if component in TOWERS:  # of a checkpoint of two towers
        check_all(path, {"model_type": component, TOWERS[component]: values}, read, 80)


def test_the_adapters_sizes(tmp_path):
    path = tmp_path / "sizes.json"
    flux = sources.open_component("transformer", TINY / "flux").config
    source = sources.open_adapter(TINY / f"{ADAPTER}.bin", None)
    check = comparison(path, lambda config: match(replace(source, config=config), flux).wrong)

    def read():
        check(read_adapter_config(path))

    check_all(path, json.loads((TINY / f"{ADAPTER}.json").read_text()), read, 80)


@pytest.mark.parametrize("component", [*PUBLISHED, "adapter", "sampling"])
def test_loading(component, tiny_model, tmp_path):
    """A MODEL folder's own configs, whose checksums are not compared."""
    path = tmp_path / component / "config.json"
    path.parent.mkdir()
    folder = ModelFolder(tmp_path, {component: {}})
    values = loading.config_class(component)().to_dict() if component == "sampling" else None
    values = values or json.loads((tiny_model / component / "config.json").read_text())
    check_all(path, values, lambda: loading.read_config(folder, component), 50)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 10**5, "\ufffe", '{"a": 1}{}'])
def test_files_that_are_no_objects(text, tiny_model, tmp_path):
    for component in ("transformer", "scheduler"):
        published = tmp_path / Path(PUBLISHED[component])
        published.parent.mkdir(parents=True)
        published.write_text(text)
        (tmp_path / component).mkdir()
        ours = tmp_path / component / "config.json"
        ours.write_text(text)
        folder = ModelFolder(tmp_path, {component: {}})
        assert refused(published, lambda c=component, p=published: sources.read_config(c, p))
        assert refused(ours, lambda c=component, f=folder: loading.read_config(f, c))
