"""Training: it learns real digits, is a function of its seed alone, and stops when it should."""

import json
import math

import pytest
import torch

import lowerbound as lb
from lowerbound.data import ArraySource, Support
from lowerbound.errors import DivergedError, UsageError
from lowerbound.recipes import BinariseName, LikelihoodName, mlp
from lowerbound.training import (
    Cosine,
    Linear,
    Means,
    Precision,
    Selection,
    TrainState,
    end_epoch,
    resolve_device,
    train,
)

CPU = torch.device("cpu")


def small(data, **settings):
    torch.manual_seed(0)
    return mlp(data, **({"width": 32, "latent_dim": 4, "batch_size": 100, "epochs": 2} | settings))


@pytest.fixture(scope="module")
def few() -> lb.Data:
    return lb.open_data("digits")


def test_a_minute_of_real_digits_beats_the_best_model_without_latents(digits):
    """The bound on held-out digits passes the exact likelihood of independent pixels, which ignores z, by far."""
    torch.manual_seed(0)
    run = mlp(digits, width=256, latent_dim=16, epochs=2 if len(digits.train) > 10_000 else 24)
    history = lb.fit(run.vae, run.data, run.objective, run.training, device=CPU)
    mean = run.data.train.examples(torch.arange(0, len(run.data.train), 7)).x.mean(0).clamp(0.001, 0.999)
    x = run.data.valid.examples(torch.arange(len(run.data.valid))).x
    independent = (x * mean.log() + (1 - x) * (1 - mean).log()).flatten(1).sum(1).mean().item()
    assert history[-1]["valid_elbo"] > independent + 60
    assert history[-1]["valid_rate"] > 5
    assert not run.vae.training


def test_the_same_seed_gives_the_same_weights_whatever_the_caller_draws_in_between(few):
    weights = []
    for disturbed in (False, True):
        run = small(few)
        for step in train(run.vae, run.data.train, run.objective, run.training, device=CPU):
            if disturbed:
                torch.randn(step.step)
        weights.append(run.vae.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_another_seed_gives_other_weights(few):
    first, second = small(few), small(few)
    lb.fit(first.vae, first.data, first.objective, first.training, device=CPU)
    other = lb.Training(epochs=2, batch_size=100, seed=1)
    lb.fit(second.vae, second.data, second.objective, other, device=CPU)
    assert not torch.equal(first.vae.decoder.head.project.weight, second.vae.decoder.head.project.weight)


def test_stopping_anywhere_and_going_on_changes_nothing(few):
    """Updates 1..26 in one go, or cut at each of several places: mid-epoch, at an epoch's end, twice."""
    whole = small(few)
    state = TrainState(whole.vae, whole.training, CPU)
    for _ in train(whole.vae, whole.data.train, whole.objective, whole.training, state=state):
        pass
    assert state.step == 26
    for cuts in ([1], [5], [13], [14], [3, 20]):
        run, saved, passed = small(few), None, 0
        for cut in [*cuts, None]:
            run = small(few) if saved else run
            part = TrainState(run.vae, run.training, CPU)
            if saved is not None:
                part.restore(*saved)
            for step in train(run.vae, run.data.train, run.objective, run.training, state=part):
                passed += 1
                if step.step == cut:
                    break
            saved = ({k: v.clone() for k, v in part.tensors().items()}, part.scalars())
        assert passed == 26
        tensors = state.tensors()
        assert saved[0].keys() == tensors.keys()
        assert all(torch.equal(saved[0][k], tensors[k]) for k in tensors), cuts


def test_every_example_is_seen_once_an_epoch_in_another_order_each(few):
    run, seen = small(few), []
    from lowerbound.data import batches, epoch_order

    for epoch in (0, 1):
        order = epoch_order(len(few.train), run.training.seed, epoch)
        seen.append(torch.cat([b.index for b in batches(few.train, order, 100, CPU)]))
        assert torch.equal(seen[-1].sort().values, torch.arange(len(few.train)))
    assert not torch.equal(seen[0], seen[1])


def test_a_budget_of_minutes_ends_training(few):
    run = small(few)
    limited = lb.Training(epochs=None, minutes=0.01, batch_size=100)
    steps = list(train(run.vae, run.data.train, run.objective, limited, device=CPU))
    assert steps[-1].progress == 1
    assert 0.6 <= steps[-1].state.seconds < 5


def test_the_average_of_the_weights_is_what_is_kept(few):
    run = small(few, average=0.9)
    state = TrainState(run.vae, run.training, CPU)
    name = "decoder.head.project.bias"
    by_hand = state.parameters[name].detach().clone()
    for step in train(run.vae, run.data.train, run.objective, run.training, state=state):
        by_hand.lerp_(state.parameters[name].detach(), 1 - min(0.9, step.step / (step.step + 10)))
    kept = state.kept_weights()
    torch.testing.assert_close(kept[name], by_hand)
    assert not torch.equal(kept[name], run.vae.state_dict()[name])
    with state.averaged() as vae:
        assert torch.equal(vae.state_dict()[name], kept[name])


def test_patience_stops_and_keeps_the_best_weights(few):
    run = small(few, patience=2, epochs=60, lr=0.02, width=256)
    history = lb.fit(run.vae, run.data, run.objective, run.training, device=CPU)
    losses = [h["valid_loss"] for h in history]
    best = losses.index(min(losses))
    assert len(history) == min(best + 3, 60)
    assert len(history) < 60, "it should overfit 1,257 digits long before"
    from lowerbound.training import validate

    again = validate(run.vae, run.data.valid, run.objective, CPU)
    assert math.isclose(again["loss"], losses[best], rel_tol=1e-5)


def test_a_loss_that_is_no_number_makes_no_update(few):
    run = small(few)
    state = TrainState(run.vae, run.training, CPU)
    steps = train(run.vae, run.data.train, run.objective, run.training, state=state)
    next(steps)
    with torch.no_grad():
        run.vae.decoder.head.project.bias[0] = math.nan
    before = {k: v.clone() for k, v in state.tensors().items()}
    with pytest.raises(DivergedError, match="update 2"):
        next(steps)
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in state.tensors().items())


