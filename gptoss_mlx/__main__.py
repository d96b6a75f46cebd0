"""`python -m gptoss_mlx` is `gptoss-mlx`."""

from gptoss_mlx.cli.main import main

if __name__ == "__main__":
    main(prog_name="gptoss-mlx")
