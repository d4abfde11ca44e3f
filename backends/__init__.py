"""The adapters: a file or a folder a framework, with equal names in each; and the native kernels (cpu, triton)."""
