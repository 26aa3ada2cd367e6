"""Turn a target model and a recurrent drafter into one bundle: python convert.py --help."""

from mlx_redrafter.ui.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
