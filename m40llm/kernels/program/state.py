"""What a decode program keeps on the device between its steps, and how it talks with the host.

Commands and answers are rings in pinned host memory, of entries of two int64, each of which
carries the entry's sequence number in its upper half: an entry has come when both halves show the
number that its reader waits for. 8-byte stores are whole, so no fence is needed, and an entry can
be neither torn, lost nor read twice. Numbers count from 1 and wrap at 2^31.

    command   number << 32 | operation << 8 | slot        number << 32 | count
    answer    number << 32 | done << 29 | slot << 22 | token     number << 32 | bits of the logprob

The kernel never waits for the host: where the ring of answers has no room left it ends, to be
launched again when the host has read. Masks, which are no ring, have a file of their own: mask.py.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from m40llm.kernels.contract import check_array
from m40llm.kernels.program.mask import n_mask_words
from m40llm.kernels.sampling import SamplerState

# Operations of a command.
DECODE, CANCEL, STOP, YIELD = 1, 2, 3, 4

# Why a slot is done, in an answer.
GOES_ON, STOP_TOKEN, LENGTH, CONTEXT, CANCELLED, DAMAGED = range(6)

N_COMMANDS: Final = 64
N_ANSWERS: Final = 1024
MAX_STOP_IDS: Final = 16
NUMBER_MASK: Final = 0x7FFFFFFF  # of sequence numbers
TOKEN_BITS: Final = 22  # a vocabulary has no more: see kernels/argmax.py
SLOT_BITS: Final = 7
SLOT_SHIFT: Final = TOKEN_BITS
DONE_SHIFT: Final = TOKEN_BITS + SLOT_BITS
NO_TOKEN: Final = (1 << TOKEN_BITS) - 1

# Entries of `control`, int64 on the device.
COMMANDS_DONE, ANSWERED, STEP, IS_STOPPED = range(4)  # STEP: steps begun, ever; see exchange.py
N_CONTROL: Final = 4


def told(what: int, value: int) -> tuple[int, int, int, float]:
    """(slot, done, token, log-probability) of an answer's words; no token is NO_TOKEN."""
    slot = what >> SLOT_SHIFT & (1 << SLOT_BITS) - 1
    logprob = float(np.uint32(value & 0xFFFFFFFF).view(np.float32))
    return slot, what >> DONE_SHIFT & 7, what & NO_TOKEN, logprob


def put_command(commands: Any, number: int, operation: int, slot: int = 0, count: int = 0) -> None:
    """The command of this number, from 1 on, into the host's side of its ring."""
    at, number = (number - 1) % N_COMMANDS, (number & NUMBER_MASK) << 32
    commands[at, 1] = number | count
    commands[at, 0] = number | operation << 8 | slot


@dataclass(frozen=True)
class DecodeState:
    """Buffers of a program of n_seqs slots. All on the device but the four of the last lines.

    token_ids  int32[n_seqs]    the token that goes in next
    pos        int32[n_seqs]    the position that it takes
    row_pos    int32[n_seqs]    the same during a step; -1 for a slot that is idle
    seq        int32[n_seqs]    the sequence of the KV cache that belongs to the slot
    n_left     int32[n_seqs]    tokens still to be made; 0: idle
    stop_ids   int32[n_seqs, MAX_STOP_IDS]   -1 where unused
    control    int64[N_CONTROL]
    go         int64[1]         epoch << 32 | whether the step that began then is to be made
    arrived    uint64[3]        blocks that have come to the choice, blocks that have chosen, blocks
                                that have left a launch: ever; the first and the last are
                                multiples of the number of blocks at rest. A counter each: who
                                leaves early must not be taken for one that has come to a choice
    best       int64[n_seqs, n_blocks]       largest key of each block's logits
    mass       float32[n_seqs, n_blocks, 2]  max, and sum of exp(logit - max)
    partial    uint32[attend.split_shape]    of attention: exchange words
    raw        float32[n_seqs, vocab_size]   logits as the model has them
    logits     float32[n_seqs, vocab_size]   the same, as the sampler has left them
    sampler    of n_seqs rows
    masked     int32[n_seqs]    1 where the host says which tokens may come; see mask.py
    commands   int64[N_COMMANDS, 2]   in pinned memory, written by the host
    answers    int64[N_ANSWERS, 2]    in pinned memory, written by the kernel
    n_taken    int64[1]               in pinned memory: answers that the host has read
    masks      int64[n_seqs, n_mask_words(vocab_size)]   in pinned memory, written by the host
    """

    token_ids: Any
    pos: Any
    row_pos: Any
    seq: Any
    n_left: Any
    stop_ids: Any
    control: Any
    go: Any
    arrived: Any
    best: Any
    mass: Any
    partial: Any
    raw: Any
    logits: Any
    sampler: SamplerState
    masked: Any
    commands: Any
    answers: Any
    n_taken: Any
    masks: Any

    def check(self, n_seqs: int, vocab_size: int) -> None:
        """KernelContractError unless types and shapes are these."""
        for name in ("token_ids", "pos", "row_pos", "seq", "n_left", "masked"):
            check_array(name, getattr(self, name), np.int32, (n_seqs,))
        check_array("stop_ids", self.stop_ids, np.int32, (n_seqs, MAX_STOP_IDS))
        check_array("control", self.control, np.int64, (N_CONTROL,))
        check_array("go", self.go, np.int64, (1,))
        check_array("arrived", self.arrived, np.uint64, (3,))
        check_array("best", self.best, np.int64, (n_seqs, None))
        check_array("mass", self.mass, np.float32, (n_seqs, self.best.shape[1], 2))
        check_array("raw", self.raw, np.float32, (n_seqs, vocab_size))
        check_array("logits", self.logits, np.float32, (n_seqs, vocab_size))
        check_array("commands", self.commands, np.int64, (N_COMMANDS, 2))
        check_array("answers", self.answers, np.int64, (N_ANSWERS, 2))
        check_array("n_taken", self.n_taken, np.int64, (1,))
        check_array("masks", self.masks, np.int64, (n_seqs, n_mask_words(vocab_size)))
        self.sampler.check(vocab_size)
