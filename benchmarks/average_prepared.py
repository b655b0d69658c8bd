"""One part of quality_fundus.py with its networks and inverted members, each made once."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.average_people import Part
from client.synthesize.align import AlignmentPlan
from client.synthesize.group import Roster, patient_codes, roster
from client.synthesize.invert import Inversion, invert
from client.synthesize.reference import InversionPlan, Reference, make_reference
from common.arrays import Floats, Images, Labels
from common.models.encoder import load_encoder
from common.models.images import to_unit
from common.models.pretrained_features import load_features
from common.models.stylegan import load_critic, load_generator
from common.storage.files import atomic_write, read_capped
from common.study.plan import Study
from common.study.training import GanPlan
from common.wire.tensors import read
from server.evaluate import siamese
from server.evaluate.attack_spaces import Networks
from server.evaluate.attacks import Battery, People
from server.evaluate.extractors import FEATURE_UNIT

KEY = b"kohort-benchmark-quality-fundus!"
CAP_BYTES = 1 << 31


class PreparedPart:
    """One part with its networks, its inverted members and its files in `work`; everything is
    computed once.
    """

    def __init__(self, part: Part, work: Path, study: Study) -> None:
        self.part = part
        self.study = study
        cells = self.inversion_plan.coarse_cells
        self.work = work / f"{part.name}-{digest_of(part.checkpoint)}-coarse{cells}"
        self.work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def networks(self) -> Networks:
        """Generator, critic and encoder of the checkpoint; sizes from the tensors."""
        gan = read(self.part.checkpoint / "gan.safetensors", max_bytes=CAP_BYTES)
        coder = read(self.part.checkpoint / "encoder.safetensors", max_bytes=CAP_BYTES)
        file = self.part.checkpoint / "sizes.json"
        given = json.loads(file.read_text()) if file.is_file() else {}
        plan = plan_with_sizes(self.study, given)
        width = plan.pop("encoder_width")
        model = GanPlan.model_validate(plan)
        size = self.part.members.images.shape[1]
        channels = self.part.channels
        return Networks(
            load_generator(gan, model, size, channels),
            load_critic(gan, model, size, channels),
            load_encoder(coder, width, model.latent, size, channels),
        )

    @cached_property
    def known(self) -> Reference:
        """What the generator alone says."""
        assert self.networks.generator is not None and self.networks.encoder is not None
        random = torch.Generator().manual_seed(1)
        return make_reference(
            self.networks.generator, self.networks.encoder, self.inversion_plan, random
        )

    @property
    def inversion_plan(self) -> InversionPlan:
        """The product's constants."""
        assert self.study.synthesis is not None and self.study.models.encoder is not None
        return InversionPlan(
            steps=self.study.synthesis.inversion_steps,
            iterations=self.study.models.encoder.iterations,
            coarse_cells=self.study.synthesis.coarse_cells,
        )

    @property
    def alignment_plan(self) -> AlignmentPlan:
        """The product's constants."""
        plan = self.study.synthesis
        assert plan is not None
        return AlignmentPlan(
            steps=plan.alignment_steps,
            windows=plan.windows,
            content_weight=plan.content_weight,
            style_weight=plan.style_weight,
            trust_weight=plan.trust_weight,
        )

    @cached_property
    def seen(self) -> Inversion:
        """Every member image inverted, from a file where there is one."""
        return self._inverted("inverted.npz", self.part.members.images)

    @cached_property
    def seen_heldout(self) -> Inversion:
        """The same of the held-out images."""
        return self._inverted("inverted-heldout.npz", self.part.heldout.images)

    @cached_property
    def seen_mirrored(self) -> Inversion:
        """The members' images as those of the other eye."""
        mirrored = np.ascontiguousarray(self.part.members.images[:, :, ::-1])
        return self._inverted("inverted-mirrored.npz", mirrored)

    def _inverted(self, name: str, images: Images) -> Inversion:
        """Images inverted by the product, from a file of `work` where there is one."""
        file = self.work / name
        known = self.known
        if not file.is_file():
            assert self.networks.generator is not None and self.networks.encoder is not None
            found = invert(
                images,
                self.networks.generator,
                self.networks.encoder,
                self.inversion_plan,
                known,
            )
            save(file, **vars(found))
        with np.load(file, allow_pickle=False) as data:
            return Inversion(**{name: data[name] for name in data})

    @cached_property
    def encoded(self) -> NDArray[np.float32]:
        """The encoder's codes of every member image, [N, L * d_w], neither whitened nor refined."""
        encoder = self.networks.encoder
        generator = self.networks.generator
        assert encoder is not None and generator is not None
        plan = self.inversion_plan
        images = self.part.members.images
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), plan.batch):
                x = to_unit(images[start : start + plan.batch])
                found = encoder.invert(x, generator, plan.iterations, keep_best=True)
                parts.append(found.codes.flatten(1).numpy())
        return np.concatenate(parts)

    @cached_property
    def who(self) -> Roster:
        """The members with an accepted image, each in the stratum of the label."""
        members = self.part.members
        names = [f"{i:05d}" for i in range(members.person_of.max() + 1)]
        return roster(names, members.person_of, members.labels, key=KEY, usable=self.seen.accepted)

    @cached_property
    def codes(self) -> NDArray[np.float64]:
        """The members' whitened codes in roster order."""
        return patient_codes(self.seen.points, self.who)

    @cached_property
    def battery(self) -> Battery:
        """The attackers, with the public people as their reference, or the held-out ones."""
        public = self.part.public.images if len(self.part.public.images) else None
        return Battery(self.people, self.networks, public)

    @cached_property
    def blind(self) -> Battery:
        """The same attackers where releases have no label, so that everybody is comparable with
        every release.
        """
        blind = copy.copy(self.battery)
        blind.who = replace(self.people, labels=np.zeros_like(self.people.labels))
        return blind

    @cached_property
    def people(self) -> People:
        """Members and held-out people as the attacker knows them.

        An image that a site refuses is in no average, so neither side has any of those: else people
        whom nobody took would count as members, or acceptance would look like membership.
        """
        sides = (self.part.members, self.part.heldout)
        members, heldout = (
            side.rows(np.flatnonzero(found.accepted)).renumbered()
            for side, found in zip(sides, (self.seen, self.seen_heldout), strict=True)
        )
        offset = members.person_of.max() + 1
        images = np.concatenate([members.images, heldout.images])
        labels = np.concatenate([members.labels, heldout.labels])
        person_of = np.concatenate([members.person_of, heldout.person_of + offset])
        return People(
            images, labels, labels, person_of, np.arange(len(images)) < len(members.images)
        )

    @cached_property
    def numbers(self) -> Labels:
        """By member, the number among `people`; -1 for those of whom no image was accepted."""
        members = self.part.members.person_of
        numbers = np.full(members.max() + 1, -1)
        accepted = np.unique(members[self.seen.accepted])
        numbers[accepted] = np.arange(len(accepted))
        return numbers

    @cached_property
    def recognisers(self) -> dict[str, Callable[[Images], Floats]]:
        """What an attacker recognises a person by: pretrained features, and a siamese network of
        the public people, or else of the held-out ones, where enough of them have two images.
        """
        found: dict[str, Callable[[Images], Floats]] = {"pretrained features": self.features}
        outside = self.part.public if len(self.part.public.images) else self.part.heldout
        images_each = np.unique(outside.person_of, return_counts=True)[1]
        if (images_each > 1).sum() >= siamese.LEAST_PERSONS:
            network = siamese.train(outside.images, outside.person_of, seed=0)
            found["siamese network"] = network.embed
        return found

    def features(self, images: Images) -> Floats:
        """Pretrained features [N, D] in their unit."""
        return load_features().of_images(images) / FEATURE_UNIT

    @cached_property
    def heldout_features(self) -> Floats:
        """Those of the held-out people."""
        return self.features(self.part.heldout.images)


def digest_of(checkpoint: Path) -> str:
    """The first digits of the SHA-256 of a checkpoint's generator and encoder."""
    found = hashlib.sha256()
    for name in ("gan", "encoder"):
        found.update(read_capped(checkpoint / f"{name}.safetensors", CAP_BYTES))
    return found.hexdigest()[:8]


def plan_with_sizes(study: Study, given: dict[str, int]) -> dict[str, Any]:
    """The plan's model with a checkpoint's own sizes: width, latent, encoder_width."""
    gan = study.models.gan
    encoder = study.models.encoder
    assert gan is not None and encoder is not None
    planned = gan.model_dump(mode="json", exclude={"start", "trainable"})
    return planned | {"encoder_width": encoder.width} | given


def save(file: Path, **arrays: NDArray[Any]) -> None:
    """Write an .npz whole or not at all."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    atomic_write(file, stream.getvalue())
