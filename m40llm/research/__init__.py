"""Research: read and change whatever a model computes on its way, from Python.

sites      the names: m40llm/model/sites.py; `llm.sites()` lists a model's
trace      a forward pass over prompts, with what was kept of it
edits      what is changed at sites: replaced, added, scaled, ablated; also while text is generated
lens       residual streams as logits, and what each part adds to a logit
steering   vectors from pairs of prompts, saved and added
patching   parts of one prompt's pass put into another's
measures   nll, entropy, log-probabilities of logits

docs/research.md shows each at work.
"""

from m40llm.research.edits import Edits
from m40llm.research.lens import Attribution, Lens
from m40llm.research.llm import LLM
from m40llm.research.measures import entropy, logprobs, nll
from m40llm.research.patching import Patching
from m40llm.research.steering import SteeringVector
from m40llm.research.trace import Trace

__all__ = [
    "LLM",
    "Attribution",
    "Edits",
    "Lens",
    "Patching",
    "SteeringVector",
    "Trace",
    "entropy",
    "logprobs",
    "nll",
]
