"""``normfuse measure``."""

from __future__ import annotations

from typing import Annotated

import typer

from normfuse.cli.options import DEBUG, QUIET
from normfuse.cli.outcome import one_line_errors
from normfuse.progress import steps

__all__ = ["measure"]


def measure(
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time of the measurement.")] = 10.0,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Measure what this device saves by an RMSNorm and spends on centring a weight, at each training step.

    With `policy="pays"`, the default in training, streams convert where that saves time. It goes by figures
    of usual devices, and by those of this one once they are measured; they are kept beside what Inductor
    compiles.
    """
    with one_line_errors(debug):
        import torch

        from normfuse.benchmark.step_costs import keep, measure_step_costs

        with steps(quiet) as say:
            say(f"compiling norms and timing them on {device} for {seconds:g} seconds")
            costs = measure_step_costs(device, seconds)
        file = keep(torch.device(device), costs)
        if not quiet:
            saved, spent = 1e12 * costs.saved, 1e12 * costs.spent
            typer.echo(f"an RMSNorm saves {saved:.3g} ps for each byte that it reads, beside a LayerNorm")
            typer.echo(f"centring takes {spent:.3g} ps for each byte of a weight that trains")
            typer.echo(f"kept in {file}")
