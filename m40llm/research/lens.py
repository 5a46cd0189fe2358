"""What residual streams say in the vocabulary: the logit lens, and what each part adds to a logit.

The lens puts the last norm and the output matrix behind each layer (nostalgebraist, "interpreting
GPT: the logit lens", 2020). Attribution takes the last stream apart into what was added to it: the
norm's factor is that of the whole stream, so that the shares of a logit sum to it (Elhage et al.,
"A Mathematical Framework for Transformer Circuits", 2021).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.model.staged import Model
from m40llm.research import frames
from m40llm.research.measures import entropy, logprobs
from m40llm.research.selection import Ints
from m40llm.research.trace import Trace

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
_LENS_COLUMNS = ("site", "position", "token", "rank", "id", "piece", "logprob")
PieceOf = Callable[[int], str]  # a token's text


@dataclass(frozen=True)
class Lens:
    """Each layer's stream as a distribution of the next token.

    sites          where the streams were read: behind the embedding, then behind each layer
    ids            the prompt
    positions      int64[n_positions]  those that were asked for
    tokens         texts of the prompt's tokens at these
    pieces         texts of top_ids, likewise nested
    top_ids        int32[n_sites, n_positions, top]  the likeliest tokens, the likeliest first
    top_logprobs   float32[n_sites, n_positions, top]
    next_logprobs  float32[n_sites, n_positions]  of the prompt's own next token; NaN behind its end
    entropy        float32[n_sites, n_positions]  nats
    """

    sites: list[str]
    ids: list[int]
    positions: Ints
    tokens: list[str]
    pieces: list[list[list[str]]]
    top_ids: NDArray[np.int32]
    top_logprobs: Floats
    next_logprobs: Floats
    entropy: Floats

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of a row a site, position and rank."""
        columns: dict[str, list[Any]] = {key: [] for key in _LENS_COLUMNS}
        for (n, at, rank), token_id in np.ndenumerate(self.top_ids):
            piece, logprob = self.pieces[n][at][rank], float(self.top_logprobs[n, at, rank])
            row = (self.sites[n], int(self.positions[at]), self.tokens[at], rank)
            for key, value in zip(
                _LENS_COLUMNS, (*row, int(token_id), piece, logprob), strict=True
            ):
                columns[key].append(value)
        return frames.table(columns)


@dataclass(frozen=True)
class Attribution:
    """What each part of a model has added to a logit, or to the difference of two.

    parts   sites, and with heads "blk.N.z[h]"
    values  float64[n_parts]; their sum is `logit` but for rounding
    logit   of the token, or its difference to the other; before a soft cap, where there is one
    """

    parts: list[str]
    values: Doubles
    logit: float

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of a row a part."""
        return frames.table({"part": self.parts, "value": self.values.tolist()})


def lens_sites(n_layers: int) -> list[str]:
    return ["embd", *(f"blk.{layer}.resid_post" for layer in range(n_layers))]


def lens_of(model: Model, trace: Trace, positions: Ints, top: int, piece_of: PieceOf) -> Lens:
    """From a trace of one prompt that has kept lens_sites at the positions."""
    ids = trace.prompts[0]
    following = np.array([*ids[1:], -1], np.int64)[positions]
    rows: dict[str, list[Any]] = {"top": [], "p": [], "next": [], "entropy": []}
    for site in trace.kept:
        logits = _unembedded(model, trace[site])
        log_p = logprobs(logits)
        best = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
        rows["top"].append(best)
        rows["p"].append(np.take_along_axis(log_p, best, axis=-1))
        told = np.take_along_axis(log_p, np.maximum(following, 0)[:, None], axis=-1)[:, 0]
        rows["next"].append(np.where(following < 0, np.nan, told))
        rows["entropy"].append(entropy(logits))
    return Lens(
        sites=trace.kept,
        ids=ids,
        positions=positions,
        tokens=[piece_of(ids[at]) for at in positions],
        pieces=[[[piece_of(int(i)) for i in row] for row in best] for best in rows["top"]],
        top_ids=np.array(rows["top"], np.int32),
        top_logprobs=np.array(rows["p"], np.float32),
        next_logprobs=np.array(rows["next"], np.float32),
        entropy=np.array(rows["entropy"], np.float32),
    )


def attribution_sites(n_layers: int, heads: bool) -> list[str]:
    """What attribution_of reads."""
    names = ("attn_out", "mlp_out", *(("z",) if heads else ()))
    of_layers = [f"blk.{layer}.{name}" for layer in range(n_layers) for name in names]
    return ["embd", *of_layers, f"blk.{n_layers - 1}.resid_post", "norm"]


def attribution_of(
    model: Model, trace: Trace, token: int, other: int | None, heads: bool
) -> Attribution:
    """From a trace of one prompt that has kept attribution_sites at one position."""
    stream = trace[f"blk.{model.hp.n_layers - 1}.resid_post"][0].astype(np.float64)
    factor = 1 / np.sqrt(np.mean(stream**2) + model.hp.norm_eps)
    found = list(_parts(model, trace, heads))
    weight = model.norm_weight()
    shares = np.array([part * factor * weight for _, part in found], np.float32)
    values = _scores(model, shares, token, other)
    whole = _scores(model, trace["norm"], token, other)[0]
    return Attribution([name for name, _ in found], values, float(whole))


def _parts(model: Model, trace: Trace, heads: bool) -> Iterator[tuple[str, Doubles]]:
    """(name, what it has added to the residual stream) in the order of the pass: [n_embd]."""
    yield "embd", trace["embd"][0].astype(np.float64)
    for layer in range(model.hp.n_layers):
        attention = trace[f"blk.{layer}.attn_out"][0].astype(np.float64)
        if heads:
            of_heads = model.head_outputs(layer, trace[f"blk.{layer}.z"][0])
            yield from ((f"blk.{layer}.z[{h}]", part) for h, part in enumerate(of_heads))
            rest = attention - of_heads.sum(axis=0)  # the bias, where there is one
            yield f"blk.{layer}.attn_out, rest", rest
        else:
            yield f"blk.{layer}.attn_out", attention
        yield f"blk.{layer}.mlp_out", trace[f"blk.{layer}.mlp_out"][0].astype(np.float64)


def _scores(model: Model, normed: Floats, token: int, other: int | None) -> Doubles:
    """Of rows behind the last norm: the token's logit, less the other's."""
    wide = _unembedded(model, normed, is_normed=True, is_capped=False).astype(np.float64)
    return np.asarray(wide[:, token] - (0 if other is None else wide[:, other]))


def _unembedded(model: Model, x: Floats, **how: bool) -> Floats:
    """model.unembed of any number of rows."""
    step = model.workspace.max_logits
    return np.concatenate(
        [model.unembed(x[at : at + step], **how) for at in range(0, len(x), step)]
    )
