"""The arithmetic and the turns of the benchmarks; nothing here is timed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import contestants  # noqa: E402
import measure  # noqa: E402
import novelty  # noqa: E402
import quality  # noqa: E402
import run  # noqa: E402
import synthetic  # noqa: E402
import tables  # noqa: E402
import throughput  # noqa: E402
from measure import Timing, slope, take_turns  # noqa: E402
from peers import network  # noqa: E402

import lowerbound as lb  # noqa: E402
from lowerbound.data import ArraySource, Data, Kind  # noqa: E402
from lowerbound.recipes import tutorial  # noqa: E402


def test_every_contestant_takes_a_turn_a_round_and_each_begins_one():
    order = []

    def player(name):
        def turn():
            order.append(name)
            return float(len(order))

        return turn

    timings = take_turns({name: player(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abcbcacababc"
    assert timings["a"].first == 1
    assert timings["a"].seconds == (6, 8, 10)


def test_there_is_nothing_to_count_without_a_round():
    with pytest.raises(ValueError, match="got 0"):
        take_turns({"a": lambda: 1.0}, rounds=0)


def test_who_breaks_on_the_way_is_left_out_and_the_others_go_on():
    turns = iter((1.0, 2.0))

    def breaks():
        try:
            return next(turns)
        except StopIteration:
            raise measure.LeftOutError("a is left out") from None

    left_out = []
    timings = take_turns({"a": breaks, "b": lambda: 1.0}, rounds=3, left_out=left_out)
    assert left_out == ["a is left out"]
    assert {name: t.seconds for name, t in timings.items()} == {"b": (1, 1, 1)}


def test_ratios_are_taken_within_rounds():
    # The machine is ten times slower in the second round, for both: the ratio does not notice.
    ours, theirs = Timing(9, (1, 10, 1)), Timing(9, (2, 20, 3))
    assert ours.against(theirs) == 2
    assert theirs.against(ours) == 0.5
    assert ours.median == 1


def test_the_slope_of_a_power_law_is_its_exponent():
    xs = (1, 2, 5, 10)
    found = slope(xs, [3 * x**1.5 for x in xs])
    assert found.exponent == pytest.approx(1.5)
    assert found.stderr == pytest.approx(0, abs=1e-9)


def test_the_error_of_a_slope_is_that_of_least_squares():
    xs, ys = [1.0, 2.0, 4.0, 8.0, 16.0], [1.1, 1.9, 4.5, 7.0, 17.0]
    found = slope(xs, ys)
    (exponent, _), covariance = np.polyfit(np.log(xs), np.log(ys), 1, cov=True)
    assert found.exponent == pytest.approx(exponent)
    assert found.stderr == pytest.approx(math.sqrt(covariance[0, 0]))


def test_two_points_have_a_slope_without_an_error_and_one_has_none():
    assert math.isnan(slope([1, 2], [1, 4]).stderr)
    with pytest.raises(ValueError, match="two different x"):
        slope([2, 2], [1, 4])


def test_operations_are_those_of_the_recipe_that_is_trained():
    digits = ArraySource(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    vae = tutorial(Data("digits", digits, None, digits), width=30).vae
    weights = [p.numel() for p in vae.parameters() if p.ndim == 2]
    forward = network.forward_flops(network.encoder(30) + network.decoder(30))
    assert forward == 2 * sum(weights)
    # The pixels need no gradient.
    assert network.training_flops(30) == 3 * forward - 2 * 784 * 30
    assert network.evidence_flops(1, 5) - network.evidence_flops(1, 4) == network.forward_flops(network.decoder())


def test_the_target_is_reached_at_the_first_epoch_that_meets_it():
    curve = quality.Curve((1.0, 2.0, 3.0, 4.0), (120.0, 98.71, 99.0, 98.0))
    assert curve.reached(98.71) == 2.0
    assert curve.reached(98.0) == 4.0
    assert curve.reached(97.0) is None


def test_the_peak_is_the_faster_of_the_kernels_in_that_arithmetic():
    from lowerbound.training import Precision

    slow, fast, other = Timing(1, (4, 4, 9)), Timing(1, (2, 9, 2)), Timing(1, (1, 1, 1))
    timings = {"products-fp32": slow, "products-onednn": fast, "products-bf16": other, "jax": other}
    assert throughput.peak_of(timings, Precision.FP32) is fast
    assert throughput.peak_of({"products-fp32": slow}, Precision.FP32) is slow
    assert throughput.peak_of(timings, Precision.BF16) is other


def test_the_tracks_asked_for_are_measured_once_each():
    assert run.chosen([]) == list(run.SHORT)
    assert run.chosen(["start", "memory", "start"]) == ["start", "memory"]
    assert run.chosen(["all"]) == [*run.SHORT, *run.LONG]
    for name in run.chosen(["all"]):
        assert run.track(name).__name__ == name


def test_settings_of_a_recipe_are_numbers_where_they_look_like_it():
    options = run.parsed(["quality", "--set", "epochs=5", "--set", "lr=2e-3", "--set", "binarise=none"])
    assert dict(options.set) == {"epochs": 5, "lr": 0.002, "binarise": "none"}


def test_a_record_is_json_and_says_where_it_was_measured(tmp_path):
    from settings import Settings

    result = measure.Result("start", "a title", ("a",), rows=[("1",)], values={"x": (1.0, 2.0)})
    settings = Settings(rounds=1, threads=1, tiny=True, digits="mnist", recipe="mlp")
    (path,) = measure.save([result.record(settings, (0.0, 0.0, 0.0))], tmp_path)
    record = json.loads(path.read_text())
    assert path.name == "start.json"
    assert record["values"] == {"x": [1.0, 2.0]}
    assert record["machine"]["processors"] >= 1
    assert record["settings"]["tiny"] is True
    assert {"commit", "command", "when", "load"} <= set(record)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place for contestants that are made here, beside the real protocol."""
    monkeypatch.setattr(contestants, "PEERS", tmp_path)
    (tmp_path / "protocol.py").write_text((ROOT / "benchmarks" / "peers" / "protocol.py").read_text())
    (tmp_path / "counts.py").write_text(
        "from protocol import arguments, serve\n"
        "chosen = arguments('count')\n"
        "print('a library prints')\n"
        "serve(chosen.pipe, {'add': lambda a, b: print('noise') or {'sum': a + b}}, counts='1')\n"
    )
    (tmp_path / "breaks.py").write_text("raise SystemExit('no such toolkit')\n")
    return tmp_path


