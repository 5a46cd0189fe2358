"""The rings through which the host and a resident launch talk (state.py), on the device's side.

look_at_host(w, host)                                    what has come, into shared memory
is_running = take_commands(w, host)                      does what the commands say; one thread
answer(answers, index, slot, token, logprob, done)       one entry of the ring of answers
"""

from functools import cache
from typing import Any, Final

from numba import cuda, float32, int32, int64

from m40llm.kernels.bits import float_as_uint
from m40llm.kernels.intrinsics import load_volatile, store_volatile
from m40llm.kernels.program import state, words
from m40llm.kernels.program.form import N_THREADS
from m40llm.kernels.views import array_at

N_HOST: Final = 5  # int64 of shared memory, for look_at_host; the last is take_commands' own
NOTHING_BEFORE: Final = -1  # in that one, where a launch begins
_LOOKER: Final = N_THREADS - 1


@cuda.jit(device=True)
def answer(answers: Any, index: Any, slot: Any, token: Any, logprob: Any, done: Any) -> None:
    """Entry number `index` of the ring; see state.py."""
    number = (index + int64(1)) & int64(state.NUMBER_MASK)
    at = index % int64(state.N_ANSWERS) * int64(2)
    what = (int64(done) << state.DONE_SHIFT) | (int64(slot) << state.SLOT_SHIFT)
    store_volatile(answers, at, (number << 32) | what | (int64(token) & int64(state.NO_TOKEN)))
    store_volatile(answers, at + int64(1), (number << 32) | int64(float_as_uint(logprob)))


@cuda.jit(device=True, forceinline=True)
def look_at_host(w: Any, host: Any) -> None:
    """What the host has to say, into shared memory: commands taken so far, the next one's two
    words, and how many answers have been read.

    The host's memory is some 2 us away. In a launch of many steps it is looked at while the block
    waits for others to have all logits; a command that comes later is taken a step later. By a
    warp that has nothing else to do.
    """
    if cuda.threadIdx.x == _LOOKER:
        commands = array_at(w[words.COMMANDS], (state.N_COMMANDS, 2), int64)
        n_taken = array_at(w[words.N_TAKEN], (1,), int64)
        control = array_at(w[words.CONTROL], (state.N_CONTROL,), int64)
        taken = load_volatile(n_taken, 0)
        done = control[state.COMMANDS_DONE]
        at = done % int64(state.N_COMMANDS) * int64(2)
        what, count = load_volatile(commands, at), load_volatile(commands, at + int64(1))
        host[0], host[1], host[2], host[3] = done, what, count, taken
    cuda.syncthreads()


@cache
def commands_of(n_seqs: int) -> Any:
    """take_commands(w, host): all that have come; one thread.

    -> 1 if a slot has tokens to make, nobody said STOP or YIELD, the answers of one more step find
    room, and the step before has made one: else all wait for masks, and the host may be gone.
    YIELD ends this launch alone: the slots go on in the next one.
    """

    @cuda.jit(device=True, forceinline=True)
    def take_commands(w: Any, host: Any) -> Any:
        commands = array_at(w[words.COMMANDS], (state.N_COMMANDS, 2), int64)
        answers = array_at(w[words.ANSWERS], (state.N_ANSWERS, 2), int64)
        control = array_at(w[words.CONTROL], (state.N_CONTROL,), int64)
        n_left = array_at(w[words.N_LEFT], (n_seqs,), int32)
        done, what, count, is_yielding = host[0], host[1], host[2], False
        is_stuck = control[state.ANSWERED] == host[4]
        while True:
            number = (done + int64(1)) & int64(state.NUMBER_MASK)
            if what >> 32 != number or count >> 32 != number:
                break
            done += int64(1)
            operation, slot = (what >> 8) & int64(0xFF), what & int64(0xFF)
            if operation == state.STOP:
                control[state.IS_STOPPED] = int64(1)
            elif operation == state.YIELD:
                is_yielding = True
            elif slot < n_seqs:
                if operation == state.DECODE:
                    n_left[slot] = int32(count & int64(0xFFFFFFFF))
                elif n_left[slot] > 0:
                    n_left[slot] = int32(0)
                    index = cuda.atomic.add(control, state.ANSWERED, int64(1))
                    answer(answers, index, slot, state.NO_TOKEN, float32(0), state.CANCELLED)
            at = done % int64(state.N_COMMANDS) * int64(2)
            what, count = load_volatile(commands, at), load_volatile(commands, at + int64(1))
        control[state.COMMANDS_DONE] = done
        is_busy = False
        for slot in range(n_seqs):
            is_busy = is_busy or n_left[slot] > 0
        unread = control[state.ANSWERED] - host[3]
        has_room = unread + int64(2 * n_seqs) <= int64(state.N_ANSWERS)
        is_running = is_busy and has_room and control[state.IS_STOPPED] == int64(0)
        is_running = is_running and not is_yielding and not is_stuck
        host[4] = control[state.ANSWERED]
        return int64(1 if is_running else 0)

    return take_commands
