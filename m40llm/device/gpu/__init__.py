"""What `cuda` and `emulator` share: the ops, made of the kernels of m40llm/kernels."""
