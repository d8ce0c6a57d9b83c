"""`python -m tests.fuzz`: damage the files that readers are given, and see each read or refused.

A finding is another outcome: an error that is not the project's own line, more memory than the
reader may take, more than a few seconds, or the end of the process. Each is made small and kept in
tests/fuzz/cases, which the tests replay. Counts and findings are added to results.json, and the
table of docs/reliability.md is written anew. Exits with 1 if there are findings.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from ic_jax.measuring.origin import origin
from tests.fuzz.cases import keep
from tests.fuzz.process import fuzz_in_process
from tests.fuzz.reader import ROOT
from tests.fuzz.readers import READERS

RESULTS = Path(__file__).parent / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
MARKS = "<!-- fuzzing -->\n", "<!-- end of fuzzing -->"
PACKAGES = ("hypothesis", "pillow", "numpy", "pyarrow", "tokenizers", "gguf", "array_record")


def main() -> int:
    """Fuzz the named readers, each in a process of its own; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--minutes", type=float, default=30, help="in all (default: 30)")
    args = parser.parse_args()
    names = args.readers or list(READERS)
    if unknown := [name for name in names if name not in READERS]:
        print(f"no reader is called {', '.join(unknown)}", file=sys.stderr)
        return 2
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"readers": {}}
    found = 0
    for name in names:
        tally, seconds = fuzz_in_process(name, 60 * args.minutes / len(names), int(time.time()))
        entry = results["readers"].setdefault(name, {"cases": 0, "read": 0, "seconds": 0})
        entry["cases"] += tally.outcomes.total()
        entry["read"] += tally.outcomes["read"]
        entry["seconds"] += seconds
        entry["findings"] = sorted({*entry.get("findings", []), *tally.findings})
        for case in tally.cases.values():
            keep(name, *case)
        found += len(tally.findings)
        results |= origin(*PACKAGES)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {dict(tally.outcomes)}", *tally.findings.values(), sep="\n  ", flush=True)
    write_table(results)
    return int(found > 0)


def table(results: dict[str, Any]) -> str:
    """Return the figures as a table, with their origin."""
    head = ["| reader | cases | read | findings, all mended |", "| --- | --- | --- | --- |"]
    entries = results["readers"]
    figures = {n: [e["cases"], e["read"], len(e["findings"])] for n, e in entries.items()}
    figures["all"] = [sum(column) for column in zip(*figures.values(), strict=True)]
    rows = [f"| {name} | {' | '.join(map(str, row))} |" for name, row in figures.items()]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    minutes = sum(entry["seconds"] for entry in entries.values()) / 60
    last = f"Last run: commit {results['commit']}, {results['date']}; {versions}; "
    return "\n".join([*head, *rows, "", f"{last}{minutes:.0f} minutes of one core in all.\n"])


def write_table(results: dict[str, Any]) -> None:
    """Write the table between the marks of docs/reliability.md."""
    begin, end = MARKS
    text, page = begin + table(results) + end, PAGE.read_text()
    PAGE.write_text(re.sub(f"{begin}.*{end}", lambda _: text, page, flags=re.DOTALL))


if __name__ == "__main__":
    sys.exit(main())
