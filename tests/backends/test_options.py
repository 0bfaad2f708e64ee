"""Options: ours and Inductor's, and one clear sentence for anything else."""

from __future__ import annotations

import pytest
import torch

import normfuse
from normfuse.options import Options
from tests.backends.networks import example, prenorm


def run(model: torch.nn.Module, **options: object) -> torch.Tensor:
    chosen = {"normfuse.inner": "eager"} | {k.replace("__", "."): v for k, v in options.items()}
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=chosen)
    with torch.no_grad():
        return fast(example())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"normfuse__polcy": "pays"}, "did you mean normfuse.policy"),
        ({"normfuse__target": "rmsnorm"}, "did you mean 'rms_norm'"),
        ({"normfuse__target": "batch_norm"}, "normfuse.target does not take 'batch_norm'"),
        ({"normfuse__inner": "jit"}, "choose one of"),
        ({"normfuse__only": ["recenter"]}, "did you mean recentre"),
        ({"normfuse__only": "recentre"}, "takes a list of rule names"),
        ({"normfuse__expect": {"rmsnorm": 3}}, "did you mean rms_norm"),
        ({"normfuse__expect": {"rms_norm": -1}}, "takes a count"),
        ({"normfuse__expect": 3}, "mapping from kind to count"),
        ({"normfuse__mode": 3}, "name of an Inductor mode"),
        ({"normfuse__mode": "max-autotun"}, "did you mean 'max-autotune'"),
        ({"max_autotun": True}, "did you mean 'max_autotune'"),
        ({"nonsense": True}, "unknown option 'nonsense'"),
    ],
)
def test_bad_options(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(normfuse.OptionError, match=sentence):
        run(prenorm(), **options)


def test_expectation() -> None:
    run(prenorm(), normfuse__expect={"rms_norm": 3, "layer_norm": 0})
    torch._dynamo.reset()
    with pytest.raises(normfuse.ExpectationError, match="expected 4 rms_norm after rewriting, found 3"):
        run(prenorm(), normfuse__expect={"rms_norm": 4})


def test_mode_alone_and_with_options() -> None:
    from normfuse.backends.inner import check_inductor

    assert check_inductor(Options(), "reduce-overhead") == {"triton.cudagraphs": True}
    both = Options.checked({"mode": "reduce-overhead"}, {"epilogue_fusion": False})
    assert check_inductor(both, None) == {"triton.cudagraphs": True, "epilogue_fusion": False}
    with pytest.raises(normfuse.OptionError, match="disagree"):
        check_inductor(both, "max-autotune")


@pytest.mark.parametrize(
    "options",
    [
        {"normfuse__target": "layer_norm", "normfuse__skip": ["fold_scale"]},
        {"normfuse__skip": ["recentre", "fold_scale"]},
        {"normfuse__only": []},
    ],
)
def test_recognition_only(options: dict[str, object]) -> None:
    model = prenorm()
    assert torch.equal(run(model, **options), model(example()).detach())
    report = normfuse.last_report()
    assert report.after == {"layer_norm": 3}
    assert {s.refusal.code for s in report.sites} == {"not_asked"}


def test_policy_pays_adds_no_centring() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = prenorm()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.net.embed(x))
            for block in self.net.blocks:
                x = block(x)
            return self.net.norm(x)

    run(Shifted())
    assert (normfuse.last_report().after, normfuse.last_report().centrings) == ({"rms_norm": 3}, 1)
    run(Shifted(), normfuse__policy="pays")
    report = normfuse.last_report()
    assert (report.after, report.centrings) == ({"layer_norm": 3}, 0)
    assert {s.refusal.code for s in report.sites} == {"nonlinear_writer"}


def test_verify_output_is_an_option_of_rewrite() -> None:
    result = normfuse.rewrite(prenorm(), (example(),), verify="output")
    assert result.report.after == {"rms_norm": 3}
