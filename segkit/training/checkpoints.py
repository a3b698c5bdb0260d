"""How Lightning writes checkpoints: as segkit writes all files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from segkit.io.files import atomic_write


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints that are complete under their names, or do not exist.

    Lightning's own are written to the system's temporary folder, and copied from there if it is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; an existing one is replaced by a complete one.

        Raises
        ------
        OutputError
            It could not be written.
        """
        content = io.BytesIO()  # to a file, torch does not say why it could not be written
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(exist_ok=True)
        with atomic_write(path) as part:
            part.write_bytes(content.getvalue())
