"""The options of `m40llm serve` that no other verb has."""

from typing import Annotated

import typer

Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Where to listen; 127.0.0.1 is this machine alone, 0.0.0.0 all of its addresses: "
        "give keys then.",
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
Name = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="What clients may call the model (several times).  [default: MODEL, and its file's "
        "name]",
        show_default=False,
    ),
]
Slots = Annotated[
    int,
    typer.Option(
        min=1, max=128, help="Requests that run at once; each has --max-seq-len of cache."
    ),
]
MaxWaiting = Annotated[
    int, typer.Option(min=0, help="Requests that may wait for a slot; more are told 429.")
]
Chunk = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens of a prompt that are read between two tokens of the other requests.  "
        "[default: 64 on cpu, 256 on a card]",
        show_default=False,
    ),
]
BatchInvariant = Annotated[
    bool,
    typer.Option(
        help="An answer is the same, bit for bit, alone and in company. Without, a step on a card "
        "has only as many rows as are needed: one request on 8 or 32 slots is several times "
        "faster, and its last bits depend on the others."
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME=FILE",
        help="A LoRA adapter, served as a model of this name (several times).",
        show_default=False,
    ),
]
ApiKeyFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="API keys, one a line, # begins one that is a comment; clients must send one of them. "
        "M40LLM_API_KEYS has more, with commas.",
        show_default=False,
    ),
]
OpenMetrics = Annotated[bool, typer.Option("--open-metrics", help="/metrics needs no key.")]
TrustedProxy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADDRESS",
        help="A reverse proxy, whose X-Forwarded-For says who the client is (several times).  "
        "[default: none]",
        show_default=False,
    ),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Another name that this server is asked by, such as a proxy's (several times); where "
        "it listens on 127.0.0.1 without keys, other names are refused.",
        show_default=False,
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="A web page of this origin may ask (several times); * is any.  [default: none]",
        show_default=False,
    ),
]
MaxBody = Annotated[
    int, typer.Option(min=1, metavar="BYTES", help="Of a request; a larger one is told 413.")
]
MaxPrompt = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens of a prompt at most.  [default: what the context holds]",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        min=1,
        metavar="N",
        help="Tokens of an answer at most.  [default: what the context holds]",
        show_default=False,
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="For a request, its time in the queue included; then it is told 504.  [default: none]",
        show_default=False,
    ),
]
SendTimeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="A client that takes nothing of its answer for so long is cut.",
    ),
]
HeadTimeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="A connection that has not sent the head of a request by then is closed.",
    ),
]
BodyTimeout = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="For the body of a request; then it is told 408."),
]
MaxConnections = Annotated[
    int, typer.Option(min=1, metavar="N", help="At once; more are told 503.")
]
Grace = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="What is under way at SIGTERM or Ctrl-C has so long to end; a second one does not "
        "wait.",
    ),
]
LogPrompts = Annotated[
    bool, typer.Option("--log-prompts", help="The log has prompts and answers, too.")
]
Ray = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Run replicas of the server, each a process with a model and a card of its own, under "
        "Ray Serve (docs/deploy.md).",
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="With --ray: so many, or at least.  [default: 1]",
        show_default=False,
    ),
]
MaxReplicas = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="With --ray: up to so many while all slots are in use.  [default: --replicas]",
        show_default=False,
    ),
]
