"""The list of mutations follows the code; one that is caught and one that is not are told apart."""

from benchmarks import mutations


def test_every_mutation_applies_once_and_names_tests_that_exist():
    assert mutations.problems() == []
    assert len({(m.file, m.old, m.new) for m in mutations.MUTATIONS}) == len(mutations.MUTATIONS) >= 60


def test_a_caught_mutation_is_told_from_one_that_survives(tmp_path):
    mutations.copy_tree(tmp_path)
    known = next(m for m in mutations.MUTATIONS if m.file == "flow/paths.py" and m.new == "return noise - x")
    before = (tmp_path / "nextstep_jax" / known.file).read_text()
    assert mutations.is_caught(known, tmp_path)
    assert not mutations.is_caught(known._replace(new="return x - noise + 0.0"), tmp_path)
    assert (tmp_path / "nextstep_jax" / known.file).read_text() == before
