"""Tuning before comparing: for every label and size a search for the learning rate (and what else
the sweep file names) at both ends of the lengths that are trained at, with equal trials and tokens.

A search goes in steps, each waiting for the one before; what is not answered yet is an open cell:

1. half of the trials, at least four, evenly over the logarithm of the range, its ends among them;
2. the other half where Optuna's TPE sampler (Watanabe 2023) asks, told of the first;
3. successive halving (Jamieson and Talwalkar 2016) in complete rungs: the better half again for
   twice the tokens, down to no fewer than four, at the tokens that the file asks for;
4. a parabola through loss over log rate of the last rung: its vertex is the optimum. Where that
   lies at an end of the range, the range is widened once on this side; all labels of the same size
   and length then have as many trials more;
5. at every length that is trained at the rate interpolated between the two ends (log rate over log
   length), its half and its double: the vertex of these three is what the length is trained with.

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
