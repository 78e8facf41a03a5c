"""InternVideo2 stage 2 as a video-text embedder."""
