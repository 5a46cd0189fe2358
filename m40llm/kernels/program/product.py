"""Matrix x vector as an instruction: the grid shares the rows, a block's warps share its items.

Each block has whole groups of rows (pairs of rows.py). A warp multiplies an item (items.py), adds
over its lanes, and leaves a partial result for each row and sequence. A thread then adds up the
partial results of one row and sequence, in the order of the columns. How many columns an item has
depends on how many groups a block has; nothing else depends on the grid.

once.py    all rows of the block in one go: one or two sequences, but for LOGITS
many.py    rows a panel at a time, columns a stage at a time
sliced.py  blocks share the columns too: more sequences
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, int32, uint32

from m40llm.kernels.program import words
from m40llm.kernels.program.code import put_word, share_of, word_of
from m40llm.kernels.program.form import Form, Pool, is_sliced
from m40llm.kernels.program.many import many_of
from m40llm.kernels.program.once import once_of
from m40llm.kernels.program.pending import pending_of
from m40llm.kernels.program.sliced import sliced_of


@cache
def product_of(form: Form, type: GGMLType) -> Any:
    """product(code, slot_pos, pool, squares, n_pending): the instruction code.this
    -> how many results it leaves to the next one."""
    Pool(type, form.n_seqs).check()
    sliced, (_, finish_pending) = is_sliced(form.n_seqs), pending_of(form)
    in_segments = sliced_of(form, type) if sliced else many_of(form, type)
    in_one_go = in_segments if sliced else once_of(form, type)

    @cuda.jit(device=True, forceinline=True)
    def product(code: Any, slot_pos: Any, pool: Any, squares: Any, n_pending: Any) -> Any:
        w = code.this
        block = uint32(cuda.blockIdx.x)
        if sliced:
            block = uint32(block >> uint32(word_of(w, words.SLICE_SHIFT)))
        first, end = share_of(w, int32(block))
        if first == end:
            finish_pending(code, n_pending, pool)
            put_word(code)
            cuda.syncthreads()  # every instruction is one: the next one's words are there
            return int32(0)
        if not sliced and int32(end - first) <= word_of(w, words.PENDING_GROUPS):
            return in_one_go(code, first, end, slot_pos, pool, squares, n_pending)
        return in_segments(code, first, end, slot_pos, pool, squares, n_pending)

    return product
