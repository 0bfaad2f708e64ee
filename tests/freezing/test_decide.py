"""What is frozen, and the reasons why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.exc import InductorError
from torch.nn import functional as F

import normfuse
from normfuse.backends import inner as backend
from normfuse.folding.frozen import living_frozen
from normfuse.freezing import decide, products, room
from normfuse.report import Report
from tests.backends.networks import example, prenorm
from tests.freezing.holding import compilations, hold
from tests.patterns.capturing import program_of


def report_of(model: nn.Module, x: torch.Tensor | None = None, **options: Any) -> Report:
    given = {f"normfuse.{name}": value for name, value in options.items()}
    fast = torch.compile(model, backend="normfuse", options=given)
    fast(example() if x is None else x)
    return normfuse.last_report(fast)


def test_auto_freezes_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    with torch.no_grad():
        report = report_of(model)
    assert report.frozen == 1
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    assert report.frozen_bytes == sum(w.numel() * w.element_size() for w in weights)
    assert report.copied_bytes == 0
    assert "1 graph holds the weights as constants" in str(report)
    assert report.to_dict()["frozen"] == 1
    assert all(settings["freezing"] for settings in compilations)


@pytest.mark.parametrize("freeze", ["auto", "off"])
def test_nothing_is_frozen_where_gradients_are_recorded(freeze: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    report = report_of(prenorm(), freeze=freeze)
    assert report.frozen == 0
    assert not [note for note in report.notes if "without its weights" in note]
    assert not any("freezing" in settings for settings in compilations)


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    with torch.no_grad():
        assert report_of(prenorm(), freeze="off").frozen == 0


def test_a_model_without_norms_is_frozen_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        fast = torch.compile(model, backend="normfuse")
        torch.testing.assert_close(fast(x), model(x))
        assert normfuse.last_report(fast).frozen == 1
        model[0].bias.add_(1)
        torch.testing.assert_close(fast(x), model(x))


def test_on_with_gradients_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    with pytest.raises(
        normfuse.OptionError, match=r"freeze='on' is not possible here: gradients are recorded"
    ):
        report_of(prenorm(), freeze="on")


def test_weights_that_cannot_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    with torch.inference_mode():
        model = nn.Linear(4, 4).eval()
        x = torch.randn(2, 4)
        report = report_of(model, x)
        assert report.frozen == 0
        assert any("torch.inference_mode()" in note for note in report.notes)
        torch._dynamo.reset()
        with pytest.raises(normfuse.OptionError, match=r"weight was made under torch\.inference_mode\(\)"):
            report_of(model, x, freeze="on")


def test_on_where_nothing_is_compiled() -> None:
    with pytest.raises(normfuse.OptionError, match="freeze='on' goes with"):
        report_of(prenorm(), freeze="on", inner="eager")


def test_rewrite_takes_no_freeze() -> None:
    program = torch.export.export(prenorm(), (example(),))
    with pytest.raises(normfuse.OptionError, match=r"freeze is for torch\.compile"):
        normfuse.rewrite(program, freeze="auto")


def test_inductors_own_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    with torch.no_grad():
        fast = torch.compile(model, backend="normfuse", options={"freezing": False})
        fast(example())
    assert normfuse.last_report(fast).frozen == 0
    assert [settings["freezing"] for settings in compilations] == [False]


def test_auto_minds_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    monkeypatch.setattr(room, "machine_memory", lambda: 1000)
    with torch.no_grad():
        report = report_of(prenorm())
        assert report.frozen == 0
        assert any("of this machine's memory" in note for note in report.notes)
        torch._dynamo.reset()
        assert report_of(prenorm(), freeze="on").frozen == 1


def test_the_memory_of_all_models_counts_and_that_of_one_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model, other = prenorm(1), prenorm(2)
    with torch.no_grad():
        fast = torch.compile(model, backend="normfuse", dynamic=False)
        fast(example(8))
        size = normfuse.last_report(fast).frozen_bytes
        room_for_one = 1.5 * sum(one.bytes for one in living_frozen()) / room._SHARE
        monkeypatch.setattr(room, "machine_memory", lambda: room_for_one)
        fast(example(1))  # takes the weights from the graph of more rows
        assert normfuse.last_report(fast).frozen == 1
        report = report_of(other)
    assert size
    assert report.frozen == 0
    assert any("of this machine's memory" in note for note in report.notes)


def test_a_graph_that_writes_to_views_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    layer = nn.Linear(4, 4).eval()

    def run(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        part.add_(1)
        return layer(whole)

    fast = torch.compile(run, backend="normfuse")
    with torch.no_grad():
        whole, twin = torch.ones(2, 4), torch.ones(2, 4)
        torch.testing.assert_close(fast(whole, whole[0]), run(twin, twin[0]))
    assert normfuse.last_report(fast).frozen == 0
    assert any("several of its inputs" in note for note in normfuse.last_report(fast).notes)


def test_kernels_that_lose_precision_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    with torch.no_grad():
        report_of(prenorm(), example(1))
    assert compilations == [{"freezing": True}]


def test_the_users_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    with torch.no_grad():
        fast = torch.compile(prenorm(), backend="normfuse", options={"max_autotune_gemm": True})
        fast(example(1))
    assert compilations == [{"freezing": True, "max_autotune_gemm": True}]


@pytest.mark.parametrize("is_inductors", [False, True])
def test_inductors_own_error_leaves_the_weights_out(
    is_inductors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch)
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    held = backend.run_inner

    def failing(gm: Any, inputs: Any, options: Any, settings: Any) -> Any:
        if "freezing" in settings:
            error = IndexError("no such layout")
            raise InductorError(error, None) if is_inductors else error
        return held(gm, inputs, options, settings)

    monkeypatch.setattr(backend, "run_inner", failing)
    model = prenorm()
    with torch.no_grad():
        fast = torch.compile(model, backend="normfuse")
        torch.testing.assert_close(fast(example()), model(example()))
    report = normfuse.last_report(fast)
    assert report.frozen == 0
    assert report.after == {"rms_norm": 3}
    assert any("no such layout" in note for note in report.notes)


def test_inductors_own_freezing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        report = report_of(model)
        assert report.frozen == 0
        assert any("torch._inductor.config.freezing has Inductor do it" in note for note in report.notes)
        torch._dynamo.reset()
        with pytest.raises(normfuse.OptionError, match="unset it"):
            report_of(model, freeze="on")


@pytest.mark.parametrize(("dtype", "frozen"), [(torch.float32, 1), (torch.float64, 0)])
def test_convolutions_that_inductor_cannot_pack(
    dtype: torch.dtype, frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_packed = decide._is_packed
    hold(monkeypatch)
    monkeypatch.setattr(decide, "_is_packed", is_packed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype).eval()
    with torch.no_grad():
        report = report_of(model, torch.randn(1, 3, 8, 8, dtype=dtype))
    assert report.frozen == frozen
    assert (frozen == 0) is any("packs the weights of convolutions" in note for note in report.notes)


def test_what_cannot_be_watched_is_named() -> None:
    weight = torch.randn(3, 3)
    assert decide._cannot_watch(nn.Parameter(weight)) == ""
    assert "layout torch.sparse_coo" in decide._cannot_watch(weight.to_sparse())
    assert "is a Masked" in decide._cannot_watch(weight.as_subclass(Masked))


class Masked(torch.Tensor):
    pass


def products_of(function: Any, *inputs: torch.Tensor) -> list[tuple[str, int, int]]:
    """Of each product with the last input, or a view of it: its operator, rows and bytes."""
    program = program_of(function, inputs, 1)
    found = products.products(program.gm.graph, [program.inputs[-1].node])
    assert all(one.weight is program.inputs[-1].node for one in found)
    return [(str(one.node.target).split(".")[1], one.rows, one.bytes) for one in found]


def test_products_with_a_weight_and_their_rows() -> None:
    x, w = torch.randn(2, 5, 4), torch.randn(3, 4)
    assert products_of(F.linear, x, w) == [("linear", 10, 48)]
    assert products_of(lambda x, w: x @ w.t(), x, w) == [("matmul", 10, 48)]
    assert products_of(lambda x, w: torch.addmm(x[0, :, :3], x[0], w.t()), x, w) == [("addmm", 5, 48)]
    image, kernel = torch.randn(2, 4, 8, 8), torch.randn(3, 4, 3, 3)
    assert products_of(F.conv2d, image, kernel) == [("conv2d", 72, 432)]


def test_products_that_gain_nothing() -> None:
    x, w = torch.randn(2, 5, 4), torch.randn(3, 4)
    assert products_of(lambda x, w: F.linear(x, w * 2), x, w) == []
    assert products_of(lambda x, w: w @ x[0].t(), x, w) == []
    assert products_of(F.linear, x[:0], w) == []
    assert products_of(torch.matmul, x, torch.randn(2, 4, 3)) == []
    assert products_of(torch.mv, x[0], torch.randn(4)) == []
