"""What tests/conftest.py changes in the process of the tests leaves every check as it was."""

import gc
import weakref


class Cycle:
    """Something that only a search for garbage frees."""

    def __init__(self) -> None:
        self.me = self


def test_the_search_for_garbage_spares_modules_and_collected_tests() -> None:
    assert gc.isenabled()
    # numpy alone makes more, and each module of tests belongs to those who are spared
    assert gc.get_freeze_count() > 10_000
    assert not any(one is test_garbage_of_a_test_is_found for one in gc.get_objects())


def test_garbage_of_a_test_is_found() -> None:
    made = weakref.ref(Cycle())
    gc.collect()
    assert made() is None
