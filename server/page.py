"""The words of a release: privacy statement, datasheet, Croissant metadata and the self-contained gallery page.

In: the plan, the sites' signed headers, the account of epsilon, the findings. Out: plain data and text. Guaranteed: every
sentence is made from a field of the plan or a signed header; what has no evidence reads "not evaluated"; k and epsilon stand
side by side and are never folded into one number; the page holds no script and loads nothing. Not: a legal assessment.
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

from common.messages import Header
from common.privacy.mechanisms import LatentLaplace
from common.study import Study

if TYPE_CHECKING:
    from server.release import Account, Items

LIMITS = (
    "k-anonymity is not differential privacy: the two are reported side by side and never as one number.",
    "Identities are those that each hospital knows: one person treated at two hospitals counts once at each.",
    "A group's label is public: whoever knows that a person is in a group of one label learns that label.",
    "Somebody who knows the photographs of k - 1 members of a group can subtract them from an average.",
    "The number of images shows that at least k times as many patients took part.",
    "Nothing is unlearned after release: withdrawal of consent stops future releases only.",
)
NOT_FOR = (
    "diagnosis, triage or any decision about a person",
    "claims about how common a finding is in any population",
    "attempts to find, reconstruct or link the people behind the images",
)


def latent_laplace(study: Study) -> LatentLaplace | None:
    """Return the mechanism of the plan's privatized averages, or None."""
    plan, flow = study.synthesis and study.synthesis.privatize, study.models.glow
    if not study.synthesis or not plan or not flow:
        return None
    every = study.intake.channels * study.intake.size_px**2
    dimension = every // 2 ** (flow.levels - 1) if plan.levels == "top" else every
    return LatentLaplace(plan.clip, plan.radius, dimension, study.synthesis.k, study.synthesis.grouping, plan.scale)


def privacy_statement(study: Study, headers: Mapping[str, Header], account: Account) -> dict[str, Any]:
    """Return the statement: three boxes (updates, images, privatized images), per site the ledger head, and the limits."""
    mechanism = latent_laplace(study)
    synthesis = study.synthesis
    return {
        "format": "kohort-privacy-statement/1",
        "plan": study.hash(),
        "unit": study.privacy.unit,
        "updates": {
            "claim": f"What each site sent through training is ({study.privacy.epsilon:g}, {study.privacy.delta:g})-differentially "
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
            "evidence": {
                name: {
                    "ledger_head": header.statement.get("ledger_head"),
                    "ledger_seq": header.statement.get("ledger_seq"),
                }
                for name, header in sorted(headers.items())
            },
        },
        "images": {
            "claim": f"Each image aggregates at least {synthesis.k} distinct patients of one site, as identified there."
            if synthesis
            else "not evaluated",
            "k": synthesis.k if synthesis else None,
            "grouping": synthesis.grouping if synthesis else None,
            "groups_independent_of_the_data": bool(synthesis and synthesis.grouping == "random"),
            "evidence": "every site's gate checks each image's group; its signed header is in statements/",
        },
        "privatized_images": {**mechanism.describe(), "statement": mechanism.statement()}
        if mechanism
        else "not evaluated",
        "human_review": "decided by each site's own policy; the outcome is not sent",
        "limits": list(LIMITS),
    }


def statement_markdown(statement: Mapping[str, Any]) -> str:
    """Return the statement as Markdown."""
    updates, images, privatized = statement["updates"], statement["images"], statement["privatized_images"]
    accounts = ", ".join(f"{name} {value:.4g}" for name, value in updates["epsilon_by_accountant"].items())
    lines = [
        "# Privacy statement",
        "",
        f"Plan `{statement['plan'][:16]}`. Unit of protection: one {statement['unit']}. Two different promises, side by side:",
        "",
        "## Model updates",
        updates["claim"],
        f"Epsilon computed from the plan's constants: {accounts} (delta {updates['delta']:g}).",
        "",
        "## Images",
        images["claim"],
        f"Grouping: {images['grouping']}."
        + (
            ""
            if images["groups_independent_of_the_data"]
            else " Groups were chosen by similarity: no epsilon per patient is claimed for images."
        ),
        "",
        "## Privatized images",
        privatized if isinstance(privatized, str) else privatized["statement"],
        "",
        "## Limits",
        *(f"- {line}" for line in statement["limits"]),
        "",
    ]
    return "\n".join(lines)


