"""Networks that turn frames, videos and texts into features, loaded from local paths or installed packages."""
