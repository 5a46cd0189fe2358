"""The decode program on a GPU: one kernel that interprets a list of instructions.

words.py     an instruction as int64 words, which the host writes and the kernel reads
code.py      the instructions at hand in a block's shared memory
form.py      what is fixed when the kernel is compiled, and where things lie in shared memory
exchange.py  vectors whose numbers carry word of their arrival: what blocks hand each other
barrier.py   the grid barrier, once a step
rows.py      which rows of a matrix a warp takes, in which order
stage.py     x, normed where asked, into shared memory
items.py     what of a product a warp does at a time; spans.py: all of it, loads ahead of sums
product.py   matrix x vector: in one go (once.py), in panels and stages (many.py), or with the
             columns shared, too (sliced.py); what becomes of the results: epilogue.py
pending.py   results that the next instruction finishes
attend.py    attention over the KV cache; attend_splits.py: where blocks share a sequence
choose.py    the next token, the stop check, the next embedding
rings.py     commands from the host, answers to it; state.py: where all this lies
run.py       the kernel and its launch wrapper
"""
