"""Models of the open_clip package as frame and video-text embedders."""
