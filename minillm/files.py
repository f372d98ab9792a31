"""Files that are either the old one or the new one, never half of one."""
import os
import tempfile
from pathlib import Path

from minillm.errors import MiniLLMError


def write_whole(path: str | os.PathLike, content: bytes | str) -> Path:
    """Write to a temporary name in the same folder, sync, rename; makes the folder. MiniLLMError if it cannot be written."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise MiniLLMError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise MiniLLMError(f"cannot write {path}: {error.strerror}; the file that was there is as it was") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def check_folder(folder: str | os.PathLike) -> None:
    """Make a folder and see that files can be written there, before minutes of work are spent on what will go into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MiniLLMError(f"cannot write into {folder}: {error.strerror}; choose a folder that can be written") from error


def current_umask() -> int:
    """The permissions that new files do not get; mkstemp gives them to the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
