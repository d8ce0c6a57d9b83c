"""Settings of a recipe that a short run makes meaningless, each in a line with its remedy."""

from train.recipe import Recipe, Stage


def recipe_warnings(recipe: Recipe) -> list[str]:
    """Return what of a recipe will not do what it says, since the run is over before."""
    stages = recipe.stages.items()
    lines = [line for name, stage in stages for line in _of_stage(name, stage)]
    return lines + _of_intervals(recipe)


def _of_stage(name: str, stage: Stage) -> list[str]:
    lines = []
    if 1 < stage.warmup >= stage.steps:
        lines.append(
            f"{name}.warmup is {stage.warmup}, and the stage has {stage.steps} steps: its learning "
            f"rate gets to {stage.learning_rate:g} at the end or never; set it to "
            f"{stage.steps // 10}"
        )
    if stage.early_steps >= stage.steps and stage.early_text_dropout != stage.text_dropout:
        lines.append(
            f"{name}.early_steps is {stage.early_steps}, and the stage has {stage.steps} steps: "
            f"early_text_dropout, {stage.early_text_dropout:g}, never ends; set it to "
            f"{stage.steps // 4}"
        )
    if stage.subject_dropout == 1:
        lines.append(
            f"{name}.subject_dropout is 1: no reference is ever seen, and the adapter learns "
            "nothing; set it to 0.05"
        )
    return lines


def _of_intervals(recipe: Recipe) -> list[str]:
    total, report = recipe.total_steps, recipe.reporting
    at_ends = "at the end of each stage alone"
    measured = recipe.lora is None and recipe.holdout > 0
    intervals = {
        "reporting.every": (report.every, f"the loss is reported {at_ends}"),
        "reporting.effect_every": (
            report.effect_every * measured,
            f"the reference effect is measured {at_ends}",
        ),
        "reporting.preview_every": (report.preview_every, f"previews are drawn {at_ends}"),
        "saving.every": (recipe.saving.every, f"it saves {at_ends}, and a crash loses the rest"),
    }
    lines = [
        f"{key} is {every}, and the run has {total} steps: {what}; set it to {max(1, total // 5)}"
        for key, (every, what) in intervals.items()
        if every > total
    ]
    name, first = next(iter(recipe.stages.items()))
    if 0 < report.preview_every < min(first.warmup, first.steps):
        lines.append(
            f"reporting.preview_every is {report.preview_every}, and {name}.warmup {first.warmup}: "
            f"the first previews show nearly untrained weights; set it to {first.warmup}"
        )
    return lines
