"""``normfuse fold``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normfuse.cli.options import DEBUG, QUIET
from normfuse.cli.outcome import one_line_errors
from normfuse.cli.progress import steps

__all__ = ["fold"]

MAP = Annotated[
    Path,
    typer.Argument(metavar="MAP", help="The .map.json that `normfuse rewrite` wrote.", show_default=False),
]
CHECKPOINT = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Weights of the same model: .safetensors, or a state dict of torch.save.",
        show_default=False,
    ),
]
OUTPUT = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="File to write; .safetensors or .pt, as it is named.",
        show_default=False,
    ),
]


def fold(
    map_file: MAP, checkpoint: CHECKPOINT, output: OUTPUT, quiet: QUIET = False, debug: DEBUG = False
) -> None:
    """Fold another checkpoint of a rewritten model, without the model.

    The result has the names of the rewritten program, whose module() takes it with load_state_dict. Tensors
    that the map does not mention are copied as they are.
    """
    with one_line_errors(debug):
        from normfuse.errors import InputError
        from normfuse.files import check_writable
        from normfuse.folding.checkpoint import load_checkpoint, save_checkpoint
        from normfuse.folding.weight_map import WeightMap

        check_writable(output)
        for given in (map_file, checkpoint):
            if output.exists() and given.exists() and output.samefile(given):
                raise InputError(f"{output} is an input; choose another file for the output")
        with steps(quiet) as say:
            changes = WeightMap.load(map_file)
            say(f"loading {checkpoint}")
            tensors, metadata = load_checkpoint(checkpoint)
            say(f"folding {len(changes.changed)} tensors")
            folded = changes.fold(tensors)
            say(f"writing {output}")
            save_checkpoint(folded, output, metadata)
        if not quiet:
            added = sum(one.is_new for one in changes.changed)
            replaced = len(changes.changed) - added
            typer.echo(f"wrote {output}: {len(folded)} tensors, {replaced} folded in place, {added} added")
