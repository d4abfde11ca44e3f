"""Lets a checkout work without installing it: there the adapters lie in `backends/`, beside `xent/`.

A wheel has them at `xent/backends/` and leaves this file out.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "backends")]
