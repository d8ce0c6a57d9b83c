"""`infer bench --all`: parts in processes of their own, which may die, within a budget."""

import json

import pytest

import infer.commands
from ic_jax.measuring.parts import Budget, Results
from infer.bench import every_part


@pytest.fixture
def file(tmp_path):
    return tmp_path / "bench.json"


def written(file):
    return json.loads(file.read_text())


# A program in place of `python -m infer bench`: measures "a", and then something happens.
PROGRAM = """
import json, os, signal, sys, time

def write(**parts):
    file = sys.argv[sys.argv.index("--json") + 1]
    with open(file + ".part", "w") as out:
        json.dump({"settings": {"size": "toy"}, "parts": parts}, out)
    os.replace(file + ".part", file)

done = {"result": {"x": 1}, "seconds": 1}
write(a=done, b={"running": 1.5})
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Write a program and return the command that `every_part.run` takes."""

    def write(then):
        (tmp_path / "program.py").write_text(PROGRAM + then)
        return ["program", "bench"]

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return write


@pytest.mark.parametrize(
    ("then", "entry"),
    [
        ("write(a=done, b=done)", {"result": {"x": 1}, "seconds": 1}),
        ("os.kill(os.getpid(), signal.SIGKILL)", {"failed": "its process ended with code -9"}),
    ],
)
def test_a_process_that_dies_takes_one_part_with_it(then, entry, program, file):
    results = Results({"date": "today"}, file)
    every_part.run(program(then), ["a"], results, Budget(None))
    done = {"result": {"x": 1}, "seconds": 1}
    assert written(file) == {
        "date": "today",
        "settings": {"size": "toy"},
        "parts": {"a": done, "b": entry},
    }


def test_a_part_that_hangs_leaves_time_for_the_others(program, file, monkeypatch):
    monkeypatch.setattr(every_part, "LEAST", 0.1)
    results = Results({}, file)
    every_part.run(program("time.sleep(600)"), ["a", "b"], results, Budget(300))
    assert written(file)["parts"]["b"] == {"failed": "stopped after 3 s"}
    assert "result" in written(file)["parts"]["a"]


def test_a_process_that_measures_nothing(file, program, monkeypatch):
    results = Results({}, file)
    every_part.run(["no_such_program"], ["a", "b"], results, Budget(None))
    failed = {"failed": "its process ended with code 1"}
    assert written(file)["parts"] == {"a": failed, "b": failed}


def test_ctrl_c_ends_the_process(file, program):
    then = "os.kill(os.getppid(), signal.SIGINT); time.sleep(600)"
    results = Results({}, file)
    with pytest.raises(KeyboardInterrupt):
        every_part.run(program(then), ["a"], results, Budget(None))
    assert "result" in written(file)["parts"]["a"]
    assert written(file)["parts"]["b"] == {"interrupted": True}


def test_a_process_ends_with_the_budget(file, program):
    class Spent(Budget):
        """Enough to start; nothing is left once a part was measured."""

        @property
        def left(self):
            return -60.0 if "a" in results.parts else 60.0

    results = Results({}, file)
    every_part.run(program("time.sleep(600)"), ["a"], results, Spent(100))
    every_part.run(program(""), ["c"], results, Spent(100))
    parts = written(file)["parts"]
    assert parts["b"] == {"failed": "stopped, the budget was spent"}
    assert parts["c"] == {"skipped": "0 s left, about 10 s needed"}


def test_all_measures_in_processes_and_skips_what_has_no_time(file):
    options = ("--size", "toy", "--all", "--budget", "140", "--only", "machine", "training")
    assert infer.commands.main(["bench", *options, "--json", str(file)]) == 0
    values = written(file)
    machine, training = values["parts"].values()
    assert machine["result"]["platform"] == "cpu"
    assert training["skipped"].endswith("s left, about 150 s needed")
    # What the process says of itself is beside its parts.
    assert values["settings"]["dtype"] == "float32"
    assert values["budget s"] == 140


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (131e9, "--batch 1 2"),
        (74e9, "h100.toml --set stage1.accumulate=1 --batch 1"),
        (None, "--batch 1 2"),
    ],
)
def test_a_smaller_gpu_trains_by_a_lean_recipe(limit, arguments):
    results = Results({}, None)
    results.put("machine", {"result": {"memory limit": limit}})
    assert " ".join(every_part._recipe(results)).endswith(arguments)
    assert every_part.LEAN_RECIPE.exists()


def test_all_refuses_numbers_before_it_starts_anything(file, capsys):
    arguments = ["bench", "--all", "--size", "toy", "--height", "20", "--json", str(file)]
    assert infer.commands.main(arguments) == 2
    assert "--height 20 is not a positive multiple of 16" in capsys.readouterr().err
    assert not file.exists()
