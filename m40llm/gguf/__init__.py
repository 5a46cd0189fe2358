"""Reading GGUF model files: checked, memory-mapped, and fast on large vocabularies.

with open_gguf("model.gguf") as file:
    file.metadata.get_str("general.architecture")
    file.tensors["token_embd.weight"].shape
    file.tensor_bytes("token_embd.weight")
"""

from m40llm.gguf.directory import TensorInfo
from m40llm.gguf.file import GGUFFile
from m40llm.gguf.metadata import REQUIRED, Metadata
from m40llm.gguf.split import open_gguf

__all__ = ["REQUIRED", "GGUFFile", "Metadata", "TensorInfo", "open_gguf"]
