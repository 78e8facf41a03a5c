"""HICom's conditional token compressor: a video's features and an instruction in, a few hundred tokens for an LLM out.

`config` says what to build (`paper()`, `release()`, baselines), `hybrid.HybridCompressor` is the model, `interchange`
reads and writes the authors' checkpoint file.
"""
