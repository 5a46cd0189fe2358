"""`m40llm pull`: fetch a model into the cache."""

from typing import Annotated, Any

import typer

from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import human_bytes, print_json, progress_bar, table

Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A known name, or hf:OWNER/REPO/FILE.gguf."),
]
Force = Annotated[bool, typer.Option("--force", help="Fetch it again though it is there.")]
ListAll = Annotated[
    bool, typer.Option("--list", help="List the known models and what lies in the cache.")
]


@guarded
def pull(
    name: Name = None,
    force: Force = False,
    list_all: ListAll = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Fetch a model into the cache folder (M40LLM_HOME names another one) and print its path.

    The other verbs do this by themselves the first time. An interrupted pull leaves nothing
    half-done; what is there already is not fetched again.

    \b
    Examples:
      m40llm pull smollm2
      m40llm pull --list
      m40llm pull hf:OWNER/REPO/FILE.gguf
    """
    from m40llm import hub

    if (name is None) != list_all:
        raise typer.BadParameter("give either the NAME of a model or --list")
    if name is None:
        _list(as_json=as_json)
        return
    with progress_bar() as progress:
        path = hub.pull(name, force=force, progress=progress)
    if as_json:
        print_json({"name": name, "path": str(path), "n_bytes": path.stat().st_size})
    else:
        print(path)


def _list(*, as_json: bool) -> None:
    from m40llm import hub

    models = hub.list_models()
    if as_json:
        print_json({"cache_dir": str(hub.cache_dir()), "models": [_entry(m) for m in models]})
        return
    rows = [
        (
            model.name,
            human_bytes(model.n_bytes),
            "in the cache" if model.path else "not pulled yet",
            ", ".join(filter(None, (model.about, model.licence))),
        )
        for model in models
    ]
    print(table(rows, indent=0))
    print(f"cache: {hub.cache_dir()}")


def _entry(model: Any) -> dict[str, Any]:
    """One model of --list: path is null while it is not pulled."""
    return {
        "name": model.name,
        "path": str(model.path) if model.path else None,
        "n_bytes": model.n_bytes,
        "licence": model.licence,
        "about": model.about,
    }
