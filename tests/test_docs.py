"""README and docs: commands parse, examples run, recipes are read, links lead somewhere.

A block of code that no test can try is marked in its page: `<!-- needs: what is lacking -->`.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ic_jax
from benchmarks import plans
from ic_jax import InstantCharacterPipeline, cli
from ic_jax.weights.model_folder import SMALL_MODEL
from train.recipe import read_recipe

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "examples/*/*.md")
    for page in sorted(ROOT.glob(pattern))
]
PROGRAMS = ("infer", "train", "convert", "examples.open_peeps", "benchmarks")
OTHER_OPTIONS = {  # of pip, pytest, XLA, Docker, Google Cloud and SLURM
    *("--gpus", "--privileged", "--net", "--user", "--shm-size"),
    *("--no-skips", "--again"),  # tests/conftest.py
    *("--extra-index-url", "--zone", "--worker", "--command", "--nodes", "--signal", "--requeue"),
    *("--ntasks-per-node", "--gpus-per-node", "--gpus-per-task", "--cpus-per-task"),
    *("--local-dir", "--xla_force_host_platform_device_count", "--xla_cpu_multi_thread_eigen"),
}
HARMLESS = ("cd ", "export ", "git clone ", ". .venv")
BLOCK = re.compile(
    r"(?:<!-- needs: (?P<needs>[^>]+) -->\n+)?"
    r"(?:^```(?P<language>\w*)\n(?P<fenced>[^`]*)^```$"
    r"|(?:(?<=\n\n)|(?<=-->\n))(?P<indented>(?:    .*\n+)+))",
    re.MULTILINE,
)
PART_OF_A_RECIPE = """
model = "m"
data = "d"
out = "o"
[stage1]
steps = 1
batch = 1
resolution = 512
"""


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    language: str  # "text" where it is indented
    text: str
    needs: str | None

    @property
    def script(self) -> str:
        """The text, each command on one line; nothing of Python and TOML."""
        text = "" if self.language in ("python", "toml") else self.text
        return re.sub(r"\\?\n\s+(?=--)|\\\n", " ", text)

    def commands(self) -> list[str]:
        """Return the shell commands, without comments; none where the text is something else."""
        if self.language == "yaml" or self.text[0] == "{" or self.text[0].isupper():
            return []
        lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in self.script.splitlines())
        return [part.strip() for line in lines if line for part in line.split("&&")]


class Parsed(BaseException):
    """Ends a program as soon as its arguments are parsed."""


def _blocks(page: Path) -> list[Block]:
    blocks = []
    for match in BLOCK.finditer(page.read_text()):
        code = match["fenced"] or re.sub(r"^    ", "", match["indented"], flags=re.MULTILINE)
        blocks.append(Block(page, match["language"] or "text", code, match["needs"]))
    return blocks


BLOCKS = [block for page in PAGES for block in _blocks(page)]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _code_spans(page: Path) -> list[str]:
    prose = BLOCK.sub("\n", page.read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def _program_calls(text: str) -> list[list[str]]:
    """Return [module, argument, ...] of each call of one of this repository's programs."""
    calls = []
    for call in re.findall(r"\bpython -m ([^\n;|`]+)", text):
        call = re.sub(r"\$\w+", "0", call)
        within_quotes = call.count('"') % 2 == 1  # the last one opened before the call
        words = shlex.split(call.rstrip('"') if within_quotes else call, comments=True)
        if words[0].startswith(PROGRAMS):
            calls.append(words)
    return calls


def _parse(call: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the program's own parser read the arguments; SystemExit if it refuses them."""
    module, *arguments = call
    main = _main_of(module)
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **named):
        parse(self, *args, **named)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(Parsed):
            main(arguments) if inspect.signature(main).parameters else main()


