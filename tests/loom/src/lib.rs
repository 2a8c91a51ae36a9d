//! Models of the engine's threads, which `loom` runs under every interleaving within their bounds. See `tests`.
