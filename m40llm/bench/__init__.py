"""Benchmarks that a user runs on his own card: `m40llm bench`. Kernels alone: benchmarks/.

shapes.py     real models' hyper-parameters, and which tensors of a kind are of which type
synthetic.py  weights of such a shape, drawn and uploaded: no file is needed
reading.py    the read bandwidth of the card, in the same run
multiply_add.py  its FP32 peak
timing.py     graphs of launches, replayed between two events
decode.py     tokens a second of each form of decode, verified before it is timed
tune.py       the fastest tiles for a model's matrix products
report.py     all that tells of a card, as one document; with report_stages.py, report_model.py
budget.py     the minutes that it may take
launches.py   the launches of a real step, each kind timed by itself
machine.py    what a report was measured on
report_file.py  its file, written and read
beside.py     a report beside what m40llm.sm52 projects
"""
