"""Benchmarks that a user runs on his own card: `m40llm bench`. Kernels alone: benchmarks/.

shapes.py     real models' hyper-parameters, and which tensors of a kind are of which type
synthetic.py  weights of such a shape, drawn and uploaded: no file is needed
reading.py    the read bandwidth of the card, in the same run
decode.py     tokens a second of each form of decode, verified before it is timed
"""
