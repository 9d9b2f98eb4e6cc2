"""SOAP against what defines it: Adam where nothing is rotated, and the same update in whatever basis it is given."""

import copy

import pytest
import torch

import lowerbound as lb
from lowerbound.errors import UsageError
from lowerbound.optimisers import SOAP, Adam

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "arithmetic": torch.float64}


def trajectory(choice, start, gradients):
    """The parameter after updates with the given gradients."""
    parameter = torch.nn.Parameter(start.clone())
    optimiser = choice.build([parameter], **SETTINGS)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimiser.step()
    return parameter.detach()


def correlated(steps, rows, columns):
    """Gradients whose rows and columns are correlated, as a layer's are."""
    torch.manual_seed(0)
    left, right = torch.randn(rows, rows), torch.randn(columns, columns)
    return [(left @ torch.randn(rows, columns) @ right).double() for _ in range(steps)]


@pytest.mark.verifies(lb.optimisers.SOAP, lb.optimisers.Adam, against="torch")
@pytest.mark.parametrize(("shape", "largest"), [((7,), 512), ((5, 4), 3), ((6, 5, 3, 3), 4)])
def test_what_is_not_rotated_is_left_to_adam(shape, largest):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape).double(), [torch.randn(shape).double() for _ in range(30)]
    soap = trajectory(SOAP(every=5, largest=largest), start, gradients)
    torch.testing.assert_close(soap, trajectory(Adam(), start, gradients), rtol=1e-9, atol=1e-12)


def updated(build, gradients, kept=None):
    """Parameters and the optimiser's state after updates; a gradient of None leaves its parameter out."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((40, 30), (30,), ())]
    optimiser = build(parameters)
    if kept is not None:
        optimiser.load_state_dict(
            {"state": copy.deepcopy(kept), "param_groups": optimiser.state_dict()["param_groups"]}
        )
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = gradient
        optimiser.step()
    return [p.detach() for p in parameters], optimiser.state_dict()["state"]


def ours(parameters):
    return Adam().build(parameters, 0.01, (0.9, 0.99), 0.1, torch.float32)


def torchs(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, fused=True)


def gradients_of(steps):
    torch.manual_seed(1)
    rows = [[torch.randn(40, 30), torch.randn(30), torch.randn(())] for _ in range(steps)]
    # One is used now and then, and begins late.
    return [[a, b, c if step % 3 == 2 else None] for step, (a, b, c) in enumerate(rows)]


@pytest.mark.verifies(lb.optimisers.Adam, against="torch")
@pytest.mark.parametrize("resumed", [False, True])
def test_adam_is_torchs_bit_for_bit_and_either_goes_on_from_what_the_other_kept(resumed):
    kept = updated(torchs, gradients_of(10))[1] if resumed else None
    mine, state = updated(ours, gradients_of(10), kept)
    theirs, their_state = updated(torchs, gradients_of(10), kept)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert state.keys() == their_state.keys()
    for index, moments in their_state.items():
        assert state[index].keys() == moments.keys()
        assert all(torch.equal(state[index][name], value) for name, value in moments.items())


def test_adam_that_is_told_of_a_gradient_that_is_not_finite_changes_nothing():
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimiser = ours([parameter])
    parameter.grad = torch.ones(3, 2)
    optimiser.step()
    before = [t.clone() for t in (parameter.detach(), *optimiser.state[parameter].values())]
    parameter.grad, optimiser.found_inf = torch.full((3, 2), torch.nan), torch.ones(())
    optimiser.step()
    after = [parameter.detach(), *optimiser.state[parameter].values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.verifies(lb.optimisers.SOAP, against="definition")
def test_an_update_does_not_depend_on_the_basis_that_the_gradient_comes_in():
    # Square: after one gradient no eigenvalue is 0 twice, and the eigenvectors are the same but for their signs.
    gradients = correlated(50, 6, 6)
    u, v = torch.linalg.qr(torch.randn(6, 6).double())[0], torch.linalg.qr(torch.randn(6, 6).double())[0]
    start = torch.zeros(6, 6).double()
    here = trajectory(SOAP(every=7), start, gradients)
    there = trajectory(SOAP(every=7), start, [u @ g @ v.T for g in gradients])
    torch.testing.assert_close(there, u @ here @ v.T, rtol=1e-4, atol=1e-6)
    turned = trajectory(Adam(), start, [u @ g @ v.T for g in gradients])
    assert (turned - u @ trajectory(Adam(), start, gradients) @ v.T).abs().max() > 0.01


def test_the_basis_follows_the_eigenvectors_of_the_gradients_covariance():
    gradients = correlated(2000, 5, 600)
    parameter = torch.nn.Parameter(torch.zeros(5, 600).double())
    optimiser = SOAP(every=1, largest=100).build([parameter], **SETTINGS)
    for gradient in gradients:
        parameter.grad = gradient
        optimiser.step()
    state = optimiser.state[parameter]
    assert "basis_1" not in state
    basis, covariance = state["basis_0"], state["covariance_0"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(5).double())
    turned = basis.T @ covariance @ basis
    assert (turned - turned.diag().diag()).abs().max() < 0.02 * turned.diag().min()


def test_a_convolution_is_the_matrix_of_its_outputs_against_all_else():
    gradients = correlated(20, 6, 18)
    flat = trajectory(SOAP(every=4), torch.zeros(6, 18).double(), gradients)
    picture = trajectory(SOAP(every=4), torch.zeros(6, 2, 3, 3).double(), [g.view(6, 2, 3, 3) for g in gradients])
    assert torch.equal(picture.flatten(1), flat)


def test_an_update_that_is_told_of_a_gradient_that_is_not_finite_leaves_the_weights_alone():
    parameter = torch.nn.Parameter(torch.ones(3, 2).double())
    optimiser = SOAP().build([parameter], **SETTINGS | {"weight_decay": 0.0})
    parameter.grad = torch.full((3, 2), torch.nan).double()
    optimiser.found_inf = torch.ones((), dtype=torch.float64)
    optimiser.step()
    assert torch.equal(parameter.detach(), torch.ones(3, 2).double())
    optimiser.found_inf = torch.zeros((), dtype=torch.float64)
    parameter.grad = torch.ones(3, 2).double()
    optimiser.step()
    assert parameter.isfinite().all()
    assert not torch.equal(parameter.detach(), torch.ones(3, 2).double())


def test_training_with_it_is_exact_in_its_seed_and_when_it_is_resumed():
    data = lb.open_data("digits").binarised(lb.Binarise.THRESHOLD)

    def start():
        torch.manual_seed(0)
        run = lb.recipes.mlp(data, latent_dim=2, width=16, epochs=2, batch_size=100)
        training = lb.Training(epochs=2, batch_size=100, lr=1e-2, optimiser=SOAP(every=3), average=0.9)
        return run, lb.training.TrainState(run.vae, training, torch.device("cpu"))

    def go_on(run, state, until):
        for step in lb.train(run.vae, run.data.train, run.objective, state.training, state=state):
            if step.step == until:
                break

    run, whole = start()
    go_on(run, whole, None)
    run, part = start()
    go_on(run, part, 10)
    saved = {name: tensor.clone() for name, tensor in part.tensors().items()}, part.scalars()
    run, again = start()
    again.restore(*saved)
    go_on(run, again, None)
    assert whole.tensors().keys() == again.tensors().keys()
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in whole.tensors().items())


@pytest.mark.parametrize("bad", [{"every": 0}, {"largest": 0}])
def test_numbers_below_one_are_refused(bad):
    with pytest.raises(UsageError, match="at least 1"):
        SOAP(**bad)
