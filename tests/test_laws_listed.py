"""The lists of `tests/laws.py` stay true to the tree."""

from tests import laws


def test_laws_exist_and_faults_can_be_seeded():
    assert not laws.problems()


def test_the_checks_see_what_is_missing(tmp_path):
    """In an empty tree no test exists and no formula is found."""
    actual = laws.problems(tmp_path)
    tests = sum(len(ids) for ids in laws.LAWS.values())
    assert len(actual) == tests + 2 * len(laws.FAULTS)
