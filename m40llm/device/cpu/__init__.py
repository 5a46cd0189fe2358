"""The `cpu` device: its own ops, FP32, on weights as they lie in the file."""

import os

# Numba's threads (OpenMP) spin a while after each parallel loop, in case another follows at once.
# By default they spin so long that any other program on the same cores halves our speed, or
# worse: beside four busy processes 8 tokens/s instead of 1.5; alone it makes no difference.
# Must be set before the first parallel loop loads the OpenMP library.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
