"""Whether a plan's checkpoints belong to its sizes, before anything is signed or spent.

In: a plan and the folder of its checkpoints, of which only capped headers are read.
Out: nothing, or PolicyError (E-PLAN-CHECKPOINT) with every problem and the fix.
Guarantees: names and shapes of each checkpoint are those of the plan's model, without torch.
Not covered: the numbers in a checkpoint (whoever loads it looks at them), its SHA-256 (bundle.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import PolicyError, RefusedError
from common.models import basis
from common.models.sizes import style_count
from common.study.checkpoint_sizes import Sizes, planned_sizes, recognise
from common.study.families import FAMILIES, Shapes
from common.study.fields import CHECKPOINT_CAP_BYTES, Checkpoint
from common.study.plan import Study
from common.study.planned import ENCODER_PREFIX, planned_encoder, planned_shapes
from common.study.planned import shapes_with_prefix as named
from common.wire import tensors


@dataclass(frozen=True)
class Misfit:
    """A checkpoint that is not of the plan's model: the key that names it, why, and the fix."""

    key: str
    text: str
    fix: str


def check_checkpoints(study: Study, folder: Path) -> None:
    """Raise PolicyError (E-PLAN-CHECKPOINT) unless every checkpoint fits the plan's sizes.

    `folder`: the plan's folder, or a bundle's checkpoints/. A file that is not there is passed
    over: signing and approving name it.
    """
    found = list(misfits(study, folder))
    if not found:
        return
    lines = [f"{misfit.key}: {misfit.text}" for misfit in found]
    fixes = dict.fromkeys(misfit.fix for misfit in found)
    raise PolicyError(
        f"plan {study.name}: " + "\n".join(lines) + "; nothing was spent",
        hint="; or ".join(fixes),
        code="E-PLAN-CHECKPOINT",
    )


def misfits(study: Study, folder: Path) -> Iterator[Misfit]:
    """Yield every checkpoint of the plan that is not of the plan's model."""
    for name, plan in study.models.trained().items():
        family = FAMILIES[name]
        yield from _compare(
            study, f"models.{name}", plan.start, folder, family.owns, planned_shapes(study, family)
        )
    encoder = study.models.encoder
    if encoder and study.models.gan:
        expected = named({ENCODER_PREFIX: planned_encoder(study)})

        def owns(name: str) -> bool:
            return name.startswith(ENCODER_PREFIX)

        yield from _compare(study, "models.encoder", encoder.start, folder, owns, expected)
    yield from _basis_misfits(study, folder)
    yield from _code_basis_misfits(study, folder)


def checkpoint_file(checkpoint: Checkpoint | None, folder: Path) -> Path | None:
    """Return where a checkpoint lies, beside the plan or in a bundle; None if nowhere."""
    if checkpoint is None:
        return None
    for path in (folder / checkpoint.file, folder / checkpoint.name):
        if path.is_file():
            return path
    return None


def fits(found: Shapes, expected: Shapes) -> bool:
    """Return whether a checkpoint has exactly the plan's tensors."""
    return dict(found) == dict(expected)


def _compare(
    study: Study,
    key: str,
    checkpoint: Checkpoint | None,
    folder: Path,
    owns: Callable[[str], bool],
    expected: Shapes,
) -> Iterator[Misfit]:
    """One model's checkpoint against the plan."""
    path = checkpoint_file(checkpoint, folder)
    if path is None:
        return
    place = f"{key}.start"
    try:
        stored = _stored_shapes(path)
    except RefusedError as error:
        yield Misfit(place, f"damaged: {error}", f"copy {path.name} anew, {_pretrain_fix(key)}")
        return
    found = {name: shape for name, shape in stored.items() if owns(name)}
    if fits(found, expected):
        return
    planned = planned_sizes(study, key)
    sizes = recognise(key, found)
    if sizes is None or sizes == planned:
        other = _other_model(key, stored)
        text = f"a checkpoint of {other}" if other else _difference(expected, found)
        yield Misfit(place, f"{path.name}: {text}", _pretrain_fix(key).removeprefix("or "))
        return
    changes = {name: value for name, value in sizes.items() if planned[name] != value}
    asked = ", ".join(f"{name} {planned[name]}" for name in changes)
    text = f"{path.name} was made for {_words(changes)}; the plan has {asked}"
    yield Misfit(place, text, f"set {_keys(changes)}, {_pretrain_fix(key)}")


