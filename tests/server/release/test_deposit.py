"""Citation and metadata of a release: what each standard requires, and one set of facts in all."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.study.plan import load_study
from kohort import layout
from kohort.files import file_digest
from server.operator.config import Citation, citation_in
from server.release import crate
from server.release.deposit import Deposit, citation_cff, datacite, zenodo
from server.release.licences import LICENCES, NON_COMMERCIAL
from tests.built_elsewhere import KINDS, build
from tests.studies import small_study

ROOT = Path(__file__).parents[3]
VALIDATORS = ROOT / ".venv" / "validators"
AUTHOR = "Iğdır Göz Birliği"
ROR = "https://ror.org/05f0yaq80"
DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"

# what each standard requires: path, type, pattern of a text; our own table of the published lists
CFF = {
    "cff-version": r"1\.2\.0",
    "message": r".+",
    "title": r".+",
    "type": r"dataset",
    "authors.0.name": r".+",
    "date-released": DATE,
    "version": r".+",
    "identifiers.0.type": r"doi|url|swh|other",
    "identifiers.0.value": r".+",
}
DATACITE = {
    "schemaVersion": r"http://datacite\.org/schema/kernel-4",
    "creators.0.name": r".+",
    "creators.0.nameType": r"Organizational|Personal",
    "titles.0.title": r".+",
    "publisher.name": r".+",
    "publicationYear": r"[0-9]{4}",
    "types.resourceTypeGeneral": r"Dataset",
    "types.resourceType": r".+",
    "dates.0.date": DATE,
    "dates.0.dateType": r"Issued",
    "contributors.0.contributorType": r"DataCollector",
    "descriptions.0.descriptionType": r"Abstract",
    "rightsList.0.rights": r".+",
    "alternateIdentifiers.0.alternateIdentifierType": r".+",
}
ZENODO = {
    "metadata.upload_type": r"dataset",
    "metadata.publication_date": DATE,
    "metadata.title": r".+",
    "metadata.creators.0.name": r".+",
    "metadata.description": r"<p>.+</p>",
    "metadata.access_right": r"open",
    "metadata.license": r"cc-by-4\.0",
    "metadata.contributors.0.type": r"DataCollector",
}
# the ends of each relation of PROV, and where a thing with that name stands
ENDS = {
    "wasGeneratedBy": {"entity": "entity", "activity": "activity"},
    "used": {"activity": "activity", "entity": "entity"},
    "wasAssociatedWith": {"activity": "activity", "agent": "agent", "plan": "entity"},
    "wasAttributedTo": {"entity": "entity", "agent": "agent"},
    "wasDerivedFrom": {"generatedEntity": "entity", "usedEntity": "entity"},
    "wasInfluencedBy": {"influencee": "entity", "influencer": "agent"},
    "hadMember": {"collection": "entity", "entity": "entity"},
}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("deposit")
    return {kind: build(kind, folder / kind, 1) for kind in KINDS}


@pytest.fixture(params=KINDS)
def release(request: pytest.FixtureRequest, releases: dict[str, Path]) -> Path:
    return releases[request.param]


def at(document: Any, path: str) -> Any:
    """The value at a path such as creators.0.name."""
    for name in path.split("."):
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


def check(document: Any, required: Mapping[str, str]) -> None:
    """Every required value is there, a text, and of its form."""
    for path, pattern in required.items():
        value = at(document, path)
        assert isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL), (path, value)


def cff_of(release: Path) -> dict[str, Any]:
    return fields_of((release / "CITATION.cff").read_text("utf-8"))


def fields_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)  # noqa: TID251  (a text of this test)
    return found


def json_of(release: Path, name: str) -> Any:
    return json.loads((release / name).read_text("utf-8"))


def test_each_file_has_what_its_standard_requires(release: Path) -> None:
    check(cff_of(release), CFF)
    check(json_of(release, "reports/datacite.json"), DATACITE)
    check(json_of(release, "reports/zenodo.json"), ZENODO)


def test_all_files_say_the_same_facts(release: Path) -> None:
    manifest = json_of(release, "manifest.json")
    cff = cff_of(release)
    cited = json_of(release, "reports/datacite.json")
    deposit = json_of(release, "reports/zenodo.json")["metadata"]
    (root,) = (thing for thing in graph_of(release).values() if thing["@id"] == "./")
    titles = {cff["title"], cited["titles"][0]["title"], deposit["title"], root["name"]}
    assert titles == {manifest["title"]}
    versions = {cff["version"], cited["version"], deposit["version"], root["version"]}
    assert versions == {manifest["version"]}
    dates = {cff["date-released"], cited["dates"][0]["date"], deposit["publication_date"]}
    assert dates | {root["datePublished"]} == {manifest["date"]}
    authors = {cff["authors"][0]["name"], deposit["creators"][0]["name"]}
    authors |= {cited["creators"][0]["name"], cited["publisher"]["name"]}
    assert authors | {graph_of(release)[ROR]["name"]} == {AUTHOR}
    texts = {cff["abstract"], cited["descriptions"][0]["description"], root["description"]}
    assert len(texts) == 1 and "Must not be used for: diagnosis" in texts.pop()
    key = graph_of(release)["#fingerprint"]["value"]
    identifiers = [entry["value"] for entry in cff["identifiers"]]
    assert key in identifiers and key in deposit["notes"]
    assert [site["name"] for site in cited["contributors"]] == manifest["sites"]


def test_every_relation_of_the_provenance_joins_things_that_are_there(release: Path) -> None:
    document = json_of(release, "reports/prov.json")
    things = {kind: set(document[kind]) for kind in ("entity", "activity", "agent")}
    relations = {name: document[name] for name in document if name in ENDS}
    assert set(document) == {"prefix", *things, *relations}
    touched = set()
    for name, found in relations.items():
        for ends in found.values():
            assert set(ends) == {f"prov:{end}" for end in ENDS[name]}, name
            for end, kind in ENDS[name].items():
                assert ends[f"prov:{end}"] in things[kind], (name, ends)
                touched.add(ends[f"prov:{end}"])
    # nothing stands alone, and every name has a prefix that is declared
    assert touched == set().union(*things.values())
    assert {name.partition(":")[0] for name in touched} == set(document["prefix"])


def test_the_provenance_leads_from_the_plan_over_signed_statements_to_the_release(
    release: Path,
) -> None:
    document = json_of(release, "reports/prov.json")
    entities = document["entity"]
    assert entities["kohort:plan"]["kohort:hash"] == load_study(release / "study.yaml").hash()
    for name, facts in entities.items():
        if name.startswith(("kohort:statement-", "kohort:model-")):
            assert facts["kohort:sha256"] == file_digest(release / facts["kohort:file"])
    sites = json_of(release, "manifest.json")["sites"]
    derived = [ends["prov:usedEntity"] for ends in document["wasDerivedFrom"].values()]
    assert derived == [f"kohort:sent-{site}" for site in sites]
    assert "Time" not in json.dumps(document)


def graph_of(release: Path) -> dict[str, dict[str, Any]]:
    """The entities of the RO-Crate, by id."""
    entities = json_of(release, crate.METADATA)["@graph"]
    found = {entity["@id"]: entity for entity in entities}
    assert len(found) == len(entities)
    return found


def test_the_crate_names_every_file_and_folder_at_the_top(release: Path) -> None:
    graph = graph_of(release)
    named = {part["@id"] for part in graph["./"]["hasPart"]}
    there = {path.name + "/" * path.is_dir() for path in release.iterdir()}
    assert named == there - {crate.METADATA}
    for name in named:
        assert graph[name]["description"]
    for name, entity in graph.items():
        if "contentSize" in entity:
            assert int(entity["contentSize"]) == (release / name).stat().st_size


def test_the_crate_knows_every_name_that_a_release_may_have_at_the_top() -> None:
    names = layout.NAMES[layout.FORMAT]
    assert set(crate.FILES) == names.top_level - {crate.METADATA}
    folders = set(re.findall(r"(?:^|\|)([a-z]+)/", names.inner.pattern))
    assert set(crate.FOLDERS) == folders


def outside(*arguments: str, home: Path) -> str:
    """The output of a validator, which has an environment of its own."""
    if not (VALIDATORS / "installed").exists():
        pytest.skip("the validators are not installed: make validators")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(VALIDATORS), "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-S", *arguments],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_roc_validator_finds_nothing_that_is_required(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    program = str(ROOT / "tests" / "crate_validator.py")
    found = outside(program, str(releases["pairs"]), home=tmp_path)
    assert json.loads(found) == [[]]


def test_cffconvert_takes_the_citation(releases: dict[str, Path], tmp_path: Path) -> None:
    file = releases["images"] / "CITATION.cff"
    program = str(VALIDATORS / "bin" / "cffconvert")
    found = outside(program, "--validate", "-i", str(file), home=tmp_path)
    assert "valid according to schema version 1.2.0" in found


# --- what a licence and the operator's file change ------------------------------------------------


def deposit_of(licence: str = "CC-BY-4.0", **author: str) -> Deposit:
    study = small_study(release__licence=licence)
    return Deposit(study, Citation(**author), "A claim.", 12, ("hospital-a",), "SHA256:abc")


def test_an_unknown_licence_gets_no_term_and_is_still_named() -> None:
    deposit = deposit_of("LicenseRef-own")
    assert "license" not in fields_of(citation_cff(deposit))
    record = datacite(deposit)
    assert record["rightsList"] == [{"rights": "LicenseRef-own"}]
    assert not any("classificationCode" in subject for subject in record["subjects"])
    assert zenodo(deposit)["metadata"]["license"] == "licenseref-own"


@pytest.mark.parametrize("name", LICENCES)
def test_a_licence_has_the_duo_terms_of_its_words(name: str) -> None:
    licence = LICENCES[name]
    assert ("-NC" in name) == (NON_COMMERCIAL in licence.duo)
    for term in licence.duo:
        assert re.fullmatch(r"DUO:[0-9]{7}", term.code)
        assert term.address.endswith(term.code.replace(":", "_"))
    subjects = datacite(deposit_of(name))["subjects"]
    codes = [subject.get("classificationCode") for subject in subjects]
    assert [code for code in codes if code] == [term.code for term in licence.duo]


def test_without_a_name_the_consortium_or_else_the_study_is_the_author(tmp_path: Path) -> None:
    assert deposit_of().author_name == "small"
    file = tmp_path / "server.yaml"
    assert citation_in(file) == Citation()
    base = "name: eye-consortium\nurl: https://kohort.example.org:9443\n"
    file.write_text(base)
    assert citation_in(file).name == "eye-consortium"
    file.write_text(base + 'catalogue: {title: "The eye consortium"}\n')
    assert citation_in(file).name == "The eye consortium"
    file.write_text(base + "citation: {name: Eye Consortium, contact: office@example.org}\n")
    assert citation_in(file) == Citation(name="Eye Consortium", contact="office@example.org")


@pytest.mark.parametrize(
    "wrong",
    [
        {"ror": "https://ror.org/x"},
        {"website": "http://a.org"},
        {"contact": "nobody"},
        {"name": ""},
    ],
)
def test_what_is_no_identifier_address_or_mail_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        Citation(**wrong)


def test_html_in_a_claim_stays_text_at_zenodo() -> None:
    deposit = dataclasses.replace(deposit_of(), claim="<script>k & more</script>")
    text = zenodo(deposit)["metadata"]["description"]
    assert "&lt;script&gt;k &amp; more" in text and "<script>" not in text
