"""Slopes against derivatives that are known: a quadratic, and autograd on a tiny model in double precision."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TARGETS, make_model
from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine.torch.plain import PlainEngine
from zotune.zo.draws import gaussian
from zotune.zo.estimators import Spsa
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import Example, Probe
from zotune.zo.updates import Slopes


def probe_losses(loss, theta, probes):
    """The losses [probe, 1] of a function of theta, as an engine would give them."""
    return np.array(
        [[loss(theta + probe.distance * gaussian(probe.seed, "x", theta.shape).astype(np.float64))] for probe in probes]
    )


@given(st.integers(0, 2**32), st.integers(1, 5), st.floats(1e-3, 1.0))
def test_on_a_quadratic_the_slope_is_exact_at_any_epsilon(seed, directions, epsilon):
    rng = np.random.default_rng(seed)
    matrix, theta = rng.normal(size=(6, 6)), rng.normal(size=6)
    hessian = matrix @ matrix.T
    estimator = Spsa(epsilon)
    probes = estimator.ask(range(directions))
    slopes = estimator.tell(probes, probe_losses(lambda x: 0.5 * x @ hessian @ x, theta, probes))
    for slope in slopes:
        z = gaussian(slope.seed, "x", (6,)).astype(np.float64)
        # The second-order terms cancel; what is left is rounding of losses of order 100 over 2 * 1e-3.
        assert slope.value == pytest.approx(z @ hessian @ theta, rel=1e-9, abs=1e-9)


def test_the_error_on_a_smooth_function_falls_with_the_square_of_epsilon():
    theta = np.array([0.3, -0.7, 1.1])
    z = gaussian(5, "x", (3,)).astype(np.float64)

    def loss(x):
        return np.sin(x).sum() + np.exp(0.5 * x).sum()

    exact = z @ (np.cos(theta) + 0.5 * np.exp(0.5 * theta))
    errors = []
    for epsilon in (1e-1, 1e-2):
        probes = Spsa(epsilon).ask([5])
        errors.append(abs(Spsa(epsilon).tell(probes, probe_losses(loss, theta, probes))[0].value - exact))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_the_mean_of_slope_times_noise_points_along_the_gradient_as_theory_predicts():
    """Over n Gaussian directions in dimension d the cosine with the gradient is about sqrt(n / (n + d - 1))."""
    dimension, directions = 10, 100
    true = np.linspace(-1, 1, dimension)
    cosines = []
    for trial in range(30):
        seeds = [trial * directions + k for k in range(directions)]
        estimator = Spsa(1e-2)
        probes = estimator.ask(seeds)
        slopes = estimator.tell(probes, probe_losses(lambda x: true @ x, np.zeros(dimension), probes))
        estimate = Slopes(tuple(slopes)).gradient("x", np.zeros(dimension))
        cosines.append(estimate @ true / np.linalg.norm(estimate) / np.linalg.norm(true))
    predicted = np.sqrt(directions / (directions + dimension - 1))
    assert predicted > 0.95
    assert np.mean(cosines) == pytest.approx(predicted, abs=0.01)


BATCH = [
    Example((1, 9, 30, 41, 7), (50, 51), ((60,), (61,)), 0),
    Example((1, 12, 13), (50, 51), ((60,), (61,)), 1),
]


def double_loss(model, spec, theta, batch):
    """Cross-entropy of `batch` in float64 with LoRA written out, differentiable in theta (name -> tensor)."""
    model = model.double()
    hooks: list[Any] = []
    keep: dict[str, torch.Tensor] = {}

    def add(name):
        def hook(module, args, output):
            low = args[0] @ theta[f"base_model.model.{name}.lora_A.weight"].T
            product = spec.alpha / spec.rank * (low @ theta[f"base_model.model.{name}.lora_B.weight"].T)
            return output + product * keep["mask"][None, :, None]

        return hook

    for name, module in model.named_modules():
        if name.endswith(spec.target_modules):
            hooks.append(module.register_forward_hook(add(name)))
    losses = []
    for example in batch:
        ids = torch.tensor([example.prompt + example.invocation])
        adapted = len(example.prompt) if spec.invocation_tokens else 0
        keep["mask"] = (torch.arange(ids.shape[1]) >= adapted).double()
        logits = model(ids).logits[0, -1]
        words = torch.stack([logits[candidate[0]] for candidate in example.candidates])
        losses.append(torch.logsumexp(words, 0) - words[example.label])
    for hook in hooks:
        hook.remove()
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kind", ["opt", "gpt2"])  # Llama computes its norms in fp32 even in a double model
@pytest.mark.parametrize("invocation", [None, (50, 51)])
def test_slopes_equal_autograds_directional_derivative(kind, invocation):
    """Of fp64 losses to 1e-5, of the engine's fp32 losses to 1e-3 + 2e-3 relative.

    The error of a two-sided difference is eps^2 times a third derivative along z, here of order 1e4 since |z| is 20,
    plus the rounding of the losses over 2 eps: 1e-16 / 1e-5 in fp64, 1e-6 / 1e-3 in fp32.
    """
    spec = LoraSpec(4, 8.0, TARGETS[kind], invocation)
    engine = PlainEngine(make_model(kind), spec)
    theta = initial_theta(engine.tensor_shapes, 3)
    theta = {name: value + 0.1 * gaussian(11, name, value.shape) for name, value in theta.items()}  # B not zero
    tensors = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in theta.items()}
    z = {name: torch.tensor(gaussian(4, name, value.shape)).double() for name, value in theta.items()}
    reference = make_model(kind)
    double_loss(reference, spec, tensors, BATCH).backward()
    exact = sum((tensor.grad * z[name]).sum().item() for name, tensor in tensors.items() if tensor.grad is not None)

    def loss_at(probe: Probe) -> float:
        point = {name: tensors[name].detach() + probe.distance * z[name] for name in theta}
        return double_loss(reference, spec, point, BATCH).item()

    fine = Spsa(1e-5)
    probes = fine.ask([4])
    (slope,) = fine.tell(probes, np.array([[loss_at(probe)] for probe in probes]))
    assert slope.value == pytest.approx(exact, rel=1e-5)

    estimator = Spsa(1e-3)
    probes = estimator.ask([4])
    (slope,) = estimator.tell(probes, cross_entropy.losses(engine.score(theta, probes, BATCH), BATCH))
    assert slope.value == pytest.approx(exact, rel=2e-3, abs=1e-3)
