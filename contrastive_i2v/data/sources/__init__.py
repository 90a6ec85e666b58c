"""Dataset formats on disk, one file each: every reader returns `(clips, skipped)`."""

from contrastive_i2v.data.sources.folder import read_folder

__all__ = ["read_folder"]
