"""From a checkpoint folder to a checkpoint folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normfuse.checkpoint.other_class import plan_as
from normfuse.checkpoint.plan import RULES, plan_of
from normfuse.checkpoint.planned import Plan
from normfuse.checkpoint.record import record_of_plan
from normfuse.checkpoint.shard import (
    Shard,
    check_sources,
    copy_file,
    shards_of,
    target_name,
    write_shard,
)
from normfuse.checkpoint.source import INDEX, RECORD, Folder
from normfuse.checkpoint.workplace import Workplace, check_target, workplace
from normfuse.errors import InputError, OptionError
from normfuse.files import json_text
from normfuse.options import Options
from normfuse.passes.catalogue import check_rules
from normfuse.passes.expectation import check_expectation
from normfuse.report import Report

__all__ = ["RewrittenFolder", "explain_folder", "rewrite_folder"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class RewrittenFolder:
    """What was written.

    Attributes:
        path: the folder.
        report: what was found and what became of it.
        is_plain: whether the class of ``transformers`` itself computes the same with these files.
        left_out: files of the input that were not copied: other weights, and code.
        architecture: the class of the model that was written.
        new_biases: layers with a bias that their class does not have.
        reused: files that an interrupted run had finished.
    """

    path: Path
    report: Report
    is_plain: bool
    left_out: tuple[str, ...] = ()
    reused: int = 0
    architecture: str = ""
    new_biases: tuple[str, ...] = ()


def rewrite_folder(
    source: str | Path,
    destination: str | Path,
    *,
    architecture: str | None = None,
    new_biases: bool = False,
    force: bool = False,
    progress: Say = lambda text: None,
    **options: Any,
) -> RewrittenFolder:
    """Write a ``transformers`` folder whose model computes the same with its norms in cheaper forms.

        LN_eps(sum_k W_k a_k + b_k) = RMS_eps(sum_k (C W_k) a_k + C b_k),  C = I - 11'/d
        W (w * N(x) + b) + c = (W diag(w)) N(x) + (c + W b)

    (Jiang et al. 2023, arXiv 2305.14858, section 3; Ashkboos et al. 2024, arXiv 2401.15024, section 3.1.) The
    model is captured without its weights, and the weights are folded one after the other, in blocks of rows
    or columns and in float64. In evaluation the loaded model returns what the original returns; hidden states
    that are asked for as outputs are those of the rewritten model, without their mean.

    Args:
        source: a folder with ``config.json`` and weights: safetensors, or files of ``torch.save``.
        destination: the folder to make. It appears when it is complete; interrupted work is gone on with.
        architecture: the class of ``transformers`` that the rewritten model is to be one of, e.g.
            ``"LlamaForCausalLM"`` for an OLMo. Its ``config.json`` and its tensors are written, and nothing
            of normfuse is needed to load them. None for the class that it is of.
        new_biases: whether layers may get biases that their class does not have. ``transformers`` alone
            does not load such a folder then, and does not find its weights.
        force: whether a checkpoint folder at ``destination`` is replaced.
        progress: is told what is done next.
        options: ``only``, ``skip``, ``target``, ``policy`` and ``expect`` of :func:`normfuse.rewrite`. Of the
            rules ``recentre`` and ``fold_scale`` have a form here.

    Raises:
        InputError: for a folder that is damaged, of an unknown class, with code of its own, in several dtypes
            or rewritten already, for an output that cannot be, for a full disk, and where the rewritten model
            is none of the class that ``architecture`` names.
        CaptureError: when the model cannot be captured.
        OptionError: for an option that folders do not have.
        ExpectationError: when ``expect`` is not met; nothing is written.
    """
    given, made = Path(source), Path(destination)
    asked = _options(options)
    check_target(given, made, force)
    folder, plan = _planned(given, asked, architecture, new_biases, progress)
    check_expectation(plan.report, asked)
    check_sources(folder, plan)
    copied, left_out = folder.others()
    with workplace(made, _state(folder, plan)) as work:
        shards = shards_of(folder, plan)
        _write_shards(folder, plan, shards, work, progress)
        for name in copied:
            copy_file(given / name, work.path / name)
        if plan.config is not None:
            work.write_text("config.json", plan.config.to_json_string())
        work.write_text(RECORD, json_text(record_of_plan(plan)))
        if folder.index is not None:
            work.write_text(target_name(INDEX, plan.is_plain), json_text(_index(folder.index, shards)))
    plan.report.folded = len(plan.made)
    done = made, plan.report, plan.is_plain, tuple(left_out), work.reused
    return RewrittenFolder(*done, plan.model_class, plan.changes.biased)


def explain_folder(
    source: str | Path, *, new_biases: bool = False, progress: Say = lambda text: None, **options: Any
) -> Report:
    """What :func:`rewrite_folder` would do to a folder: nothing is written, and no large tensor is read.

    The raised errors are those of :func:`rewrite_folder`.
    """
    return _planned(Path(source), _options(options), None, new_biases, progress)[1].report


def _planned(
    given: Path, asked: Options, architecture: str | None, new_biases: bool, progress: Say
) -> tuple[Folder, Plan]:
    if architecture is not None and new_biases:
        raise OptionError("new_biases is for the class of the folder; architecture names one with its own")
    if (given / RECORD).exists():
        raise InputError(f"{given} was rewritten already (it has a {RECORD}); rewrite the original")
    progress(f"reading {given}")
    folder = Folder(given)
    if architecture is not None:
        return folder, plan_as(folder, asked, architecture, progress)
    return folder, plan_of(folder, asked, new_biases, progress)


def _options(given: dict[str, Any]) -> Options:
    known = ("only", "skip", "target", "policy", "expect")
    for name in given:
        if name not in known:
            raise OptionError(f"{name} is no option for a checkpoint folder; choose from {', '.join(known)}")
    options = Options.checked({"policy": "convert", **given, "verify": "off"}, prefix="")
    if options.target == "crms_norm":
        raise OptionError(
            "target='crms_norm' changes sizes, which a class cannot hold; rewrite a program (.pt2)"
        )
    for rule in options.only or ():
        if rule not in RULES:
            raise OptionError(
                f"only names {rule}, which has no form in a checkpoint folder; rewrite a program"
            )
    check_rules(options, prefix="")
    return options


def _write_shards(folder: Folder, plan: Plan, shards: list[Shard], work: Workplace, progress: Say) -> None:
    """One file is computed while the one before goes down to the disk."""
    before: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        for number, shard in enumerate(shards, 1):
            if work.has(shard.target):
                continue
            progress(f"writing {shard.target}, {number} of {len(shards)}")
            finish = write_shard(folder, plan, shard, work.unfinished(shard.target))
            if before is not None:
                before.result()
            before = pool.submit(work.finish, shard.target, finish)
        if before is not None:
            before.result()


def _index(given: dict[str, Any], shards: list[Shard]) -> dict[str, Any]:
    places, size = dict[str, str](), 0
    for shard in shards:
        for name, dtype, shape in shard.tensors:
            places[name] = shard.target
            size += torch.Size(shape).numel() * dtype.itemsize
    metadata = given.get("metadata")
    kept = metadata if isinstance(metadata, dict) else {}
    return {**given, "metadata": {**kept, "total_size": size}, "weight_map": dict(sorted(places.items()))}


def _state(folder: Folder, plan: Plan) -> str:
    """What the files depend on: input, what is made of it, and versions."""
    stats = [(name, (folder.path / name).stat()) for name in folder.heads]
    facts = {
        "files": [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats],
        "config": folder.config,
        "record": record_of_plan(plan),
        "taken": plan.taken,
        "shapes": plan.shapes,
        "written config": None if plan.config is None else plan.config.to_dict(),
        "recipes": [(name, made.recipe.key, made.sources) for name, made in sorted(plan.made.items())],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
