"""The list of mutations: each can still be applied, and names a test that is there."""

import ast
from collections import Counter

from tests.mutations.catalogue import BEGIN, DOCS, END, ROOT, read_list, read_results, table

MUTATIONS = read_list()


def test_every_mutation_can_be_applied():
    assert [problem for m in MUTATIONS if (problem := m.problem())] == []
    for m in MUTATIONS:
        ast.parse(m.applied(ROOT), m.name)


def test_every_mutation_has_its_name_and_its_test():
    assert len(MUTATIONS) >= 80
    assert [name for name, count in Counter(m.name for m in MUTATIONS).items() if count > 1] == []
    for m in MUTATIONS:
        file, _, test = m.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text(), m.name


def test_all_are_caught_as_the_docs_say():
    results = read_results()
    assert results["mutations"].keys() == {m.name for m in MUTATIONS}
    assert {entry["outcome"] for entry in results["mutations"].values()} == {"caught"}
    assert f"{BEGIN}{table(MUTATIONS, results)}{END}" in DOCS.read_text()
