"""What a name in a study file or on the command line stands for: a path here, or something elsewhere."""

from pathlib import Path


def resolve_path(name: str, *, folder: Path | None) -> str:
    """`name` as an absolute path where it is a file or folder beside the study file or in the working folder."""
    for base in (folder, Path.cwd()):
        if base is not None and (base / name).exists():
            return str((base / name).resolve())
    return name
