r"""Flows: invertible maps whose volume change is known.

A flow \(f\) carries a density with it. If \(z \sim p_0\) and \(y = f(z)\),

$$\log p(y) = \log p_0(z) - \log\left|\det \frac{\partial f}{\partial z}\right|, \qquad z = f^{-1}(y)$$

so a simple density and a stack of flows make a rich one: a posterior that is not mean-field (Rezende and Mohamed, 2015)
or a prior that is learned. All maps here are affine in each component, \(y_d = z_d e^{s_d} + t_d\), and
\(\log|\det| = \sum_d s_d\). They differ in what \(s_d\) and \(t_d\) may depend on:

* nothing: `ActNorm`;
* one half of the components, which stays as it is: `AffineCoupling`. Both directions take one pass of the network;
* the components before d: `AutoregressiveAffine`. `forward` takes one pass, because all of z is at hand; `inverse` must
  find \(z_1\) to know \(s_2\), and so on: D passes.

`Inverse` swaps the two directions. Which of them should be the fast one depends on the use. A posterior is drawn from,
and asked only for the density of its own draws, which `Flowed` remembers: it needs a fast `forward`, and that is the
inverse autoregressive flow. A prior is asked for the density of other values: it needs a fast `inverse`, and that is
the masked autoregressive flow. RealNVP is fast in both.

**Departures.** Log-scales are \(b \tanh(r / b)\) of what the network gives, and its units are tanh, so that shifts are
bounded too: no input can drive a stack of flows out of the range of float32. Kingma et al. (2016) use a sigmoid gate
instead, the other papers have no bound. The last layer of each network begins at zero, so each flow begins as the
identity.
"""

from lowerbound.flows.affine import AffineCoupling, AutoregressiveAffine
from lowerbound.flows.base import Chain, Flow, Inverse
from lowerbound.flows.componentwise import ActNorm, Permutation
from lowerbound.flows.flowed import Flowed
from lowerbound.flows.stacks import inverse_autoregressive, masked_autoregressive, real_nvp

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "AutoregressiveAffine",
    "Chain",
    "Flow",
    "Flowed",
    "Inverse",
    "Permutation",
    "inverse_autoregressive",
    "masked_autoregressive",
    "real_nvp",
]
