"""``python -m tpudeploy``: the same as the program ``tpudeploy``."""

from tpudeploy.cli.main import main

main()
