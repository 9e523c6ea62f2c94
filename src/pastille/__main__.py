"""``python -m pastille`` is ``pastille``."""

from pastille.cli import main

main()
