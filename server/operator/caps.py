"""The most that a plan's rounds and its release may come to, against the caps that they meet.

In: a plan, the bytes of each model's update, the server's limits. Out: `Need`, or PolicyError with
the key to change.
Guarantees: every figure follows from public constants of the plan; a plan that passes meets no cap
on sizes and numbers when its release is sealed.
Not covered: what is free on the disk (quota.py), labels of pairs (releasable.py).

The caps:
  1. an update is at most what the gate lets through;
  2. a release numbers its images with five digits, and asks for no more than can come;
  3. drawn pairs are stored in one file;
  4. what all sites push in one round fits into limits.inbox_gib: sites whose pushes are all half
     done would wait for each other;
  5. the study's folder fits into limits.studies_gib, the release into limits.releases_gib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import PolicyError
from common.privacy import boundary
from common.study.plan import Study
from kohort.layout import IMAGES_CAP
from server.operator.config import Limits
from server.operator.quota import GIB

CODE = "E-PLAN-ROOM"
PAIRS_CAP_BYTES = 4 << 30  # the file of a study's drawn pairs
REPLY_EXTRA_BYTES = 16 << 20  # header, signature, and what Flower adds
PICTURE_EXTRA_BYTES = 4096  # of one file: its head, its lines in tables and pages, a block of disk
GRAPH_BYTES = 4 << 20  # of a model: its operations, names and architecture
THUMBNAIL_PX = 128
ROW_BYTES = 9  # label and flag of an image in a site's batch


@dataclass(frozen=True)
class Need:
    """The most that a plan may need: images of its release, and bytes on the server's disk."""

    images: int
    release_bytes: int
    study_bytes: int
    inbox_bytes: int


def need_of(study: Study, updates: Mapping[str, int]) -> Need:
    """Return what a plan may need at most; `updates`: the bytes of each model's update."""
    images = most_images(study)
    sizes = list(updates.values())
    weights = models_bytes(sizes) if study.release.models else 0
    reply = max(sizes, default=0)
    if study.synthesis is not None:
        reply = max(reply, boundary.PART_CAP_BYTES)
    return Need(
        images=images,
        release_bytes=release_bytes(study, images) + weights,
        study_bytes=study_bytes(study, sizes),
        inbox_bytes=len(study.sites) * (reply + REPLY_EXTRA_BYTES) + max(sizes, default=0),
    )


def models_bytes(sizes: Sequence[int]) -> int:
    """Return a bound on the models of a release; `sizes`: of the weights of each.

    The ONNX file holds no more numbers than the weights; its operations take the rest.
    """
    return sum(2 * size + GRAPH_BYTES for size in sizes)


def most_images(study: Study) -> int:
    """Return the most images, or pairs, that a release of the plan may hold."""
    if study.synthesis is not None:
        return len(study.sites) * study.synthesis.max_images_per_site
    wgan = study.models.wgan
    return wgan.released_pairs if wgan is not None else 0


def release_bytes(study: Study, images: int) -> int:
    """Return a bound on what a release of so many images needs on disk while it is built.

    Of each image the files, also inside Parquet and a tar; its small picture on a page; its pixels
    twice while the order is made.
    """
    size = study.intake.size_px
    pixels = size**2 * study.intake.channels
    small = min(size, THUMBNAIL_PX) ** 2 * study.intake.channels
    files = 7 if study.synthesis is None else 3
    # a file that does not get smaller grows by a thousandth; base64 takes a third more
    one = files * (pixels + pixels // 500 + PICTURE_EXTRA_BYTES) + 4 * small // 3 + 2 * pixels
    return images * one


def study_bytes(study: Study, sizes: Sequence[int]) -> int:
    """Return a bound on what the rounds of a study keep on disk at once; `sizes`: of its models.

    Of one model at a time: an update of each site, the weights before and after. Of every model its
    last weights; of each site its images.
    """
    sites = len(study.sites)
    weights = sum(sizes) + (sites + 2) * max(sizes, default=0)
    images = 0
    if study.synthesis is not None:
        pixels = study.intake.size_px**2 * study.intake.planes
        whole = study.synthesis.max_images_per_site * (pixels + ROW_BYTES)
        images = sites * (whole + boundary.PART_CAP_BYTES)
    return weights + images


def check_caps(study: Study, updates: Mapping[str, int], limits: Limits) -> Need:
    """Return what a plan may need; raises PolicyError (E-PLAN-ROOM) where that meets a cap."""
    need = need_of(study, updates)
    # (1) an update passes the gate
    for model, size in updates.items():
        if size > boundary.UPDATE_CAP_BYTES:
            raise _refusal(
                f"models.{model}: an update has {_gib(size)}, expected at most "
                f"{_gib(boundary.UPDATE_CAP_BYTES)}: the gate lets no more pass",
                f"lower models.{model}.width, or intake.size_px",
            )
    # (2) five digits number the images, and enough can come
    if need.images > IMAGES_CAP:
        raise _refusal(
            f"a release could hold {need.images:,} images, at most {IMAGES_CAP:,} expected",
            f"synthesis.max_images_per_site: at most {IMAGES_CAP // len(study.sites):,} "
            f"for {len(study.sites)} sites",
        )
    if need.images and study.release.min_images > need.images:
        raise _refusal(
            f"release.min_images is {study.release.min_images:,}, "
            f"at most {need.images:,} images can come",
            "lower release.min_images, or raise synthesis.max_images_per_site",
        )
    # (3) pairs are stored in one file
    pair = 2 * study.intake.size_px**2
    if study.synthesis is None and need.images * pair > PAIRS_CAP_BYTES:
        raise _refusal(
            f"models.wgan.released_pairs: {_gib(need.images * pair)} of pairs, "
            f"at most {_gib(PAIRS_CAP_BYTES)} are stored",
            f"models.wgan.released_pairs: at most {PAIRS_CAP_BYTES // pair:,}",
        )
    # (4), (5) the server's limits
    _check_limit("inbox_gib", need.inbox_bytes, limits.inbox_gib, "the replies of one round")
    _check_limit("studies_gib", need.study_bytes, limits.studies_gib, "the study's folder")
    _check_limit("releases_gib", need.release_bytes, limits.releases_gib, "its release")
    return need


def _check_limit(key: str, size: int, most_gib: int, what: str) -> None:
    """Steps 4 and 5: one limit of server.yaml."""
    if size > most_gib * GIB:
        raise _refusal(
            f"{what} may need {_gib(size)}, limits.{key} of server.yaml allows {most_gib} GiB",
            f"limits.{key}: {-(-size // GIB)} in server.yaml, and `plan --state FOLDER`; "
            "or fewer sites or images, or smaller models",
        )


def _gib(size: int) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f} GiB"


def _refusal(what: str, fix: str) -> PolicyError:
    return PolicyError(what, hint=fix, code=CODE)
