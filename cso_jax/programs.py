"""Compiled programs, kept between runs: a run that goes on, or the next one like it, compiles nothing again."""

import hashlib
import os
import platform
from pathlib import Path

_CPU_FACTS = ("model name", "flags", "Features")  # of /proc/cpuinfo


def keep_programs() -> Path | None:
    """Let JAX keep what it compiles in the user's cache folder; the folder, or None where that is not to be had.

    `JAX_COMPILATION_CACHE_DIR` says where instead, `JAX_ENABLE_COMPILATION_CACHE=false` that nothing is kept. JAX tells
    programs apart by their code, its version and its flags; kinds of CPU, for which they are compiled, are told apart
    here, since machines may share a home. The folder may be deleted at any time.
    """
    import jax

    if given := jax.config.values["jax_compilation_cache_dir"]:
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(caches) / "cso_jax" / "programs" / _kind_of_cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def _kind_of_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = sorted({line for line in lines if line.partition(":")[0].strip() in _CPU_FACTS})
    return f"{platform.machine()}-{hashlib.sha256('|'.join(facts).encode()).hexdigest()[:12]}"
