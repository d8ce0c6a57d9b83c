"""`python -m tests.mutations`: apply every error of list.json to a copy, and see it caught.

Writes results.json beside the list and the table in docs/reliability.md. What was caught before and
has not changed since, neither the file, the error nor the test, is not tried again; interrupt it
and start it again at will. Exits with 1 if an error survives.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.mutations.catalogue import (
    ROOT,
    Mutation,
    read_list,
    read_results,
    write_results,
    write_table,
)
from tests.mutations.trial import changed, copy_tree, import_foreign, trial

LIBRARIES = ("jax", "flax", "optax", "torch", "diffusers", "transformers")
OUTCOMES = {"failed": "caught", "passed": "survived"}


def main() -> int:
    """Run the mutations that are pending; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutations to try; by default all")
    parser.add_argument("--all", action="store_true", help="try again what was caught before, too")
    args = parser.parse_args()
    mutations, results = read_list(), read_results()
    if problems := [problem for m in mutations if (problem := m.problem())]:
        print(*problems, sep="\n", file=sys.stderr)
        return 2
    known = {m.name for m in mutations}
    if unknown := [name for name in args.names if name not in known]:
        print(f"no mutation is called {', '.join(unknown)}", file=sys.stderr)
        return 2
    done = results["mutations"]
    results["mutations"] = done = {m.name: done[m.name] for m in mutations if m.name in done}
    pending = [
        m
        for m in mutations
        if (m.name in args.names if args.names else args.all or not _holds(m, done.get(m.name)))
    ]
    print(f"{len(pending)} of {len(mutations)} mutations to try", flush=True)
    if pending:
        _run(pending, results)
    lost = [name for name, entry in done.items() if entry["outcome"] != "caught"]
    missing = len(mutations) - len(done)
    print(f"{len(done) - len(lost)} of {len(mutations)} caught", *lost, sep="\n  ")
    if not missing:
        write_table(mutations, results)
    return int(bool(lost or missing))


def _holds(mutation: Mutation, entry: dict[str, Any] | None) -> bool:
    """Return whether an earlier result is still that of the mutation."""
    return bool(entry) and entry["outcome"] == "caught" and entry["digest"] == mutation.digest()


def _run(pending: list[Mutation], results: dict[str, Any]) -> None:
    import_foreign()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    results |= {
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "versions": {"Python": sys.version.split()[0]}
        | {name: version(name) for name in LIBRARIES},
    }
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        scratch = Path(folder)
        copy_tree(scratch)
        passing: set[str] = set()
        for file, of_file in groupby(pending, key=lambda m: m.file):
            seconds, caught, group = 0.0, 0, list(of_file)
            seconds_without = _pass_without_errors(scratch, {m.test for m in group} - passing)
            passing |= {m.test for m in group}
            for m in group:
                with changed(scratch / m.file, m.applied(scratch)):
                    result = trial(scratch, [m.test])
                outcome = OUTCOMES.get(result["outcome"], result["outcome"])
                entry = {"outcome": outcome, "by": result["failed"]}
                entry |= {"seconds": round(result["seconds"], 1), "digest": m.digest(scratch)}
                results["mutations"][m.name] = entry
                write_results(results)
                seconds, caught = seconds + result["seconds"], caught + (outcome == "caught")
                print(f"  {outcome:8} {result['seconds']:5.1f} s  {m.name}", flush=True)
            took = f"{seconds / 60:.2f} min, {seconds_without / 60:.2f} min without errors"
            print(f"{file}: {caught} of {len(group)} caught, {took}", flush=True)


def _pass_without_errors(scratch: Path, tests: set[str]) -> float:
    """Run tests in the unchanged copy; return the seconds, or exit where one fails."""
    if not tests:
        return 0.0
    result = trial(scratch, sorted(tests))
    if result["outcome"] != "passed":
        log = (scratch / ".trial.log").read_text()
        raise SystemExit(f"{log}\na test fails without any error: {result}")
    return result["seconds"]


if __name__ == "__main__":
    sys.exit(main())
