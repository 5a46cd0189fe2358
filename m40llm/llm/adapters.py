"""LoRA adapters of a loaded model, by the names that requests call them by."""

from pathlib import Path
from typing import Any

from m40llm.engine.engine import Engine
from m40llm.errors import RequestError, naming
from m40llm.gguf import open_gguf
from m40llm.model.lora import Adapter, load_adapter

MAX_SCALE = 1e4


def use(engine: Engine, adapter: Adapter | None) -> None:
    """For the requests to come; what another adapter has left in the cache is worth nothing."""
    if adapter is not engine.model.adapter:
        engine.forget()
        engine.model.adapter = adapter


class Adapters:
    """Those that were loaded; none holds on to the model."""

    def __init__(self) -> None:
        self._of: dict[str, Adapter] = {}

    @property
    def names(self) -> list[str]:
        """In the order in which they were loaded."""
        return list(self._of)

    def load(self, engine: Engine, path: str | Path, name: str | None, scale: float) -> str:
        """The adapter's name; the file's own without ".gguf" where None is given."""
        if not isinstance(path, str | Path):
            raise RequestError(f"path: expected an adapter's file, got {path!r}")
        name = Path(path).stem if name is None else name
        if not isinstance(name, str) or not name:
            raise RequestError(f"name: expected a text, got {name!r}")
        if name in self._of:
            raise RequestError(f"name: {name!r} is there already")
        if not isinstance(scale, int | float) or not -MAX_SCALE <= scale <= MAX_SCALE:
            raise RequestError(f"scale: expected -{MAX_SCALE:g} to {MAX_SCALE:g}, got {scale!r}")
        model = engine.model
        most = max(model.workspace.max_tokens, model.workspace.max_logits)
        with naming(path), open_gguf(Path(path)) as file:
            self._of[name] = load_adapter(
                model.ops_of, file, model.arch, model.hp, max_tokens=most, scale=scale
            )
        return name

    def name_of(self, adapter: Adapter | None) -> str | None:
        """What `named` gives it for."""
        return next((name for name, known in self._of.items() if known is adapter), None)

    def named(self, name: Any) -> Adapter | None:
        """None for None. RequestError for a name of none, with those that there are."""
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._of:
            known = ", ".join(map(repr, self._of)) or "none was loaded"
            raise RequestError(f"lora: expected the name of an adapter ({known}), got {name!r}")
        return self._of[name]
