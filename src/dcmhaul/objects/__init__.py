"""An instance as bytes: Part-10 files, paths, sources, sinks, synthetic studies."""
