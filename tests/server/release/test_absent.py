"""Which sites a release names as missing or in quarantine."""

from __future__ import annotations

from server.release.absent import absent_sites
from tests.studies import small_study


def test_every_site_that_is_in_quarantine_or_sent_nothing_is_named() -> None:
    study = small_study()
    everybody = [site.name for site in study.sites]
    assert absent_sites(study, everybody, {}) == []
    found = absent_sites(study, ["hospital-a"], {"hospital-a": "E-X", "hospital-b": "E-Y"})
    assert found == [
        "hospital-a is in quarantine (E-X). Its updates are in the weights.",
        "hospital-b is in quarantine (E-Y). Nothing that it sent is among the images. "
        "What was accepted from it before stays in the weights.",
        "hospital-c sent nothing to this release. What was accepted from it before stays in the "
        "weights.",
    ]


def test_a_revoked_site_is_named_whether_it_sent_or_not() -> None:
    found = absent_sites(small_study(), ["hospital-a", "hospital-c"], {}, {"hospital-a"})
    assert found[0] == "hospital-a is revoked. What was accepted from it before is in this release."
    assert found[1].startswith("hospital-b sent nothing")
