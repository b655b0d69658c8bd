"""Every cap that a study could meet at its end is met at `plan`."""

from typing import Any

import pytest

from common.errors import PolicyError
from common.privacy import boundary
from common.study.plan import Study
from kohort.layout import IMAGES_CAP, is_allowed_name
from server.operator.caps import check_caps, most_images, need_of, release_bytes
from server.operator.config import Limits
from tests.studies import small_plan, vessels_plan

UPDATES = {"gan": 1 << 20}
MIB = 1 << 20


def images_of(**changes: Any) -> Study:
    return Study.model_validate(small_plan(**changes))


def pairs_of(**changes: Any) -> Study:
    return Study.model_validate(vessels_plan(**changes))


def sites(count: int) -> list[dict[str, str]]:
    return [{"name": f"hospital-{number}"} for number in range(count)]


MANY = {"sites": sites(50), "intake__size_px": 512}
REFUSED: dict[str, tuple[Study, dict[str, int], str]] = {
    "an update that no gate lets through": (
        images_of(), {"gan": boundary.UPDATE_CAP_BYTES + 4}, "lower models.gan.width",
    ),
    "more images than five digits number": (
        images_of(synthesis__max_images_per_site=50_000), UPDATES, "at most 33,333 for 3 sites",
    ),
    "fewer images than the release asks for": (
        images_of(release__min_images=121), UPDATES, "raise synthesis.max_images_per_site",
    ),
    "more pairs than one file holds": (
        pairs_of(intake__size_px=128, models__wgan__released_pairs=200_000), UPDATES, "",
    ),
    "more replies of a round than the inbox holds": (
        images_of(sites=sites(50)), {"gan": 512 * MIB}, "limits.inbox_gib: 27",
    ),
    "a larger folder than studies may have": (
        images_of(**MANY, synthesis__max_images_per_site=2_000), UPDATES,
        "limits.studies_gib",
    ),
    "a larger release than releases may have": (
        images_of(**MANY, synthesis__max_images_per_site=2_000), UPDATES, "limits.releases_gib",
    ),
}  # fmt: skip
LIMITS = {
    "a larger folder than studies may have": Limits(studies_gib=10, releases_gib=1000),
    "a larger release than releases may have": Limits(studies_gib=1000),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_plan_is_refused_with(sentence: str) -> None:
    study, updates, fix = REFUSED[sentence]
    with pytest.raises(PolicyError) as refused:
        check_caps(study, updates, LIMITS.get(sentence, Limits()))
    assert refused.value.code == "E-PLAN-ROOM"
    assert fix in str(refused.value.hint)


def test_a_plan_within_all_caps_says_what_it_may_need() -> None:
    need = check_caps(images_of(), UPDATES, Limits())
    assert need.images == 3 * 40
    assert need == need_of(images_of(), UPDATES)
    assert 0 < need.release_bytes < need.study_bytes


def test_the_most_images_have_names_that_a_release_may_hold() -> None:
    assert is_allowed_name(f"data/train/none/{IMAGES_CAP - 1:05d}.png")
    assert not is_allowed_name(f"data/train/none/{IMAGES_CAP:05d}.png")
    assert is_allowed_name(f"pages/{IMAGES_CAP // 200 + 1000:04d}.html")


def test_a_release_needs_more_with_every_image_and_pixel() -> None:
    assert most_images(pairs_of()) == pairs_of().models.wgan.released_pairs  # type: ignore[union-attr]
    small = release_bytes(images_of(), 10)
    assert 10 * release_bytes(images_of(), 10) == release_bytes(images_of(), 100)
    assert release_bytes(images_of(intake__size_px=64), 10) > 2 * small
