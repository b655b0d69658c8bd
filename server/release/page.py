"""The words of a release: privacy statement, datasheet, Croissant metadata and the self-contained gallery page.

In: the plan, the sites' signed headers, the account of epsilon, the findings. Out: plain data and text. Guaranteed: every
sentence is made from a field of the plan or a signed header; what has no evidence reads "not evaluated"; k and epsilon stand
side by side and are never folded into one number, and where the plan has no k none is claimed; the page holds no script and
loads nothing. Not: a legal assessment.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.privacy.anchors import anchors_event
from common.privacy.mechanisms import DATA_INDEPENDENT, Latent, charged_image_event, latent_event
from common.study.plan import Study, Synthesis
from common.wire.messages import Header
from server.release.pairs import SHOWN, triptychs

if TYPE_CHECKING:
    from server.release.build import Account, Items

COUNT_LIMIT = "The number of images shows that at least k times as many patients took part."
LIMITS = (
    "k-anonymity is not differential privacy: the two are reported side by side and never as one number.",
    "Identities are those that each hospital knows: one person treated at two hospitals counts once at each.",
    "A group's label is public: whoever knows that a person is in a group of one label learns that label.",
    "Somebody who knows the photographs of k - 1 members of a group can subtract them from an average.",
    COUNT_LIMIT,
    "Nothing is unlearned after release: withdrawal of consent stops future releases only.",
)
SEVERAL_OUTPUTS = (
    "Each group gives up to {count} images: they show the same patients and are not independent. Tests, error bars and "
    "cross-validation that count them as separate patients are too sure of themselves."
)
MOVED_OUT = (
    "Averages vary less than single images, so each is moved away from the generator's middle along {count} principal directions by "
    "public factors of at most the square root of k. An image shows the way in which its group differs larger than it is."
)
RANDOM_LIMITS = (
    "Epsilon per patient takes as given who is on a site's roster and with which label; a change of the roster is not covered.",
    "A batch that the site's audit or a person stops does not come: that alone may say something about its patients' images.",
)
PAIR_LIMITS = (
    "Differential privacy bounds what can be learned about one patient from all that the sites sent; epsilon is how much, and not 0.",
    "The promise counts one patient at one site: a person treated at several sites is covered by the sum of their promises.",
    "Masks are drawn by the generator together with the images: nobody outlined or checked them.",
    "The starting checkpoint comes from public data, which the promise does not cover.",
    "Pairs resemble what many patients share; what is rare is missing or wrong.",
    "Nothing is unlearned after release: withdrawal of consent stops future releases only.",
)
AUDIT_METHOD = (
    "one-run canary audit (Steinke, Nasr, Jagielski 2023) in the operator's rehearsal of the plan's private steps: invented "
    "patients on coordinates of their own, no real patient"
)
AUDIT_LIMITS = (
    "A low bound proves little: one run shows only a part of what could leak, and even noise at half its strength may stay below "
    "the claim. A bound above the claim would prove a fault. That the noise is as loud as promised is measured separately, on "
    "coordinates that hold nothing else."
)
AUDIT_SITES = (
    "Each site carries canaries through its own training too. Its gate (rule 26) stays closed when its noise or its bound "
    "contradicts the plan, so the updates that left passed; no number of a site's own audit leaves it."
)
PAIR_FILES = """- the mask of `data/<label>/NNNNN.png` is `masks/NNNNN.png` (0 or 255) and, for radiology software, `masks/NNNNN.nii.gz` (uint8 0 or
  1, pixels of 1 mm; the first axis is the picture's column, so in nibabel the array is the transposed PNG)
"""
ONE_EPSILON = "one epsilon, above, covers these averages and the updates together"
REHEARSED = (
    "Attacks and downstream figures come from a rehearsal of this plan on public people ({cast}), not from a hospital's patients; "
    "of its own batch each site says only whether its audit passed."
)
NOT_REHEARSED = (
    "Attacks and the worth of labels were not evaluated: no rehearsal of this plan was given."
)
NOT_FOR = (
    "diagnosis, triage or any decision about a person",
    "claims about how common a finding is in any population",
    "attempts to find, reconstruct or link the people behind the images",
)


def latent_mechanism(study: Study) -> Latent | None:
    """Return the mechanism of the plan's privatized images, or None."""
    privatizes = study.synthesis is not None and study.synthesis.privatizes_averages
    return latent_event(study) if privatizes else None


def privatized_statement(study: Study) -> dict[str, Any] | str:
    """Return everything that is said of privatized images: the mechanism, which groups make the claim hold, the flow's own cost."""
    mechanism = latent_mechanism(study)
    if mechanism is None or study.synthesis is None:
        return "not evaluated"
    privacy, whole = study.privacy, study.latent_dimension
    limit = f"ε={privacy.epsilon:g}, δ={privacy.delta:g} per patient"
    model = (
        f"with the model's training together at most {limit}"
        if mechanism.covers_patient
        else f"model {limit}"
    )
    return {
        **mechanism.describe(),
        "dimension_of": whole,
        "model_epsilon": privacy.epsilon,
        "model_delta": privacy.delta,
        "groups_that_cover_patients": list(DATA_INDEPENDENT),
        "statement": f"{mechanism.statement(whole)}; {model}. Claimed: {mechanism.describe()['claim']}.",
    }


def privacy_statement(
    study: Study, headers: Mapping[str, Header], account: Account
) -> dict[str, Any]:
    """Return the statement: three boxes (updates, images, privatized images), per site the ledger head, and the limits."""
    synthesis = study.synthesis
    return {
        "format": "kohort-privacy-statement/1",
        "plan": study.hash(),
        "unit": study.privacy.unit,
        "updates": {
            "claim": f"{what_was_sent(study)} is ({study.privacy.epsilon:g}, {study.privacy.delta:g})-differentially "
            "private for each of its patients, zero-out adjacency, over all steps and rounds of the plan.",
            "epsilon_promised": study.privacy.epsilon,
            "delta": study.privacy.delta,
            "epsilon_by_accountant": dict(account.epsilon),
            "accountants": dict(account.versions),
            "models": {
                name: {
                    "sampling_rate": round(study.sampling_rate(plan), 6),
                    "noise_multiplier": plan.noise_multiplier,
                    "clip": plan.clip,
                    "steps": plan.steps,
                }
                for name, plan in study.models.trained().items()
            },
            "audit": audit_statement(account),
            "evidence": {
                name: {
                    "ledger_head": header.statement.get("ledger_head"),
                    "ledger_seq": header.statement.get("ledger_seq"),
                }
                for name, header in sorted(headers.items())
            },
            "consortium": consortium(study),
        },
        "images": averages_statement(study, synthesis) if synthesis else pairs_statement(study),
        "privatized_images": privatized_statement(study),
        "human_review": "decided by each site's own policy; the outcome is not sent",
        "limits": limits_of(study),
    }


def limits_of(study: Study) -> list[str]:
    """Return what the promises do not cover."""
    if study.synthesis is None:
        return list(PAIR_LIMITS)
    several = study.synthesis.outputs_per_group
    said = [SEVERAL_OUTPUTS.format(count=several)] if several > 1 else []
    moved = [MOVED_OUT.format(count=count)] if (count := study.synthesis.spread_directions) else []
    common = [
        line for line in LIMITS if several == 1 or line != COUNT_LIMIT
    ]  # k times the images would be too many
    return [
        *common,
        *said,
        *moved,
        *(
            RANDOM_LIMITS
            if study.synthesis.grouping == "random" and charged_image_event(study)
            else ()
        ),
    ]


def what_was_sent(study: Study) -> str:
    """Return what the one epsilon of a plan covers: updates, and the averages where the plan makes them private too."""
    return "What each site sent through training" + (
        ", and as averages of patients," if charged_image_event(study) else ""
    )


def averages_statement(study: Study, synthesis: Synthesis) -> dict[str, Any]:
    """Return what is promised of k-anonymous averages, and in mode `anchors` the mechanism that their epsilon comes from."""
    anchors = anchors_event(study)
    return {
        "claim": f"Each image aggregates at least {synthesis.k} distinct patients of one site, as identified there.",
        "k": synthesis.k,
        "grouping": synthesis.grouping,
        "groups_independent_of_the_data": synthesis.grouping in ("random", "anchors"),
        "evidence": "every site's gate checks each image's group; its signed header is in statements/",
        "mechanism": anchors.describe() if anchors else _noise_of(synthesis),
    }


def _noise_of(synthesis: Synthesis) -> str:
    """What the averages of a plan without anchors carry."""
    if synthesis.privatize is None or not synthesis.privatizes_averages:
        return "none: the averages carry no noise"
    if synthesis.privatize.share < 1:
        return "none, but for the privatized share of them: see privatized_images"
    return "every average is privatized: see privatized_images"


def pairs_statement(study: Study) -> dict[str, Any]:
    """Return what is promised of pairs that were drawn from the trained generator: the promise of the updates, and no k."""
    privacy = study.privacy
    return {
        "claim": "Every pair of image and mask was drawn from a generator that learned from the sites' noised updates alone. "
        f"Drawing is post-processing: the pairs fall under the same ({privacy.epsilon:g}, {privacy.delta:g})-differential privacy "
        "for each patient of a site. k-anonymity is not claimed.",
        "k": None,
        "grouping": None,
        "evidence": "each site's signed header of its update in the last round is in statements/",
    }


def consortium(study: Study) -> dict[str, Any]:
    """Return what the promise is for a person who is a patient at one site, and at all of them (the sum)."""
    privacy, sites = study.privacy, len(study.sites)
    return {
        "patient_of_one_site": {"epsilon": privacy.epsilon, "delta": privacy.delta},
        "patient_of_every_site": {
            "epsilon": privacy.epsilon * sites,
            "delta": privacy.delta * sites,
            "sites": sites,
        },
    }


def audit_statement(account: Account) -> dict[str, Any] | str:
    """Return the canary audits by model, each lower bound beside the accountant's upper bound, with what they prove."""
    if not account.canaries:
        return "not evaluated"
    models = {name: found.model_dump(mode="json") for name, found in account.canaries.items()}
    return {"method": AUDIT_METHOD, "models": models, "sites": AUDIT_SITES, "limits": AUDIT_LIMITS}


def audit_lines(statement: Mapping[str, Any]) -> list[str]:
    """Return one sentence a model: lower bound, upper bound, and the noise measured."""
    audit = statement["updates"]["audit"]
    if isinstance(audit, str):
        return [f"Canary audit: {audit}."]
    return [
        f"{name}: {m['lower_bound']:.2f} ≤ ε ≤ {m['upper_bound']:.2f} (delta {m['delta']:g}). Lower bound: {m['correct']} of "
        f"{m['guesses']} guesses about {m['canaries']} canaries right over {m['steps']:,} steps, {m['confidence']:.0%} confidence, "
        f"{m['ceiling']:.2f} at most with perfect guesses. Upper bound: PLD. "
        f"Noise measured: {m['noise_ratio']:.3f} times the plan's variance."
        for name, m in audit["models"].items()
    ]


def statement_markdown(statement: Mapping[str, Any]) -> str:
    """Return the statement as Markdown."""
    updates, images, privatized = (
        statement["updates"],
        statement["images"],
        statement["privatized_images"],
    )
    accounts = ", ".join(
        f"{name} {value:.4g}" for name, value in updates["epsilon_by_accountant"].items()
    )
    everywhere = updates["consortium"]["patient_of_every_site"]
    promises = "Two different promises, side by side" if images["k"] is not None else "One promise"
    lines = [
        "# Privacy statement",
        "",
        f"Plan `{statement['plan'][:16]}`. Unit of protection: one {statement['unit']}. {promises}:",
        "",
        "## Model updates",
        updates["claim"],
        f"Epsilon computed from the plan's constants: {accounts} (delta {updates['delta']:g}).",
        "The promise of the consortium is the largest of its sites' (all are equal) for a patient of one site; a person treated "
        f"at all {everywhere['sites']} is promised epsilon {everywhere['epsilon']:g} (the sum).",
        "",
        "### Audit of the claim",
        *(f"- {line}" for line in audit_lines(statement)),
        *(
            f"- {updates['audit'][key]}"
            for key in ("sites", "limits")
            if isinstance(updates["audit"], dict)
        ),
        "",
        "## Images",
        images["claim"],
        *(grouping_lines(images, privatized) if images["k"] is not None else ()),
        "",
        "## Limits",
        *(f"- {line}" for line in statement["limits"]),
        "",
    ]
    return "\n".join(lines)


def grouping_lines(images: Mapping[str, Any], privatized: str | Mapping[str, Any]) -> list[str]:
    """Return what the statement says of groups and of privatized averages."""
    similar = (
        ""
        if images["groups_independent_of_the_data"]
        else " Groups were chosen by similarity: no epsilon per patient is claimed for images."
    )
    said = privatized if isinstance(privatized, str) else privatized["statement"]
    noise = images["mechanism"]
    noisy = (
        ""
        if isinstance(noise, str)
        else f" {noise['statement']}; unit: {noise['unit']}; {ONE_EPSILON}."
    )
    return [f"Grouping: {images['grouping']}.{similar}{noisy}", "", "## Privatized images", said]


def readme(
    study: Study, statement: Mapping[str, Any], report: Mapping[str, Any], count: int
) -> str:
    """Return the datasheet."""
    findings = "\n".join(
        f"| {f['name']} | {f['value'] if f['status'] == 'shown' else 'not evaluated'} | {f['unit']} |"
        for f in report["findings"]
    )
    uses = "\n".join(f"- {line}" for line in NOT_FOR)
    what = (
        "synthetic images"
        if statement["images"]["k"] is not None
        else "synthetic pairs of image and vessel mask"
    )
    return f"""# {study.title}

{count} {what} ({study.intake.size_px} x {study.intake.size_px}), version {study.release.version}, {study.release.date}.
No picture in it is a photograph of a person: {statement["images"]["claim"]}
See `privacy_statement.md` for what is promised and what is not.

## Load it
- torchvision: `ImageFolder("data")`
- Hugging Face datasets: `load_dataset("imagefolder", data_dir="data")`
- Croissant: `croissant.json`; the table of all images is `metadata.csv`
{PAIR_FILES if statement["images"]["k"] is None else ""}
## Check it, offline
`kohort verify .` or, without kohort,
`ssh-keygen -Y verify -f allowed_signers -I operator@{study.name} -n kohort-release-v1 -s SHA256SUMS.sig < SHA256SUMS && sha256sum -c SHA256SUMS`

## Measured
Reference: {report["reference"] or "none"}.
{REHEARSED.format(cast=report["rehearsal"]["cast"]) if report["rehearsal"] else NOT_REHEARSED}

| what | value | unit |
| --- | --- | --- |
{findings}

## Must not be used for
{uses}

Licence: {study.release.licence}.
"""


def licence_text(study: Study) -> str:
    """Return the licence note of the images."""
    return (
        f"The images and tables of this release are licensed under {study.release.licence}.\n"
        f"SPDX-License-Identifier: {study.release.licence}\nAttribution: {study.title}, version {study.release.version}.\n"
    )


def croissant(study: Study, statement: Mapping[str, Any], metadata_sha256: str) -> dict[str, Any]:
    """Return Croissant 1.0 metadata with RAI fields (mlcroissant builds and validates it)."""
    import mlcroissant as mlc

    def column(name: str) -> Any:
        source = mlc.Source(file_object="metadata.csv", extract=mlc.Extract(column=name))
        return mlc.Field(
            id=f"items/{name}", name=name, data_types=[mlc.DataType.TEXT], source=source
        )

    columns = (
        ("file_name", "label", "k")
        if study.synthesis
        else ("file_name", "mask", "mask_nifti", "label")
    )
    masks = [
        mlc.FileSet(
            id="masks", name="masks", includes=["masks/*.png"], encoding_formats=["image/png"]
        ),
        mlc.FileSet(
            id="masks-nifti",
            name="masks-nifti",
            includes=["masks/*.nii.gz"],
            encoding_formats=["application/gzip"],
        ),
    ]
    metadata = mlc.Metadata(
        name=study.name,
        description=f"{study.title}. Synthetic medical images. {statement['images']['claim']}",
        url=f"urn:kohort:{study.hash()}",
        version=study.release.version,
        date_published=study.release.date,
        license=study.release.licence,
        cite_as=f"{study.title}, version {study.release.version}",
        creators=[mlc.Organization(name=study.name)],
        personal_sensitive_information=f"{statement['images']['claim']} {statement['updates']['claim']}",
        data_biases="Averages remove what is rare first; label shares follow the groups, not a population."
        if study.synthesis
        else "A generator trained under noise keeps what many patients share and loses what is rare.",
        data_limitations="; ".join(statement["limits"]),
        data_use_cases=f"Training and testing of image models. Must not be used for: {'; '.join(NOT_FOR)}.",
        data_social_impact="Made so that images can be shared without sharing patients; see privacy_statement.md.",
        data_release_maintenance_plan="Releases are immutable; corrections appear as a new version.",
        distribution=[
            mlc.FileObject(
                id="metadata.csv",
                name="metadata.csv",
                content_url="metadata.csv",
                encoding_formats=["text/csv"],
                sha256=metadata_sha256,
            ),
            mlc.FileSet(
                id="images",
                name="images",
                includes=["data/*/*.png"],
                encoding_formats=["image/png"],
            ),
            *([] if study.synthesis else masks),
        ],
        record_sets=[
            mlc.RecordSet(id="items", name="items", fields=[column(name) for name in columns])
        ],
    )
    document: dict[str, Any] = metadata.to_json()
    document["rai:hasSyntheticData"] = True
    document["datePublished"] = study.release.date
    return document


PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ study.title }}</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b2330;background:#fbfbfd}
h1{font-size:1.7rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin:2rem 0 .5rem} .soft{color:#5a6575}
.boxes{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem}
.box{background:#fff;border:1px solid #dde2ea;border-radius:.5rem;padding:1rem} .box b{display:block;font-size:1.4rem}
.grid{display:flex;flex-wrap:wrap;gap:4px} .grid img{width:96px;height:96px;image-rendering:auto;border-radius:3px;display:block}
.grid.pairs{gap:12px} .grid.pairs img{width:auto;height:128px}
figure{margin:0;position:relative} .flag{outline:2px solid #2f6fdf} table{border-collapse:collapse;background:#fff}
td,th{border:1px solid #dde2ea;padding:.3rem .6rem;text-align:left;font-size:.9rem} code{background:#eef1f6;padding:.1rem .3rem}
</style></head><body>
<h1>{{ study.title }}</h1>
<p class="soft">version {{ study.release.version }} · {{ study.release.date }} · {{ study.release.licence }} ·
plan <code>{{ statement.plan[:16] }}</code></p>
<div class="boxes">
{% if statement.images.k is none %}<div class="box">Pairs<b>{{ count }} images with masks</b>{{ statement.images.claim }}</div>
{% else %}<div class="box">Images<b>{{ count }} averages, k ≥ {{ statement.images.k }}</b>{{ statement.images.claim }}
{% if not statement.images.groups_independent_of_the_data %}Groups were chosen by similarity: no ε per patient is claimed for images.{% endif %}</div>{% endif %}
<div class="box">Model updates<b>ε ≤ {{ statement.updates.epsilon_promised }} per patient</b>{{ statement.updates.claim }}
<p class="soft">{% for line in audit %}{{ line }}<br>{% endfor %}</p></div>
{% if statement.images.k is not none %}<div class="box">Privatized images<b>{{ privatized }} of {{ count }}</b>
{{ statement.privatized_images.statement if statement.privatized_images is mapping else "not evaluated" }} (blue frame)</div>{% endif %}
</div>
{% for label, pictures in gallery %}<h2>{{ label }} <span class="soft">({{ pictures|length }}{% if statement.images.k is none %} of {{ count }}: image, mask, mask in red over the image{% endif %})</span></h2>
<div class="grid{% if statement.images.k is none %} pairs{% endif %}">{% for uri, flag in pictures %}<figure><img {% if flag %}class="flag" {% endif %}alt="synthetic image, {{ label }}" src="{{ uri }}"></figure>{% endfor %}</div>
{% endfor %}
<h2>Measured</h2><p class="soft">Reference: {{ report.reference or "none" }}. {{ rehearsed }} No number on this page was computed from a hospital's patients
unless the reference says that public photographs played them.</p>
<table><tr><th>what</th><th>value</th><th>unit</th></tr>{% for f in report.findings %}
<tr><td>{{ f.name }}</td><td>{{ f.value if f.status == "shown" else "not evaluated" }}</td><td>{{ f.unit }}</td></tr>{% endfor %}</table>
<h2>Limits</h2><ul>{% for line in statement.limits %}<li>{{ line }}</li>{% endfor %}</ul>
<h2>Must not be used for</h2><ul>{% for line in not_for %}<li>{{ line }}</li>{% endfor %}</ul>
<h2>Check it</h2><p><code>kohort verify .</code>; signed by <code>{{ fingerprint }}</code></p>
</body></html>
""")


def data_uri(image: NDArray[np.uint8]) -> str:
    """Return a picture as a `data:` address."""
    data = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        data, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def html(
    study: Study,
    statement: Mapping[str, Any],
    report: Mapping[str, Any],
    items: Items,
    fingerprint: str,
) -> str:
    """Return the gallery page: one file, no script, nothing loaded from anywhere."""
    if items.masks is not None:
        shown = triptychs(items.images[:SHOWN], items.masks[:SHOWN])
        gallery = [(study.strata()[0], [(data_uri(picture), False) for picture in shown])]
    else:
        gallery = _by_label(study, items)
    return PAGE.render(
        study=study,
        statement=statement,
        audit=audit_lines(statement),
        report=report,
        rehearsed=REHEARSED.format(cast=report["rehearsal"]["cast"])
        if report["rehearsal"]
        else NOT_REHEARSED,
        gallery=gallery,
        count=len(items.images),
        privatized=int(items.privatized.sum()),
        not_for=NOT_FOR,
        fingerprint=fingerprint,
    )


def _by_label(study: Study, items: Items) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The pictures of each label with their privatized flag."""
    return [
        (
            name,
            [
                (data_uri(items.images[i]), bool(items.privatized[i]))
                for i in np.flatnonzero(items.labels == index)
            ],
        )
        for index, name in enumerate(study.strata())
    ]