def _main_of(module: str) -> Callable[..., Any]:
    names = [f"{module}.commands", f"{module}.__main__", module]
    return importlib.import_module(next(name for name in names if _exists(name))).main


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_calls_parse(page, monkeypatch, capsys):
    spans = [span for span in _code_spans(page) if span.startswith("python -m ")]
    for call in _program_calls("\n".join(block.script for block in _blocks(page))):
        _parse(call, monkeypatch)
    for call in _program_calls("\n".join(spans)):
        try:
            _parse(call, monkeypatch)
        except SystemExit:  # prose may name a command without all that it needs
            assert "arguments are required" in capsys.readouterr().err, call


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_other_commands_run_in_ci_or_say_what_they_need(page):
    ci = (ROOT / ".ci" / "run").read_text().replace('"$python"', "python").splitlines()
    tried = {line.strip().replace(".venv/bin/", "") for line in ci}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"])
    for block in _blocks(page):
        for command in [] if block.needs else block.commands():
            plain = command.replace(".venv/bin/", "")
            if extras := re.fullmatch(r"pip install -e '\.\[([\w,]+)\]'", plain):
                assert set(extras[1].split(",")) <= known, command
            elif not _program_calls(plain) and not command.startswith(HARMLESS):
                assert plain in tried, f"`{command}` is neither in .ci/run nor marked"


def test_benchmarks_plans_parse(monkeypatch):
    for call in plans.PLANS:
        _parse(call.split(), monkeypatch)


def test_the_table_of_plans_is_that_of_the_results():
    assert "\n".join(plans.table()) in plans.PAGE.read_text()


def test_options_that_prose_names_exist(monkeypatch):
    options = set(OTHER_OPTIONS)

    def collect(prog, description, commands, *_, **__):
        for command in commands:
            parser = argparse.ArgumentParser(prog=prog)
            command.add_arguments(parser)
            options.update(option for a in parser._actions for option in a.option_strings)
        raise Parsed

    monkeypatch.setattr(cli, "main", collect)
    parts = ("base_model", "experiments", "train_all")
    examples = [f"examples.open_peeps.{name}" for name in parts]
    for program in ("infer", "train", "convert", *examples):
        with pytest.raises(Parsed):
            _main_of(program)([])
    for page in PAGES:
        for span in _code_spans(page):
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", span):
                assert option in options, f"{_name(page)}: {option} is no option"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=lambda b: b.text)
def test_recipes_are_read(block, tmp_path):
    file = tmp_path / "recipe.toml"
    is_part = "[stage1]" not in block.text
    file.write_text(block.text + PART_OF_A_RECIPE * is_part)
    read_recipe(file)


def test_listings_are_json():
    listings = [b.text for b in BLOCKS if b.text.startswith('{"')]
    assert all(json.loads(line) for text in listings for line in text.strip().splitlines())
    assert listings


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("\n", page.read_text())):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{_name(page)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{_name(page)}: {target}"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_files_that_are_named_exist():
    folders = "ic_jax|convert|infer|train|examples|benchmarks|tests|docs"
    sources = [file for folder in folders.split("|") for file in ROOT.glob(f"{folder}/**/*.py")]
    named = {(_name(file), page) for file in sources for page in _named(r"docs/[\w-]+\.md", file)}
    pattern = rf"(?<=`)(?:{folders})/[\w./-]+\.\w+(?=`)"
    named |= {(_name(page), file) for page in PAGES for file in _named(pattern, page)}
    assert [pair for pair in sorted(named) if not (ROOT / pair[1]).exists()] == []


def _named(pattern: str, file: Path) -> list[str]:
    return re.findall(pattern, file.read_text())


@pytest.mark.slow  # compiles the small model's programs
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in _blocks(p))], ids=_name
)
def test_python_examples_run(page, tmp_path, monkeypatch):
    """With the small model in place of the published one."""
    (tmp_path / "infer").mkdir()
    for place in ("infer/demo.png", "girl.png"):
        shutil.copy(ROOT / "infer" / "demo.png", tmp_path / place)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "ic").symlink_to(SMALL_MODEL)
    monkeypatch.chdir(tmp_path)
    load = InstantCharacterPipeline.from_pretrained
    in_float32 = lambda *args, **named: load(*args, **{**named, "dtype": "float32"})  # noqa: E731
    monkeypatch.setattr(InstantCharacterPipeline, "from_pretrained", in_float32)
    names: dict[str, object] = {}
    for block in _blocks(page):
        if block.language == "python" and not block.needs:
            exec(compile(block.text, f"<{_name(page)}>", "exec"), names)


def test_api_page_holds_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    names = set(re.findall(r"^::: ic_jax\.(\w+)$", page, re.MULTILINE))
    assert names == set(ic_jax.__all__) - {"__version__"}


def test_methods_that_pages_name_exist():
    names = {name for page in PAGES for name in _named(r"(?<=\bpipe\.)\w+", page)}
    public = {*dir(InstantCharacterPipeline), *InstantCharacterPipeline.__annotations__}
    assert names - public == set()
