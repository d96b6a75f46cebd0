"""One module per operation of the model, each a plain function of arrays.

What stands here now is written in ordinary MLX operations and runs on every device MLX has.
It is also the reference that a faster kernel of the same name must agree with.
"""
