"""Research: read and change whatever a model computes on its way, from Python.

sites      the names: m40llm/model/sites.py; `llm.sites()` lists a model's
trace      a forward pass over prompts, with what was kept of it
edits      what is changed at sites: replaced, added, scaled, ablated; also while text is generated
lens       residual streams as logits, and what each part adds to a logit
steering   vectors from pairs of prompts, saved and added
patching   parts of one prompt's pass put into another's
compare    two models on one prompt, site by site
cache      the KV cache: read, changed, cut short, put aside
steps      raw logits of each token, and a sampler of your own
measures   nll, entropy, log-probabilities of logits
plots      pictures; report: a page on one text

docs/research.md shows each at work.
"""

from m40llm.research.cache import Cache
from m40llm.research.compare import Comparison, compare
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
    "Cache",
    "Comparison",
    "Edits",
    "Lens",
    "Patching",
    "SteeringVector",
    "Trace",
    "compare",
    "entropy",
    "logprobs",
    "nll",
]