def readme(study: Study, statement: Mapping[str, Any], report: Mapping[str, Any], count: int) -> str:
    """Return the datasheet."""
    findings = "\n".join(
        f"| {f['name']} | {f['value'] if f['status'] == 'shown' else 'not evaluated'} | {f['unit']} |"
        for f in report["findings"]
    )
    uses = "\n".join(f"- {line}" for line in NOT_FOR)
    return f"""# {study.title}

{count} synthetic images ({study.intake.size_px} x {study.intake.size_px}), version {study.release.version}, {study.release.date}.
No picture in it is a photograph of a person: {statement["images"]["claim"]}
See `privacy_statement.md` for what is promised and what is not.

## Load it
- torchvision: `ImageFolder("data")`
- Hugging Face datasets: `load_dataset("imagefolder", data_dir="data")`
- Croissant: `croissant.json`; the table of all images is `metadata.csv`

## Check it, offline
`kohort verify .` or, without kohort,
`ssh-keygen -Y verify -f allowed_signers -I operator@{study.name} -n kohort-release-v1 -s SHA256SUMS.sig < SHA256SUMS && sha256sum -c SHA256SUMS`

## Measured
Reference: {report["reference"] or "none"}.

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
        return mlc.Field(id=f"items/{name}", name=name, data_types=[mlc.DataType.TEXT], source=source)

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
        data_biases="Averages remove what is rare first; label shares follow the groups, not a population.",
        data_limitations="; ".join(LIMITS),
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
            mlc.FileSet(id="images", name="images", includes=["data/*/*.png"], encoding_formats=["image/png"]),
        ],
        record_sets=[
            mlc.RecordSet(id="items", name="items", fields=[column(name) for name in ("file_name", "label", "k")])
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
figure{margin:0;position:relative} .flag{outline:2px solid #2f6fdf} table{border-collapse:collapse;background:#fff}
td,th{border:1px solid #dde2ea;padding:.3rem .6rem;text-align:left;font-size:.9rem} code{background:#eef1f6;padding:.1rem .3rem}
</style></head><body>
<h1>{{ study.title }}</h1>
<p class="soft">version {{ study.release.version }} · {{ study.release.date }} · {{ study.release.licence }} ·
plan <code>{{ statement.plan[:16] }}</code></p>
<div class="boxes">
<div class="box">Images<b>{{ count }} averages, k ≥ {{ statement.images.k }}</b>{{ statement.images.claim }}
{% if not statement.images.groups_independent_of_the_data %}Groups were chosen by similarity: no ε per patient is claimed for images.{% endif %}</div>
<div class="box">Model updates<b>ε ≤ {{ statement.updates.epsilon_promised }} per patient</b>{{ statement.updates.claim }}</div>
<div class="box">Privatized images<b>{{ privatized }} of {{ count }}</b>
{{ statement.privatized_images.statement if statement.privatized_images is mapping else "not evaluated" }} (blue frame)</div>
</div>
{% for label, pictures in gallery %}<h2>{{ label }} <span class="soft">({{ pictures|length }})</span></h2>
<div class="grid">{% for uri, flag in pictures %}<figure><img {% if flag %}class="flag" {% endif %}alt="synthetic image, {{ label }}" src="{{ uri }}"></figure>{% endfor %}</div>
{% endfor %}
<h2>Measured</h2><p class="soft">Reference: {{ report.reference or "none" }}. No number on this page was computed from a hospital's patients
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
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def html(study: Study, statement: Mapping[str, Any], report: Mapping[str, Any], items: Items, fingerprint: str) -> str:
    """Return the gallery page: one file, no script, nothing loaded from anywhere."""
    gallery = [
        (name, [(data_uri(items.images[i]), bool(items.privatized[i])) for i in np.flatnonzero(items.labels == index)])
        for index, name in enumerate(study.strata())
    ]
    return PAGE.render(
        study=study,
        statement=statement,
        report=report,
        gallery=gallery,
        count=len(items.images),
        privatized=int(items.privatized.sum()),
        not_for=NOT_FOR,
        fingerprint=fingerprint,
    )
