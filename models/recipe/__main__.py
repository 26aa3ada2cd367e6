"""``python -m models.recipe``."""

from .build import main

main()
