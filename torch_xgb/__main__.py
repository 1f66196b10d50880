# PYTHON_ARGCOMPLETE_OK
"""``python -m torch_xgb``, which is the command ``torch-xgb``."""

from torch_xgb.command.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
