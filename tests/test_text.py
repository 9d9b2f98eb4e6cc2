"""Text: a likelihood that adds up to 1, networks that see no further than the end of a line, and the commands."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from command import assert_refused, call, run, succeed
from parts import POSTERIORS, PRIORS

import lowerbound as lb
from lowerbound import heads, nn, spec
from lowerbound.data import Support, Text, Unit, generator
from lowerbound.errors import UsageError
from lowerbound.evaluation.summary import per_piece
from lowerbound.experiment import prepare
from lowerbound.heads import RecurrentText
from lowerbound.nn import GRU, TokenEncoder, token_counts
from lowerbound.recipes import RECIPES
from lowerbound.training import Precision, autocast

PLACES, TOKENS, FEATURES = 4, 3, 2


def a_head(places=PLACES, tokens=TOKENS, dropout=0.0, width=6):
    """A small head whose factors are far from uniform, in float64 and evaluation mode."""
    torch.manual_seed(3)
    head = RecurrentText((FEATURES,), (places,), tokens, width=width, embedding=3, dropout=dropout)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)
    return head.double().eval()


def some_features(*batch):
    return torch.randn(*batch, FEATURES, generator=generator(1), dtype=torch.float64)


def every_row(places=PLACES, tokens=TOKENS):
    """All rows that mean something: nothing but 0 behind the first 0."""
    rows = torch.tensor(list(itertools.product(range(tokens), repeat=places)))
    return rows[((rows == 0).cumsum(1) > 0).eq(rows == 0).all(1)].double()


def step_by_step(head, row, features):
    """Log p(x|z) by the definition: one token after the other, each from the state before it."""
    context = head.project(features)[None]
    state = torch.tanh(context[:, : head.width])
    total, before = 0.0, 0
    for token in row.long().tolist():
        gates = head.embed.weight[before] + context[:, head.width :]
        state = gru_cell(head.gru, gates, state)
        total += head.score(state).log_softmax(-1)[0, token]
        before = token
        if token == 0:
            break
    return total


def gru_cell(gru, x, h):
    """Cho et al. (2014), in the variant that torch documents."""
    i = x @ gru.weight_ih_l0.T + gru.bias_ih_l0
    j = h @ gru.weight_hh_l0.T + gru.bias_hh_l0
    (ir, iz, im), (jr, jz, jm) = i.chunk(3, 1), j.chunk(3, 1)
    update = torch.sigmoid(iz + jz)
    return (1 - update) * torch.tanh(im + torch.sigmoid(ir + jr) * jm) + update * h


# the likelihood


@pytest.mark.verifies(heads.RecurrentText, against="enumeration")
def test_the_probabilities_of_all_lines_add_up_to_one():
    rows, p = every_row(), a_head()(some_features(5), torch.Size([5]))
    assert len(rows) == 1 + 2 + 4 + 8 + 16
    log_p = p.log_prob(rows[:, None])
    assert log_p.shape == (31, 5)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.verifies(heads.RecurrentText, against="definition")
def test_the_log_probability_is_the_sum_over_the_steps():
    head, rows, features = a_head(), every_row(), some_features(31)
    found = head(features, torch.Size([31])).log_prob(rows)
    expected = torch.stack([step_by_step(head, row, f) for row, f in zip(rows, features, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_many_draws_of_z_and_single_ones_agree():
    head, rows, features = a_head(), every_row()[::6], some_features(7, 6)
    found = head(features.flatten(0, 1), torch.Size([7, 6])).log_prob(rows)
    assert found.shape == (7, 6)
    for k, b in itertools.product(range(7), range(6)):
        alone = head(features[k, b][None], torch.Size([1])).log_prob(rows[b][None])
        torch.testing.assert_close(found[k, b], alone[0], rtol=1e-12, atol=1e-12)


def test_the_lines_are_taken_a_part_at_a_time_where_no_gradient_is_wanted(monkeypatch):
    head, rows, features = a_head(), every_row(), some_features(3, 31)
    expected = head(features.flatten(0, 1), torch.Size([3, 31])).log_prob(rows)
    monkeypatch.setattr("lowerbound.heads.text._AT_A_TIME", 4 * 18 * 7)
    seen, whole = [], head.log_prob_of
    head.log_prob_of = lambda tokens, context: seen.append(len(tokens)) or whole(tokens, context)
    with torch.no_grad():
        found = head(features.flatten(0, 1), torch.Size([3, 31])).log_prob(rows)
    assert seen == [7] * 13 + [2]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_places_behind_the_end_change_nothing():
    short, long = a_head(places=4), a_head(places=9)
    long.load_state_dict(short.state_dict())
    rows, features = every_row(), some_features(31)
    ended = rows[:, -1] == 0
    wide = torch.nn.functional.pad(rows, (0, 5))
    found = [head(features, torch.Size([31])).log_prob(x) for head, x in ((short, rows), (long, wide))]
    torch.testing.assert_close(found[0][ended], found[1][ended], rtol=1e-12, atol=1e-12)
    assert (found[1] < found[0])[~ended].all(), "in a wider row these lines end, which a cut one leaves open"
    behind = wide.clone()
    behind[0, 5:] = 2  # the first row ends at once
    torch.testing.assert_close(long(features, torch.Size([31])).log_prob(behind), found[1], rtol=0, atol=1e-12)


def test_z_reaches_every_step_and_not_by_the_state_before_alone():
    head = a_head(places=6)
    x = torch.tensor([[1.0, 2, 1, 1, 2, 0]], dtype=torch.float64)
    context = head(some_features(1), torch.Size([1])).context.detach().requires_grad_()
    states, _ = head._states(x.long(), context, torch.zeros(1, 1, head.width, dtype=torch.float64))
    each = head._log_probs(states, x.long())[0]
    for place in range(6):
        (slope,) = torch.autograd.grad(each[place], context, retain_graph=True)
        assert slope[0, head.width :].abs().max() > 1e-4, "with no state to begin with, z comes in by the inputs"
    each = head.log_prob_of(x.long(), context)
    (slope,) = torch.autograd.grad(each.sum(), context)
    assert slope[0, : head.width].abs().max() > 1e-4, "and by the state that it begins with"


def test_draws_are_as_frequent_as_they_are_probable():
    torch.manual_seed(0)
    p = a_head()(some_features(2), torch.Size([2]))
    drawn = p.sample((20_000,))
    rows = every_row()
    for b in range(2):
        found = (drawn[:, b, None] == rows).all(-1).double().mean(0)
        assert found.sum() == 1, "nothing else is drawn"
        expected = p.log_prob(rows[:, None]).exp()[:, b]
        error = (expected * (1 - expected) / 20_000).sqrt()
        assert ((found - expected).abs() < 4.5 * error + 1e-4).all()


def test_the_likeliest_token_follows_at_each_place():
    head, features = a_head(places=7), some_features(20)
    p = head(features, torch.Size([20]))
    rows = p.mean
    assert torch.equal(rows, p.mode)
    assert rows.shape == (20, 7)
    for row, f in zip(rows, features, strict=True):
        length = int(token_counts(row))
        for place in range(length):
            others = row[None].repeat(TOKENS, 1)
            others[:, place], others[:, place + 1 :] = torch.arange(TOKENS), 0
            # All of them are alike up to this place; what follows is taken out of the comparison.
            prefix = a_head(places=place + 1)
            prefix.load_state_dict(head.state_dict())
            log_p = prefix(f.expand(TOKENS, -1), torch.Size([TOKENS])).log_prob(others[:, : place + 1])
            assert int(log_p.argmax()) == int(row[place])
        assert (row[length:] == 0).all()


def test_tokens_are_hidden_in_training_alone():
    head, plain = a_head(dropout=0.5), a_head()
    plain.load_state_dict(head.state_dict())
    rows, features = every_row(), some_features(31)
    expected = plain(features, torch.Size([31])).log_prob(rows)
    assert torch.equal(head(features, torch.Size([31])).log_prob(rows), expected)
    head.train()
    torch.manual_seed(0)
    noisy = torch.stack([head(features, torch.Size([31])).log_prob(rows) for _ in range(40)])
    counts = token_counts(rows)
    assert torch.equal(noisy[:, counts == 1], expected[counts == 1].expand(40, -1)), "there is nothing to hide"
    assert (noisy[:, counts > 2].std(0) > 1e-3).all()
    # Half of the lines of two tokens have their one token hidden, and all of these alike.
    two = noisy[:, counts == 2]
    assert 0.3 < torch.isclose(two, expected[counts == 2]).double().mean() < 0.7
    assert torch.equal(plain.train()(features, torch.Size([31])).log_prob(rows), expected), "a rate of 0 hides none"


def test_a_language_model_is_the_same_head_without_anything_to_be_told():
    head, rows = a_head(), every_row()
    p = head(torch.zeros(1, FEATURES, dtype=torch.float64), torch.Size([1]))
    assert p.log_prob(rows).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_extreme_weights_leave_all_finite(precision):
    torch.manual_seed(0)
    head = RecurrentText((FEATURES,), (PLACES,), TOKENS, width=8, embedding=4, dropout=0.3)
    network = TokenEncoder((PLACES,), TOKENS, 5, 4)
    with torch.no_grad():
        for parameter in [*head.parameters(), *network.parameters()]:
            parameter.mul_(1e4)
    rows = every_row().float()
    with autocast(precision, torch.device("cpu")):
        p = head(1e4 * torch.randn(31, FEATURES), torch.Size([31]))
        loss = -p.log_prob(rows).mean() + network(rows).square().mean()
        drawn = p.sample()
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(q.grad is not None and q.grad.isfinite().all() for q in [*head.parameters(), *network.parameters()])
    assert drawn.dtype == torch.float32
    assert torch.isin(drawn, torch.arange(TOKENS)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"event_shape": (2, 3)},
        {"num_tokens": 1},
        {"num_tokens": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"width": 0},
        {"embedding": 0},
    ],
)
def test_a_likelihood_that_cannot_be_is_refused(settings):
    with pytest.raises(UsageError):
        RecurrentText(**{"in_shape": (2,), "event_shape": (4,), "num_tokens": 5, **settings})


def test_numbers_are_no_text_and_text_is_no_number():
    with pytest.raises(UsageError, match="These do: RecurrentText"):
        heads.Bernoulli((2,), (4,)).check(Support.TOKENS)
    with pytest.raises(UsageError, match="support count"):
        RecurrentText((2,), (4,), 5).check(Support.COUNT)


# the network


def test_the_encoder_reads_each_line_from_both_its_ends():
    torch.manual_seed(0)
    network, rows = TokenEncoder((PLACES,), TOKENS, width=5, embedding=3).double(), every_row()
    found = network(rows)
    for row, features in zip(rows, found, strict=True):
        line = row.long()[: int(token_counts(row))]
        states = torch.zeros(2, 1, 5, dtype=torch.float64)
        for token, last in zip(line, line.flip(0), strict=True):
            states = torch.stack(
                [
                    gru_cell(gru, network.embed.weight[t][None], state)
                    for gru, t, state in zip((network.forth, network.back), (token, last), states, strict=True)
                ]
            )
        torch.testing.assert_close(features, states.flatten(), rtol=1e-12, atol=1e-12)


def test_the_encoder_does_not_see_how_many_places_are_left():
    torch.manual_seed(0)
    network, rows = TokenEncoder((9,), TOKENS, width=5, embedding=3).double(), every_row()
    wide = torch.nn.functional.pad(rows, (0, 5))
    alone = torch.cat([network(row[None]) for row in wide])
    torch.testing.assert_close(network(wide), alone, rtol=1e-12, atol=1e-12)
    ended = rows[:, -1] == 0
    torch.testing.assert_close(network(rows)[ended], alone[ended], rtol=1e-12, atol=1e-12)
    with pytest.raises(UsageError, match=r"has the shape \(T,\)"):
        TokenEncoder((3, 4), 5)


def test_a_recurrent_layer_stays_differentiable_when_it_is_judged():
    layer = GRU(2, 3).eval()
    assert layer.training, "CUDA differentiates it in this mode alone"


# the whole


def lines(tmp_path, count=60):
    path = tmp_path / "lines.txt"
    stems = ["walk", "talk", "jump", "play", "look"]
    path.write_text("\n".join(f"{stems[i % 5]}{('s', 'ed', 'ing', '')[i % 4]}{i % 3}" for i in range(count)))
    return path


SMALL = {"width": 12, "read_width": 8, "embedding": 4, "latent_dim": 3, "batch_size": 16, "epochs": 1}


def test_a_model_is_built_again_from_its_description(tmp_path):
    run_ = prepare(RECIPES["text"], lb.open_data(str(lines(tmp_path))), SMALL | {"dropout": 0.2})
    tree = json.loads(json.dumps(spec.describe(run_.vae)))
    with torch.device("meta"):
        assert {k: v.shape for k, v in spec.build(tree).state_dict().items()} == {
            k: v.shape for k, v in run_.vae.state_dict().items()
        }
    again = spec.build(tree)
    assert spec.describe(again) == tree
    assert again.likelihood.dropout == 0.2
    again.load_state_dict(run_.vae.state_dict())
    x = run_.data.test.examples(torch.arange(5)).x
    torch.manual_seed(0)
    expected = run_.vae.eval().trace(x, 3)
    torch.manual_seed(0)
    found = again.eval().trace(x, 3)
    assert torch.equal(found.log_w, expected.log_w)


def test_every_weight_learns_and_the_evidence_is_that_of_a_sum_over_z(tmp_path):
    """With z drawn from the prior itself, importance sampling is a mean of p(x|z), so it adds up to 1 over all x."""
    torch.manual_seed(0)
    down, up = TokenEncoder((3,), 3, 4, 3), nn.MLP((2,), (5,))
    vae = lb.VAE(
        heads.Conditional(down, heads.DiagonalNormal(down.out_shape, (2,))),
        heads.Conditional(up, RecurrentText(up.out_shape, (3,), 3, width=6, embedding=3, dropout=0.3)),
        lb.priors.StandardNormal(2),
    )
    rows = every_row(places=3).float()
    lb.objectives.FreeBits(0.0)(vae, rows).loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())
    with torch.no_grad():
        for parameter in vae.encoder.head.parameters():
            parameter.zero_()  # q(z|x) is the prior
        torch.manual_seed(0)
        total = lb.log_evidence(vae.eval().double(), rows.double(), 400).log_px.exp().sum().item()
    assert total == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("posterior", "prior", "objective"),
    [
        ("iaf", "mixture", lb.objectives.IWAE(3, lb.objectives.DoublyReparameterised())),
        ("full", "real-nvp", lb.ELBO(num_samples=2)),
        ("delta", "standard", lb.objectives.WAE(10)),
    ],
)
def test_text_goes_with_other_parts(tmp_path, posterior, prior, objective):
    data = lb.open_data(str(lines(tmp_path)))
    tokens, places = data.view.reading.num_tokens, data.event_shape
    torch.manual_seed(0)
    down, up = TokenEncoder(places, tokens, 6, 4), nn.MLP((3,), (8,))
    vae = lb.VAE(
        heads.Conditional(down, POSTERIORS[posterior](down.out_shape, (3,))),
        heads.Conditional(up, RecurrentText(up.out_shape, places, tokens, width=8, embedding=4)),
        PRIORS[prior](3, places),
    )
    history = lb.fit(vae, data, objective, lb.Training(epochs=8, batch_size=16, lr=0.02))
    assert history[-1]["valid_distortion"] < history[0]["valid_distortion"] - 1
    found = lb.evaluate(vae, data.test, num_samples=10, gap=0)
    assert found.per_piece.keys() == (
        set() if posterior == "delta" else {"bits_per_character", "bits_per_character_stderr", "perplexity_bound"}
    )
    assert lb.sample(vae, 4, draw=True).shape == (4, *places)


def test_the_recipe_reads_the_file_as_it_is_asked_to_and_refuses_what_is_no_text(tmp_path):
    path = str(lines(tmp_path))
    words = prepare(RECIPES["text"], lb.open_data(path), SMALL | {"unit": "words", "most": 3, "longest": 5})
    assert words.data.view.reading.unit is Unit.WORDS
    assert words.vae.likelihood.num_tokens == 5
    assert words.vae.likelihood.unit == "token"
    own = lb.open_data(path, reading=Text(Unit.BYTES))
    assert prepare(RECIPES["text"], own, SMALL).data is own
    with pytest.raises(UsageError, match="learns from lines of text"):
        prepare(RECIPES["text"], lb.open_data("digits"), SMALL)
    with pytest.raises(UsageError, match="Use the recipe text"):
        prepare(RECIPES["mlp"], lb.open_data(path), {"epochs": 1})


def test_bits_are_shared_out_to_all_pieces_together():
    log_px = torch.tensor([-1.0, -2.0, -6.0]).double() * math.log(2)
    found = per_piece("token", log_px, torch.tensor([1, 2, 3]))
    assert found["bits_per_token"] == pytest.approx(9 / 6)
    assert found["perplexity_bound"] == pytest.approx(2**1.5)
    # By the definition of the delta method for a ratio of two means.
    residuals = [1 - 1.5, 2 - 3.0, 6 - 4.5]
    variance = sum(r * r for r in residuals) / 2
    assert found["bits_per_token_stderr"] == pytest.approx(math.sqrt(variance / 3) / 2)


# the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    path = folder / "run"
    settings = SMALL | {"data": lines(folder, 300), "out": path, "epochs": 12, "lr": 0.02, "width": 16}
    answer = run("train", "text", *(part for k, v in settings.items() for part in (f"--{k.replace('_', '-')}", v)))
    return path, succeed(answer)


def test_train_says_what_a_character_costs(trained):
    assert "bits/character" in trained[1].words
    assert json.loads((trained[0] / "run.json").read_text())["data"]["support"] == "tokens"


def test_evaluate_gives_bits_per_character_and_a_bound_on_the_perplexity(trained):
    found = succeed(call("evaluate", trained[0], "--json", "--samples", 30, "--gap", 4)).json
    reading = spec.build(json.loads((trained[0] / "run.json").read_text())["data"]["view"]["reading"])
    assert found["bits_per_dim"] is None
    data = lb.open_data(json.loads((trained[0] / "run.json").read_text())["data"]["source"])
    texts = reading.lines(data.test.examples(torch.arange(len(data.test))).x)
    characters = sum(len(text) + 1 for text in texts)
    assert found["bits_per_character"] == pytest.approx(
        -found["log_px"] * found["n"] / (characters * math.log(2)), rel=1e-6
    )
    assert found["perplexity_bound"] == pytest.approx(2 ** found["bits_per_character"])
    assert found["is_likelihood"] is True
    assert found["approximation_gap"] is not None, "a better q is found by the gradient of p(x|z)"
    assert found["bits_per_character"] < 2.5


def test_samples_are_text_in_the_file_and_on_the_terminal(trained, tmp_path):
    out = tmp_path / "made.txt"
    answer = succeed(run("sample", trained[0], "--n", 20, "--out", out))
    made = out.read_text().splitlines()
    assert len(made) == 20
    assert len(set(made)) > 8, "drawn, not the likeliest of each z"
    assert all(line in answer.out for line in made[:10])
    assert sum(any(stem in line for stem in ("walk", "talk", "jump", "play", "look")) for line in made) > 5
    succeed(call("sample", trained[0], "--n", 20, "--out", tmp_path / "again.txt"))
    assert (tmp_path / "again.txt").read_text() == out.read_text()
    succeed(call("sample", trained[0], "--n", 20, "--out", tmp_path / "likeliest.txt", "--no-draw"))
    assert (tmp_path / "likeliest.txt").read_text() != out.read_text()
    assert succeed(call("sample", trained[0], "--n", 3, "--out", out, "--json")).json["n"] == 3
    succeed(call("sample", trained[0], "--n", 3, "--out", tmp_path / "made.npz"))
    assert np.load(tmp_path / "made.npz")["x"].shape[0] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.txt", "likeliest.txt", "made.npz", "made.txt"]


def test_reconstructions_stand_below_what_they_are_of(trained, tmp_path):
    out = tmp_path / "r.txt"
    answer = succeed(call("reconstruct", trained[0], "--out", out, "--n", 4))
    written = out.read_text().splitlines()
    assert len(written) == 8
    known = set((trained[0].parent / "lines.txt").read_text().split("\n"))
    assert set(written[::2]) <= known
    assert f"{written[0]} → {written[1]}" in answer.out


def test_a_line_between_two_lines_is_lines(trained, tmp_path):
    out = tmp_path / "i.txt"
    succeed(call("interpolate", trained[0], "--from", 0, "--to", 1, "--steps", 5, "--out", out))
    succeed(call("reconstruct", trained[0], "--out", tmp_path / "r.txt", "--n", 2))
    ends = (tmp_path / "r.txt").read_text().splitlines()[1::2]
    line = out.read_text().splitlines()
    assert len(line) == 5
    assert [line[0], line[-1]] == ends
    succeed(call("encode", trained[0], "--out", tmp_path / "codes.npz"))
    assert np.load(tmp_path / "codes.npz")["loc"].shape == (30, 3)


def test_new_text_is_read_as_that_of_the_training(trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("walks\njumqing\nplayed\nlook" + "\nwalking" * 40)
    found = succeed(
        call("evaluate", trained[0], "--data", other, "--split", "train", "--json", "--samples", 5, "--gap", 0)
    ).json
    assert any(note.startswith("1 of the file's ") and "unknown" in note for note in found["notes"])
    other.write_text("ÄÖÜ\nÄÖ\nÜÜÜ")
    assert_refused(call("evaluate", trained[0], "--data", other), 3, str(other), "has none of the")


def test_what_a_terminal_would_obey_is_written_out(tmp_path):
    new = tmp_path / "new.txt"
    new.write_text("wal\x1b[2Jked\n" * 6)
    words = (
        "--data",
        new,
        "--out",
        tmp_path / "run",
        "--epochs",
        1,
        "--batch-size",
        1,
        "--width",
        4,
        "--device",
        "cpu",
    )
    succeed(call("train", "text", *words))
    answer = succeed(call("reconstruct", tmp_path / "run", "--out", tmp_path / "r.txt"))
    assert "wal\\x1b[2Jked → " in answer.out
    assert "\x1b" not in answer.out
    assert "wal\x1b[2Jked\n" in (tmp_path / "r.txt").read_text()


def test_bytes_may_be_anything(tmp_path):
    """Of what is no UTF-8 too: what a token is must be known before the file is opened."""
    path = tmp_path / "any.txt"
    # As UTF-16 begins, too.
    path.write_bytes(b"\xff\xfe" + b"\n".join(bytes([0, 200 + i % 50, 255, 65 + i % 7]) for i in range(40)))
    words = ("train", "text", "--data", path, "--out", tmp_path / "run", "--epochs", 1, "--width", 4, "--device", "cpu")
    words += ("--batch-size", 8, "--json")
    assert_refused(call(*words), 3, "UTF-16")
    path.write_bytes(path.read_bytes().removeprefix(b"\xff\xfe"))
    assert_refused(call(*words), 3, "--unit bytes")
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    succeed(call(*words, "--unit", "bytes"))
    assert lb.load(tmp_path / "run").likelihood.unit == "byte"
    assert call(*words, "--unit", "bytes", "--resume").status == 0
    succeed(call("sample", tmp_path / "run", "--n", 3, "--out", tmp_path / "made.txt"))
    assert (tmp_path / "made.txt").read_bytes().count(b"\n") == 3


def test_what_is_no_text_is_refused_by_the_commands(trained, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"one\ntwo\n\xff\n")
    assert_refused(call("train", "text", "--data", bad, "--out", tmp_path / "run"), 3, str(bad), "in line 3")
    assert_refused(call("train", "text", "--data", "digits", "--out", tmp_path / "run"), 2, "lines of text")
    assert_refused(call("train", "mlp", "--data", lines(tmp_path), "--out", tmp_path / "run"), 2, "train text")
    assert_refused(call("sample", trained[0], "--out", tmp_path / "made.png"), 2, "no pictures", ".npz")
    assert_refused(call("sample", trained[0], "--out", tmp_path / "made.csv"), 2, "not trained on a table")
    assert not (tmp_path / "run").exists()
