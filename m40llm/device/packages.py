"""What a device needs beside a plain install, as a command that works wherever m40llm came from."""

CUDA_PACKAGE = "pip install 'numba-cuda[cu12]>=0.30.4,<0.31'"  # the extra `cuda12`, without us
CUBLAS_PACKAGES = "pip install nvmath-python nvidia-cublas-cu12"  # the extra `cublas`
