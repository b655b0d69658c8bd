"""What a release says of its limits when a group gives several images."""

from server.release.limits import COUNT_LIMIT, limits_of
from tests.studies import small_plan, small_study


def test_several_images_a_group_are_said_not_to_be_independent_and_not_to_count_patients() -> None:
    one = small_study()
    several = small_study(synthesis={**small_plan()["synthesis"], "outputs_per_group": 3})
    assert COUNT_LIMIT in limits_of(one)
    assert not any("not independent" in line for line in limits_of(one))
    assert COUNT_LIMIT not in limits_of(several)
    assert any(
        "up to 3 images" in line and "not independent" in line for line in limits_of(several)
    )


def test_a_release_says_that_its_averages_were_moved_out() -> None:
    moved = small_study(synthesis={**small_plan()["synthesis"], "spread_directions": 2})
    assert sum("along 2 principal directions" in line for line in limits_of(moved)) == 1
    assert not any("principal directions" in line for line in limits_of(small_study()))
