"""Builds the C kernels of a CPU into the wheel, for every level of this machine's processors; without a C compiler the
wheel has none, and a machine that installs it makes its own or does without."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "opsin_kernels/cpu"


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # made when they are first needed
            return
        source = Path(self.root) / "kernels" / PACKAGE / "build.py"
        spec = importlib.util.spec_from_file_location("opsin_build", source)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        folder = Path(self.directory) / ".kernels"
        try:
            made = [build.build(level, folder) for level in build.levels()]
        except build.NoCompilerError as error:
            self.app.display_warning(f"no C kernels in this wheel: {error}")
            return
        build_data["force_include"] |= {str(path): f"{PACKAGE}/{path.name}" for path in made}
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["pure_python"] = False