def _stored_shapes(path: Path) -> Shapes:
    """Shapes of a checkpoint by name, from its header; raises RefusedError for a damaged file."""
    stored = tensors.shapes(path, max_bytes=CHECKPOINT_CAP_BYTES)
    return {name: shape for name, (_, shape) in stored.items()}


def _other_model(key: str, stored: Shapes) -> str:
    """The key of the model that a checkpoint is of, where it is another one's; else ""."""
    prefixes = {f"models.{family.name}": family.prefixes for family in FAMILIES.values()}
    prefixes["models.encoder"] = (ENCODER_PREFIX,)
    for other, own in prefixes.items():
        found = {name: shape for name, shape in stored.items() if name.startswith(own)}
        if other != key and recognise(other, found) is not None:
            return other
    return ""


def _basis_misfits(study: Study, folder: Path) -> Iterator[Misfit]:
    """The basis of `privatize` against the flow's coordinates."""
    plan = study.privatize
    glow = study.models.glow
    if plan is None or glow is None or plan.components is None:
        return
    coordinates = glow.coordinates(study.intake.value_count, plan.levels)
    yield from _compare_basis(
        "synthesis.privatize.basis",
        checkpoint_file(plan.basis, folder),
        (plan.components, coordinates),
        f"levels {plan.levels}, {study.intake.size_px} px",
        "make a basis of the plan's own flow",
    )


def _code_basis_misfits(study: Study, folder: Path) -> Iterator[Misfit]:
    """The basis of `anchors` against the generator's codes."""
    plan = study.synthesis.anchors if study.synthesis else None
    gan = study.models.gan
    if plan is None or gan is None:
        return
    yield from _compare_basis(
        "synthesis.anchors.basis",
        checkpoint_file(plan.basis, folder),
        (plan.components, style_count(study.intake.size_px) * gan.latent),
        f"latent {gan.latent}, {study.intake.size_px} px",
        "make one of the plan's own checkpoints: python -m server.pretrain.code_basis",
    )


def _compare_basis(
    place: str, path: Path | None, needed: tuple[int, int], words: str, fix: str
) -> Iterator[Misfit]:
    """A basis' file against the directions and coordinates that the plan needs.

    It is read whole: else a child would refuse it, after the ledger counted its images as spent.
    """
    if path is None:
        return
    try:
        shape = basis.load(path).directions.shape
    except RefusedError as error:
        yield Misfit(place, f"damaged: {error}", f"copy {path.name} anew, or {fix}")
        return
    components, coordinates = needed
    if shape[0] >= components and shape[1] == coordinates:
        return
    yield Misfit(
        place,
        f"{path.name} has directions {list(shape)}; the plan needs at least {components} "
        f"of {coordinates} coordinates ({words})",
        fix,
    )


# --- words ----------------------------------------------------------------------------------------


def _words(sizes: Sizes) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def _keys(sizes: Sizes) -> str:
    return ", ".join(f"{name}: {value}" for name, value in sizes.items())


def _pretrain_fix(key: str) -> str:
    model = key.removeprefix("models.").replace("encoder", "gan")
    return f"or pretrain a checkpoint of the plan's sizes (kohort-server pretrain --model {model})"


def _difference(expected: Shapes, found: Shapes) -> str:
    """How the tensors differ from the plan's, for a checkpoint of no architecture of ours."""
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    other = sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of the plan's model are missing ({missing[0][:80]})")
    if unknown:
        parts.append(f"{len(unknown)} are not part of it ({unknown[0][:80]})")
    if other:
        name = other[0]
        parts.append(
            f"{len(other)} have another shape ({name[:80]}: {list(found[name])}, expected "
            f"{list(expected[name])})"
        )
    return "; ".join(parts)