def test_validation_that_is_no_number_is_divergence(few):
    run = small(few)
    state = TrainState(run.vae, run.training, CPU)
    with torch.no_grad():
        for mean in (state.average or {}).values():
            mean.fill_(math.nan)
    with pytest.raises(DivergedError, match="validation"):
        end_epoch(state, run.data, run.objective, Selection(None, run.data.valid))


def test_a_batch_larger_than_the_data_is_refused(few):
    run = small(few, batch_size=5000)
    with pytest.raises(UsageError, match=r"5,000 is larger .* 1,257"):
        next(train(run.vae, run.data.train, run.objective, run.training, device=CPU))


def test_a_likelihood_that_means_nothing_for_the_data_is_refused(few):
    real = lb.Data("made", *[ArraySource(torch.randn(50, 1, 8, 8), support=Support.REAL)] * 3)
    run = small(few)
    with pytest.raises(UsageError, match="Bernoulli likelihood means nothing"):
        next(train(run.vae, real.train, run.objective, lb.Training(batch_size=10), device=CPU))


@pytest.mark.parametrize(
    "setting",
    [{"epochs": 0}, {"lr": -1.0}, {"batch_size": 0}, {"minutes": -1.0}, {"average": 1.5}, {"patience": 0},
     {"epochs": None}, {"lr": math.nan}, {"clip": 0.0}, {"seed": -1}],
)  # fmt: skip
def test_impossible_settings_are_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        lb.Training(**setting)


@pytest.mark.parametrize("schedule", [Linear(warmup=0.1), Cosine(warmup=0.1), Linear(final=0.5)])
def test_schedules_stay_in_their_range_and_end_where_they_say(schedule):
    values = [schedule(i / 100) for i in range(101)]
    assert all(0 <= v <= 1 for v in values)
    assert math.isclose(max(values), 1.0)
    assert math.isclose(values[-1], schedule.final, abs_tol=1e-12)


def test_bf16_and_fp32_learn_the_same(few):
    elbo = {}
    for precision in (Precision.FP32, Precision.BF16):
        run = small(few, epochs=6)
        training = lb.Training(epochs=6, batch_size=100, lr=3e-3, precision=precision)
        elbo[precision] = lb.fit(run.vae, run.data, run.objective, training, device=CPU)[-1]["valid_elbo"]
        assert all(p.dtype == torch.float32 for p in run.vae.parameters())
    assert abs(elbo[Precision.FP32] - elbo[Precision.BF16]) < 0.5


def test_running_means_weigh_every_example_alike():
    means = Means()
    for loss in ([1.0, 2.0, 3.0], [10.0]):
        means.add(lb.Terms(torch.tensor(loss), torch.tensor(loss)))
    assert means.read() == {"loss": 4.0, "distortion": 4.0}


def test_running_means_go_on_from_what_was_saved_as_if_nothing_had_been():
    torch.manual_seed(0)
    batches = [lb.Terms(*(100 * torch.randn(7) for _ in range(4)), torch.randn(7, 3)) for _ in range(20)]
    whole, part, again = Means(), Means(), Means()
    for batch in batches:
        whole.add(batch)
    for batch in batches[:9]:
        part.add(batch)
    again.restore(json.loads(json.dumps(part.sums())))
    for batch in batches[9:]:
        again.add(batch)
    assert again.read() == (means := whole.read())
    assert means["rate"] == pytest.approx(torch.cat([b.kl for b in batches]).mean().item(), rel=1e-5)
    layers = torch.cat([b.rate_per_layer for b in batches]).mean(0)
    assert [means[f"rate_{layer}"] for layer in (1, 2, 3)] == pytest.approx(layers.tolist(), rel=1e-5)


@pytest.mark.parametrize("likelihood", ["continuous-bernoulli", "normal", "bernoulli"])
def test_each_likelihood_learns_grey_digits(few, likelihood):
    run = small(few, binarise=BinariseName.NONE, likelihood=LikelihoodName(likelihood), width=128, epochs=25)
    history = lb.fit(run.vae, run.data, run.objective, run.training, device=CPU)
    assert history[-1]["valid_elbo"] > history[0]["valid_elbo"] + 1


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match=r"found: .*cpu"):
        resolve_device("tpu")


def test_patience_without_anything_to_select_on_is_refused():
    data = lb.open_data("digits").joined()
    run = lb.recipes.mlp(lb.open_data("digits"), width=8, depth=1, latent_dim=2, patience=3)
    with pytest.raises(UsageError, match=r"patience of 3 .*--valid"):
        lb.fit(run.vae, data, run.objective, run.training)
