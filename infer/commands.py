"""Commands of `python -m infer`."""

from collections.abc import Sequence

from ic_jax import cli
from ic_jax.cli import Command
from infer import env_command, generate, grid, options, plan_command, subject_command, words_command
from infer.app import app_command
from infer.bench import bench_command
from infer.serve import serve_command

COMMANDS = (
    Command(
        "draw",
        "Draw a character from one picture of it in the scene that a prompt describes.",
        options.add_arguments,
        generate.run,
        description="Draw a character from one picture of it in the scene that a prompt describes. "
        "Without --model, the small model that comes with ic_jax draws.",
    ),
    Command(
        "grid",
        "Put drawn pictures on a contact sheet, with their prompts and seeds.",
        grid.add_arguments,
        grid.run,
        description="Put drawn pictures on a contact sheet: a row for each prompt and its "
        "arguments, a column for each seed. Small pictures are enlarged.",
    ),
    Command(
        "serve",
        "Serve pictures over HTTP in the shape of OpenAI's image API.",
        serve_command.add_arguments,
        serve_command.run,
        description="Serve pictures over HTTP in the shape of OpenAI's image API, so that its "
        "clients and tools draw characters (docs/serving.md).",
    ),
    Command(
        "app",
        "Show a page in the browser to play on.",
        app_command.add_arguments,
        app_command.run,
        description="Show a page in the browser to play on (docs/app.md). "
        "Without --model, the small model that comes with ic_jax draws.",
    ),
    Command(
        "subject",
        "Show what the model will see of a character's picture, or cut the character out of it.",
        subject_command.add_arguments,
        subject_command.run,
    ),
    Command(
        "words",
        "List what can be said to a model whose text encoders know whole words.",
        words_command.add_arguments,
        words_command.run,
    ),
    Command(
        "plan",
        "Report the memory, arithmetic and communication that drawing needs on given devices.",
        plan_command.add_arguments,
        plan_command.run,
        description="Compile the sampler at full size, also for devices that are not attached, and "
        "report the memory, arithmetic and communication of each device.",
    ),
    Command(
        "bench",
        "Measure how fast this machine draws, with random weights.",
        bench_command.add_arguments,
        bench_command.run,
        description="Measure how fast this machine draws with random weights of a named size, and "
        "how near that is to what it can do (docs/benchmarks.md).",
    ),
    Command(
        "env",
        "Print versions, devices and caches, for a report of an issue.",
        env_command.add_arguments,
        env_command.run,
        description="Print versions, devices, extras and caches, for a report of an issue: no name "
        "of a user or a machine, and no secret.",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, see `ic_jax.cli.run`."""
    description = "Generate pictures of a character, known from one reference picture."
    return cli.main("python -m infer", description, COMMANDS, arguments, default="draw")
