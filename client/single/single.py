"""`kohort-site privatize`: single images, each privatized on its own.

In: images (DICOM or photographs), the site's state folder, an approved plan with a flow.
Out: one synthetic image for each input that can be read, numbered in their order; the statement.

There are two ways, and no way from one to the other:
- On site (default): any mechanism and noise, uncharged. OUT also gets a sheet with the originals
  and the list of inputs, so it is plain that the folder must not leave. Nothing enters outbox,
  ledger or exports.
- `--export`: export.py.

An image that the flow cannot encode counts as the zero latent. It is named on this screen, and its
output shows nothing of it.
"""

from __future__ import annotations

from client.daemon.site import Site
from client.single.export import export_images
from client.single.flow import load_flow
from client.single.inputs import read_inputs
from client.single.output import ON_SITE, comparison_sheet, inputs_table, write_images
from client.single.request import Outcome, Request, check_request
from client.state.jobs import Progress
from client.state.plan_check import check_plan
from common.privacy.price import at_most
from common.storage.files import atomic_write
from common.study.plan import Study


def show_nothing(done: int, total: int) -> None:
    """Show no progress."""


def privatize_images(
    site: Site, study: Study, request: Request, progress: Progress = show_nothing
) -> Outcome:
    """Privatize what the request names.

    Raises ConfigurationError, PolicyError and RefusedError before anything is written.
    """
    check_plan(study, site.config.policy, site.config.site)
    check_request(request, site.state.root)
    flow = load_flow(site, study, request)
    if request.export:
        return export_images(site, flow, request, progress)
    # No patient's file is opened before this line.
    inputs = read_inputs(request.source, site, study)
    drawn = flow.draw(inputs.images, progress)
    write_images(request, flow, drawn)
    epsilon = flow.mechanism.epsilon_per_image
    sheet = comparison_sheet(
        inputs.images, drawn, f"epsilon = {at_most(epsilon)} per image; {ON_SITE}"
    )
    atomic_write(request.target / f"{ON_SITE}-sheet.png", sheet, mode=0o600)
    atomic_write(request.target / f"{ON_SITE}-inputs.csv", inputs_table(inputs.names), mode=0o600)
    return Outcome(len(drawn), flow.statement, inputs.refused, inputs.unknown_to(flow))
