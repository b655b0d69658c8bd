"""Where a release comes from, as PROV: plan, what the sites signed, weights, release (prov.json).

In: the plan, the evidence, the released models' digests, the operator's fingerprint.
Out: one document in PROV-JSON.
Guarantees: every digest is one that a signed file of the release already holds; no time but the
release's date, no count, no name of a file of a hospital.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.study.plan import Study
from common.wire import signing
from common.wire.messages import digest_of
from kohort.statements import open_statement
from server.release.items import Evidence

PREFIXES = {"kohort": "urn:kohort:"}
PLAN = "kohort:plan"
RELEASE = "kohort:release"
OPERATOR = "kohort:operator"
BUILD = "kohort:build"
WEIGHTS = "kohort:weights"


def provenance(
    study: Study, evidence: Evidence, models: Mapping[str, str], fingerprint: str
) -> dict[str, Any]:
    """Return the PROV-JSON document; `models` maps a model's name to its file's SHA-256."""
    graph = _Graph()

    # the plan, and who signed it
    graph.agent(OPERATOR, "prov:Organization", key=fingerprint)
    graph.entity(PLAN, "prov:Plan", file="study.yaml", hash=study.hash(), title=study.title)
    graph.relate("wasAttributedTo", entity=PLAN, agent=OPERATOR)

    # the build
    version = study.release.version
    graph.entity(
        RELEASE, "prov:Collection", name=study.name, version=version, date=study.release.date
    )
    graph.activity(BUILD)
    graph.relate("wasAssociatedWith", activity=BUILD, agent=OPERATOR, plan=PLAN)
    graph.relate("wasGeneratedBy", entity=RELEASE, activity=BUILD)
    graph.relate("wasAttributedTo", entity=RELEASE, agent=OPERATOR)

    # what each site sent, under its signature
    for site, data in evidence.statements.items():
        _add_site(graph, site, data)

    # the weights that all sites computed with, and the models that are in the release
    for site, header in evidence.headers.items():
        graph.entity(WEIGHTS, "prov:Entity", sha256=str(header.statement["weights"]))
        graph.relate("used", activity=f"kohort:compute-{site}", entity=WEIGHTS)
    for name, digest in sorted(models.items()):
        model = f"kohort:model-{name}"
        graph.entity(model, "prov:Entity", file=f"models/{name}.safetensors", sha256=digest)
        graph.relate("hadMember", collection=RELEASE, entity=model)
        for site in evidence.statements:
            graph.relate("wasInfluencedBy", influencee=model, influencer=f"kohort:site-{site}")
    return graph.document()


def _add_site(graph: _Graph, site: str, data: bytes) -> None:
    """A site, what it computed by the plan, and what it signed and sent."""
    statement, header = open_statement(data, f"statements/{site}.json")
    agent = f"kohort:site-{site}"
    computing = f"kohort:compute-{site}"
    signed = f"kohort:statement-{site}"
    sent = f"kohort:sent-{site}"
    key = signing.fingerprint(signing.parse_public(statement.key))

    # who, and what it did by the plan
    graph.agent(agent, "prov:Organization", key=key)
    graph.activity(computing)
    graph.relate("wasAssociatedWith", activity=computing, agent=agent, plan=PLAN)

    # what it sent, and the statement about it
    graph.entity(sent, "prov:Entity", kind=header.kind, sha256=header.digest)
    graph.entity(signed, "prov:Entity", file=f"statements/{site}.json", sha256=digest_of(data))
    for entity in (sent, signed):
        graph.relate("wasGeneratedBy", entity=entity, activity=computing)
        graph.relate("wasAttributedTo", entity=entity, agent=agent)

    # what the release is made of
    graph.relate("used", activity=BUILD, entity=sent)
    graph.relate("used", activity=BUILD, entity=signed)
    graph.relate("wasDerivedFrom", generatedEntity=RELEASE, usedEntity=sent)


class _Graph:
    """A PROV document that grows; relations are numbered in the order in which they are added."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {"entity": {}, "activity": {}, "agent": {}}
        self._relations = 0

    def entity(self, name: str, kind: str, /, **facts: str) -> None:
        """Add an entity with its facts."""
        self._found["entity"][name] = _typed(kind, facts)

    def agent(self, name: str, kind: str, /, **facts: str) -> None:
        """Add an agent with its facts."""
        self._found["agent"][name] = _typed(kind, facts)

    def activity(self, name: str) -> None:
        """Add an activity; none says when it happened."""
        self._found["activity"][name] = {}

    def relate(self, relation: str, /, **ends: str) -> None:
        """Add a relation between named things."""
        self._relations += 1
        named = {f"prov:{end}": thing for end, thing in ends.items()}
        self._found.setdefault(relation, {})[f"_:r{self._relations:04d}"] = named

    def document(self) -> dict[str, Any]:
        """Return the document as plain data."""
        return {"prefix": PREFIXES, **self._found}


def _typed(kind: str, facts: Mapping[str, str]) -> dict[str, Any]:
    """The attributes of an entity or agent."""
    named = {f"kohort:{name}": value for name, value in facts.items()}
    return {"prov:type": {"$": kind, "type": "prov:QUALIFIED_NAME"}, **named}
