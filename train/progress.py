"""Progress of a run over all its stages: the bar, the figures on it, and the summary at the end."""

import shlex
import time
from collections.abc import Iterable, Mapping

from tqdm import tqdm

from ic_jax import multihost
from train.data.loader import HostBatch
from train.effect import ANOTHER, EFFECT, SAME, reading
from train.recipe import Recipe
from train.speaker import Speaker, duration


class Progress:
    """Progress of a run.

    The time that is left is that of all stages: the work of their steps, at the pace so far with
    all that it contains but the first step, which compiles.
    """

    def __init__(self, recipe: Recipe, speaker: Speaker, work: Mapping[str, float]):
        """Start; `work` is what a step of each stage costs, in any unit."""
        self._recipe, self._speaker, self._work = recipe, speaker, work
        self._values: dict[str, float] = {}
        self._begin: int | None = None
        self._start = 0.0
        self._bar: tqdm | None = None

    def bar(self, batches: Iterable[HostBatch], name: str, done: int) -> tqdm:
        """Return the batches of a stage of which some steps are done, with a bar on a terminal."""
        self._bar = tqdm(
            batches,
            desc=name,
            initial=done,
            total=self._recipe.stages[name].steps,
            unit="step",
            disable=None if multihost.is_first() else True,  # None: where there is no terminal
        )
        return self._bar

    def begin(self, step: int) -> None:
        """Measure the pace from a step on: the first one, which has compiled."""
        if self._begin is None:
            self._begin, self._start = step, time.perf_counter()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the newest figures on the bar, and a new reference effect in a line of its own."""
        self._values |= values
        seconds = self._seconds_left(step)
        shown = {
            "loss": f"{self._values['loss']:.4f}" if "loss" in self._values else "",
            "effect": f"{self._values[EFFECT]:.4f}" if EFFECT in self._values else "",
            "all stages": f"{duration(seconds)} left" if seconds is not None else "",
        }
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(f"{k} {v}" for k, v in shown.items() if v))
        if EFFECT in values:
            left = f"; {shown['all stages']}" if seconds else ""
            self._speaker.say(f"step {step}: {effect_in_words(values)}{left}")

    def summarise(self) -> None:
        """Say what a finished run has come to, and what to do next."""
        recipe, values = self._recipe, self._values
        lines = [f"trained {recipe.total_steps} steps: {recipe.out}"]
        if "loss" in values:
            lines.append(f"  loss {values['loss']:.4f}, which says little; look at the previews")
        if EFFECT in values:
            lines.append(f"  {effect_in_words(values)}: {reading(values)}")
        elif values and recipe.lora is None:
            lines.append("  reference effect: not measured, as the recipe asks")
        out = "LORA.safetensors" if recipe.lora else "MODEL"
        run = shlex.quote(str(recipe.out))
        lines.append(f"  python -m train plot {run}")
        lines.append(f"  python -m train export {run} --out {out}")
        self._speaker.say("\n".join(lines))

    def _seconds_left(self, step: int) -> float | None:
        if self._begin is None or step <= self._begin:
            return None
        pace = (time.perf_counter() - self._start) / self._work_between(self._begin, step)
        return pace * self._work_between(step, self._recipe.total_steps)

    def _work_between(self, begin: int, end: int) -> float:
        """Return the work of the steps from `begin` to before `end`."""
        total = 0.0
        for name, first in self._recipe.first_steps().items():
            last = first + self._recipe.stages[name].steps
            total += self._work[name] * max(0, min(end, last) - max(begin, first))
        return total


def effect_in_words(values: Mapping[str, float]) -> str:
    """Return the effects that were measured, in a line."""
    parts = {SAME: "the same picture", ANOTHER: "another picture"}
    details = [f"{values[k]:.4f} with {words}" for k, words in parts.items() if k in values]
    text = f"reference effect {values[EFFECT]:.4f}"
    return f"{text} ({', '.join(details)})" if details else text
