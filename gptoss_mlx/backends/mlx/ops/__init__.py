"""One module per operation of the model, each a plain function of arrays.

Each has its reference, written in ordinary MLX operations, which runs on every device MLX has. Most
also have a Metal kernel, which must agree with the reference. `choice.py` chooses between them.
"""
