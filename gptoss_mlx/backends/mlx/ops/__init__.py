"""One module per operation of the model, each a plain function of arrays.

Each has its reference, written in ordinary MLX operations, which runs on every device MLX has; most
have a Metal kernel beside it, which must agree with that. `choice.py` picks.
"""
