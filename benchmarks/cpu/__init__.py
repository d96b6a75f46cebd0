"""How fast are the kernels for CPUs?"""
