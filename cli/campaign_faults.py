"""`fxfault campaign faults`: the list of every fault of one trial."""

from __future__ import annotations

import argparse

from fxfault.cli.campaign_files import claim_lists
from fxfault.cli.terminal.progress import Progress
from fxfault.messages import counted


def write_faults(options: argparse.Namespace) -> int:
    """Run one trial of a store again, and write its faults; returns the exit status."""
    outputs = claim_lists({"csv": options.csv, "parquet": options.parquet}, options.store)
    from fxfault.campaign.studies.cell import words_of
    from fxfault.campaign.trial_faults import list_trial

    progress = Progress(wanted=not options.no_progress)
    try:
        with progress.showing_logs(False):
            found = list_trial(
                options.store,
                options.cell,
                options.trial,
                device=options.device,
                threads=options.threads,
                on_start=progress.start,
                on_batch=progress.advance,
                on_note=progress.note,
            )
    finally:
        progress.close()
    listing = found.listing
    if not found.is_stored:
        progress.note(f"trial {found.trial} is not in {options.store}: its counts are not compared")
    sites = len({place.name for place in listing.places})
    hits = f"{counted(len(listing), 'hit')} at {counted(sites, 'site')}"
    progress.say(f"Trial {found.trial} of {words_of(found.cell.key)}: {hits}")
    for name, output in outputs.items():
        output.write(listing.csv_text() if name == "csv" else listing.parquet_bytes())
        progress.say(f"Faults saved to: {output.path}")
    return 0
