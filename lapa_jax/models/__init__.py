"""Models: one file is one model, `class Model(nn.Module)`; `config.model.name` is the module path from here."""
