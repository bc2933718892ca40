"""Integer graph to object code through LLVM: targets, a small kernel language, instructions with meaning, kernels, driver."""
