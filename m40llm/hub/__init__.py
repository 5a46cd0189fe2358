"""Where models come from: paths, the short names that m40llm knows, and the Hugging Face hub."""

from m40llm.hub.aliases import ALIASES
from m40llm.hub.cache import cache_dir
from m40llm.hub.names import KnownModel, list_models, pull, resolve

__all__ = ["ALIASES", "KnownModel", "cache_dir", "list_models", "pull", "resolve"]
