"""GPU kernels, all Python: Numba CUDA for sm_52. One op a file; nothing here knows the device."""
