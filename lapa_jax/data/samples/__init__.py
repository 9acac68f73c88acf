"""What a model learns from, as index computations over step shards. Each kind is a module; `data.samples` names it."""
