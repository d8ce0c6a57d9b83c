"""The list of mutations and their results, as JSON beside this file."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIST, RESULTS = (Path(__file__).with_name(name) for name in ("list.json", "results.json"))
DOCS = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- mutations -->\n", "<!-- end of mutations -->\n"


@dataclass(frozen=True)
class Mutation:
    """A change of one text of a file, and the narrowest test that fails with it."""

    area: str
    name: str
    file: str
    old: str  # occurs once in the file
    new: str
    test: str  # pytest's id

    def problem(self, root: Path = ROOT) -> str | None:
        """Return why it cannot be applied; None if it can."""
        path = root / self.file
        count = path.read_text().count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.name}: {self.old!r} occurs {count} times in {self.file}, not once"
        return None

    def applied(self, root: Path) -> str:
        """Return the text of the file with the error in it."""
        return (root / self.file).read_text().replace(self.old, self.new)

    def digest(self, root: Path = ROOT) -> str:
        """Hash all that decides the outcome but the rest of the tree."""
        texts = [(root / self.file).read_text(), (root / self.test.partition("::")[0]).read_text()]
        return hashlib.sha256(repr((self, texts)).encode()).hexdigest()[:16]


def read_list() -> list[Mutation]:
    """Read the mutations, in order of their files, so that those of one file run together."""
    areas = json.loads(LIST.read_text())
    mutations = [Mutation(area, **entry) for area, entries in areas.items() for entry in entries]
    return sorted(mutations, key=lambda m: m.file)


def read_results() -> dict[str, Any]:
    """Read the results of earlier runs."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"mutations": {}}


def write_results(results: dict[str, Any]) -> None:
    """Write the results whole or not at all."""
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(part, RESULTS)


def table(mutations: list[Mutation], results: dict[str, Any]) -> str:
    """Return the counts by area as Markdown, with where and when they were obtained."""
    outcomes = {name: entry["outcome"] for name, entry in results["mutations"].items()}
    rows = ["| area | errors | caught | survived |", "| --- | --- | --- | --- |"]
    total = [0, 0, 0]
    for area in dict.fromkeys(sorted(m.area for m in mutations)):
        of_area = [outcomes.get(m.name) for m in mutations if m.area == area]
        counts = [len(of_area), of_area.count("caught"), of_area.count("survived")]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        rows.append(f"| {area} | {' | '.join(map(str, counts))} |")
    rows.append(f"| all | {' | '.join(map(str, total))} |")
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    minutes = sum(entry["seconds"] for entry in results["mutations"].values()) / 60
    said = f"Last run: commit {results['commit'][:9]}, {results['date']}; {versions}; "
    return "\n".join([*rows, "", f"{said}{minutes:.0f} minutes of one core.\n"])


def write_table(mutations: list[Mutation], results: dict[str, Any]) -> None:
    """Put the table into docs/reliability.md, between its marks."""
    before, _, rest = DOCS.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}{table(mutations, results)}{END}{after}")
