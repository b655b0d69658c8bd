"""Finds every function of the product that takes foreign bytes apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("client", "common", "kohort", "server")
# calls that turn bytes or files into values
READING = {
    *("read_capped", "read_text", "read_bytes", "load_yaml", "parse_yaml", "model_validate_json"),
    *("dcmread", "safe_open", "ParseFromString", "FromString", "DictReader", "b64decode"),
    *("load_pem_x509_certificate", "load_pem_x509_certificates", "load_der_x509_certificate"),
    *(
        "load_pem_private_key",
        "load_ssh_private_key",
        "load_ssh_public_key",
        "PEM_cert_to_DER_cert",
    ),
}
# the same, where the module's name belongs to it
QUALIFIED = {
    *("json.loads", "json.load", "np.load", "numpy.load", "Image.open", "tensors.loads"),
    *("tensors.read", "zipfile.ZipFile", "tarfile.open", "kind.from_bytes", "yaml.compose"),
}


def readers() -> set[str]:
    """Return `module:function` of every function with a reading call."""
    found = set()
    for room in PRODUCT:
        for path in sorted((ROOT / room).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            tree = ast.parse(path.read_text())
            found |= {f"{module}:{name}" for name in _reading_functions(tree, "")}
    return found


def _reading_functions(node: ast.AST, inside: str) -> Iterator[str]:
    """Names of the functions below a node that hold a reading call."""
    for child in ast.iter_child_nodes(node):
        name = inside
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{inside}.{child.name}".strip(".")
        if isinstance(child, ast.Call) and _is_reading(child.func):
            yield inside
        yield from _reading_functions(child, name)


def _is_reading(function: ast.expr) -> bool:
    """Whether a call's name is one of the reading ones."""
    text = ast.unparse(function)
    return text in QUALIFIED or text.rpartition(".")[2] in READING


# Readers that no target covers, with the reason.
EXEMPT = {
    "client.learn.fast.ways": "what this machine wrote, and the kernel says of its processor",
    "client.child.rosters:read_frozen": "the same readers as target evidence",
    "client.cli.joining:check_fields": "the certificates of targets join-file and pem-files",
    "client.cli.rotate": "the first bytes of this site's own key",
    "client.state.signers": "each line by open_handover, which target handover reads",
    "client.state.request": "this site's own public key, which it has just written",
    "client.child.device": "one line of its own parent",
    "client.daemon.device": "the answer of a process of its own, and a file that it wrote",
    "client.daemon.training:clear": "bytes alone; boundary rules read them, target intake-updates",
    "client.egress.gate": "events of mechanisms that this process made",
    "client.egress.review": "a copy of bytes",
    "client.dicomweb.credential": "one line that the site's own staff hands over",
    "client.desk.pages:add_signing_in": "its own style and icon",
    "client.ingest.decode_child": "lines of its own parent; the files are targets dicom to volume",
    "client.rehearsal": "bytes of its own child: a log's last line for the screen, pictures copied",
    "client.single.flow": "bytes for a digest; the weights are target flow-checkpoint",
    "client.state.ledger": "events of mechanisms that this process made",
    "client.ingest.finished:program": "the sources of this program",
    "client.ingest.listing:digest_file": "bytes for a hash",
    "client.ingest.quarantine:_fixes": "words that come with the program",
    "client.state.machine": "what the kernel says of the machine's memory",
    "client.state.domain": "JSON that this site wrote, by a pydantic model, capped",
    "client.state.plans": "bytes for a hash",
    "client.state.seen_weights": "bytes that have the digest in the journal",
    "common.codes": "words that come with the program",
    "common.logs": "what the process above wrote into this one's environment",
    "common.devices:_available_bytes": "the kernel's own table",
    "common.passphrase": "a secret of this process: bytes alone",
    "common.models.pretrained_features": "bytes that have the digest in the code",
    "common.study.bundle": "bytes that have the digest in the signed plan; target plan-bundle",
    "common.wire.app_bundle:archive": "writes",
    "kohort.credentials:check_credentials": "files of a release that verified",
    "kohort.dicom_export": "files of a release that verified",
    "kohort.drawn_folder:_facts_of": "bytes for a hash",
    "kohort.signatures:_key_bytes": "a key that was parsed",
    "server.cli": "bytes for a hash, and a join file that this process made",
    "server.operator.refusals": "counts that this server's own front wrote",
    "server.operator.quota:releases_folder": "a path that the operator's own command wrote",
    "server.operator.opening": "this server's own public key",
    "server.catalogue": "releases that were verified, this operator's own site, a style sheet",
    "server.operator.published:read_published": "what this operator's own command wrote",
    "server.demo": "invented hospitals: their own files",
    "server.evaluate.extractors": "bytes that have the digest that the operator wrote",
    "server.rounds.versions": "copies of checkpoints whose digests were checked",
    "server.flower.app_process": "Flower's answer from this machine's own SuperLink",
    "server.flower.calls": "bytes for a hash; the key line is target site-key-line",
    "server.flower.executor": "a secret: bytes alone",
    "server.flower.link_process": "a secret: bytes alone",
    "server.flower.superlink": "the end of a log, for the operator's eyes",
    "server.operator.hand_over:_is_protected": "the first bytes of the operator's own key",
    "server.operator.authorities:finish": "the operator's own key, bytes alone",
    "server.operator.renewals:keep_certificate": "a certificate that was just signed or checked",
    "server.operator.config:sample": "text that this process made",
    "server.operator.plan": "the node tree of target yaml",
    "server.operator.update_norms": "the node tree of target yaml",
    "server.page.releases": "the readers of targets release-texts and release-sign-offs",
    "server.page.render:style": "a file of this package",
    "server.pretrain": "the operator's own earlier run; public images: photographs-npz",
    "server.release": "files of the release that this process builds",
    "server.rounds.pictures:earlier_images": "the readers of targets stored-replies and tensors",
    "server.rounds.record:StudyRecord": "bytes alone, or weights that have the journal's digest",
}
