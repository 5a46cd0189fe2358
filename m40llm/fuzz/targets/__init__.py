"""One file a kernel of m40llm/kernels, one Target an op; a check reads like a test of it."""
