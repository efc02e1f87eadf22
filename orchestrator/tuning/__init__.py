"""Tuning before comparing: for every label and size a search for the learning rate (and what else
the sweep file names) at both ends of the lengths that are trained at, or at those of them that the
file says, with equal trials and tokens.

A search goes in steps, each waiting for the one before; what is not answered yet is an open cell:

1. half of the trials, at least three, evenly over the logarithm of the range, its ends among them;
2. the others where Optuna's TPE sampler (Watanabe 2023) asks, told of the first;
3. successive halving (Jamieson and Talwalkar 2016) in complete rungs: the better half again for
   twice the tokens, down to no fewer than four, at the tokens that the file asks for;
4. the optimum of the last rung, as below. Where its best trial lies at an end of the range, the
   range is widened once on this side; all labels of the same size and length then have as many
   trials more, those of whom nothing is widened where the sampler asks, told of the last rung;
5. at every length that is trained at the rate interpolated between the lengths searched on both
   sides of it (log rate over log length), its half and its double: the vertex of these three is
   what the length is trained with.

The optimum is fitted, by least squares over the trials at the tokens asked for: a parabola in the
log rate, and a linear term in the logarithm of each other setting of the label, so that the rate is
not blamed for what the others did. The vertex is the rate; the others are those of the best trial,
since a line has no optimum. A fit needs four trials and one more for each setting beside the rate
that the file names, whether a label has it or not: with fewer (and halving leaves as many only
where the file asks for twice that), the best trial is the optimum, for all labels alike. It is also
where the fit has no vertex: too few of the trials have a value, the parabola opens downwards, or
its bottom lies outside of them.

Losses after different numbers of tokens are never compared, neither by the sampler nor by a fit.

Nothing is stored beside the journal: settings and results are read from its tune cells, and a
search is conducted anew from them each time. Trials share one seed, no other cell's: what is then
trained for the comparison was never chosen for its luck.
"""

from orchestrator.tuning.conduct import Point, point, tuned
from orchestrator.tuning.sampler import RATE, Range
from orchestrator.tuning.trials import SEED, Asked, Tried, trained_with

__all__ = [
    "RATE",
    "SEED",
    "Asked",
    "Point",
    "Range",
    "Tried",
    "point",
    "trained_with",
    "tuned",
]
