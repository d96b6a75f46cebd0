"""Released gpt-oss weights -> MLX format, and back.

`python -m convert SOURCE DEST` (installed: `gptoss-convert`). Experts are copied bit for bit,
everything else is kept in bfloat16 or quantized by a recipe. A source is described as pieces of
the released layout (`piece`, `sources/`), a recipe and a layout make a plan (`recipe`, `plan`), and
`destination` writes it so that any interruption can be resumed.
"""
