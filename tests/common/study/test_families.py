"""Model families: every table of the tree that names models names exactly the families."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from client.state.plan_check import TRAINERS
from common.study.architectures import BUILDERS, build
from common.study.families import FAMILIES, GAN, GLOW, WGAN, Family
from common.study.plan import Study
from common.study.shapes import model_shapes
from common.study.training import Models
from common.wire.messages import Header
from tests.studies import small_study, vessels_plan


def planned(family: Family) -> Study:
    """A small plan that trains this family."""
    return Study.model_validate(vessels_plan()) if family is WGAN else small_study()


def test_plan_header_trainers_and_architectures_name_the_same_families() -> None:
    names = tuple(FAMILIES)
    assert tuple(BUILDERS) == names
    assert names == TRAINERS
    assert set(Models.model_fields) == {*names, "encoder"}
    assert get_args(Header.model_fields["model"].annotation) == (*names, "")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_family_owns_every_tensor_of_its_networks_and_no_other(family: Family) -> None:
    shapes = model_shapes(planned(family), family.name, Path("nowhere"))
    assert {name.split(".")[0] + "." for name in shapes} == set(family.prefixes)
    strangers = {"encoder.weight": (1,), "weight": (2,)}
    assert family.select({**shapes, **strangers}) == shapes


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_familys_networks_have_no_buffers(family: Family) -> None:
    with torch.device("meta"):
        networks = build(planned(family), family)
    for network in networks.values():
        assert isinstance(network, nn.Module)
        assert not list(network.buffers())


def test_post_processed_tensors_change_whatever_the_plan_trains_and_take_no_private_gradient() -> (
    None
):
    for family, name in ((GAN, "generator.a"), (WGAN, "generator.a"), (WGAN, "average.a")):
        assert family.may_change(name, ("critic.last.",))
        assert not family.trains_privately(name, ("critic.last.",))
        assert not family.trains_privately(name, ())


def test_the_plans_prefixes_bind_every_other_tensor() -> None:
    assert GAN.may_change("critic.last.bias", ("critic.last.",))
    assert not GAN.may_change("critic.first.bias", ("critic.last.",))
    assert not GLOW.may_change("glow.a", ("glow.b",))
    assert GLOW.may_change("glow.a", ())


def test_the_private_dimension_counts_the_numbers_of_trained_tensors() -> None:
    shapes = {"generator.a": (5, 5), "critic.a": (2, 3), "critic.b": (7,)}
    assert GAN.private_dimension(shapes, ()) == 13
    assert GAN.private_dimension(shapes, ("critic.b",)) == 7
    assert GLOW.private_dimension({"glow.a": (3, 4), "glow.b": ()}, ()) == 13
