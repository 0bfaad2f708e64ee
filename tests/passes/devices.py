"""Weights that lie elsewhere than the values they are used with; ``meta`` stands for the other device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.ir import Input, Program, Role
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline
from normfuse.report import Report

D = 6
HERE, THERE = "meta", "cpu"


def offloaded_writer(x, w, b, scale, shift):
    return F.layer_norm(F.linear(x, w.to(HERE), b.to(HERE)), (D,), scale, shift)


def scaled_writer(x, w, b, scale, shift, gamma):
    return F.layer_norm(F.linear(x, w.to(HERE), b.to(HERE)) * gamma, (D,), scale, shift)


def writer_of_stored(x, w, b, mean, variance, scale, shift):
    return F.batch_norm(F.linear(x, w.to(HERE), b.to(HERE)), mean, variance, scale, shift)


def offloaded_statistics(x, mean, variance, scale, shift, w, b):
    return F.linear(F.batch_norm(x, mean.to(HERE), variance.to(HERE), scale, shift), w, b)


def rewritten(f: Callable[..., Tensor], devices: list[str]) -> tuple[Report, Program]:
    names = f.__code__.co_varnames[1:]
    weights = [
        torch.rand((D, D) if n == "w" else (D,), device=d) for n, d in zip(names, devices, strict=True)
    ]
    gm = make_fx(f, pre_dispatch=True, tracing_mode="fake")(torch.rand(3, D, device=HERE), *weights)
    x, *rest = (node for node in gm.graph.nodes if node.op == "placeholder")
    values = [
        torch.full(w.shape, 0.1 if name == "mean" else 1.0) for name, w in zip(names, weights, strict=True)
    ]
    inputs = [Input(n, Role.PARAMETER, name, v) for n, name, v in zip(rest, names, values, strict=True)]
    program = Program(gm, [Input(x, Role.USER, "x", torch.rand(3, D)), *inputs])
    return run_pipeline(program, Options())[0], program


CASES = {
    offloaded_writer: [THERE, THERE, HERE, HERE],
    scaled_writer: [THERE, THERE, HERE, HERE, HERE],
    writer_of_stored: [THERE, THERE, HERE, HERE, HERE, HERE],
    offloaded_statistics: [THERE, THERE, HERE, HERE, HERE, HERE],
}
