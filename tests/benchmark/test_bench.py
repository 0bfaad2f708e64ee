"""The bench's protocol, its inputs and its figures; no test here depends on how long anything takes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import normfuse
from normfuse.benchmark import measure, run
from normfuse.benchmark.measure import Cost, measure_cost, measure_rounds
from normfuse.benchmark.remaining import Remaining, duration
from normfuse.benchmark.result import BatchResult, BenchResult, Figure
from normfuse.benchmark.settings import Settings
from normfuse.benchmark.subject import Subject
from normfuse.benchmark.timing import AGAIN, Rounds
from normfuse.cli.app import app
from normfuse.pt2 import save_program
from normfuse.sources import Source
from tests.backends.networks import example, prenorm
from tests.page.structure import checked
from tests.programs.models import small_program

HERE = "tests.benchmark.test_bench"
PRICES = {"eager": 2.0, "inductor": 1.0, "normfuse": 0.9, "norms deleted": 0.8, "onnxruntime": 3.0}


def factory(batch_size=4):
    return prenorm(dtype=torch.float32), (example(batch_size or 4, torch.float32),)


class Machine:
    """Contenders with a fixed price on a clock made of numbers."""

    def __init__(self, monkeypatch, load=lambda now: 1.0):
        self.now, self.load = 0.0, load
        monkeypatch.setattr(measure, "contender", self.contender)

    def contender(self, name, subject):
        def call(*args, **kwargs):
            self.now += PRICES[name] * self.load(self.now)
            return subject.model(*args, **kwargs)

        return call

    def clock(self):
        return self.now


def test_ratios_are_those_of_the_prices_also_under_load(monkeypatch):
    machine = Machine(monkeypatch, load=lambda now: 1.0 if int(now / 40) % 2 else 3.0)
    settings = Settings(seconds=100.0)
    given = Source("model", nn.Identity(), (example(),))
    found = BatchResult.of(None, [measure_rounds(settings, given, machine.clock) for _ in range(5)], {})
    for name in ("eager", "normfuse", "norms deleted"):
        assert found.ratios[name].median == pytest.approx(PRICES[name])
    assert found.ratios["inductor" + AGAIN].median == pytest.approx(1.0)


def test_the_machine_is_left_as_it_was(monkeypatch):
    threads, modes = torch.get_num_threads(), []
    given = Source("model", nn.Identity(), (example(),))
    monkeypatch.setattr(measure, "contender", lambda name, subject: lambda *a: modes.append(
        (torch.is_grad_enabled(), torch.get_num_threads())))  # fmt: skip
    ticks = iter(range(10**6))
    measure_rounds(Settings(seconds=1.0, threads=1), given, lambda: float(next(ticks)))
    assert set(modes) == {(False, 1)}
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


def rounds(noise=(1.0, 1.0, 1.0), ours=0.9):
    times = {"inductor": [1.0] * 3, "normfuse": [ours] * 3, "inductor" + AGAIN: list(noise)}
    return Rounds("inductor", times)


def test_verdicts_need_more_than_the_noise():
    def verdict(ours, *noise):
        return BatchResult.of(None, [rounds(noise, ours)], {}).verdict("normfuse")

    assert verdict(0.9, 1.0, 1.0, 1.0) == "faster"
    assert verdict(0.9, 1.0, 1.0, 1.2) == "tie"
    assert verdict(0.9, 0.85, 1.0, 1.0) == "tie"
    assert verdict(1.1, 1.0, 1.0, 1.0) == "slower"
    assert verdict(1.1, 0.85, 1.0, 1.0) == "tie"
    assert verdict(1.0, 1.0, 1.0, 1.0) == "tie"


def test_a_figure_shows_its_interval():
    assert Figure.of([1.0, 2.0, 4.0]) == Figure(2.0, 1.0, 4.0)
    assert Figure(2.0, 1.0, 4.0).show() == "2.000 (1.000 .. 4.000)"
    assert Figure.of([0.5]).show(1e3, 1) == "500.0"


def result():
    costs = {"inductor": [Cost(3.0, 2**21), Cost(4.0, 2**21)]}
    batches = tuple(BatchResult.of(size, [rounds()] * 3, costs) for size in (1, 8))
    settings = Settings(source="a:b", contenders=("inductor", "normfuse"))
    return BenchResult(settings, 3, {"cores": 2}, batches, "do")


def test_a_result_prints_and_saves_everything(tmp_path):
    text = str(result())
    assert "a:b: inference, batch 8, 3 processes" in text
    assert "0.900" in text
    assert "faster" in text
    assert "3.50 (3.00 .. 4.00)" in text
    written = json.loads(result().save(tmp_path / "r.json").read_text())
    assert written["command"] == "do"
    assert written["machine"] == {"cores": 2}
    assert written["batches"][1]["verdicts"] == {"normfuse": "faster"}
    assert written["batches"][0]["costs"]["inductor"][0] == {"first_call": 3.0, "peak_bytes": 2**21}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture(suffix, tmp_path):
    pytest.importorskip("matplotlib")
    path = result().plot(tmp_path / f"r.{suffix}")
    assert path.stat().st_size > 1000
    with pytest.raises(normfuse.InputError, match=r"as a \.png or \.svg file"):
        result().plot(tmp_path / "r.pdf")


def test_inputs_are_repeated_to_the_batch_size():
    images, table = torch.arange(6.0).reshape(2, 3), torch.zeros(5)
    given = Source("model", nn.Identity(), (images, table, 7), {"mask": torch.tensor([True, False])})
    subject = Subject.of(Settings(batch_size=5), given)
    assert subject.args[0].tolist() == images[[0, 1, 0, 1, 0]].tolist()
    assert subject.args[1].shape == (5,)
    assert subject.args[2] == 7
    assert subject.kwargs["mask"].tolist() == [True, False, True, False, True]
    assert Subject.of(Settings(), given).args[0] is images


def test_a_factory_is_asked_for_the_batch_size():
    assert Subject.of(Settings(f"{HERE}:factory", batch_size=7)).args[0].shape[0] == 7


def test_a_training_step_leaves_no_gradients():
    given = Source("model", prenorm(), (example(),))
    subject = Subject.of(Settings(training=True), given)
    seen = []
    subject.model.head.weight.register_hook(lambda g: seen.append(float(g.norm())))
    subject.call(subject.model)()
    assert seen[0] > 0
    assert all(p.grad is None for p in subject.model.parameters())
    assert subject.model.training


def test_the_cost_of_one_contender(monkeypatch):
    machine = Machine(monkeypatch)
    monkeypatch.setattr(measure, "_clock", lambda settings: machine.clock)
    cost = measure_cost(Settings(), "normfuse", Source("model", prenorm(), (example(),)))
    assert cost.first_call == PRICES["normfuse"]
    assert cost.peak_bytes is None or cost.peak_bytes > 2**20


def test_a_model_of_this_process(monkeypatch):
    machine = Machine(monkeypatch)
    monkeypatch.setattr(measure, "_clock", lambda settings: machine.clock)
    found = normfuse.bench(nn.Identity(), (example(),), batch_sizes=(2, 4), seconds=60.0)
    assert [batch.batch_size for batch in found.batches] == [2, 4]
    assert found.batches[0].verdict("normfuse") == "faster"
    assert found.machine["packages"]["torch"] == torch.__version__


def test_fresh_processes_are_asked_in_turn(monkeypatch):
    asked = []

    def child(settings, *names, cache=None):
        asked.append((settings.batch_size, names, cache is not None))
        return json.dumps(Cost(1.0, None).to_dict()) if names else rounds().to_json()

    monkeypatch.setattr(run, "run_child", child)
    said = []
    options = {"processes": 2, "cost_runs": 2, "contenders": ("inductor", "normfuse")}
    found = normfuse.bench(f"{HERE}:factory", batch_sizes=(1, 2), progress=said.append, **options)
    one = [("inductor",), ("normfuse",), ("normfuse",), ("inductor",), (), ()]
    assert asked == [(size, names, bool(names)) for size in (1, 2) for names in one]
    assert len(said) == len(asked)
    assert found.processes == 2
    assert len(found.batches[0].costs["normfuse"]) == 2


def test_a_process_that_fails_is_one_sentence():
    with pytest.raises(normfuse.NormfuseError, match="a measuring process failed: RuntimeError: ") as error:
        run.run_child(Settings("tests.benchmark.hopeless:factory"), "eager")
    assert "\n" not in str(error.value)


def test_settings_travel_as_json():
    settings = Settings("a:b", 3, True, "cpu", "bfloat16", 2, 1.5, ("inductor", "eager"))
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contenders": ["inductor", "tensorrt"]}, "there is no contender 'tensorrt'"),
        ({"device": "tpu"}, "the device is cpu, cuda or one like cuda:1, not 'tpu'"),
        ({"device": "cuda:x"}, "not 'cuda:x'"),
        ({"contenders": ["eager"]}, "the contenders need inductor"),
        ({"training": True, "contenders": ["inductor", "onnxruntime"]}, "does not train"),
        ({"batch_sizes": [0]}, "at least one example"),
        ({"seconds": 0}, "has to be positive"),
        ({"colour": "red"}, "bench has no option 'colour'"),
        ({"processes": 3}, "is timed in this process"),
        ({"dtype": "int8"}, "there is no dtype"),
    ],
)
def test_bad_use(options, message):
    with pytest.raises(normfuse.InputError, match=message):
        normfuse.bench(prenorm(), (example(),), **options)


def test_bad_sources(tmp_path):
    with pytest.raises(normfuse.InputError, match="write \\(x,\\) for one tensor"):
        normfuse.bench(prenorm(), example())
    with pytest.raises(normfuse.InputError, match="holds no example inputs"):
        normfuse.bench(prenorm())
    with pytest.raises(normfuse.InputError, match="at least one process"):
        normfuse.bench(f"{HERE}:factory", processes=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt2"], "none.pt2 does not exist"),
        ([f"{HERE}:nothing"], "has no nothing"),
        ([f"{HERE}:factory", "--contender", "tensorrt"], "'tensorrt' is not one of"),
        ([f"{HERE}:factory", "--plot", "x.pdf"], "a plot is written as a .png or .svg file"),
        ([f"{HERE}:factory", "--json", "no/r.json"], "the folder no does not exist"),
        ([f"{HERE}:factory", "--batch", "0"], "Invalid value for '--batch'"),
    ],
)
def test_bad_use_of_the_command(arguments, message):
    found = CliRunner().invoke(app, ["bench", *arguments])
    assert found.exit_code == 2, found.output
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_program_of_fixed_sizes_refuses_another_batch(tmp_path):
    exported = torch.export.export(prenorm(), (example(),))
    save_program(exported, tmp_path / "in.pt2")
    found = CliRunner().invoke(app, ["bench", str(tmp_path / "in.pt2"), "--batch", "7"])
    assert found.exit_code == 2, found.output
    assert "in.pt2 does not take inputs of sizes [7, " in found.stderr
    assert found.stderr.count("\n") == 1


def test_the_command_writes_table_json_and_picture(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    everyone = {name: [price] * 3 for name, price in PRICES.items() if name != "onnxruntime"}
    answer = Rounds("inductor", {**everyone, "inductor" + AGAIN: [1.0] * 3}).to_json()
    monkeypatch.setattr(run, "run_child", lambda *a, **k: answer)
    save_program(small_program(), tmp_path / "in.pt2")
    options = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.svg"), "--cost-runs", "0"]
    found = CliRunner().invoke(app, ["bench", str(tmp_path / "in.pt2"), *options])
    assert found.exit_code == 0, found.output
    assert "norms deleted" in found.output
    assert json.loads((tmp_path / "r.json").read_text())["batches"][0]["verdicts"]["eager"] == "slower"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pt2", "r.json", "r.svg"]


@pytest.mark.slow
def test_a_whole_measurement(tmp_path):
    found = normfuse.bench(f"{HERE}:factory", batch_sizes=(2,), processes=2, seconds=0.5, threads=1)
    assert set(found.batches[0].seconds) == {"eager", "inductor", "normfuse", "norms deleted"}
    assert all(runs[0].first_call > 0 for runs in found.batches[0].costs.values())


def test_what_is_left_is_estimated_from_what_is_done():
    now = [0.0]
    left = Remaining(calls=2, processes=5, seconds=10.0, contenders=4, clock=lambda: now[0])
    assert (left.estimate(), str(left), left.at_least) == (None, "", 50.0)
    with left.measured("calls"):
        now[0] += 20.0
    assert left.estimate() == 20.0 + 5 * (10.0 + 4 * 20.0)
    assert str(left) == ", about 8 minutes left"
    with left.measured("calls"):
        now[0] += 20.0
    with left.measured("processes"):
        now[0] += 30.0
    assert left.estimate() == 4 * 30.0
    assert [duration(s) for s in (0.2, 1.4, 40.0, 100.0)] == [
        "1 second",
        "1 second",
        "40 seconds",
        "2 minutes",
    ]


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        (1, "of this process 19 times in 20"),
        (2, "the extremes of 2 processes, which hold the true one 50 times in 100"),
        (5, "the extremes of 5 processes, which hold the true one 94 times in 100"),
        (6, "the interval that holds the true one 19 times in 20)"),
    ],
)
def test_the_caption_says_what_so_few_processes_allow(processes, says):
    batch = BatchResult.of(None, [rounds() for _ in range(processes)], {})
    shown = " ".join(str(BenchResult(Settings(), processes, {}, (batch,))).split())
    assert says in shown


def test_the_command_says_what_it_is_going_to_do_and_writes_a_page(monkeypatch, tmp_path):
    def child(settings, *names, cache=None):
        return json.dumps(Cost(1.0, None).to_dict()) if names else rounds().to_json()

    monkeypatch.setattr(run, "run_child", child)
    words = ["bench", f"{HERE}:factory", "--processes", "2", "--seconds", "3", "--cost-runs", "1"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    first, *steps = found.stderr.splitlines()
    assert first.startswith(
        "2 processes of 3 seconds, after 4 first calls that compile from scratch: at least 6 s"
    )
    assert steps[0] == "[1/6] first call of eager"
    assert "left" in steps[-1]
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, [*words, "--quiet", "--html", str(page)]).output == ""
    assert f"{HERE}:factory" in checked(page.read_text(encoding="utf-8")).text
