"""Which code measured something: the version does not tell two checkouts apart."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_digest() -> str:
    """Of the kernels and of what launches them."""
    root = Path(__file__).parents[2]
    paths = [*root.joinpath("kernels").rglob("*.py"), *root.joinpath("device").rglob("*.py")]
    parts = (f"{path.relative_to(root)}\0".encode() + path.read_bytes() for path in sorted(paths))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:40]
