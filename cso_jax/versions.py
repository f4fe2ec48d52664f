"""Which versions a result was made with."""

import importlib.metadata
import subprocess
from pathlib import Path

_PACKAGES = ("cso_jax", "jax", "mujoco", "metaworld", "robosuite", "hf-libero", "gym-aloha")


def versions() -> dict[str, str]:
    """Versions of what decides a rollout; packages that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that this file lies in, with "+changes" where it was edited; None outside of git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package that was installed into some other project's repository is not of that repository.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = git("rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