def test_contestants_answer_in_turns_and_what_libraries_print_is_no_answer(folder):
    asked = [contestants.Contestant(name, "counts.py", "count") for name in ("one", "two")]
    with contestants.running(asked, folder / "digits.npy", folder) as (ready, left_out):
        assert not left_out
        assert ready["one"].versions == {"counts": "1"}
        for turn in range(2):
            for one in ready.values():
                answer = one(f"add {turn} 40")
                assert answer["sum"] == turn + 40
                assert answer["seconds"] >= 0
        assert ready["two"]("memory")["peak_bytes"] > 2**20
        with pytest.raises(measure.LeftOutError, match="unknown"):
            ready["two"]("unknown 1")
    assert [one.process.returncode for one in ready.values()] == [0, 1]


def test_who_breaks_or_has_no_environment_is_left_out_with_the_reason(folder, monkeypatch):
    monkeypatch.setattr(contestants, "ENVIRONMENTS", folder / "none")
    asked = [
        contestants.Contestant("broken", "breaks.py", "count"),
        contestants.Contestant("absent", "counts.py", "count", "absent"),
        contestants.Contestant("well", "counts.py", "count"),
    ]
    with contestants.running(asked, folder / "digits.npy", folder) as (ready, left_out):
        assert list(ready) == ["well"]
        broken, absent = left_out
    assert "no such toolkit" in broken
    assert "make peers" in absent


def test_a_maker_of_rows_without_an_environment_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(contestants, "ENVIRONMENTS", tmp_path)
    x, y, kinds = synthetic.mixed()
    assert y.sum() == 30
    with pytest.raises(measure.LeftOutError, match=r"TVAE is left out: .* `make peers`"):
        synthetic.tvae(x, y, kinds, 0)
    # One that breaks is left out with the last that it said.
    (tmp_path / "ctgan" / "bin").mkdir(parents=True)
    (tmp_path / "ctgan" / ".installed").touch()
    broken = tmp_path / "ctgan" / "bin" / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(measure.LeftOutError, match=r"status 3 \(no such thing\)"):
        synthetic.tvae(x, y, kinds, 0)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "peers").glob("*.txt")), ids=lambda p: p.stem)
def test_pins_are_exact(path):
    pins = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert pins
    assert all(pin.count("==") == 1 and "*" not in pin for pin in pins)


def test_help_needs_no_torch():
    code = "import sys, run; run.parsed([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "benchmarks")


def test_the_camera_s_medians_are_of_each_configuration_by_itself():
    import camera

    rows = [{"configuration": "a", "seed": seed, "mig": mig} for seed, mig in enumerate((0.1, 0.5, 0.2))]
    rows.append({"configuration": "b", "seed": 0, "mig": 0.9})
    result = camera.told(rows)
    assert result["medians"] == {"a": {"seeds": 3, "mig": 0.2}, "b": {"seeds": 1, "mig": 0.9}}
    assert result["trainings"] == rows
    assert "| mig | 0.2 | 0.9 |" in camera.table(result["medians"])


def test_the_auroc_is_of_those_that_have_a_score():
    score = np.array([0.1, 0.4, 0.3, np.nan, 0.9])
    new = np.array([False, False, True, True, True])
    # Of the four pairs of a new and a known example three are in order.
    assert novelty.auroc(score, new) == 3 / 4


def test_what_is_complex_takes_more_bytes():
    flat = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    flat[1] = torch.randint(2, (1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8) * 255
    simple, complex_ = novelty.complexity(novelty.Setting("", ArraySource(flat), ArraySource(flat), np.array([])))
    assert simple < complex_


def test_tables_at_hand_are_read_as_files_are_and_learned_from():
    values = np.array([[1.0, 5.0], [np.nan, 0.0], [3.0, 2.0], [2.0, np.nan]] * 4)
    table, x = tables.read(values, np.array([0, 1, 1, 1] * 4), [Kind.REAL, Kind.COUNT])
    assert [column.kind for column in table.columns] == [Kind.REAL, Kind.COUNT, Kind.CATEGORICAL]
    assert np.array_equal(torch.isnan(x[:, :2]).numpy(), np.isnan(values))
    assert x[:4, 1].tolist()[:3] == [5.0, 0.0, 2.0]
    assert x[:4, 2].tolist() == [0.0, 1.0, 1.0, 1.0]
    vae = tables.train(table, x, {"epochs": 1, "width": 4, "latent_dim": 1}, 0)
    filled = lb.impute(vae, x, 10).x
    assert not filled.isnan().any()
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
