"""``normfuse fold``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfuse.cli.options import DEBUG, QUIET
from normfuse.cli.outcome import one_line_errors
from normfuse.progress import Say, steps

if TYPE_CHECKING:
    from normfuse.folding.weight_map import WeightMap

__all__ = ["fold"]

MAP = Annotated[
    Path,
    typer.Argument(metavar="MAP", help="The .map.json that `normfuse rewrite` wrote.", show_default=False),
]
CHECKPOINT = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Weights of the same model: .safetensors, a state dict of torch.save, or the .index.json of "
        "several such files (or their folder).",
        show_default=False,
    ),
]
OUTPUT = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="File to write, .safetensors or .pt as it is named; a new folder when there are several.",
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
        from normfuse.folding.shards import index_of
        from normfuse.folding.weight_map import WeightMap

        with steps(quiet) as say:
            changes = WeightMap.load(map_file)
            index = index_of(checkpoint)
            if index is None:
                count = _fold_file(changes, map_file, checkpoint, output, say)
            else:
                count = _fold_shards(changes, index, output, say)
        if not quiet:
            added = sum(one.is_new for one in changes.changed)
            replaced = len(changes.changed) - added
            typer.echo(f"wrote {output}: {count} tensors, {replaced} folded in place, {added} added")


def _fold_file(changes: WeightMap, map_file: Path, checkpoint: Path, output: Path, say: Say) -> int:
    from normfuse.errors import InputError
    from normfuse.files import check_writable
    from normfuse.folding.checkpoint import load_checkpoint, save_checkpoint

    check_writable(output)
    for given in (map_file, checkpoint):
        if output.exists() and given.exists() and output.samefile(given):
            raise InputError(f"{output} is an input; choose another file for the output")
    say(f"loading {checkpoint}")
    tensors, metadata = load_checkpoint(checkpoint)
    say(f"folding {len(changes.changed)} tensors")
    folded = changes.fold(tensors)
    say(f"writing {output}")
    save_checkpoint(folded, output, metadata)
    return len(folded)


def _fold_shards(changes: WeightMap, index: Path, output: Path, say: Say) -> int:
    from normfuse.errors import InputError
    from normfuse.files import check_new_folder
    from normfuse.folding.shards import Shards, fold_shards

    if output.suffix in (".safetensors", ".pt", ".bin", ".pth", ".json"):
        raise InputError(f"{index} has several files, so the output has to be a folder, not {output}")
    check_new_folder(output)
    say(f"opening {index}")
    return fold_shards(changes, Shards(index), output, say)
