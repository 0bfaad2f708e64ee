"""``normfuse.calibrate``: running statistics from data, without training."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from normfuse.arguments import bound_arguments
from normfuse.convert.calibration import Calibration
from normfuse.convert.distance import Distance
from normfuse.convert.metric import Metric, check_before, check_metric, measured
from normfuse.convert.observing import Observed, observing
from normfuse.convert.plan import Entry, Plan, check_only, plan_for
from normfuse.convert.swap import Swap
from normfuse.convert.targets import check_target
from normfuse.errors import InputError, OptionError
from normfuse.progress import Say, steps

__all__ = ["calibrate"]

Call = Callable[[nn.Module, Any], Any]


def calibrate(
    model: nn.Module,
    data: Iterable[Any],
    to: str | None = "unified_norm",
    *,
    metric: Metric | None = None,
    call: Call | None = None,
    only: Sequence[str] | None = None,
    also: Sequence[type[nn.Module]] = (),
    progress: bool | None = None,
    **options: Any,
) -> Calibration:
    """Replace norms by layers with statistics of ``data``, approximately, and leave the decision to you.

    The result is not the same function: the given model's norms look at each token, the new layers do not.
    ``model`` is unchanged until :meth:`Calibration.accept`.

    Every batch runs three times, in evaluation mode: with the new layers, which normalize it by its own
    statistics while these are added up; then with the old layers and with the new ones, to compare outputs.

    Args:
        model: see :func:`normfuse.convert`.
        data: batches; a list or a DataLoader, which can be gone through twice.
        to: what norms become, see :func:`normfuse.convert`; None keeps the layers of :mod:`normfuse.nn` that
            the model has, and gives them new statistics.
        metric: a number for the model, for example its accuracy on held-out data; called in evaluation mode
            without gradients.
        call: runs a model on a batch, ``call(model, batch)``; the default is ``model(batch)``,
            ``model(*batch)`` for a tuple or list and ``model(**batch)`` for a mapping.
        only, also, options: see :func:`normfuse.convert`.
        progress: whether to show it; None shows a bar where standard error is a terminal.

    Raises:
        InputError: for data without a batch or that cannot be gone through twice, for a model without norms
            to replace, for a layer that the data does not reach, for values that are not finite, and for a
            metric that fails or returns no number.
        OptionError: for a layer or an option that does not exist.
    """
    batches = _checked(data)
    check_metric(metric)
    if call is not None and not callable(call):
        raise InputError(f"call= is a function of the model and a batch, not {type(call).__name__}")
    plan = _plan(model, to, options, only, also)
    swap, run = Swap(model, plan.replacements), call or _call
    quiet = not (sys.stderr.isatty() if progress is None else progress)
    with _evaluating(model), torch.no_grad(), steps(quiet, _total(batches)) as say:
        count, observed = _observe(model, swap, plan, batches, run, say)
        distance = Distance()
        for number, batch in enumerate(batches):
            say(f"comparing batch {number + 1}")
            before = run(model, batch)
            with swap.installed():
                distance.add(before, run(model, batch))
    if distance.count != count:
        raise InputError(
            f"calibrate goes through data twice, and got {count} batches first and {distance.count} then; "
            "pass a list or a DataLoader"
        )
    before_after = _measured(model, swap, metric)
    return Calibration(
        to or "new statistics", distance.count, max(one.count for one in observed.values()),
        distance.relative, distance.largest, *before_after, tuple(plan.converted), tuple(plan.kept),
        _notes(observed), model, swap,
    )  # fmt: skip


def _checked(data: Iterable[Any]) -> Iterable[Any]:
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputError(f"calibrate takes a list of batches or a DataLoader, not {type(data).__name__}")
    if isinstance(data, Iterator):
        raise InputError(
            "calibrate goes through its data twice; pass a list or a DataLoader, not an iterator"
        )
    return data


def _plan(
    model: nn.Module,
    to: str | None,
    options: Mapping[str, Any],
    only: Sequence[str] | None,
    also: Sequence[type[nn.Module]],
) -> Plan:
    if not isinstance(model, nn.Module):
        raise InputError(f"calibrate takes an nn.Module, not {type(model).__name__}")
    if to is not None:
        check_target(to, options)
        plan = plan_for(model, to, options, only, also)
    elif options or also:
        raise OptionError(
            "to=None keeps the layers that the model has; leave out also= and options of new ones"
        )
    else:
        plan = _own_layers(model, only)
    plan.check("calibrated" if to is None else f"calibrated as {to}")
    return plan


def _own_layers(model: nn.Module, only: Sequence[str] | None) -> Plan:
    """Copies of layers that take statistics, which do not stand inside of one another."""
    check_only(only)
    plan, inside = Plan(sought="layer of normfuse.nn with running statistics"), set[nn.Module]()
    for name, module in model.named_modules():
        if not hasattr(module, "set_statistics") or module in inside or not name:
            continue
        inside.update(module.modules())
        if only is not None and not any(fnmatchcase(name, pattern) for pattern in only):
            plan.kept.append(Entry(name, type(module).__name__, reason="only leaves it out"))
            continue
        plan.layers[name] = plan.replacements[module] = copy.deepcopy(module)
        plan.converted.append(Entry(name, type(module).__name__, becomes="new statistics"))
    return plan


def _observe(
    model: nn.Module, swap: Swap, plan: Plan, batches: Iterable[Any], run: Call, say: Say
) -> tuple[int, dict[str, Observed]]:
    count = 0
    with swap.installed(), observing(plan.layers) as observed:
        for count, batch in enumerate(batches, 1):
            say(f"statistics, batch {count}")
            run(model, batch)
    if not count:
        raise InputError("calibrate got no batch: the data is empty")
    for name, one in observed.items():
        one.finish(name)
    return count, observed


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module has its own flag again afterwards."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        args, kwargs = (), dict(batch)
    else:
        args, kwargs = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), {}
    bound_arguments(model, args, kwargs, "call= says how to run a batch: the model")
    return model(*args, **kwargs)


def _total(batches: Iterable[Any]) -> int | None:
    try:
        return 2 * len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def _measured(model: nn.Module, swap: Swap, metric: Metric | None) -> tuple[float | None, float | None]:
    if metric is None:
        return None, None
    with _evaluating(model):
        before = measured(metric, model, "the given model")
        check_before(before)
    with _evaluating(model), swap.installed():
        return before, measured(metric, model, "the approximate model")


def _notes(observed: Mapping[str, Observed]) -> tuple[str, ...]:
    constant = {name: len(one.constant) for name, one in observed.items() if one.constant}
    return tuple(
        f"{count} {'channel' if count == 1 else 'channels'} of {name} had one value on all the data"
        for name, count in constant.items()
    )
