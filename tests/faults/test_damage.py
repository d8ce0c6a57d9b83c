"""Flipped bits, cuts and removals at random places of every kind of file."""

import json
import shutil

import pytest

from tests.conftest import TINY
from tests.faults.commands import COMMANDS, LIBRARY, TRAINING, files
from tests.faults.damage import DAMAGES, pick
from tests.faults.processes import started
from tests.faults.suite import check_equal, check_told

pytestmark = pytest.mark.faults
TRIALS = 10
LAST = 4  # step whose checkpoint is damaged, of six

# Files under checksums: the folder of the world, patterns in it, and the exit codes that tell.
CHECKED = {
    "weights": ("converted", ("*/*.safetensors",), 3),
    "config": ("converted", ("*/config.json",), 3),
    "manifest": ("converted", ("manifest.json",), 3),
    "tokenizer": ("converted", ("tokenizer*/*",), 3),
    "shard of a data set": ("data", ("*array_record*",), 4),
    "index of a data set": ("data", ("index/*",), 4),
    "card of a data set": ("data", ("card.json",), 4),
    "shard of a cache": ("cache", ("*/shard*",), 4),
    "manifest of a cache": ("cache", ("*/manifest*",), 4),
}
# Files without a checksum: told, or read as another valid one.
PUBLISHED = TINY / "siglip" / "model.safetensors"
FREE = {
    "recipe": lambda world: world.recipe(world.folder / "free"),
    "LoRA": lambda world: world.lora,
    "picture": lambda world: world.picture,
    "published weights": lambda world: PUBLISHED,
}


@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("damage", ["a flipped bit", "a cut"])
@pytest.mark.parametrize("kind", CHECKED)
def test_under_a_checksum(suite, kind, damage, seed):
    """It is told in a line, or what was there is read."""
    of, patterns, code = CHECKED[kind]

    def body(rng, folder):
        cache = of == "cache"
        whole = suite.original("train cache") / of if cache else getattr(suite.world, of)
        copy = shutil.copytree(whole, folder.with_name("copy"))
        file = pick(copy, patterns, rng)
        told = DAMAGES[damage](file, rng) | {"file": str(file.relative_to(copy))}
        convert = of == "converted"
        arguments = ["to-torch", copy, "--out", folder / "out"] if convert else ["verify", copy]
        main = "convert.commands" if convert else "train.commands"
        with started(main, [*map(str, arguments)], folder.with_name("log")) as process:
            ended = process.end()
        if ended.code:
            check_told(ended, code)
            assert str(copy) in ended.said, ended.said
        elif convert:
            check_equal(files(folder), suite.expected("convert to-torch"))
        else:  # a card without the name of its checksum, say
            assert file.suffix == ".json", f"nothing is said: {ended.said}"
            before, after = (json.loads((root / file.name).read_text()) for root in (whole, copy))
            before.pop("checksum")
            check_equal(before, {name: after.get(name) for name in before})
        return told | {"exit code": ended.code}

    under_test = LIBRARY if of == "converted" else TRAINING
    suite.trial(f"{damage}, under a checksum", kind, seed, under_test, body)


@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("damage", ["a flipped bit", "a cut"])
@pytest.mark.parametrize("kind", FREE)
def test_without_a_checksum(suite, kind, damage, seed):
    def body(rng, folder):
        file = FREE[kind](suite.world)
        copy = folder / file.name
        if kind == "published weights":
            shutil.copytree(file.parent, folder, dirs_exist_ok=True)
        else:
            shutil.copy(file, copy)
        main, arguments = "tests.faults.readers", [kind, str(copy)]
        if kind == "published weights":
            main, out = "convert.commands", str(folder.with_name("out"))
            arguments = ["from-torch", "--siglip", str(folder), "--out", out, "--overwrite"]

        def read():
            with started(main, arguments, folder.with_name("log")) as process:
                return process.end()

        assert read().code == 0
        told = DAMAGES[damage](copy, rng)
        ended = read()
        if ended.code:
            check_told(ended, 2, 3)
            assert str(folder) in ended.said, ended.said
        assert "Traceback" not in ended.said, ended.said
        return told | {"exit code": ended.code}

    fault = f"{damage}, nothing to compare with (told, or another valid file)"
    suite.trial(fault, kind, seed, (*LIBRARY, "ic_jax/preprocessing", "train/recipe.py"), body)


@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_checkpoint(suite, damage, seed):
    """The run goes on from the one before, and ends as if undisturbed."""

    def body(rng, folder):
        shutil.copytree(suite.original("train"), folder, dirs_exist_ok=True)
        run = folder / "run"
        for step in (5, 6):
            shutil.rmtree(run / "checkpoints" / str(step))
            (run / "manifests" / f"{step}.json").unlink()
        file = pick(run, (f"checkpoints/{LAST}/**/*", f"manifests/{LAST}.json"), rng)
        told = DAMAGES[damage](file, rng) | {"file": str(file.relative_to(run))}
        ended = suite.finish("train", folder)
        assert "checkpoint is incomplete or damaged" in ended.said, ended.said
        return told

    fault = f"{damage} in the newest checkpoint, resumed to the end"
    suite.trial(fault, "train", seed, COMMANDS["train"].under_test, body)
