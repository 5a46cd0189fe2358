"""What a model will do on a card that is not there: projections, from code and data sheets.

cards.py         the cards: data sheets, and what an SM of each has
occupancy.py     how many blocks and warps an SM holds
assembly.py      a kernel compiled and assembled, with no GPU and no driver
disassembler.py  nvdisasm: found, or fetched if asked
sass.py          its text as instructions, loops, and the loop that counts
pipes.py         how many issue slots of an SM instructions take
code.py          all that is known of a compiled kernel, kept on disk
imagined.py      a card that has addresses and no memory, and notes what is launched
experts.py       the same for models with experts, whose router is imagined, too
counting.py      sectors and wavefronts of a launch, as the emulator counts them
work.py          bytes and FLOPs of a launch
steps.py         the launches of a decode step and of a prefill of a model file
projection.py    from these the time of a launch, as a range

docs/sm52.md states the model and where each figure comes from. Nothing here was measured.
"""
