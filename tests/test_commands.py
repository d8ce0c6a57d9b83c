"""Commands of the applications: what `--help` lists, and mistakes said in one line."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import convert.commands
import infer.commands
import train.commands
from ic_jax import cli

ROOT = Path(__file__).parent.parent
MAINS = {
    "convert": (convert.commands.main, convert.commands.COMMANDS),
    "infer": (infer.commands.main, infer.commands.COMMANDS),
    "train": (train.commands.main, train.commands.COMMANDS),
}
EVERY = [(main, command) for main, commands in MAINS.values() for command in commands]
EXAMPLE = [
    f"examples.open_peeps.{file.parent.name}"
    for file in sorted((ROOT / "examples" / "open_peeps").glob("*/commands.py"))
]
EVERY += [
    (module.main, command)
    for module in (import_module(f"{name}.commands") for name in EXAMPLE)
    for command in module.COMMANDS
]


@pytest.mark.parametrize("name", MAINS)
def test_help_lists_every_command_with_a_sentence(name, capsys):
    main, commands = MAINS[name]
    assert main(["--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for command in commands:
        assert f"{command.name} {command.help}" in out
        assert command.help[0].isupper()
        assert command.help.endswith(".")
    if name != "convert":  # which has no default
        assert f"{commands[0].help} (the default)" in out
        assert "--debug" in out  # the options of the default follow


@pytest.mark.parametrize(("main", "command"), EVERY, ids=lambda x: getattr(x, "name", ""))
def test_every_option_has_a_sentence_of_help(main, command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command.name, "--help"])
    assert end.value.code == 0
    assert "show the traceback of an error" in capsys.readouterr().out
    parser = cli.Parser()
    command.add_arguments(parser)
    assert all(action.help for action in parser._actions)
    assert Path not in {action.type for action in parser._actions}  # cli.path expands ~


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("infer", ["evalute"], "there is no command 'evalute'; give one of draw, grid, serve"),
        ("train", ["exprot", "runs/x"], "there is no command 'exprot'; give one of run, prepare"),
        ("convert", [], "required: COMMAND; see python -m convert --help"),
        ("convert", ["inspct", "x"], "there is no command 'inspct'; give one of from-torch"),
        ("train", [], "required: RECIPE; see python -m train run --help"),
        ("infer", ["--promt", "a girl"], "--promt a girl; did you mean --prompt?"),
        ("infer", ["--heigh", "64"], "unrecognized arguments: --heigh 64; did you mean --height?"),
        ("infer", ["--zzz"], "unrecognized arguments: --zzz; see python -m infer draw --help"),
        ("infer", ["--image", "a.png", "--image=b.png"], "--image is given twice; give it once"),
        ("infer", ["--steps", "4", "--num-inference-steps", "8"], "is given twice; give it once"),
        ("infer", ["--seed", "1", "--seed", "2"], "give it once with all its values"),
        ("infer", ["--out", ""], "argument --out: '' is no path"),
        ("infer", ["plan", "--json=~no-such-user/x"], "~no-such-user/x: there is no such user"),
        ("infer", ["plan", "--steps=-3"], "argument --steps: -3 is no whole number of at least 1"),
        ("infer", ["plan", "--batch=0"], "argument --batch: 0 is no whole number of at least 1"),
        ("infer", ["plan", "--text-length=1_0"], "1_0 is no whole number of at least 1"),
        ("infer", ["bench", "--samples=0"], "argument --samples: 0 is no whole number"),
        ("infer", ["bench", "--budget=nan"], "argument --budget: nan is no number above 0"),
        ("train", ["x.toml", "--sett", "a=1"], "--sett a=1; did you mean --set?"),
        ("infer", ["--hosts", "2"], "--hosts is now --num-processes"),
        ("train", ["x.toml", "--host", "2"], "--host is now --process-id"),
        ("train", ["export", "x", "--out", "y", "--last"], "--last is now --no-ema"),
        ("train", ["export", "x", "--out", "y", "--whole"], "--whole is now --cast-base"),
    ],
)
def test_a_mistake_is_one_line(name, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        MAINS[name][0](arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_recipe_needs_no_command(tmp_path, capsys):
    assert train.commands.main([str(tmp_path / "first.toml")]) == 2
    assert "first.toml: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--all"], ["--only", "step"]])
def test_bench_refuses_an_option_that_another_leaves_without_effect(other, capsys):
    assert infer.commands.main(["bench", "--vs", "torch", *other]) == 2
    assert f"{other[0]} does nothing beside --vs" in capsys.readouterr().err


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])  # JAX asserts, or raises
def test_a_device_that_is_not_there_is_one_line(platform, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "infer", "--out", tmp_path / "out.png"],
        env=os.environ | {"JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 2
    assert f"error: JAX cannot start '{platform}'" in ended.stderr
    assert ended.stderr.endswith(
        "; install JAX for it (README.md), or let it choose, without JAX_PLATFORMS or --devices\n"
    )
    assert "Traceback" not in ended.stderr


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ana")
    parser = cli.Parser()
    infer.commands.COMMANDS[0].add_arguments(parser)
    args = parser.parse_args(["--subject=~/ana.png", "--model=~/models/ic", "--prompts-file=~/x"])
    ((picture,),) = (subject.pictures for subject in args.subject)
    paths = [str(picture), str(args.model), str(args.prompts_file)]
    assert paths == ["/home/ana/ana.png", "/home/ana/models/ic", "/home/ana/x"]


@pytest.mark.parametrize("name", MAINS)
def test_garbage_is_collected_but_not_among_what_is_imported(name):
    script = (
        "import atexit, gc, runpy, sys\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 50_000,\n"
        "    gc.get_threshold()))\n"
        "sys.argv = ['', '--help']\n"
        f"runpy.run_module({name!r}, run_name='__main__')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, capture_output=True)
    assert run.stdout.decode().endswith("True True (20000, 5, 10)\n")


@pytest.mark.parametrize("name", [*MAINS, *EXAMPLE])
def test_ctrl_c_while_importing(name, tmp_path):
    (tmp_path / "flax.py").write_text(  # every main imports it
        f"import os, time\nos.kill(os.getpid(), {int(signal.SIGINT)})\ntime.sleep(60)\n"
    )
    run = [sys.executable, "-m", name]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "error: interrupted\n")


def test_an_interrupt_that_a_finaliser_drops_arrives(capsys):
    class Dropping:
        def __del__(self):
            raise KeyboardInterrupt

    def work(_):
        Dropping()
        time.sleep(60)

    command = cli.Command("work", "Wait.", lambda parser: None, work)
    assert cli.main("prog", "Test.", [command], ["work"]) == cli.INTERRUPTED
    assert capsys.readouterr().err.strip() == "error: interrupted"
