"""Runs a script with the project's own Python environment, so that nobody has to activate it first.

The scripts of launch/ call use_project_venv() before their first import of an installed package.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def venv_folder() -> Path:
    """The environment that launch/setup.sh makes: $GRAFT_VENV, else .venv at the project root."""
    return Path(os.environ.get("GRAFT_VENV") or ROOT / ".venv")


def use_project_venv() -> None:
    """Starts the running script again under the project's environment, unless that is already so."""
    python = venv_folder() / "bin" / "python"
    if Path(sys.prefix).resolve() == venv_folder().resolve() or not python.exists():
        return
    if os.environ.get("GRAFT_PYTHON_CHOSEN"):
        return
    os.environ["GRAFT_PYTHON_CHOSEN"] = "1"
    os.execv(python, [str(python), *sys.argv])
