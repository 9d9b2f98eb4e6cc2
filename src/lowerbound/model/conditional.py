r"""Conditional models: every distribution is told a class label c besides.

$$p(x, z|c) = p(x|z, c)\,p(z|c), \qquad q(z|x, c) \approx p(z|x, c)$$

$$\log p(x|c) \ge E_{q(z|x,c)}[\log p(x|z, c)] - KL(q(z|x, c) \,\|\, p(z|c))$$

Sohn, Lee and Yan (2015), "Learning structured output representation using deep conditional generative models"; with
p(z|c) = p(z) it is the part of model M2 of Kingma, Mohamed, Rezende and Welling (2014), "Semi-supervised learning with
deep generative models", that sees labelled data, without log p(c).

Nothing else in this package knows of labels. With c fixed the three distributions are those of a plain VAE, and
`ConditionalVAE.given(label)` *is* one: a view that shares the weights and puts c beside whatever goes into a network.
Objectives, evidence and tasks take the view. A plain `VAE` given a label is itself, so one code path serves both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lowerbound.errors import UsageError
from lowerbound.heads import Conditional
from lowerbound.model.trace import Trace
from lowerbound.model.vae import VAE
from lowerbound.nn import beside
from lowerbound.priors import Prior, VampPrior

# Labels beyond these are numbers rather than classes, and a description that holds them would not be built again.
_MAX_CLASSES = 10_000
_MAX_LABEL = 1 << 40
_SHOWN_LABELS = 30


class ConditionalVAE(VAE):
    """A variational autoencoder of x given a class label c.

    The networks are any that take a value with C more numbers beside it (`lowerbound.nn.beside`): after the flattened
    value, or as C constant planes beside a picture. All are 0 but that of c, which is the square root of how many
    values it stands beside (for planes, of the picture's channels).

    `vae.given(label)` is the model of x for these labels; the model itself refuses to be used without any.

    Args:
        encoder: x and c to q(z|x, c).
        decoder: z and c to p(x|z, c); its head is a `Likelihood`.
        prior: p(z|c); one that does not depend on c will do, but for a VampPrior, whose pseudo-inputs have no labels.
        classes: The labels of the training data, distinct whole numbers. Others are refused from then on.

    Raises:
        UsageError: The parts do not fit each other, or `classes` are none.

    Example:
        >>> import torch
        >>> from lowerbound import heads, nn, priors
        >>> def mlp(shape): return nn.MLP(nn.beside(shape, 3), (16,))
        >>> vae = ConditionalVAE(
        ...     heads.Conditional(mlp((1, 4, 4)), heads.DiagonalNormal((16,), (2,))),
        ...     heads.Conditional(mlp((2,)), heads.Bernoulli((16,), (1, 4, 4))),
        ...     priors.NormalPerClass(2, 3),
        ...     classes=(3, 7, 12),
        ... )
        >>> label = torch.tensor([7, 12, 7, 3, 3, 3, 3, 3])
        >>> vae.given(label).trace(torch.zeros(8, 1, 4, 4), num_samples=5).log_w.shape
        torch.Size([5, 8])
        >>> vae.given(7).prior().sample((4,)).shape
        torch.Size([4, 2])
    """

    labels: Tensor

    def __init__(self, encoder: Conditional, decoder: Conditional, prior: Prior, classes: tuple[int, ...]) -> None:
        _check_classes(classes)
        self.classes = tuple(classes)
        self._check_network("encoder", encoder, decoder.head.event_shape)
        self._check_network("decoder", decoder, encoder.head.event_shape)
        if isinstance(prior, VampPrior):
            raise UsageError(
                "A VampPrior is a mixture of posteriors at pseudo-inputs, but here a posterior needs a label as well, "
                "which pseudo-inputs do not have. Use a NormalPerClass, MixtureOfNormals or FlowPrior."
            )
        super().__init__(encoder, decoder, prior)
        self.register_buffer("labels", torch.tensor(self.classes))

    def _check_network(self, name: str, part: Conditional, shape: tuple[int, ...]) -> None:
        if not self._takes(part.network.in_shape, shape):
            count = len(self.classes)
            raise UsageError(
                f"The {name} of this ConditionalVAE takes a value of shape {shape} with a label of {count} classes "
                f"beside it, but its network takes {part.network.in_shape}. Build the network with "
                f"in_shape=nn.beside({shape}, {count}), or with planes=True for convolutions."
            )

    def _takes(self, in_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        count = len(self.classes)
        return in_shape == beside(shape, count) or (len(shape) == 3 and in_shape == beside(shape, count, planes=True))

    def given(self, label: Tensor | int | None) -> VAE:
        """Returns the model of x given these labels, as a plain VAE that shares the weights.

        Args:
            label: A label for each example of a batch, whole numbers `[B]`: the view is then for that batch alone, as x
                `[B, *event]` and z `[K, B, D]` or `[B, D]`, and p(z|c) has batch shape `[B]` where the prior depends on
                c. Or one label for everything, a number or a tensor `[]`: then any batch will do.

        Raises:
            UsageError: There is no label, or the model was never shown one like it. On an accelerator looking would
                wait for it: there such an example comes out as NaN.
        """
        if label is None:
            self.check_labels(None)
        label = torch.as_tensor(label, device=self.labels.device)
        same = label.unsqueeze(-1) == self.labels
        if same.device.type == "cpu" and not same.any(-1).all():
            self.check_labels(label)
        return _Given(self, same)

    def check_labels(self, labels: Tensor | None) -> None:
        if labels is None:
            raise UsageError(
                f"This model is conditional: it gives p(x|c) for a label c of {self._said()}, and there are no labels. "
                "Use data with labels (an array y beside x in a .npz file), give one (vae.given(label)), or use an "
                "unconditional model, such as the recipe mlp makes."
            )
        labels = labels.flatten().cpu()
        unseen = labels[~torch.isin(labels, self.labels.cpu())].unique().tolist()
        if unseen:
            raise UsageError(
                f"This model was never shown an example with the label {_listed(unseen)}, so it cannot say what one "
                f"looks like. These labels work: {self._said()}."
            )

    def trace(self, x: Tensor, num_samples: int = 1) -> Trace:
        """Refuses: there is no q(z|x) without c.

        Raises:
            UsageError: Always; `given(label)` has a trace.
        """
        raise UsageError(
            f"This model is conditional, and x alone says nothing to it: use vae.given(label), with a label of "
            f"{self._said()} for each example, in its place."
        )

    def notes(self) -> list[str]:
        told = "the model is conditional: every number is of p(x|c), with the label c of each example given"
        other = "not comparable with p(x) of a model that is told no label"
        return [f"{told}, and {other}; log p(x) = log sum_c p(c) p(x|c) is what evidence.class_evidence measures"]

    def _said(self) -> str:
        return _listed(list(self.classes))


class _Given(VAE):
    """A ConditionalVAE with its labels fixed: a VAE like any other, on the same weights.

    Args:
        whole: The model.
        same: Which class each label is, bool `[B, C]` or `[C]`.
    """

    def __init__(self, whole: ConditionalVAE, same: Tensor) -> None:
        # The parts fit: `whole` has checked them, and this is built anew for every batch.
        nn.Module.__init__(self)
        self.training = whole.training
        self._whole = (whole,)  # in a tuple: it is no submodule
        self._same = same
        # A label that is none of the classes becomes 0 / 0, so that it is never taken for one without notice.
        one_hot = same / same.sum(-1, keepdim=True)
        self.encoder = _Beside(whole.encoder, one_hot, whole.event_shape)
        self.decoder = _Beside(whole.decoder, one_hot, whole.latent_shape)
        self.prior = _GivenPrior(whole.prior, same.to(torch.uint8).argmax(-1))

    def part(self, rows: slice) -> VAE:
        return self if self._same.shape[:-1].numel() == 1 else _Given(self._whole[0], self._same[rows])

    def notes(self) -> list[str]:
        return self._whole[0].notes()


class _Beside(Conditional):
    """A conditional distribution that is given c `[*batch, C]` beside each value."""

    def __init__(self, inner: Conditional, one_hot: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(inner.network, inner.head)
        self._event_ndim = len(shape)
        self._flat = len(self.network.in_shape) == 1
        # A fresh network's weights are all of a size: a single 1 among hundreds of pixels, or dozens of components of
        # z, would hardly be heard, and z would learn the class first. So loud, c is heard as well as all else together.
        self._loudness = math.sqrt(math.prod(shape) if self._flat else shape[0])
        self._one_hot = one_hot

    def features(self, condition: Tensor) -> tuple[Tensor, torch.Size]:
        batch = condition.shape[: condition.ndim - self._event_ndim]
        c = self._loudness * self._one_hot.to(condition.dtype)
        try:
            c = c.expand(*batch, -1)
        except RuntimeError as error:
            raise UsageError(
                f"The model was given labels of shape {tuple(c.shape[:-1])}, and is asked about a batch of shape "
                f"{tuple(batch)}. Call vae.given(label) with the labels of that very batch, or with a single one."
            ) from error
        if self._flat:
            return super().features(torch.cat([condition.flatten(len(batch)), c], -1))
        planes = c[..., None, None].expand(*c.shape, *condition.shape[-2:])
        return super().features(torch.cat([condition, planes], -3))


class _GivenPrior(Prior):
    """p(z|c) with c fixed."""

    def __init__(self, inner: Prior, index: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.event_shape = inner.event_shape
        self._index = index

    def forward(self) -> Distribution:
        return self.inner.given(self._index)

    def between(self, start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
        return self.inner.between(start, end, weight)


def _listed(labels: list[int]) -> str:
    shown = ", ".join(str(label) for label in labels[:_SHOWN_LABELS])
    return shown if len(labels) <= _SHOWN_LABELS else f"{shown}, ... ({len(labels):,} in all)"


def _check_classes(classes: tuple[int, ...]) -> None:
    whole = all(isinstance(c, int) and not isinstance(c, bool) and abs(c) <= _MAX_LABEL for c in classes)
    if not whole or not 1 <= len(classes) <= _MAX_CLASSES or len(set(classes)) < len(classes):
        raise UsageError(
            f"classes should be the labels of the training data, 1 to {_MAX_CLASSES:,} distinct whole numbers; got "
            f"{_listed(list(classes))}. Number the classes from 0."
        )
