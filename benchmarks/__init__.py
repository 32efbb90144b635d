"""Runs that measure, side by side or at full size; their results lie in ``results/``.

Importing the package first sets the thread policy before any script here imports torch.
"""

import starling_nb  # noqa: F401
